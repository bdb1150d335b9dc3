"""A layer's weight to integer levels: the scale a channel that loses least, no pair that saturates, the bias corrected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcompress.evidence.kinds import Moments
from onnxcompress.model import Model
from onnxcompress.operators.layer import Layer
from onnxcompress.passes.quantize.grid import Grid
from onnxcompress.passes.quantize.portable import Restricted, pairing, restrict, safe_levels, scales
from onnxcompress.passes.quantize.rounding import bias_shift
from onnxcompress.passes.quantize.rows import weight_axis

LEAST, MOST = -127, 127
"""int8 without -128, so that -w is there for every w."""


@dataclass(frozen=True, eq=False)
class Leveled:
    """levels in the stored layout, their grid, the corrected bias; sqnr_db of the weight, cost_db of portability."""

    levels: np.ndarray
    grid: Grid
    bias: np.ndarray | None
    sqnr_db: float
    cost_db: float


def leveled(model: Model, layer: Layer, *, portable: bool, seen: Moments | None) -> Leveled:
    """int8 levels of one weight.

    portable  no two neighbouring products leave 16 bits (portable.py)
    seen      moments of what the layer reads, along its channels; None: the bias stays
    """
    stored = model.array(layer.weight)
    matrix = layer.matrix(stored).astype(np.float64)
    rows = matrix.reshape(len(matrix), -1)
    pairs = pairing(layer.op, matrix.shape, layer.groups) if portable else None
    axis = weight_axis(layer)
    fitted = restrict(rows, LEAST, MOST, pairs) if axis is not None else _one_scale(rows, pairs)
    values = fitted.levels * fitted.scale[:, None]
    error, power = float(((values - rows) ** 2).sum()), float((rows**2).sum())
    sqnr = float(10 * np.log10(power / error)) if error > 0 and power > 0 else float("inf")
    scale = fitted.scale.astype(np.float32)
    if axis is None:
        scale = scale[0].reshape(())
    grid = Grid(scale, np.zeros(scale.shape, np.int64), "int8", axis, LEAST, MOST)
    levels = layer.stored(fitted.levels.reshape(matrix.shape), stored).astype(np.int32)
    return Leveled(levels, grid, _bias(model, layer, rows, values, matrix.shape, seen), sqnr, fitted.cost_db)


def _one_scale(rows: np.ndarray, pairs: object) -> Restricted:
    """One scale for all channels, for the layouts where the kernels know no other."""
    whole, _ = scales(rows.reshape(1, -1), LEAST, MOST)
    scale = np.full(len(rows), whole[0])
    levels = safe_levels(rows / whole[0], LEAST, MOST, pairs)  # type: ignore[arg-type]
    free = np.clip(np.rint(rows / whole[0]), LEAST, MOST)
    lost, unrestricted = (((each * whole[0] - rows) ** 2).sum(axis=1) for each in (levels, free))
    return Restricted(levels.astype(np.int32), scale, lost, unrestricted, int((levels != free).any(axis=1).sum()))


def _bias(
    model: Model, layer: Layer, rows: np.ndarray, values: np.ndarray, shape: tuple[int, ...], seen: Moments | None
) -> np.ndarray | None:
    """The bias that keeps the mean output, as stored; zero padding is not counted."""
    if seen is None or layer.bias is None:
        return None
    stored = model.array(layer.bias)
    kernel = int(np.prod(shape[2:]))
    mean = np.repeat(seen.mean.reshape(layer.groups, -1), kernel, axis=1)
    if mean.shape[1] != rows.shape[1] or stored.size != len(rows):
        return None
    shift = bias_shift(rows, values, mean[0] if layer.groups == 1 else mean)
    return (stored.astype(np.float64) + shift.reshape(stored.shape)).astype(stored.dtype)
