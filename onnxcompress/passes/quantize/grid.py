"""An affine grid: the numbers that a few bits can stand for, and rounding to them exactly as QuantizeLinear does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["uint8", "int8", "uint4", "int4", "uint16", "int16", "int32"]

LEVELS: dict[str, tuple[int, int]] = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint4": (0, 15),
    "int4": (-8, 7),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "int32": (-(2**31), 2**31 - 1),
}
"""ONNX type -> its least and its largest level."""

SMALLEST_SCALE = 2.0**-100
"""A range of nothing but zeros still needs a scale above zero; x / scale must not overflow in float32."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Numbers (level - zero) · scale.

    scale  float32 [] or [channels]        zero  integer, same shape
    kind   type of the levels in the file  axis  of the channels in the array; None: one scale for all
    low, high  levels that may be used: narrower than the type's where a limit asks for it
    """

    scale: np.ndarray
    zero: np.ndarray
    kind: Kind
    axis: int | None = None
    low: int = 0
    high: int = 255

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Nearest levels, int32, same shape: float32 division, half to even, saturated (ONNX QuantizeLinear)."""
        scale, zero = self._along(values.ndim)
        rounded = np.rint(values.astype(np.float32) / scale)
        return np.clip(rounded.astype(np.float64) + zero, self.low, self.high).astype(np.int32)

    def values(self, levels: np.ndarray) -> np.ndarray:
        """Levels -> float32, exactly as DequantizeLinear computes them."""
        scale, zero = self._along(levels.ndim)
        if levels.dtype.itemsize > 2 or zero.any():
            return (levels.astype(np.int32) - zero).astype(np.float32) * scale
        values = levels.astype(np.float32)  # as exact, with a copy less
        values *= scale
        return values

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Quantized and dequantized."""
        return self.values(self.levels(values))

    def _along(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero, shaped to broadcast against an array of that rank."""
        if self.axis is None:
            return self.scale, self.zero
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero.reshape(shape)


LEAST, MOST = -127, 127
"""int8 without -128, so that -w is there for every w."""


def symmetric_grid(scale: np.ndarray, axis: int | None) -> Grid:
    """int8 with zero at level 0, as weights have it; scale [] or [channels]."""
    return Grid(scale, np.zeros(scale.shape, np.int64), "int8", axis, LEAST, MOST)


def grid_of(
    low: np.ndarray | float,
    high: np.ndarray | float,
    kind: Kind,
    *,
    symmetric: bool,
    axis: int | None = None,
    levels: tuple[int, int] | None = None,
) -> Grid:
    """The grid that spans [low, high], widened to hold zero, which is always one of its numbers.

    low, high  [] or [channels]         levels  least and largest level that may be used; default: all of the type
                                                (symmetric signed: the least is left out, so that -x is there for every x)
    symmetric  zero stands at level 0 of a signed type, in the middle of an unsigned one
    """
    least, most = levels or LEVELS[kind]
    if symmetric and levels is None and least < 0:
        least = -most
    low = np.minimum(np.asarray(low, np.float64), 0.0)
    high = np.maximum(np.asarray(high, np.float64), 0.0)
    if symmetric:
        middle = 0 if least < 0 else (least + most + 1) // 2
        scale = np.maximum(-low / max(middle - least, 1), high / (most - middle))
        zero = np.full(scale.shape, middle)
    else:
        scale = (high - low) / (most - least)
        zero = np.zeros(scale.shape)
    scale = np.where(scale > SMALLEST_SCALE, scale, 1.0).astype(np.float32)
    if not symmetric:
        zero = np.clip(np.rint(least - low / scale), least, most)
    return Grid(scale, zero.astype(np.int64), kind, axis, least, most)
