"""Calibration: from what a tensor held to the range that its grid spans. A row of CALIBRATORS is one way to choose it.

Each is a function (Histogram, kind of the levels, symmetric) -> (low, high); low <= 0 <= high, and never wider than what
was seen. All read the same 20 kB, so several can be tried after one run over the data. Entries are taken to lie evenly
inside their bin, of which there are 64 to a power of two; a rounding error is then an integral, and not a sum over samples.

Surveys: Krishnamoorthi 2018, arXiv:1806.08342; Nagel et al. 2021, arXiv:2106.08295, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnxcompress.errors import DataError, SettingError, nearest
from onnxcompress.evidence.kinds import Histogram, Moments
from onnxcompress.evidence.kinds import Range as Seen
from onnxcompress.operators.layer import Layer
from onnxcompress.passes.quantize.bins import Bins, of_magnitudes
from onnxcompress.passes.quantize.grid import LEVELS, Grid, Kind, grid_of

Range = tuple[float, float]
Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Lower and upper ends of candidates, [n] each -> what each costs, [n]."""

PERCENTILE = 99.99
"""Of the entries that stay inside the range, by default."""

SHRUNK = 2.0 ** (-np.arange(0, 81) / 8)
"""Candidates of a search, as shares of the range seen: down to a thousandth."""

AROUND = 2.0 ** np.linspace(-1 / 8, 1 / 8, 17)
"""Candidates about the best of those; then again, eight times finer."""

CERTAIN = 32
"""Entries to a bin from which on its density counts as known: of few entries, chance alone would make levels look coarse."""

UNSEEN = 1e-6
"""Share that Q gives to an outermost level where everything was clipped into it."""

WELL_RESOLVED = 1024
"""Levels from which on clipping has nothing to gain: the divergence of 16 bits is not searched."""


# ---- ranges that are read off ----


def minmax(histogram: Histogram | Seen, kind: Kind, symmetric: bool) -> Range:
    """The whole range that was seen. Jacob et al. 2018, arXiv:1712.05877."""
    return _with_zero(histogram.minimum, histogram.maximum)


def average(histogram: Histogram, kind: Kind, symmetric: bool) -> Range:
    """Mean of the samples' minima, and of their maxima; all weigh alike, so that neither their order nor their batches matter.

    The moving average of Krishnamoorthi 2018 (arXiv:1806.08342, section 3.1.1), without its forgetting; with one sample it is
    `minmax`.
    """
    return _with_zero(histogram.lows / histogram.samples, histogram.highs / histogram.samples)


def percentile(histogram: Histogram, kind: Kind, symmetric: bool, percentile: float = PERCENTILE) -> Range:
    """The range that leaves out 100 - `percentile` percent of the entries, zeros counted.

    Symmetric: of the magnitudes; else half of them at each end. McKinstry et al. 2018, arXiv:1809.04191.
    """
    if not 0 < percentile <= 100:
        raise SettingError(f"percentile is {percentile}; give more than 0 and at most 100")
    left_out = 1 - percentile / 100
    if symmetric:
        return _both(histogram, float(of_magnitudes(Bins.of(histogram)).quantile(1 - left_out)))
    bins = Bins.of(histogram)
    return _with_zero(float(bins.quantile(left_out / 2)), float(bins.quantile(1 - left_out / 2)))


# ---- ranges that are searched for ----


def entropy(histogram: Histogram, kind: Kind, symmetric: bool) -> Range:
    """The range whose levels tell least less than the entries themselves: least Kullback-Leibler divergence.

    P is the distribution of the entries, what is clipped counted at the outermost levels; Q knows how many lie at each
    level and spreads them over those parts of it where P is not zero. Zeros stand aside: they are kept exactly. Migacz
    2017, "8-bit inference with TensorRT". There P is one histogram of 2048 bins, so the fewer of them a candidate has, the
    less it can lose, and one far outlier puts all else into one; here the bins are the histogram's own, finer than levels.
    """
    least, most = LEVELS[kind]
    levels = (most - least + 1) // 2 if symmetric else most - least + 1
    low, high = minmax(histogram, kind, symmetric)
    if levels >= WELL_RESOLVED or low == high:
        return low, high
    bins = Bins.of(histogram).without_zero()
    if not len(bins.counts):  # all of it too small for a normal float32
        return low, high
    bins = (of_magnitudes(bins) if symmetric else bins).filled(CERTAIN)
    top = max(-low, high)
    tops = top * SHRUNK
    ends = np.zeros_like(tops) if symmetric else np.maximum(-tops, low), tops if symmetric else np.minimum(tops, high)
    best = tops[int(np.argmin(_divergence(bins, *ends, levels)))]
    return max(low, -best), min(high, best)


