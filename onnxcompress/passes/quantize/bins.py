"""Bins of a histogram: entries lie evenly in theirs, so what is asked of entries is an integral over bins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcompress.evidence.kinds import Histogram


@dataclass(frozen=True, eq=False)
class Bins:
    """Ends and entries of bins, ascending, [bins] float64 each; entries lie evenly in theirs."""

    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, histogram: Histogram) -> Bins:
        return cls(*histogram.bins)

    def without_zero(self) -> Bins:
        """Those that hold more than zero."""
        kept = (self.low != 0) | (self.high != 0)
        return Bins(self.low[kept], self.high[kept], self.counts[kept])

    def filled(self, least: int) -> Bins:
        """Neighbours in one until each holds `least` entries or more, but for the last."""
        before = np.cumsum(self.counts) - self.counts
        first = np.flatnonzero(np.diff(before // least, prepend=-1.0) > 0)
        if len(first) == len(self.counts):
            return self
        last = np.append(first[1:], len(self.counts)) - 1
        return Bins(self.low[first], self.high[last], np.add.reduceat(self.counts, first))

    def coarse(self) -> Bins:
        """Eight neighbours in one, where there are many: enough to see where to look closer."""
        if len(self.counts) <= 256:
            return self
        first = np.arange(0, len(self.counts), 8)
        last = np.minimum(first + 7, len(self.counts) - 1)
        return Bins(self.low[first], self.high[last], np.add.reduceat(self.counts, first))

    def below(self, at: np.ndarray) -> np.ndarray:
        """Entries below each number, any shape."""
        if not len(self.counts):
            return np.zeros(np.shape(at))
        before = np.concatenate([[0.0], np.cumsum(self.counts)])
        place = np.searchsorted(self.low, at, side="right") - 1
        inside = np.maximum(place, 0)
        width = self.high[inside] - self.low[inside]
        part = np.divide(at - self.low[inside], width, out=np.ones(np.shape(at)), where=width > 0)
        return np.where(place < 0, 0.0, before[inside] + self.counts[inside] * np.clip(part, 0, 1))

    def quantile(self, share: float) -> float:
        """The number that this share of the entries does not exceed."""
        after = np.cumsum(self.counts)
        wanted = share * after[-1]
        place = min(int(np.searchsorted(after, wanted)), len(after) - 1)
        part = 1 - (after[place] - wanted) / self.counts[place]
        return float(self.low[place] + (self.high[place] - self.low[place]) * np.clip(part, 0, 1))


def of_magnitudes(bins: Bins) -> Bins:
    """Of magnitudes: bins of both signs on top of each other, cut at all their ends."""
    ends = np.unique(np.abs(np.concatenate([bins.low, bins.high])))
    flat = bins.low == bins.high
    wide = Bins(bins.low[~flat], bins.high[~flat], bins.counts[~flat])
    inside = wide.below(ends) - wide.below(-ends)
    low, high, counts = ends[:-1], ends[1:], np.diff(inside)
    points = np.abs(bins.low[flat])
    low, high, counts = (np.concatenate(pair) for pair in ((low, points), (high, points), (counts, bins.counts[flat])))
    order, used = np.lexsort((high, low)), counts > 0
    order = order[used[order]]
    return Bins(low[order], high[order], counts[order])
