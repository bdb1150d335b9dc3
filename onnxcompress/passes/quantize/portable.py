"""Weights whose products cannot saturate 16 bits: one file that answers the same on every CPU.

Without VNNI, onnxruntime multiplies uint8 activations by int8 weights with an instruction that adds two neighbouring products in
16 bits, with saturation (vpmaddubsw). A pair of weights (a, b) in the kernel's order is safe where

    most_a·max(a, 0) + most_b·max(b, 0) <= 32767    and    most_a·min(a, 0) + most_b·min(b, 0) >= -32768,

`most` being the largest level that an activation takes: |a + b| <= 128 for equal signs at 255, nothing for opposite signs.

What the kernels of onnxruntime 1.32 do, read from an emulated AVX2 CPU by weights that are 127 at two chosen places only:

=================================================================  =========================================================
QLinearConv, QDQ Conv (1-D to 3-D, grouped, first conv, any form)   pairs 2j, 2j+1 of a row in the order (*kernel, in): channels last
the same, one channel in and one out a group (depthwise)            never saturates; with several out a group it does, as above
QLinearMatMul, QDQ MatMul and Gemm, QGemm, MatMulInteger,           pairs 2j, 2j+1 along the summed axis, whatever the batch, transB,
DynamicQuantizeMatMul, DynamicQuantizeLSTM                          constant weight or not
uint8·uint8 and int8·int8, all of these                             never saturates
MatMulNBits, 4 and 8 bits, both accuracy levels                     never saturates
ConvTranspose, and a Conv in QDQ form without a quantized output    computed in float
=================================================================  =========================================================

An odd last entry stands alone, and a single product always fits. The SSE4.1 kernels (Nehalem) never saturate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MOST, LEAST = 32767, -32768
"""What 16 bits hold."""

PROJECTED = 1 << 14
"""Pairs projected at once: up to 128 levels of each are tried."""

CHANNELS_LAST = {"Conv", "com.microsoft.FusedConv", "QLinearConv", "ConvInteger"}
ALONG_THE_SUM = {
    "MatMul",
    "com.microsoft.FusedMatMul",
    "Gemm",
    "QLinearMatMul",
    "MatMulInteger",
    "com.microsoft.QGemm",
    "com.microsoft.DynamicQuantizeMatMul",
    "com.microsoft.MatMulIntegerToFloat",
    "LSTM",
    "com.microsoft.DynamicQuantizeLSTM",
}
IN_FLOAT = {"ConvTranspose", "Gather", "GRU", "RNN", "com.microsoft.MatMulNBits"}


@dataclass(frozen=True, eq=False)
class Pairing:
    """Which weights of a row are added in 16 bits.

    columns  [pairs, 2] of the row [in/groups · prod(kernel)] as the Layer view flattens it; None: any two may meet
    most     [row] the largest level of the activation that each weight meets (1 ... 255)
    """

    columns: np.ndarray | None
    most: np.ndarray

    def partner(self) -> np.ndarray:
        """[row] the column that each one is paired with, -1 for one that stands alone."""
        found = np.full(len(self.most), -1)
        if self.columns is not None:
            found[self.columns[:, 0]], found[self.columns[:, 1]] = self.columns[:, 1], self.columns[:, 0]
        return found


def pairing(op: str, shape: tuple[int, ...], groups: int = 1, most: np.ndarray | float = 255) -> Pairing | None:
    """The pairs of an operator with uint8 activations and int8 weights; None where nothing can saturate.

    op     operator type, as Layer.op has it           shape  [out, in/groups, *kernel] of the Layer view
    most   largest level of the activations: a number, or one for each channel of a group [in/groups]; where a
           convolution pads it meets the zero point too
    An operator that is not known may pair any two weights of a row.
    """
    if op in IN_FLOAT or (op in CHANNELS_LAST and shape[1] == 1 and shape[0] == groups):
        return None
    width = int(np.prod(shape[1:]))
    places = np.arange(width).reshape(shape[1:])
    levels = np.broadcast_to(np.reshape(np.asarray(most, float), (-1,) + (1,) * (len(shape) - 2)), shape[1:]).reshape(
        -1
    )
    if op in CHANNELS_LAST:
        order = np.moveaxis(places, 0, -1).reshape(-1)
    elif op in ALONG_THE_SUM:
        order = places.reshape(-1)
    else:
        return Pairing(None, levels)
    return Pairing(order[: width // 2 * 2].reshape(-1, 2), levels)


def overflows(levels: np.ndarray, pairs: Pairing) -> np.ndarray:
    """Levels [out, row] -> bool [out, pairs]: which pairs can leave 16 bits; [out, 1] where any two weights may meet."""
    if pairs.columns is not None and even(pairs):  # levels of opposite signs are below both limits by themselves
        first, second = pairs.columns.T
        wide = np.promote_types(levels.dtype, np.int16)  # two bytes may add up to more than a byte
        both = np.add(levels[:, first], levels[:, second], dtype=wide) * pairs.most[:1]
        return (both > MOST) | (both < LEAST)
    above, below = _sums(np.maximum(levels, 0), pairs), _sums(np.minimum(levels, 0), pairs)
    return (above > MOST) | (below < LEAST)


def fits(levels: np.ndarray, pairs: Pairing | None) -> bool:
    """Can no pair of these levels [out, row] saturate?"""
    return pairs is None or not overflows(levels, pairs).any()


def _sums(signed: np.ndarray, pairs: Pairing) -> np.ndarray:
    """Largest |sum| that levels of one sign can reach, with that sign."""
    if pairs.columns is not None:
        first, second = pairs.columns.T
        return signed[:, first] * pairs.most[first] + signed[:, second] * pairs.most[second]
    reach = np.sort(np.abs(signed) * pairs.most, axis=1)[:, -2:].sum(axis=1, keepdims=True)
    return reach * (1 if signed.max(initial=0) > 0 else -1)


def box(low: int, high: int, pairs: Pairing | None) -> tuple[int, int]:
    """Least and largest level of a single weight: half of what 16 bits hold where any two weights may meet."""
    if pairs is None or pairs.columns is not None:
        return low, high
    top = float(pairs.most.max(initial=1))
    return max(low, -int(-LEAST // (2 * top))), min(high, int(MOST // (2 * top)))


def bounds(
    other: np.ndarray, own_most: np.ndarray | float, other_most: np.ndarray | float, low: int, high: int
) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest level that a weight may take when its partner has the level `other`, any shape."""
    top = np.floor((MOST - np.maximum(other, 0) * other_most) / own_most)
    bottom = np.ceil((LEAST - np.minimum(other, 0) * other_most) / own_most)
    return np.maximum(low, bottom), np.minimum(high, top)