def mse(histogram: Histogram, kind: Kind, symmetric: bool) -> Range:
    """The range of least mean squared error, that of clipping included; both ends are searched where it is not symmetric.

    Sung et al. 2015, arXiv:1511.06488; Nagel et al. 2021, arXiv:2106.08295, equation 9.
    """
    bins = Bins.of(histogram)
    return _searched(minmax(histogram, kind, symmetric), kind, symmetric, bins)


def output(
    histogram: Histogram,
    kind: Kind,
    symmetric: bool,
    *,
    moments: Moments | None = None,
    energy: np.ndarray | None = None,
) -> Range:
    """The range that changes the outputs of the layers that read the tensor least.

    Errors of different channels are hardly correlated, so ‖W e‖² is about Σ energy[c] · e[c]²: `mse`, with each entry
    weighed by what the readers make of its channel (the diagonal of the Hessian in Nagel et al. 2020, arXiv:2004.10568).
    The histogram knows no channels. Which share of a bin is whose is told by `moments`: a normal distribution of each
    channel's non-zero entries within its exact extremes. That is exact where clipping is decided, in bins that only few
    channels reach.

    moments  of the same value along its channel axis          energy  [channels], from `read_energy`
    Without them it is `mse`.
    """
    bins = Bins.of(histogram)
    if moments is not None and energy is not None and np.any(energy > 0):
        bins = Bins(bins.low, bins.high, bins.counts * _energy_of_bins(bins, moments, energy))
    return _searched(minmax(histogram, kind, symmetric), kind, symmetric, bins)


CALIBRATORS: dict[str, Callable[..., Range]] = {
    "minmax": minmax,
    "average": average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
    "output": output,
}
"""Name -> function. `percentile` takes the setting of that name, `output` the moments and the energy of the channels."""

OPTIONS: dict[str, tuple[str, ...]] = {"percentile": ("percentile",), "output": ("moments", "energy")}
"""Name -> the keywords that it takes beside the three that all take."""


def calibrate(
    value: str, histogram: Histogram | Seen, method: str, kind: Kind, *, symmetric: bool, **options: object
) -> Range:
    """(low, high) for one tensor, low <= 0 <= high; `options` of other methods are left aside.

    value       its name, for the error
    histogram   of the tensor; its range is enough for minmax
    Raises DataError where an entry was NaN or infinite, SettingError for a method that is not in CALIBRATORS.
    """
    if method not in CALIBRATORS:
        raise SettingError(f"no calibration is called {method!r}; {nearest(method, CALIBRATORS)}")
    if not np.isfinite([histogram.minimum, histogram.maximum]).all():
        bad = "NaN" if np.isnan([histogram.minimum, histogram.maximum]).any() else "infinite"
        raise DataError(
            f"{value!r} has entries that are {bad}; leave these samples out, or look at what feeds that value"
        )
    taken = {name: options[name] for name in OPTIONS.get(method, ()) if name in options}
    return CALIBRATORS[method](histogram, kind, symmetric, **taken)


def read_energy(layers: Sequence[Layer], weights: Sequence[np.ndarray], channels: int) -> np.ndarray:
    """[channels] squares of the weights that read each channel, summed over all layers that read one value.

    layers, weights   the readers, and their weights as stored; one that does not read `channels` channels counts nothing
    """
    energy = np.zeros(channels)
    for layer, stored in zip(layers, weights, strict=True):
        matrix = layer.matrix(stored).astype(np.float64)
        squares = (matrix.reshape(*matrix.shape[:2], -1) ** 2).sum(-1)  # [out, in/groups]
        if squares.shape[1] * layer.groups == channels and len(squares) % layer.groups == 0:
            energy += squares.reshape(layer.groups, -1, squares.shape[1]).sum(1).reshape(-1)
    return energy


