"""What can be observed of a value: a row a kind.

A kind is a frozen dataclass of sums (and minima, maxima), a function that measures rows [n, channels] into it, and how
each of its fields is joined with that of more rows. Joining is all that is done to it: batches, parts of the data and
processes add up alike. What follows from the sums (means, shares) are properties. To add a kind: the dataclass, the
function, its row in KINDS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

BLOCK = 1 << 20
"""Numbers that are held in float64 at once, 8 MB: less is slower (a call a few rows), more is not faster."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the entries of each channel, all [channels] float64.

    count   entries a channel (samples x positions)    zeros   how many of them are exactly zero
    total   their sum                                  squares their sum of squares
    """

    count: float
    total: np.ndarray
    squares: np.ndarray
    zeros: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """[channels]"""
        return self.total / self.count

    @property
    def mean_square(self) -> np.ndarray:
        """[channels]"""
        return self.squares / self.count

    @property
    def variance(self) -> np.ndarray:
        """[channels], never negative; off by about 1e-13 of mean_square."""
        return np.maximum(self.mean_square - self.mean**2, 0.0)

    @property
    def zero_share(self) -> np.ndarray:
        """[channels], 0 ... 1: the average percentage of zeros (APoZ, arXiv:1607.03250) as a share."""
        return self.zeros / self.count


@dataclass(frozen=True, eq=False)
class Gram:
    """Second moments between channels, float64.

    matrix  [channels, channels] Σ x xᵀ    sums  [channels] Σ x
    rows    how many x this stands for     seen  how many x were read; fewer than rows where positions were sampled,
                                                 each then weighs rows / seen: matrix and sums are unbiased
    """

    matrix: np.ndarray
    sums: np.ndarray
    rows: float
    seen: float

    @property
    def mean(self) -> np.ndarray:
        """[channels]"""
        return self.sums / self.rows

    @property
    def centred(self) -> np.ndarray:
        """[channels, channels] Σ (x - mean)(x - mean)ᵀ: what counts where a bias is fitted too."""
        return self.matrix - np.outer(self.sums, self.sums) / self.rows


@dataclass(frozen=True, eq=False)
class Range:
    """The least and the largest entry of the whole tensor."""

    minimum: float
    maximum: float


@dataclass(frozen=True, eq=False)
class Mean:
    """Sum over the entries of each channel, [channels] float64; count: entries a channel."""

    count: float
    total: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """[channels]"""
        return self.total / self.count


@dataclass(frozen=True, eq=False)
class Reach:
    """How far each channel goes, and how much there is in it: [channels] float64; count: entries a channel."""

    count: float
    squares: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray

    @property
    def mean_square(self) -> np.ndarray:
        """[channels]"""
        return self.squares / self.count


OCTAVES = 20
"""Powers of two, below the largest magnitude, that a Histogram tells apart: down to a millionth of it."""

STEPS = 64
"""Bins of equal width in each of them: 7 of the 24 leading bits of a float32 name the bin."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often each magnitude occurs in the whole tensor: 20 kB, whatever was read.

    Bins are cut as float32 is, STEPS to a power of two, so an entry's leading bits are its bin: nothing is scaled, a far
    outlier takes no bins from the rest, and where two windows of OCTAVES differ, the lower bins of one are added up. The
    outcome is the same for every order of joining.

    counts   [2, OCTAVES · STEPS] float64: negative and positive entries, by ascending magnitude
    top      exponent of the largest power of two in counts, biased as in float32; 0: nothing but zeros
    zeros    entries that are zero (or too small for a normal float32)
    tiny     entries below the window: less than 2^-19 of the largest magnitude
    minimum, maximum  exact; not finite where an entry was not
    samples  how many were read; lows, highs: sums of their minima and of their maxima
    """

    counts: np.ndarray
    top: float
    zeros: float
    tiny: float
    minimum: float
    maximum: float
    samples: float
    lows: float
    highs: float

    @property
    def count(self) -> float:
        """Entries in all."""
        return float(self.counts.sum()) + self.zeros + self.tiny

    @property
    def bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower ends, upper ends, entries: [bins] float64 each, ascending, none empty, inside [minimum, maximum].

        Zero and what is tiny share one bin of no width, at zero even where all that was seen is too small for a normal float32.
        """
        exponents = np.arange(OCTAVES) + (self.top - 127 - OCTAVES + 1)
        lower = (2.0 ** exponents[:, None] * (1 + np.arange(STEPS) / STEPS)).reshape(-1)
        upper = lower + np.repeat(2.0**exponents / STEPS, STEPS)
        low = np.concatenate([-upper[::-1], [0.0], lower])
        high = np.concatenate([-lower[::-1], [0.0], upper])
        counts = np.concatenate([self.counts[0, ::-1], [self.zeros + self.tiny], self.counts[1]])
        used = counts > 0
        low, high = (np.where(ends == 0, 0.0, np.clip(ends, self.minimum, self.maximum)) for ends in (low, high))
        return low[used], high[used], counts[used]

    def below(self, top: float) -> Histogram:
        """The same entries in the window that ends at exponent `top`, no less than its own."""
        steps = min(int(top - self.top), OCTAVES) * STEPS
        if not steps:
            return self
        counts = np.zeros_like(self.counts)
        counts[:, : counts.shape[1] - steps] = self.counts[:, steps:]
        return replace(self, counts=counts, top=top, tiny=self.tiny + float(self.counts[:, :steps].sum()))


