"""Quantized products in numpy, with the integer arithmetic of onnxruntime's kernels: exact, or adding pairs in 16 bits.

A kernel sums uint8 levels times int8 levels, takes the zero points off, adds the int32 bias, multiplies by one float32 factor,
rounds half to even and saturates. Without VNNI the sum itself saturates pairwise (portable.py says which pairs). What is here
reproduces both to one step of the output grid; `walked.py` runs whole models this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view

from onnxcompress.difference import sqnr_db
from onnxcompress.errors import DataError
from onnxcompress.passes.quantize.grid import Grid
from onnxcompress.passes.quantize.portable import LEAST, MOST, Pairing, overflows, pairing

CHUNK = 1 << 24
"""Sums of pairs that are held at once, in int32: 64 MB."""


@dataclass(frozen=True, eq=False)
class Operand:
    """An integer tensor and the grid that its levels stand on."""

    levels: np.ndarray
    grid: Grid

    @property
    def zero(self) -> int:
        """The zero of a grid that has one only."""
        return int(np.reshape(self.grid.zero, -1)[0])


@dataclass(frozen=True, eq=False)
class Sums:
    """What a kernel adds up.

    exact      int64, the shape of the operator's output      excess   the same: what saturation takes off each sum
    saturated  how many sums of two products left 16 bits     pairs    how many were formed
    """

    exact: np.ndarray
    excess: np.ndarray
    saturated: int
    pairs: int

    @property
    def saturating(self) -> np.ndarray:
        """The sums of a CPU without VNNI."""
        return self.exact - self.excess

    @property
    def share(self) -> float:
        """Share of the pairs that saturated, 0 ... 1."""
        return self.saturated / self.pairs if self.pairs else 0.0

    @property
    def db(self) -> float:
        """Signal to saturation error of the sums, in dB; inf where none saturates."""
        error = float((self.excess.astype(np.float64) ** 2).sum())
        return sqnr_db(float((self.exact.astype(np.float64) ** 2).sum()), error)


def row_sums(x: np.ndarray, w: np.ndarray, pairs: Pairing | None) -> Sums:
    """Σ x w of unsigned levels x [n, row] and weight levels w [out, row], without zero points: [n, out].

    pairs  None: nothing saturates. Without known columns neighbours are paired.
    Only pairs that can overflow are looked at, so weights that fit cost one matrix product.
    """
    exact = (x.astype(np.float64) @ w.T.astype(np.float64)).astype(np.int64)  # below 2^53: exact
    excess = np.zeros_like(exact)
    if pairs is None:
        return Sums(exact, excess, 0, 0)
    columns = np.arange(w.shape[1] // 2 * 2).reshape(-1, 2) if pairs.columns is None else pairs.columns
    risky = overflows(w, Pairing(columns, pairs.most))
    x, w = x.astype(np.int32), w.astype(np.int32)
    saturated = 0
    for number in np.flatnonzero(risky.any(axis=0)):
        first, second = columns[number]
        rows = np.flatnonzero(risky[:, number])
        step = max(1, CHUNK // len(rows))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            sums = np.outer(x[part, first], w[rows, first]) + np.outer(x[part, second], w[rows, second])
            over = sums - np.clip(sums, LEAST, MOST)
            excess[part, rows] += over
            saturated += int(np.count_nonzero(over))
    return Sums(exact, excess, saturated, len(columns) * exact.size)


def saturates(x: Operand, w: Operand) -> bool:
    """Has the kernel of these types 16-bit sums on some CPU? Only that of unsigned data with signed weights."""
    return x.grid.kind == "uint8" and w.grid.kind == "int8"


# -- operators: levels -> sums --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attributes:
    """The attributes of a node that say how it sums, as plain numbers."""

    given: Mapping[str, Any]

    @classmethod
    def of(cls, node: ir.Node) -> Attributes:
        """Read from a node; the alias of a kernel keeps the names of its operator."""
        return cls({name: attribute.value for name, attribute in node.attributes.items()})

    def ints(self, name: str, default: list[int]) -> list[int]:
        """A list."""
        return [int(value) for value in self.given.get(name) or default]

    def number(self, name: str, default: int) -> int:
        """A number."""
        return int(self.given.get(name, default))

    def pads(self, sizes: tuple[int, ...], kernel: tuple[int, ...], strides: list[int], steps: list[int]) -> list[int]:
        """Entries before each axis, then after each; computed where `auto_pad` asks for that."""
        auto = self.given.get("auto_pad", "NOTSET")
        if auto in ("NOTSET", "VALID"):
            return self.ints("pads", [0] * 2 * len(kernel)) if auto == "NOTSET" else [0] * 2 * len(kernel)
        spans = [d * (k - 1) + 1 for d, k in zip(steps, kernel, strict=True)]
        total = [max(0, (-(-s // t) - 1) * t + e - s) for s, t, e in zip(sizes, strides, spans, strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        return less + more if auto == "SAME_UPPER" else more + less


def _every(steps: list[int]) -> tuple[Any, ...]:
    """Slices that take every n-th entry of an axis."""
    return tuple(slice(None, None, step) for step in steps)


def _last_axes(slices: Iterable[slice]) -> tuple[Any, ...]:
    return (Ellipsis, *slices)


def patches(x: np.ndarray, kernel: tuple[int, ...], attributes: Attributes, fill: int) -> tuple[np.ndarray, tuple]:
    """[n, c, *s] -> [n, *t, c, *kernel] of what each output position meets, padded with `fill`; and t."""
    rank = len(kernel)
    strides, steps = attributes.ints("strides", [1] * rank), attributes.ints("dilations", [1] * rank)
    pads = attributes.pads(x.shape[2:], kernel, strides, steps)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)], constant_values=fill)
    spans = tuple(d * (k - 1) + 1 for d, k in zip(steps, kernel, strict=True))
    windows = sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    picked = windows[(slice(None), slice(None), *_every(strides))][_last_axes(_every(steps))]
    return np.moveaxis(picked, 1, 1 + rank), picked.shape[2 : 2 + rank]


def conv(x: Operand, w: Operand, attributes: Attributes) -> Sums:
    """Conv of any rank, grouped, padded with the zero point; w [o, i/groups, *k]."""
    groups, kernel = attributes.number("group", 1), w.levels.shape[2:]
    found, places = patches(x.levels, kernel, attributes, x.zero)
    rows = found.reshape(prod(found.shape[: 1 + len(kernel)]), groups, -1)
    weights = w.levels.reshape(groups, len(w.levels) // groups, -1)
    pairs = pairing("Conv", w.levels.shape, groups) if saturates(x, w) else None
    zeros = np.broadcast_to(np.reshape(w.grid.zero, -1), len(w.levels)).reshape(groups, -1)
    parts = [_centred(rows[:, g], weights[g], x.zero, zeros[g], pairs) for g in range(groups)]

    def shaped(name: str) -> np.ndarray:
        joined = np.concatenate([getattr(part, name) for part in parts], axis=1)
        return np.moveaxis(joined.reshape(x.levels.shape[0], *places, -1), -1, 1)

    return Sums(shaped("exact"), shaped("excess"), sum(p.saturated for p in parts), sum(p.pairs for p in parts))


def _centred(rows: np.ndarray, weights: np.ndarray, x_zero: int, w_zero: np.ndarray, pairs: Pairing | None) -> Sums:
    """Σ (x − x₀)(w − w₀), from the sums of the levels themselves: that is where a kernel saturates."""
    sums = row_sums(rows, weights, pairs)
    over_x, over_w = rows.sum(axis=1, dtype=np.int64), weights.sum(axis=1, dtype=np.int64)
    exact = sums.exact - x_zero * over_w - over_x[:, None] * w_zero + rows.shape[1] * x_zero * w_zero
    return Sums(exact, sums.excess, sums.saturated, sums.pairs)


def conv_transpose(x: Operand, w: Operand, attributes: Attributes) -> Sums:
    """ConvTranspose of any rank, w [i, o/groups, *k]; onnxruntime has no integer kernel for it, so nothing saturates."""
    kernel, groups = w.levels.shape[2:], attributes.number("group", 1)
    rank = len(kernel)
    strides, steps = attributes.ints("strides", [1] * rank), attributes.ints("dilations", [1] * rank)
    pads, extra = attributes.ints("pads", [0] * 2 * rank), attributes.ints("output_padding", [0] * rank)
    values = x.levels.astype(np.int64) - x.zero
    spread = np.zeros((*values.shape[:2], *((s - 1) * t + 1 for s, t in zip(values.shape[2:], strides, strict=True))))
    spread[_last_axes(_every(strides))] = values
    around = [d * (k - 1) for d, k in zip(steps, kernel, strict=True)]
    before = [a - p for a, p in zip(around, pads[:rank], strict=True)]
    after = [a - p + e for a, p, e in zip(around, pads[rank:], extra, strict=True)]
    spread = np.pad(spread, [(0, 0), (0, 0), *((max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True))])
    cut = (slice(max(-b, 0), s - max(-a, 0)) for b, a, s in zip(before, after, spread.shape[2:], strict=True))
    spread = spread[_last_axes(cut)]
    axis_zero = np.reshape(w.grid.zero, (1, -1) + (1,) * rank) if np.ndim(w.grid.zero) else w.grid.zero
    weights = np.flip(w.levels.astype(np.int64) - axis_zero, axis=tuple(range(2, 2 + rank)))
    weights = np.moveaxis(weights.reshape(groups, -1, *weights.shape[1:]), 2, 1)
    found, places = patches(spread, kernel, Attributes({"dilations": steps}), 0)
    rows = found.reshape(prod(found.shape[: 1 + rank]), groups, -1)
    sums = np.stack([rows[:, g] @ weights[g].reshape(weights.shape[1], -1).T for g in range(groups)], axis=1)
    exact = np.moveaxis(np.rint(sums).astype(np.int64).reshape(len(x.levels), *places, -1), -1, 1)
    return Sums(exact, np.zeros_like(exact), 0, 0)


def matmul(x: Operand, w: Operand, attributes: Attributes) -> Sums:
    """MatMul and Gemm, x [..., k] · w [..., k, n] (transB: [n, k]); leading axes broadcast."""
    right = w.levels.swapaxes(-1, -2) if not attributes.number("transB", 0) else w.levels
    left = x.levels.swapaxes(-1, -2) if attributes.number("transA", 0) else x.levels
    width = right.shape[-1]
    pairs = pairing("MatMul", (right.shape[-2], width)) if saturates(x, w) else None
    zeros = np.broadcast_to(np.reshape(w.grid.zero, -1), right.shape[-2])
    if right.ndim == 2:
        sums = _centred(left.reshape(-1, width), right, x.zero, zeros, pairs)
        shape = (*left.shape[:-1], right.shape[-2])
        return Sums(sums.exact.reshape(shape), sums.excess.reshape(shape), sums.saturated, sums.pairs)
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left, right = np.broadcast_to(left, lead + left.shape[-2:]), np.broadcast_to(right, lead + right.shape[-2:])
    parts = [_centred(left[at], right[at], x.zero, zeros, pairs) for at in product(*map(range, lead))]
    shape = (*lead, left.shape[-2], right.shape[-2])
    exact, excess = (np.reshape([getattr(part, name) for part in parts], shape) for name in ("exact", "excess"))
    return Sums(exact, excess, sum(part.saturated for part in parts), sum(part.pairs for part in parts))


KERNELS: dict[str, tuple[Callable[[Operand, Operand, Attributes], Sums], int]] = {
    "Conv": (conv, 1),
    "ConvTranspose": (conv_transpose, 1),
    "MatMul": (matmul, -1),
    "Gemm": (matmul, -1),
}
"""Operator -> how its sums are made, and the axis of the output along which the weight's scales lie."""


