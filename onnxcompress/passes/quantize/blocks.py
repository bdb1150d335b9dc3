"""Weights in blocks of neighbours that share a scale, and nodes that turn any stored weight back into floats at load.

Four bits are stored two a byte: the first half of the tensor in the low bits, the second half in the high ones. Shifts and a
Concat unpack them in any opset (INT4 tensors need 21), and onnxruntime folds all of it when it loads the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.passes.quantize.pen import Pen, Rounded

SEARCHED = tuple(np.linspace(1.0, 0.7, 11))
"""Shares of the full range that are tried for four bits: the best clips the entries that are furthest from zero."""

AT_ONCE = 1 << 17
"""Weights that the search holds at once, so that they stay in a core's cache."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix in blocks along its rows, each with a scale of its own: (level − 2^(bits−1)) · scale.

    levels  uint8 [rows, width], 0 to 2^bits − 1        scale  float32 [rows, width / block], of either sign
    """

    levels: np.ndarray
    scale: np.ndarray
    bits: int
    block: int

    def values(self) -> np.ndarray:
        """float32 [rows, width]."""
        centred = self.levels.astype(np.float32) - np.float32(2.0 ** (self.bits - 1))
        return (centred.reshape(len(centred), -1, self.block) * self.scale[:, :, None]).reshape(centred.shape)


def blocks_of(matrix: np.ndarray, bits: int, block: int, shares: Sequence[float] = (1.0,)) -> Blocks:
    """Nearest levels; the entry furthest from zero of each block takes the one level that has no opposite.

    matrix  [rows, width], width a multiple of block         bits  4 or 8
    shares  of the scale that holds all entries: the one of least squared error is taken for each block (SEARCHED)
    """
    step = max(1, AT_ONCE // max(matrix.shape[1], 1))
    parts = [
        _blocks(matrix[start : start + step], bits, block, shares) for start in range(0, max(len(matrix), 1), step)
    ]
    levels, scale = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    return Blocks(levels.reshape(matrix.shape), scale, bits, block)


def _blocks(matrix: np.ndarray, bits: int, block: int, shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Levels [rows, blocks, block] and scales [rows, blocks] of a few rows."""
    half = 2 ** (bits - 1)
    split = matrix.reshape(len(matrix), matrix.shape[1] // block, block).astype(np.float32)
    far = np.take_along_axis(split, np.abs(split).argmax(axis=2, keepdims=True), axis=2)
    full = np.where(far == 0, np.float32(1), far / -half).astype(np.float32)
    scale, best = full, np.full(full.shape, np.inf, np.float32)
    for share in shares if len(shares) > 1 else ():
        tried = (full * np.float32(share)).astype(np.float32)
        real = split / tried
        lost = np.square(np.clip(np.rint(real), -half, half - 1) - real).sum(axis=2, keepdims=True) * tried**2
        scale, best = np.where(lost < best, tried, scale), np.minimum(best, lost)
    levels = np.clip(np.rint(split / scale) + half, 0, 2 * half - 1).astype(np.uint8)
    return levels, scale[:, :, 0]


def packed(stored: Blocks) -> np.ndarray:
    """uint8 [rows, width], or [rows, width / 2] with neighbours in one byte, the first one low: the order of onnxruntime's kernels."""
    levels = stored.levels
    return levels if stored.bits == 8 else (levels[:, 0::2] | (levels[:, 1::2] << 4)).astype(np.uint8)


def tied(levels: np.ndarray, other: np.ndarray) -> str:
    """How the levels of one weight come out of those of another: "Reshape" (as they lie), "Transpose", or "" for not at all."""
    if levels.dtype != other.dtype or levels.size != other.size:
        return ""
    if np.array_equal(levels.reshape(-1), other.reshape(-1)):
        return "Reshape"
    return "Transpose" if levels.ndim == other.ndim == 2 and np.array_equal(levels, other.T) else ""


def halved(levels: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [n], or [n / 2] with the first half of them in the low bits: what shifts and a Concat unpack."""
    half = len(levels) // 2
    return levels if bits == 8 else (levels[:half] | (levels[half:] << 4)).astype(np.uint8)


def rebuilt(pen: Pen, name: str, stored: Rounded | Blocks, shape: Sequence[int]) -> ir.Value:
    """The weight `name` as floats, from integers, at the head of the graph, where bodies see it too; folded at load."""
    head = pen.graph.graph[0]
    if isinstance(stored, Blocks):
        result = _floats(pen, head, halved(stored.levels.reshape(-1), stored.bits), name, stored.bits)
        result = _shaped(pen, head, result, name, (-1, stored.block))
        scale = pen.constant(f"{name}.scale", stored.scale.reshape(-1, 1))
        result = _shaped(pen, head, _step(pen, head, "Mul", [result, scale], name), name, shape)
    else:
        grid, along = stored.grid, [1] * len(shape)
        if grid.axis is not None:
            along[grid.axis] = -1
        result = _step(pen, head, "Cast", [pen.constant(f"{name}.levels", stored.levels.astype(grid.kind))], name, to=1)
        if np.any(grid.zero):
            zero = pen.constant(f"{name}.zero", np.asarray(grid.zero, np.float32).reshape(along))
            result = _step(pen, head, "Sub", [result, zero], name)
        scale = pen.constant(f"{name}.scale", np.asarray(grid.scale, np.float32).reshape(along))
        result = _step(pen, head, "Mul", [result, scale], name)
    result.shape = ir.Shape(shape)
    return result


def _floats(pen: Pen, before: ir.Node, stored: np.ndarray, stem: str, bits: int) -> ir.Value:
    """`halved` levels -> floats around zero."""
    byte = ir.DataType.UINT8

    def levels() -> ir.Value:
        return pen.constant(f"{stem}.levels", stored)

    def shifted(value: ir.Value, part: str, direction: str) -> ir.Value:
        four = pen.constant(f"{stem}.four", np.array(4, np.uint8))
        return _step(pen, before, "BitShift", [value, four], f"{stem}.{part}", byte, direction=direction)

    if bits == 4:
        low = shifted(shifted(levels(), "up", "LEFT"), "low", "RIGHT")
        whole = _step(pen, before, "Concat", [low, shifted(levels(), "high", "RIGHT")], stem, byte, axis=0)
    else:
        whole = levels()
    middle = pen.constant(f"{stem}.middle", np.array(2.0 ** (bits - 1), np.float32))
    return _step(pen, before, "Sub", [_step(pen, before, "Cast", [whole], stem, to=1), middle], stem)


def _shaped(pen: Pen, before: ir.Node, value: ir.Value, stem: str, shape: Sequence[int]) -> ir.Value:
    sizes = pen.constant(f"{stem}.shape", np.array(shape, np.int64))
    return _step(pen, before, "Reshape", [value, sizes], f"{stem}.{len(shape)}d")


def _step(
    pen: Pen,
    before: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    stem: str,
    dtype: ir.DataType = ir.DataType.FLOAT,
    **attributes: int | str,
) -> ir.Value:
    """One step just before a node."""
    name = pen.free(f"{stem}.{op.lower()}")
    return pen.node(op, list(inputs), name, dtype=dtype, before=before, attributes=dict(attributes))
