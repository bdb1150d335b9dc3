"""A weight as integers for one form: the scales that lose least, along the axis or the blocks that lose least."""

from __future__ import annotations

import numpy as np

from onnxcompress.difference import sqnr_db
from onnxcompress.operators.layer import RECURRENT
from onnxcompress.passes.quantize.blocks import SEARCHED, Blocks, blocks_of
from onnxcompress.passes.quantize.found import Form, Stored, Weight
from onnxcompress.passes.quantize.grid import LEAST, MOST, SMALLEST_SCALE, symmetric_grid
from onnxcompress.passes.quantize.pen import Rounded
from onnxcompress.passes.quantize.portable import Pairing, pairing
from onnxcompress.passes.quantize.rows import weight_axis
from onnxcompress.passes.quantize.steps import restrict

BLOCK = 32
"""Of four bits, where nobody says: one scale more for 16 bytes."""

FOUR = {"MatMul", "Gemm", "Gather", *RECURRENT}
"""What four bits are for. Convolutions get eight: with four, ppocr-rec came out at 6.5 dB for 19.7, at 1/4.7 of its size for 1/3.7."""


def integers(
    values: np.ndarray, weight: Weight, form: Form, *, bits: int, block: int | None, portable: bool
) -> Stored | None:
    """The integers of one weight; None where the form has none with so many bits.

    block     neighbours that share a scale; None: a channel does
    portable  integer products must not leave 16 bits (portable.py)
    """
    if form == "dynamic":
        return _by_channel(values, weight, portable) if bits == 8 and block is None else None
    if block is None and form == "run" and weight.op == "MatMul" and weight.inside:
        return None  # onnxruntime 1.32 makes blocks of a channel where its levels lie in the same body, and else fails to load
    if block is None:
        return _best(values, weight)
    turned = form == "run" and weight.op == "MatMul"
    matrix = values.T if turned else values.reshape(-1, _row(values.shape, block))
    size = _block(matrix.shape[1], block, power=form == "run")
    if size is None or values.size % 2:
        return None
    return blocks_of(matrix, bits, size, SEARCHED if bits == 4 else (1.0,))


def decibel(values: np.ndarray, stored: Stored, weight: Weight, form: Form) -> float:
    """SQNR of the rounded weight."""
    error = float(np.square(decoded(stored, values.shape, weight, form) - values, dtype=np.float64).sum())
    power = float(np.square(values, dtype=np.float64).sum())
    return sqnr_db(power, error)


def decoded(stored: Stored, shape: tuple[int, ...], weight: Weight, form: Form) -> np.ndarray:
    """The floats that the integers stand for, float32, in the layout of the initializer."""
    if isinstance(stored, Rounded):
        return stored.grid.values(stored.levels)
    return like_initializer(stored.values(), shape, weight, form)


def like_initializer(part: np.ndarray, shape: tuple[int, ...], weight: Weight, form: Form) -> np.ndarray:
    """Numbers in the layout of blocks -> that of the initializer, of this shape; and the other way round."""
    return part.T if form == "run" and weight.op == "MatMul" else part.reshape(shape)


def by_block(stored: Blocks) -> np.ndarray:
    """The scale of each weight, in the layout of the blocks."""
    return np.repeat(stored.scale, stored.block, axis=1)


def size_of(stored: Stored) -> int:
    """Bytes of levels and scales."""
    bits, scale = (stored.bits, stored.scale) if isinstance(stored, Blocks) else (8, stored.grid.scale)
    return stored.levels.size * bits // 8 + scale.nbytes


# -- blocks ------------------------------------------------------------------------------------------------------------


def _row(shape: tuple[int, ...], block: int) -> int:
    """Neighbours in memory that may share scales: the last axis, joined with those before it until a block fits."""
    width = 1
    for size in reversed(shape[1:]):
        width *= size
        if width >= block // 2 and _block(width, block, power=False) is not None:
            return width
    return width


def _block(width: int, block: int, *, power: bool) -> int | None:
    """The largest block that fits into a row and is no larger than asked for, nor less than half; a channel that is short.

    power  a power of two, 16 or more, as the kernels ask for
    """
    if power:
        sizes = [1 << n for n in range(4, 20) if 1 << n <= block and width % (1 << n) == 0]
        return max(sizes, default=None)
    if width <= block:
        return width
    return next((size for size in range(block, block // 2 - 1, -1) if width % size == 0), None)


# -- channels ----------------------------------------------------------------------------------------------------------


def _best(values: np.ndarray, weight: Weight) -> Rounded:
    """int8 with scales along the layer's own axis; along the one that loses least where it has none, or only picks rows.

    What rounding loses is a twelfth of a squared step an entry, and a step goes with the largest entry that shares it.
    """
    layer = weight.layer
    if layer is not None and layer.op != "Gather" and weight_axis(layer) is not None:
        return _along(values, weight_axis(layer), None)

    def lost(axis: int) -> float:
        others = tuple(other for other in range(values.ndim) if other != axis)
        return float(np.square(np.abs(values).max(axis=others), dtype=np.float64).mean())

    wide = [axis for axis in range(values.ndim) if 1 < values.shape[axis] <= values.size // 8]
    return _along(values, min(wide, key=lost, default=None), None)


def _by_channel(values: np.ndarray, weight: Weight, portable: bool) -> Rounded:
    """int8 for integer products: a scale an output channel (a gate row), no pair of neighbours that overflows."""
    layer = weight.layer
    assert layer is not None
    if layer.op in RECURRENT:
        return _along(values, 1, _of_gates(values.shape) if portable else None)
    matrix = layer.matrix(values)
    axis = layer.order[0]
    return _along(values, axis, pairing(layer.op, matrix.shape) if portable else None)


def _of_gates(shape: tuple[int, ...]) -> Pairing:
    """Pairs of [directions, gates, in] with all directions of a gate row in one row: neighbours of one direction."""
    directions, _, width = shape
    starts = np.arange(directions)[:, None] * width + np.arange(0, width - 1, 2)
    return Pairing(np.stack([starts, starts + 1], axis=2).reshape(-1, 2), np.full(directions * width, 255.0))


def _along(values: np.ndarray, axis: int | None, pairs: Pairing | None) -> Rounded:
    """int8 on one scale for each index of an axis, or one for all."""
    moved = values[None] if axis is None else np.moveaxis(values, axis, 0)
    rows = moved.reshape(len(moved), -1)
    top = np.maximum(rows.max(axis=1, initial=0.0), -rows.min(axis=1, initial=0.0))
    tiny = top < SMALLEST_SCALE  # a float32 scale for these would be no normal number
    fitted = restrict(np.where(tiny[:, None], 0.0, rows) if tiny.any() else rows, LEAST, MOST, pairs)
    scale = fitted.scale.astype(np.float32)
    scale[tiny] = scale[~tiny].min(
        initial=1.0
    )  # kernels add 128 steps to each level and take them off again, in floats
    levels = fitted.levels.reshape(moved.shape)
    if axis is None:
        levels, scale = levels[0], scale[0].reshape(())
    else:
        levels = np.moveaxis(levels, 0, axis)
    return Rounded(levels, symmetric_grid(scale, axis))
