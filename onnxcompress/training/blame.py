"""Where a loss that is not finite comes from: the first value of the forward pass, else the last gradient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxcompress.errors import DivergedError
from onnxcompress.evidence.expose import exposed
from onnxcompress.model import Model
from onnxcompress.runtime.session import open_session
from onnxcompress.training.graph import GRADIENT
from onnxcompress.training.pen import is_float


def blamed(
    model: Model, feed: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], place: str, checkpoint: Path | None
) -> DivergedError:
    """The error: batch, layer and what to do. `given` are the outputs of the step graph."""
    where = _forward(model, feed) or _backward(given) or "the loss itself"
    kept = "" if checkpoint is None or not checkpoint.exists() else f"; the last good epoch is in {checkpoint}"
    loss = float(given["loss"])
    return DivergedError(
        f"{place}: the loss is {loss:g}, not a finite number with finite gradients: first in {where}; give a lower --rate or "
        f"--clip 1{kept}"
    )


def _forward(model: Model, feed: Mapping[str, np.ndarray]) -> str | None:
    """The first node of the student whose output is not finite."""
    nodes = {value.name or "": node for node in model.ir.graph for value in node.outputs if is_float(value)}
    shown = exposed(model, list(nodes))
    session = open_session(shown.model, optimise=False, early=True, name=model.source.name)
    wrong = {name for name, array in session.stream(feed) if not np.isfinite(array).all()}
    return next((f"{node.op_type} {node.name!r}" for name, node in nodes.items() if name in wrong), None)


def _backward(given: Mapping[str, np.ndarray]) -> str | None:
    """The last parameter in the order of the graph whose gradient is not finite: gradients come from behind."""
    wrong = [n for n, array in given.items() if n.startswith(GRADIENT) and not np.isfinite(array).all()]
    return f"the gradient of {wrong[-1].removeprefix(GRADIENT)!r}" if wrong else None
