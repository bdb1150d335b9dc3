"""A layer's weight to integer levels: the scale a channel that loses least, no pair that saturates, the bias corrected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcompress.difference import sqnr_db
from onnxcompress.evidence.kinds import Mean, Moments
from onnxcompress.model import Model
from onnxcompress.operators.layer import Layer
from onnxcompress.passes.quantize.filled import pairs_written
from onnxcompress.passes.quantize.grid import LEAST, MOST, Grid, symmetric_grid
from onnxcompress.passes.quantize.portable import Pairing, safe_levels
from onnxcompress.passes.quantize.rounding import bias_shift
from onnxcompress.passes.quantize.rows import weight_axis
from onnxcompress.passes.quantize.steps import Restricted, restrict, scales


@dataclass(frozen=True, eq=False)
class Leveled:
    """levels in the stored layout, their grid, the corrected bias; sqnr_db of the weight, cost_db of portability.

    held_out_db  SQNR of the layer's output with nearest levels and with these, on held-out rows, where that was measured
    """

    levels: np.ndarray
    grid: Grid
    bias: np.ndarray | None
    sqnr_db: float
    cost_db: float
    held_out_db: tuple[float, float] | None = None


def leveled(model: Model, layer: Layer, *, portable: bool, seen: Mean | Moments | None) -> Leveled:
    """int8 levels of one weight.

    portable  no two neighbouring products leave 16 bits (portable.py)
    seen      mean of what the layer reads, along its channels; None: the bias stays
    """
    stored = model.array(layer.weight)
    matrix = layer.matrix(stored)
    rows = matrix.reshape(len(matrix), -1)
    pairs = pairs_of(layer, matrix, portable)
    axis = weight_axis(layer)
    fitted = restrict(rows, LEAST, MOST, pairs) if axis is not None else _one_scale(rows.astype(np.float64), pairs)
    bias = _bias(model, layer, rows, fitted, matrix.shape, seen)
    return made(layer, stored, fitted.levels, fitted.scale, axis, bias, fitted.cost_db)


STRIP = 1 << 18
"""Weights that are held in float64 at once: 2 MB, three times over; of the widest layers, all of them would take gigabytes."""


def strips(shape: tuple[int, ...]) -> list[slice]:
    """Neighbouring rows of a matrix, about STRIP weights at a time."""
    step = max(1, STRIP // max(shape[1], 1))
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def pairs_of(layer: Layer, matrix: np.ndarray, portable: bool) -> Pairing | None:
    """Which weights of a layer share 16 bits; matrix as Layer.matrix gives it."""
    return pairs_written(layer.op, matrix.shape, layer.groups) if portable else None


def made(
    layer: Layer,
    stored: np.ndarray,
    levels: np.ndarray,
    scale: np.ndarray,
    axis: int | None,
    bias: np.ndarray | None,
    cost_db: float,
) -> Leveled:
    """Levels [out, row] and scales [out] of the weight `stored`, in its layout; `axis` of the channels, None: one scale."""
    matrix = layer.matrix(stored)
    rows = matrix.reshape(len(matrix), -1)
    error = power = 0.0
    for part in strips(rows.shape):
        exact = rows[part].astype(np.float64)
        error += float(((levels[part] * scale[part, None] - exact) ** 2).sum())
        power += float((exact**2).sum())
    kept = scale.astype(np.float32) if axis is not None else np.asarray(scale[0], np.float32)
    grid = symmetric_grid(kept, axis)
    whole = layer.stored(levels.reshape(matrix.shape), stored).astype(np.int8, copy=False)
    return Leveled(whole, grid, bias, sqnr_db(power, error), cost_db)


def _one_scale(rows: np.ndarray, pairs: Pairing | None) -> Restricted:
    """One scale for all channels, for the layouts where the kernels know no other."""
    whole, _ = scales(rows.reshape(1, -1), LEAST, MOST)
    scale = np.full(len(rows), whole[0])
    levels = safe_levels(rows / whole[0], LEAST, MOST, pairs)
    free = np.clip(np.rint(rows / whole[0]), LEAST, MOST)
    lost, unrestricted = (((each * whole[0] - rows) ** 2).sum(axis=1) for each in (levels, free))
    return Restricted(levels.astype(np.int32), scale, lost, unrestricted, int((levels != free).any(axis=1).sum()))


def _bias(
    model: Model,
    layer: Layer,
    rows: np.ndarray,
    fitted: Restricted,
    shape: tuple[int, ...],
    seen: Mean | Moments | None,
) -> np.ndarray | None:
    """The bias that keeps the mean output, as stored; zero padding is not counted."""
    if seen is None or layer.bias is None:
        return None
    stored = model.array(layer.bias)
    kernel = int(np.prod(shape[2:]))
    mean = np.repeat(seen.mean.reshape(layer.groups, -1), kernel, axis=1)
    if mean.shape[1] != rows.shape[1] or stored.size != len(rows):
        return None
    if layer.groups > 1:
        shift = bias_shift(rows.astype(np.float64), fitted.levels * fitted.scale[:, None], mean)
    else:
        shift = np.concatenate(
            [
                bias_shift(rows[part].astype(np.float64), fitted.levels[part] * fitted.scale[part, None], mean[0])
                for part in strips(rows.shape)
            ]
        )
    return (stored.astype(np.float64) + shift.reshape(stored.shape)).astype(stored.dtype)