# -- sums -> outputs ------------------------------------------------------------------------------------------------


def requantized(sums: np.ndarray, factor: np.ndarray, out: Grid) -> np.ndarray:
    """Sums with bias -> levels int32: float32 product, half to even, saturated about the zero point.

    factor  float32, x_scale · w_scale / y_scale, broadcast against the sums
    """
    zero = int(np.reshape(out.zero, -1)[0])
    product_ = sums.astype(np.float32) * np.asarray(factor, np.float32)
    return np.rint(np.clip(product_, out.low - zero, out.high - zero)).astype(np.int32) + zero


def simulate(
    op: str,
    attributes: Attributes,
    x: Operand,
    w: Operand,
    bias: np.ndarray | None = None,
    out: Grid | None = None,
    *,
    saturate: bool = True,
) -> np.ndarray:
    """What onnxruntime's integer kernel of one node gives.

    op      Conv, ConvTranspose, MatMul or Gemm        x, w   levels in the layout of the file, and their grids
    bias    integer levels on the grid x_scale · w_scale, zero 0; [out] or what broadcasts as in the operator
    out     grid of the output; None: float32, as kernels that hand their sum out do
    saturate  add pairs in 16 bits, as a CPU without VNNI does where the types are uint8 and int8
    returns int32 levels on `out`, or float32; DataError for an operator that is not among them
    """
    sums = sums_of(op, attributes, x, w)
    return finished(op, sums.saturating if saturate else sums.exact, x.grid, w.grid, bias, out)