def one_window(one: Histogram, other: Histogram) -> tuple[Histogram, Histogram]:
    """Both with the bins of the one that reaches further."""
    top = max(one.top, other.top)
    return one.below(top), other.below(top)


Join = Callable[..., Any]
"""A numpy ufunc of two fields."""


@dataclass(frozen=True)
class Kind:
    """A row of KINDS.

    result       the dataclass                       measure  (rows [n >= 1, channels], weight of a row) -> result
    joins        field of it -> how two are joined   bytes    channels -> memory of one result
    per_channel  False: measure gets [n, samples], and the channel axis means nothing
    sampled      positions may be sampled, because it costs more than reading the tensor
    align        what two results go through before their fields are joined
    """

    result: type
    measure: Callable[[np.ndarray, float], Any]
    joins: Mapping[str, Join]
    bytes: Callable[[int], int]
    per_channel: bool = True
    sampled: bool = False
    align: Callable[[Any, Any], tuple[Any, Any]] | None = None

    def update(self, state: Any | None, rows: np.ndarray, weight: float = 1.0) -> Any | None:
        """`state` with rows [n, channels] added; None is where nothing was seen yet. The given state is used up."""
        return state if not rows.shape[0] else self.merge(state, self.measure(rows, weight))

    def merge(self, one: Any | None, other: Any | None) -> Any | None:
        """Both together, of equal channels; `one` is used up: its arrays are written to. None: nothing was seen."""
        if one is None or other is None:
            return other if one is None else one
        if self.align is not None:
            one, other = self.align(one, other)
        return self.result(**{f: _joined(join, getattr(one, f), getattr(other, f)) for f, join in self.joins.items()})

    def save(self, state: Any) -> dict[str, np.ndarray]:
        """The result as arrays by field name."""
        return {field.name: np.asarray(getattr(state, field.name)) for field in fields(state)}

    def load(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """The result that `save` made arrays of."""
        return self.result(**{name: array if array.ndim else array.item() for name, array in arrays.items()})


def _joined(join: Join, one: Any, other: Any) -> Any:
    return join(one, other, out=one) if isinstance(one, np.ndarray) else float(join(one, other))


def _blocks(rows: np.ndarray, least: int = 1) -> Iterator[np.ndarray]:
    """The rows in float64, in order, at least `least` of them at a time."""
    step = max(least, BLOCK // max(rows.shape[1], 1), 1)
    for start in range(0, len(rows), step):
        yield np.array(rows[start : start + step], dtype=np.float64, order="C")


def moments(rows: np.ndarray, weight: float) -> Moments:
    """Sums in float64 over blocks of rows; minima and maxima."""
    found = None
    for block in _blocks(rows):
        part = Moments(
            weight * len(block),
            weight * block.sum(axis=0),
            weight * np.einsum("nc,nc->c", block, block),
            weight * (block == 0).sum(axis=0),
            block.min(axis=0),
            block.max(axis=0),
        )
        found = KINDS["moments"].merge(found, part)
    return found  # type: ignore[return-value]


def mean(rows: np.ndarray, weight: float) -> Mean:
    """Sums in float64."""
    return Mean(weight * len(rows), weight * sum(block.sum(axis=0) for block in _blocks(rows)))


def reach(rows: np.ndarray, weight: float) -> Reach:
    """Of the sums in `moments`, these."""
    found = moments(rows, weight)
    return Reach(found.count, found.squares, found.minimum, found.maximum)


def gram(rows: np.ndarray, weight: float) -> Gram:
    """Σ x xᵀ in float64.

    Products in float32 took half the time and were off by up to 4e-7 of √(Gᵢᵢ Gⱼⱼ), in no order that keeps the matrix
    positive: with 2048 channels that is a perturbation of the size of the smallest ridge in use (1e-6).
    """
    channels = rows.shape[1]
    matrix, sums = None, np.zeros(channels)
    for block in _blocks(rows, least=channels):  # with fewer rows, adding would cost as much as multiplying
        product = block.T @ block
        matrix = product if matrix is None else np.add(matrix, product, out=matrix)
        sums += block.sum(axis=0)
    assert matrix is not None
    if weight != 1.0:
        matrix *= weight
    return Gram(matrix, weight * sums, weight * len(rows), float(len(rows)))


def value_range(rows: np.ndarray, weight: float) -> Range:
    """Minimum and maximum of all entries."""
    return Range(float(rows.min()), float(rows.max()))


def histogram(rows: np.ndarray, weight: float) -> Histogram:
    """The leading bits of each entry, as float32, are counted; block by block. rows [entries, samples]"""
    leading = np.zeros(2 << 8 + 6, np.int64)  # sign, 8 bits of exponent, 6 of mantissa
    with np.errstate(over="ignore"):
        lows, highs = (each(rows, axis=0).astype(np.float32) for each in (np.min, np.max))
    flat = rows.T.reshape(-1)
    for start in range(0, len(flat), BLOCK):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(flat[start : start + BLOCK], dtype=np.float32)
        leading += np.bincount(block.view(np.uint32) >> 17, minlength=len(leading))
    by_exponent = weight * leading.reshape(2, 256, STEPS)[::-1]  # the sign bit is set for negative ones
    top = int(np.flatnonzero(by_exponent[:, 1:255].any(axis=(0, 2))).max(initial=-1)) + 1
    first = max(top - OCTAVES + 1, 1)
    counts = np.zeros((2, OCTAVES, STEPS))
    counts[:, OCTAVES - (top + 1 - first) :] = by_exponent[:, first : top + 1]
    return Histogram(
        counts=counts.reshape(2, -1),
        top=float(top),
        zeros=float(by_exponent[:, 0].sum()),
        tiny=float(by_exponent[:, 1:first].sum()),
        minimum=float(lows.min()),
        maximum=float(highs.max()),
        samples=float(len(lows)),
        lows=float(lows.sum(dtype=np.float64)),
        highs=float(highs.sum(dtype=np.float64)),
    )


KINDS: dict[str, Kind] = {
    "moments": Kind(
        Moments,
        moments,
        dict(count=np.add, total=np.add, squares=np.add, zeros=np.add, minimum=np.minimum, maximum=np.maximum),
        bytes=lambda channels: 40 * channels,
    ),
    "mean": Kind(Mean, mean, dict(count=np.add, total=np.add), bytes=lambda channels: 8 * channels),
    "reach": Kind(
        Reach,
        reach,
        dict(count=np.add, squares=np.add, minimum=np.minimum, maximum=np.maximum),
        bytes=lambda channels: 24 * channels,
    ),
    "gram": Kind(
        Gram,
        gram,
        dict(matrix=np.add, sums=np.add, rows=np.add, seen=np.add),
        bytes=lambda channels: 8 * channels * (channels + 1),
        sampled=True,
    ),
    "range": Kind(
        Range,
        value_range,
        dict(minimum=np.minimum, maximum=np.maximum),
        bytes=lambda channels: 16,
        per_channel=False,
    ),
    "histogram": Kind(
        Histogram,
        histogram,
        dict.fromkeys(("counts", "zeros", "tiny", "samples", "lows", "highs"), np.add)
        | dict(top=np.maximum, minimum=np.minimum, maximum=np.maximum),
        bytes=lambda channels: 8 * (2 * OCTAVES * STEPS + 8),
        per_channel=False,
        align=one_window,
    ),
}
"""Name -> Kind; the `kind` of a Need is a key of it."""