def project(
    first: np.ndarray,
    second: np.ndarray,
    most: tuple[np.ndarray | float, np.ndarray | float],
    low: int,
    high: int,
    stiff: tuple[np.ndarray | float, np.ndarray | float] = (1.0, 1.0),
    coupling: np.ndarray | float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest safe integer pairs to real pairs that overflow: arrays [n] of levels.

    Minimises stiff₀ (a - first)² + stiff₁ (b - second + coupling·(a - first))², which is what error compensation sees of a pair
    when all later weights make up for it. Both must have the same sign, as overflowing pairs do.
    """
    sign = np.where(first + second < 0, -1.0, 1.0)
    cap = np.where(sign > 0, MOST, -LEAST)
    top = np.where(sign > 0, high, -low)
    x, y = np.abs(first), np.abs(second)
    if np.array_equal(most[0], most[1]) and stiff == (1.0, 1.0) and coupling == 0.0:
        a, b = _on_the_line(x, y, np.floor(cap / most[0]), top)
    else:
        a, b = _of_all(x, y, most, cap, top, stiff, coupling)
    return sign * a, sign * b


def _on_the_line(x: np.ndarray, y: np.ndarray, cap: Any, top: Any) -> tuple[np.ndarray, np.ndarray]:
    """The nearest integers with a + b <= cap, both 0 ... top: with equal weights they lie on a + b = cap where rounding passes it."""
    a, b = np.clip(np.rint(x), 0, top), np.clip(np.rint(y), 0, top)
    line = np.clip(np.rint((x - y + cap) / 2), np.maximum(cap - top, 0), np.minimum(top, cap))
    over = a + b > cap
    return np.where(over, line, a), np.where(over, cap - line, b)


def _of_all(
    x: np.ndarray,
    y: np.ndarray,
    most: tuple[np.ndarray | float, np.ndarray | float],
    cap: np.ndarray,
    top: np.ndarray,
    stiff: tuple[np.ndarray | float, np.ndarray | float],
    coupling: np.ndarray | float,
) -> tuple[np.ndarray, np.ndarray]:
    """Few integer pairs lie on a slanted bound, and the best may be far from the best real one: every level is tried."""
    tried = np.arange(top.max(initial=0) + 1.0)
    a = np.clip(tried, 0, np.minimum(top, cap // most[0])[:, None])
    column = [np.broadcast_to(np.asarray(value, float), x.shape)[:, None] for value in (*most, *stiff, coupling)]
    wish = y[:, None] - column[4] * (a - x[:, None])
    b = np.clip(np.rint(wish), 0, np.minimum(top[:, None], np.floor((cap[:, None] - column[0] * a) / column[1])))
    best = np.argmin(column[2] * (a - x[:, None]) ** 2 + column[3] * (b - wish) ** 2, axis=1)
    picked = np.arange(len(best)), best
    return a[picked], b[picked]


def safe_levels(real: np.ndarray, low: int, high: int, pairs: Pairing | None) -> np.ndarray:
    """Real levels [out, row] -> nearest integers, the pairs that would overflow projected; float64."""
    low, high = box(low, high, pairs)
    levels = np.clip(np.rint(real), low, high)
    if pairs is None or pairs.columns is None:
        return levels
    every, bad = np.nonzero(overflows(levels, pairs))
    for start in range(0, len(every), PROJECTED):
        rows = every[start : start + PROJECTED]
        first, second = pairs.columns[bad[start : start + PROJECTED]].T
        x, y = np.clip(real[rows, first], low, high), np.clip(real[rows, second], low, high)
        most = pairs.most[first], pairs.most[second]
        levels[rows, first], levels[rows, second] = project(x, y, most, low, high)
    return levels


def even(pairs: Pairing | None) -> bool:
    """Do all weights meet the same largest level (or does it not matter)?"""
    return pairs is None or pairs.columns is None or bool((pairs.most == pairs.most[:1]).all())
