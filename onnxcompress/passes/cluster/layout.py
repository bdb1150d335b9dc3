"""From rows of a layer to the stored tensor and back: a Coded of symbols [out, row] and their books; and its arrays in a Plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcompress.operators.layer import Layer
from onnxcompress.passes.cluster.books import Books
from onnxcompress.weights.coded import Coded


def along(layer: Layer) -> int | None:
    """The axis of the stored weight along which its rows lie; None where they lie along several, or inside one."""
    return layer.order[0] if layer.outs == 1 and layer.repeats == 1 else None


def coded(layer: Layer, like: np.ndarray, symbols: np.ndarray, books: Books, form: str = "auto") -> Coded:
    """Symbols uint8 [out, row] of a layer as they are stored in a tensor like `like`.

    Several books or scales need rows along one axis (`along`); ValueError where they do not lie so.
    """
    flat = np.ascontiguousarray(layer.stored(symbols.reshape(layer.matrix(like).shape), like)).reshape(-1)
    axis, several = along(layer), len(books.entries) > 1
    if axis is None and (several or books.scales is not None):
        raise ValueError(f"{layer.name}: its rows lie along several axes")
    return Coded(
        like.shape,
        flat.astype(np.uint8),
        books.entries.astype(like.dtype)[:, :, None],
        None if books.scales is None else books.scales.astype(like.dtype),
        books.of(len(symbols)) if several else None,
        axis or 0,
        form,
    )


PARTS = ("symbols", "books", "scales", "groups")


def arrays_of(name: str, each: Coded) -> dict[str, np.ndarray]:
    """What a plan keeps of a coded tensor, by key."""
    parts = {f"{part}/{name}": getattr(each, part) for part in PARTS}
    return {key: values for key, values in parts.items() if values is not None}


def read(decision: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Coded:
    """The coded tensor of a decision with `weight`, `shape`, `axis` and `form`."""
    parts = {part: arrays.get(f"{part}/{decision['weight']}") for part in PARTS}
    return Coded(shape=tuple(decision["shape"]), axis=decision["axis"], form=decision["form"], **parts)  # type: ignore[arg-type]
