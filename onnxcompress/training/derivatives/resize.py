"""Derivative of nearest Resize: each axis is a lookup, so the gradient adds up what each entry was copied to.

ONNX maps output place i to the input place x by coordinate_transformation_mode, and x to a whole number by nearest_mode.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of
from onnxcompress.training.derivatives.site import Gradients, Site
from onnxcompress.training.pen import Pen, element_of, shape_of

PLACES: dict[str, Callable[[np.ndarray, np.float32, int, int], np.ndarray]] = {
    "half_pixel": lambda i, scale, size, out: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, size, out: (i + 0.5) / scale - 0.5 if out > 1 else i * 0.0,
    "asymmetric": lambda i, scale, size, out: i / scale,
    "align_corners": lambda i, scale, size, out: i * (size - 1) / (out - 1) if out > 1 else i * 0.0,
}
"""coordinate_transformation_mode -> (output places, scale, input size, output size) -> input places, in float32 as
onnxruntime has it: where a place lies half-way, the last bit decides."""

ROUNDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
"""nearest_mode -> whole numbers."""


def resize(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Whole repeats by Reshape and ReduceSum; any other lookup by a product with the matrix of ones that it is."""
    mode = at.attribute("mode", "nearest")
    if mode != "nearest":
        raise at.refused(f"mode {mode!r}: only nearest has a row")
    shape, target = at.shape(0), shape_of(at.y)
    for axis, (size, out) in enumerate(zip(shape, target, strict=True)):
        if size != out:
            dy = _added_up(op, dy, axis, size, _taken(at, axis, size, out))
    return [dy, *[None] * (len(at.node.inputs) - 1)]


def _taken(at: Site, axis: int, size: int, out: int) -> np.ndarray:
    """[out]: the input place that each output place copies."""
    places = PLACES.get(at.attribute("coordinate_transformation_mode", "half_pixel"))
    if places is None:
        raise at.refused(f"coordinate_transformation_mode {at.attribute('coordinate_transformation_mode', '')!r}")
    found = places(np.arange(out, dtype=np.float32), np.float32(_scale(at, axis, size, out)), size, out)
    rounded = ROUNDS[at.attribute("nearest_mode", "round_prefer_floor")](found)
    return np.clip(rounded, 0, size - 1).astype(np.int64)


def _scale(at: Site, axis: int, size: int, out: int) -> float:
    """As given; out / size where sizes are."""
    scales = constant_of(at.x[2]) if at.has(2) else None
    axes = at.attribute("axes", list(range(len(at.shape(0)))))
    if scales is None or not scales.size or axis not in axes:
        return out / size
    return float(scales.reshape(-1)[axes.index(axis)])


def _added_up(op: Pen, dy: ir.Value, axis: int, size: int, taken: np.ndarray) -> ir.Value:
    shape = list(shape_of(dy))
    repeats, left = divmod(len(taken), size)
    if not left and np.array_equal(taken, np.arange(len(taken)) // repeats):
        apart = op.Reshape(dy, [*shape[:axis], size, repeats, *shape[axis + 1 :]])
        return op.ReduceSum(apart, [axis + 1], keepdims=0)  # type: ignore[no-any-return]
    ones = (np.arange(size)[:, None] == taken).astype(element_of(dy))  # [size, out]
    lined = op.Reshape(dy, [*shape[:axis], shape[axis], -1])
    return op.Reshape(op.MatMul(op.constant(ones), lined), [*shape[:axis], size, *shape[axis + 1 :]])  # type: ignore[no-any-return]