# ---- what a range must hold ----


def within(histogram: Histogram | Seen, low: float, high: float) -> Histogram | Seen:
    """The same entries, those beyond `low` <= 0 and `high` >= 0 moved there: whoever reads them makes no difference."""
    if histogram.minimum >= low and histogram.maximum <= high:
        return histogram
    least, most = max(histogram.minimum, low), min(histogram.maximum, high)
    if isinstance(histogram, Seen):
        return Seen(least, most)
    return replace(
        histogram,
        minimum=least,
        maximum=most,
        lows=max(histogram.lows, low * histogram.samples),
        highs=min(histogram.highs, high * histogram.samples),
    )


COARSER = 1.5
"""A grid gets coarser by this at most for a number that it must hold, 3.5 dB; two more roundings would cost 4.8."""


def reaching(low: float, high: float, limits: Range) -> Range:
    """The range, out to the limits where that makes its steps at most COARSER times larger."""
    wider = (limits[0] if limits[0] > -np.inf else low, limits[1] if limits[1] < np.inf else high)
    wider = min(wider[0], low), max(wider[1], high)
    return wider if wider[1] - wider[0] <= COARSER * (high - low) else (low, high)


def holding(grid: Grid, number: float, near: float) -> Grid:
    """The grid made a little coarser, so that `number` is one of its own; as it is where that would take more than COARSER.

    near  share of a step by which the number may be off
    """
    least, most = (float(grid.values(np.asarray(level))) for level in (grid.low, grid.high))
    low, high = min(least, number), max(most, number)
    step = (high - low) / (grid.high - grid.low)
    whole = np.floor(abs(number) / step + near)
    if whole:
        step = max(step, abs(number) / whole)
    elif abs(number) > near * step:
        return grid
    if step > COARSER * float(grid.scale):
        return grid
    high = low + step * (grid.high - grid.low)
    return grid_of(low, high, grid.kind, symmetric=False, levels=(grid.low, grid.high))


# ---- what a range costs ----


def _with_zero(low: float, high: float) -> Range:
    return min(low, 0.0), max(high, 0.0)


def _both(histogram: Histogram, top: float) -> Range:
    """Magnitudes up to `top`, and no more than was seen."""
    return max(min(histogram.minimum, 0.0), -top), min(max(histogram.maximum, 0.0), top)


def _error(bins: Bins, low: np.ndarray, high: np.ndarray, kind: Kind, symmetric: bool) -> np.ndarray:
    """[candidates] sum over all entries of the squared error on the grid that spans [low, high]."""
    grid = grid_of(low, high, kind, symmetric=symmetric, axis=0)
    width = bins.high - bins.low
    wide = width > 0
    ends, place = np.unique(np.concatenate([bins.low[wide], bins.high[wide]]), return_inverse=True)
    integral = _integral(grid, ends)
    rows = integral[:, place[wide.sum() :]] - integral[:, place[: wide.sum()]]
    total = rows @ (bins.counts[wide] / width[wide])
    if not wide.all():
        points = np.broadcast_to(bins.low[~wide], (len(low), int((~wide).sum())))
        total = total + ((grid.rounded(points) - points) ** 2) @ bins.counts[~wide]
    return np.asarray(total)


def _integral(grid: Grid, x: np.ndarray) -> np.ndarray:
    """[candidates, x] ∫ from the grid's zero to x of the squared distance to the nearest number of the grid.

    A step of width s gives s³/12, the part up to r from a grid number r³/3; beyond the last number the distance is to it.
    """
    scale = grid.scale.astype(np.float64)[:, None]
    least, most = (grid.low - grid.zero)[:, None], (grid.high - grid.zero)[:, None]
    position = x[None] / scale
    inside = np.clip(position, least, most)
    whole = np.rint(inside)
    near, far = inside - whole, position - inside
    return scale**3 * (whole / 12 + (near * near * near + far * far * far) / 3)  # ** 3 would take ten times as long


