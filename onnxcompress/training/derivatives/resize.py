"""Derivative of Resize: along each axis it is a product with a constant matrix, so the gradient is one with that transposed.

ONNX maps output place i to the input place x by coordinate_transformation_mode. nearest takes one entry near x, linear two, cubic four
(Keys 1981, doi:10.1109/TASSP.1981.1163711); with antialias the same kernels are as wide as the steps between places.
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
    "half_pixel_symmetric": lambda i, scale, size, out: size / 2 * (1 - out / (scale * size)) + (i + 0.5) / scale - 0.5,
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
    """Whole repeats by Reshape and ReduceSum; anything else by one MatMul an axis."""
    shape, target = at.shape(0), shape_of(at.y)
    for axis, (size, out) in enumerate(zip(shape, target, strict=True)):
        if size != out:
            dy = _added_up(op, dy, axis, _weights(at, axis, size, out))
    return [dy, *[None] * (len(at.node.inputs) - 1)]


def _weights(at: Site, axis: int, size: int, out: int) -> np.ndarray:
    """[out, size]: how much each output place takes of each input place."""
    kind = at.attribute("coordinate_transformation_mode", "half_pixel")
    if kind not in PLACES:
        raise at.refused(f"coordinate_transformation_mode {kind!r}")
    scale = np.float32(_scale(at, axis, size, out))
    places = PLACES[kind](np.arange(out, dtype=np.float32), scale, size, out)
    mode = at.attribute("mode", "nearest")
    if mode == "nearest":
        rounded = ROUNDS[at.attribute("nearest_mode", "round_prefer_floor")](places)
        return _at(np.clip(rounded, 0, size - 1)[:, None], np.ones((out, 1)), size)
    narrow = min(float(scale), 1.0) if at.attribute("antialias", 0) else 1.0
    return _blended(places.astype(np.float64), mode, narrow, size, at)


def _blended(places: np.ndarray, mode: str, narrow: float, size: int, at: Site) -> np.ndarray:
    """linear or cubic: the kernel at the distance of each entry, `narrow` times as fast; entries beyond the ends are the last ones."""
    reach = 1 if mode == "linear" else 2
    if mode == "linear" and not at.attribute("antialias", 0):
        places = np.clip(places, 0, size - 1)
    wide = int(np.ceil(reach / narrow))
    taps = np.floor(places)[:, None] + np.arange(1 - wide, wide + 1)
    distance = np.abs(taps - places[:, None]) * narrow
    kernel = np.maximum(1 - distance, 0) if mode == "linear" else _cubic(distance, at.attribute("cubic_coeff_a", -0.75))
    if at.attribute("exclude_outside", 0):
        kernel *= (taps >= 0) & (taps < size)
    return _at(np.clip(taps, 0, size - 1), kernel / kernel.sum(1, keepdims=True), size)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _at(taps: np.ndarray, kernel: np.ndarray, size: int) -> np.ndarray:
    """[out, size] from the places that each output reads and their weights, both [out, taps]."""
    found = np.zeros((len(taps), size))
    np.add.at(found, (np.arange(len(taps))[:, None], taps.astype(np.int64)), kernel)
    return found


def _scale(at: Site, axis: int, size: int, out: int) -> float:
    """As given; out / size where sizes are, and of the axis that decides where the aspect ratio is kept."""
    axes = [each % len(at.shape(0)) for each in at.attribute("axes", list(range(len(at.shape(0)))))]
    policy = at.attribute("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch" and at.has(3):
        ratios = [wanted / at.shape(0)[each] for wanted, each in zip(at.ints(3), axes, strict=True)]
        return min(ratios) if policy == "not_larger" else max(ratios)
    scales = constant_of(at.x[2]) if at.has(2) else None
    if scales is None or not scales.size or axis not in axes:
        return out / size
    return float(scales.reshape(-1)[axes.index(axis)])


def _added_up(op: Pen, dy: ir.Value, axis: int, weights: np.ndarray) -> ir.Value:
    shape, (out, size) = list(shape_of(dy)), weights.shape
    repeats = out // size
    if repeats * size == out and np.array_equal(weights, np.repeat(np.eye(size), repeats, axis=0)):
        apart = op.Reshape(dy, [*shape[:axis], size, repeats, *shape[axis + 1 :]])
        return op.ReduceSum(apart, [axis + 1], keepdims=0)  # type: ignore[no-any-return]
    matrix = weights.astype(element_of(dy))
    if axis == len(shape) - 1:
        return op.MatMul(dy, op.constant(matrix))  # type: ignore[no-any-return]
    lined = op.Reshape(dy, [*shape[: axis + 1], -1])
    return op.Reshape(op.MatMul(op.constant(matrix.T), lined), [*shape[:axis], size, *shape[axis + 1 :]])  # type: ignore[no-any-return]
