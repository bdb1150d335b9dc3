"""Along which axis the rows of a layer lie in its stored tensor; a coded tensor as arrays of a Plan, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcompress.operators.layer import Layer
from onnxcompress.weights.coded import Coded


def along(layer: Layer) -> int | None:
    """The axis of the stored weight along which its rows lie; None where they lie along several, or inside one."""
    return layer.order[0] if layer.outs == 1 and layer.repeats == 1 else None


PARTS = ("symbols", "books", "scales", "groups")


def arrays_of(name: str, each: Coded) -> dict[str, np.ndarray]:
    """What a plan keeps of a coded tensor, by key."""
    parts = {f"{part}/{name}": getattr(each, part) for part in PARTS}
    return {key: values for key, values in parts.items() if values is not None}


def read(decision: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Coded:
    """The coded tensor of a decision with `weight`, `shape`, `axis` and `form`."""
    parts = {part: arrays.get(f"{part}/{decision['weight']}") for part in PARTS}
    told = {"axis": decision["axis"], "form": decision["form"], "states": decision.get("states", 1)}
    return Coded(shape=tuple(decision["shape"]), **told, **parts)  # type: ignore[arg-type]