def _divergence(bins: Bins, low: np.ndarray, high: np.ndarray, levels: int) -> np.ndarray:
    """[candidates] Kullback-Leibler divergence of the entries from what the levels of [low, high] tell of them.

    By the chain rule: between levels, where P holds what was clipped and Q does not, plus inside each.
    """
    ends = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, levels + 1)
    width = np.maximum(bins.high - bins.low, 1e-7 * np.abs(bins.high))
    inside, filled, told = (
        np.diff(replace(bins, counts=counts).below(ends), axis=1)
        for counts in (bins.counts, width, bins.counts * np.log(bins.counts / width))
    )
    total = bins.counts.sum()
    inside = np.where(inside > 1e-9 * total, inside, 0.0)  # what floats leave between two bins is no entry
    within = told.sum(1) - (inside * np.log(np.maximum(inside, 1e-300) / np.maximum(filled, 1e-300))).sum(1)
    clipped = inside.copy()
    clipped[:, 0] += bins.below(ends[:, 0])
    clipped[:, -1] += total - bins.below(ends[:, -1])
    q = np.maximum(inside / np.maximum(inside.sum(1, keepdims=True), 1e-300), UNSEEN)
    between = (clipped * np.log(np.maximum(clipped / total, 1e-300) / q)).sum(1)
    return np.asarray((between + within) / total)


def _energy_of_bins(bins: Bins, moments: Moments, energy: np.ndarray) -> np.ndarray:
    """[bins] mean energy of the channels whose entries lie in a bin; see `output`."""
    entries = np.maximum(moments.count - moments.zeros, 1.0)
    mean = moments.total / entries
    low, high = moments.minimum, moments.maximum
    spread = np.sqrt(np.maximum(moments.squares / entries - mean**2, 0.0)) + 1e-3 * (high - low) + 1e-30
    middle = (bins.low + bins.high) / 2
    share = np.zeros((2, len(middle)))
    for channel in np.flatnonzero((high > 0) | (low < 0)):
        far = (middle - mean[channel]) / spread[channel]
        density = np.exp(-0.5 * np.minimum(far**2, 1400.0)) / spread[channel] + 1e-2 / (high - low + 1e-30)[channel]
        met = (bins.high >= low[channel]) & (bins.low <= high[channel])
        share += np.outer([1.0, energy[channel]], entries[channel] * density * met)
    return np.divide(share[1], share[0], out=np.full(len(middle), float(energy.mean())), where=share[0] > 0)


# ---- search ----


def _searched(whole: Range, kind: Kind, symmetric: bool, bins: Bins) -> Range:
    """The range of least error inside `whole`: both ends shrunk together, then each in turn; finer steps about the best."""
    low, high = whole
    if low == high:
        return whole
    coarse, fine = (
        lambda lows, highs, bins=each: _error(bins, lows, highs, kind, symmetric) for each in (bins.coarse(), bins)
    )
    top = max(-low, high)
    best = _best(whole, (-top, top) if symmetric else whole, SHRUNK, (True, True), coarse)
    sides = (
        [(True, True)] if symmetric else [side for side, end in (((False, True), high), ((True, False), low)) if end]
    )
    for _ in range(3 if len(sides) > 1 else 0):
        before = best
        for side in sides:
            best = _best(whole, best, SHRUNK, side, coarse, outward=True)
        if best == before:
            break
    for step in (AROUND, AROUND ** (1 / 8)):
        for side in sides:
            best = _best(whole, best, step, side, fine)
    if symmetric:
        best = (-max(-best[0], best[1]), max(-best[0], best[1]))
    return max(best[0], low), min(best[1], high)


def _best(
    whole: Range, now: Range, factors: np.ndarray, moved: tuple[bool, bool], cost: Cost, *, outward: bool = False
) -> Range:
    """The cheapest of `now` with its moved ends times each factor (`outward`: of the whole range's ends instead)."""
    ends = [
        np.append(factors * (whole[place] if outward else now[place]), now[place])
        if moved[place]
        else np.full(len(factors) + 1, now[place])
        for place in (0, 1)
    ]
    low, high = np.maximum(ends[0], whole[0]), np.minimum(ends[1], whole[1])
    chosen = int(np.argmin(cost(low, high)))
    return float(low[chosen]), float(high[chosen])
