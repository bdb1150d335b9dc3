"""The step of each row of a weight that loses least, with pairs that cannot leave 16 bits (portable.py) or without that limit.

Narrow rows are tried at every step. In wide ones rounding loses a twelfth of a squared step an entry, whatever the step, so
that only the few entries and pairs beyond a limit have to be looked at: the same within what chance does, at a tenth of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.passes.quantize.grid import SMALLEST_SCALE
from onnxcompress.passes.quantize.portable import LEAST, MOST, Pairing, box, even, overflows, safe_levels

SHRINK = np.linspace(1.0, 0.7, 13)
"""Scales tried, as shares of the one at which the largest weight takes the last level."""

WIDEN = np.linspace(1.0, 2.0, 17)[1:]
"""Larger scales, tried where pairs are limited; at 2 no pair overflows."""

WIDE = 256
"""Weights of a row from which on chance adds less than 6 % to what rounding loses: it is expected, not tried."""

SMOOTH, COARSE = 128, 3
"""In rows of so many weights what is lost hardly jumps from scale to scale: every third is tried, then those beside the best."""

BLOCK = 1 << 16
"""Weights that the search holds at once, so that they stay in a core's cache: 1 << 20 took three times as long."""


def scales(
    rows: np.ndarray,
    low: int,
    high: int,
    pairs: Pairing | None = None,
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric scale of each row that loses least, and what it loses.

    rows        [out, row] weights                     low, high  levels that may be used, zero at 0
    importance  [row] or [out, row] mean square of what each weight meets (the Gram's diagonal); default: all the same
    returns     [out] scales, float32's numbers in float64; [out] Σ importance · (error)²
    Under a limit larger scales are tried too, so that fewer levels and clipped pairs compete.
    """
    found = []
    for part in _parts(rows):
        own = _of(importance, part)
        scale = _scales(rows[part], low, high, pairs, own)
        found.append((scale, _rounded(rows[part], scale, low, high, pairs, own)[1]))
    return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])


def _parts(rows: np.ndarray) -> list[slice]:
    """Neighbouring rows, a BLOCK of weights at a time."""
    step = max(1, BLOCK // max(rows.shape[1], 1))
    return [slice(start, start + step) for start in range(0, max(len(rows), 1), step)]


def _of(importance: np.ndarray | None, rows: Any) -> np.ndarray | None:
    """That of some rows."""
    return importance if importance is None or importance.ndim == 1 else importance[rows]


def _scales(rows: np.ndarray, low: int, high: int, pairs: Pairing | None, importance: np.ndarray | None) -> np.ndarray:
    """Of a few rows."""
    low_used, high_used = box(low, high, pairs)
    top = max(min(-low_used, high_used), 1)
    full = np.maximum(rows.max(axis=1, initial=0.0), -rows.min(axis=1, initial=0.0)).astype(np.float64) / top
    full = np.where(full > SMALLEST_SCALE, full, 1.0)
    limited = pairs is not None and pairs.columns is not None
    shares = np.concatenate([SHRINK[::-1], WIDEN]) if limited else SHRINK[::-1]
    used = pairs if limited else None
    best = np.zeros(len(rows), int)
    smooth = rows.shape[1] >= WIDE and even(pairs)
    expected = np.flatnonzero(np.abs(rows).mean(axis=1) >= full) if smooth else np.zeros(0, int)
    if len(expected):
        some, own = rows[expected], _of(importance, expected)
        numbers = np.r_[0 : len(SHRINK) : 2, len(SHRINK) : len(shares)]
        lost = _expected(some, full[expected], shares[numbers], min(-low_used, high_used), used, own)
        best[expected] = numbers[::-1][np.argmin(lost[:, ::-1], axis=1)]
    others = np.setdiff1d(np.arange(len(rows)), expected) if len(expected) < len(rows) else ()
    if len(others):
        best[others] = _tried(rows[others], full[others], shares, low, high, pairs, _of(importance, others))
    return _step(full, shares[best])


def _step(full: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.asarray((full * share).astype(np.float32).astype(np.float64))


# ---- wide rows ----


def _expected(
    rows: np.ndarray,
    full: np.ndarray,
    shares: np.ndarray,
    top: int,
    pairs: Pairing | None,
    importance: np.ndarray | None,
) -> np.ndarray:
    """[out, shares] Σ importance · (error)² that steps of full · share are expected to lose."""
    step = full[:, None] * shares
    weigh = np.broadcast_to(np.ones(1) if importance is None else importance, rows.shape)
    lost = step**2 / 12 * weigh.sum(axis=1)[:, None]
    alone = np.arange(rows.shape[1])
    if pairs is not None and pairs.columns is not None:
        lost += _beyond_in_pairs(rows, step, top, int(MOST // pairs.most[0]), pairs.columns, weigh)
        alone = np.flatnonzero(pairs.partner() < 0)
    if len(alone):
        each = rows if len(alone) == rows.shape[1] else rows[:, alone]
        size = np.abs(each)
        row, column = np.nonzero(size > (top * step.min(axis=1))[:, None].astype(rows.dtype))
        size, own = size[row, column], weigh[row, alone[column]]
        for k, now in enumerate(step.T):
            lost[:, k] += np.bincount(row, own * np.maximum(size - top * now[row], 0) ** 2, len(rows))
    return lost


def _beyond_in_pairs(
    rows: np.ndarray, step: np.ndarray, top: int, cap: int, columns: np.ndarray, weigh: np.ndarray
) -> np.ndarray:
    """[out, steps] what clipped entries and pairs on their limit (`portable.project`) lose."""
    first, second = columns.T
    a, b = rows[:, first], rows[:, second]
    least = (top * step.min(axis=1))[:, None].astype(
        rows.dtype
    )  # the limit of a pair is no lower than that of an entry
    row, pair = np.nonzero((np.abs(a + b) > least) | (np.maximum(np.abs(a), np.abs(b)) > least))
    a, b = np.abs(a[row, pair]), np.where(a[row, pair] < 0, -1, 1) * b[row, pair]
    weigh_a, weigh_b = weigh[row, first[pair]], weigh[row, second[pair]]
    lost = np.zeros(step.shape)
    for k, now in enumerate(step.T):
        own = now[row]
        each = weigh_a * np.maximum(a - top * own, 0) ** 2 + weigh_b * np.maximum(np.abs(b) - top * own, 0) ** 2
        together = (weigh_a + weigh_b) / 4 * np.maximum(a + b - cap * own, 0) ** 2
        lost[:, k] = np.bincount(row, np.maximum(each, together), len(rows))
    return lost


# ---- narrow rows ----


def _tried(
    rows: np.ndarray,
    full: np.ndarray,
    shares: np.ndarray,
    low: int,
    high: int,
    pairs: Pairing | None,
    importance: np.ndarray | None,
) -> np.ndarray:
    """[out] number of the share that loses least. Compared in float32 where all pairs have one limit."""
    limited = pairs is not None and pairs.columns is not None
    ends = box(low, high, pairs)
    trial = _Trial(rows, *ends, pairs if limited else None, importance) if even(pairs) else None
    best, least = np.zeros(len(rows), int), np.full(len(rows), np.inf)
    together = max(1, BLOCK // max(rows.size, 1))

    def attempt(index: np.ndarray) -> None:
        """Shares [some, out] by number; of equal ones the larger wins."""
        nonlocal best, least
        scale = _step(full, shares[index])
        lost = (
            np.stack([_rounded(rows, each, low, high, pairs, importance)[1] for each in scale])
            if trial is None
            else trial.lost(scale)
        )
        lost, index = np.vstack([least, lost]), np.vstack([best, index])
        least = lost.min(axis=0)
        best = np.where(lost == least, index, -1).max(axis=0)

    smooth = rows.shape[1] >= SMOOTH
    first = sorted({*range(0, len(shares), COARSE if smooth else 1), len(shares) - 1})
    for start in range(0, len(first), together):
        some = np.array(first[start : start + together])
        attempt(np.broadcast_to(some[:, None], (len(some), len(rows))))
    coarse = best.copy()
    for step in (1, -1, 2, -2) if smooth else ():
        attempt(np.clip(coarse + step, 0, len(shares) - 1)[None])
    return best


class _Trial:
    """What scales lose, in float32 and in place: the same as `_rounded` where all pairs have one limit, ten times as fast.

    Many scales at once: of a short weight, calls of numpy took longer than what they compute.
    """

    def __init__(
        self, rows: np.ndarray, low: int, high: int, pairs: Pairing | None, importance: np.ndarray | None
    ) -> None:
        self.low, self.high, self.root = low, high, None
        self.pairs, self.above, self.below = 0, MOST, LEAST
        order = np.arange(rows.shape[1])
        if pairs is not None and pairs.columns is not None and len(order):
            self.pairs = pairs.columns.size
            self.above, self.below = MOST // pairs.most[0], -(-LEAST // pairs.most[0])
            order = np.concatenate([pairs.columns.reshape(-1), np.flatnonzero(pairs.partner() < 0)])
        self.rows = rows[:, order].astype(np.float32)
        if importance is not None:
            self.root = np.sqrt(importance[..., order]).astype(np.float32)
        self.room = np.empty((2, 0, *self.rows.shape), np.float32)

    def lost(self, scale: np.ndarray) -> np.ndarray:
        """[some, out] Σ importance · (error)² of scales [some, out]."""
        if self.room.shape[1] < len(scale):
            self.room = np.empty((2, len(scale), *self.rows.shape), np.float32)
        real, levels = self.room[:, : len(scale)]
        np.divide(self.rows, scale.astype(np.float32)[..., None], out=real)
        np.rint(real, out=levels)
        np.clip(levels, self.low, self.high, out=levels)
        if self.pairs:
            flat = (len(scale) * len(self.rows), self.rows.shape[1])
            self._pull_in(real.reshape(flat), levels.reshape(flat))
        real -= levels
        if self.root is not None:
            real *= self.root
        return np.einsum("sok,sok->so", real, real).astype(np.float64) * scale**2

    def _pull_in(self, real: np.ndarray, levels: np.ndarray) -> None:
        """Pairs that overflow come to stand on the limit, as near as can be (`_on_the_line`)."""
        both = levels[:, : self.pairs : 2] + levels[:, 1 : self.pairs : 2]
        every, pair = np.nonzero((both > self.above) | (both < self.below))
        if not len(every):
            return
        limit = np.where(both[every, pair] > 0, self.above, self.below).astype(np.float32)
        x, y = (np.clip(real[every, 2 * pair + side], self.low, self.high) for side in (0, 1))
        line = np.rint((x - y + limit) / 2)
        top = np.where(limit > 0, self.high, self.low)
        ends = np.minimum(top, limit - top), np.maximum(top, limit - top)
        line = np.clip(line, *ends)
        levels[every, 2 * pair], levels[every, 2 * pair + 1] = line, limit - line


def _rounded(
    rows: np.ndarray, scale: np.ndarray, low: int, high: int, pairs: Pairing | None, importance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Levels [out, row] at these scales, and [out] Σ importance · (error)², in float64."""
    levels = safe_levels(rows / scale[:, None], low, high, pairs)
    error = levels * scale[:, None]
    np.subtract(rows, error, out=error)
    return levels, np.einsum("ok,ok->o", error, error if importance is None else error * importance)


@dataclass(frozen=True, eq=False)
class Restricted:
    """Weights that cannot saturate, and what that costs.

    levels  int8 (int32 where these do not fit) [out, row]    scale  [out]
    lost    [out] Σ importance · (error)²; unrestricted the same with all levels free, at its own best scale
    tight   how many rows hold a pair that would overflow
    """

    levels: np.ndarray
    scale: np.ndarray
    lost: np.ndarray
    unrestricted: np.ndarray
    tight: int

    @property
    def cost_db(self) -> float:
        """By how many dB the error of the whole weight grew; 0 where nothing had to give way."""
        free, now = float(self.unrestricted.sum()), float(self.lost.sum())
        return float(10 * np.log10(now / free)) if free > 0 and now > 0 else 0.0


def restrict(
    rows: np.ndarray, low: int, high: int, pairs: Pairing | None, importance: np.ndarray | None = None
) -> Restricted:
    """Levels and scales of the weights [out, row] under which no pair can saturate; shapes as in `scales`.

    Each row takes what loses least: all bits with the overflowing pairs clipped, a larger scale (fewer bits), or some of
    both. Rows in which nothing can overflow keep what they would have without the limit.
    """
    parts = [
        _restrict(rows[part].astype(np.float64, copy=False), low, high, pairs, _of(importance, part))
        for part in _parts(rows)
    ]
    levels, scale, lost, unrestricted = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("levels", "scale", "lost", "unrestricted")
    )
    return Restricted(levels, scale, lost, unrestricted, sum(part.tight for part in parts))


def _restrict(
    rows: np.ndarray, low: int, high: int, pairs: Pairing | None, importance: np.ndarray | None
) -> Restricted:
    """Of a few rows."""
    scale = _scales(rows, low, high, None, importance)
    levels, lost = _rounded(rows, scale, low, high, None, importance)
    if pairs is None:
        return Restricted(levels.astype(_narrowest(low, high)), scale, lost, lost, 0)
    tight, free_lost = np.flatnonzero(overflows(levels, pairs).any(axis=1)), lost.copy()
    if len(tight):
        own = _of(importance, tight)
        scale[tight] = _scales(rows[tight], low, high, pairs, own)
        levels[tight], lost[tight] = _rounded(rows[tight], scale[tight], low, high, pairs, own)
    # a larger scale may suit a short row by chance, and is open to weights without the limit too
    return Restricted(levels.astype(_narrowest(low, high)), scale, lost, np.minimum(lost, free_lost), len(tight))


def _narrowest(low: int, high: int) -> type[np.generic]:
    """The type that takes least room for levels from `low` to `high`."""
    return np.int8 if low >= -128 and high <= 127 else np.int32