def finished(op: str, sums: np.ndarray, x: Grid, w: Grid, bias: np.ndarray | None, out: Grid | None) -> np.ndarray:
    """Sums -> levels on `out`, or float32 without: the bias added (a float bias behind the scales) and the scales applied."""
    axis = KERNELS[op][1]
    ones = [1] * sums.ndim
    ones[axis] = -1
    factor = np.asarray(x.scale, np.float32) * np.asarray(w.scale, np.float32)
    shape = ones if np.size(w.scale) > 1 else []
    if bias is not None and axis == 1:
        bias = bias.reshape(ones)
    late = bias if bias is not None and bias.dtype.kind == "f" else None
    total = sums if bias is None or late is not None else sums + bias
    if out is not None and late is None:
        return requantized(total, (factor / np.asarray(out.scale, np.float32)).reshape(shape), out)
    values = total.astype(np.float32) * factor.reshape(shape)
    values = values if late is None else values + late.astype(np.float32)
    return values if out is None else out.levels(values)


def sums_of(op: str, attributes: Attributes, x: Operand, w: Operand) -> Sums:
    """Exact and saturating sums of one node, with the count of pairs that left 16 bits."""
    if op not in KERNELS:
        raise DataError(f"{op} has no integer sums; known are {', '.join(KERNELS)}")
    return KERNELS[op][0](x, w, attributes)
