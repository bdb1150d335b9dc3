"""Importance of the units of a group: each published criterion is one function on arrays; choosing stands at the end.

A criterion never sees an operator. It is given `slices`, a list of [units, elements] arrays, one for each tensor of the
group whose role it looks at, and the evidence about the units; it returns [units] float64, larger = keep. Scores of
several slices are combined by `evidence.aggregate`. To add a criterion: write the function, decorate it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.spatial.distance import cdist

from onnxcompress.errors import DataError, SettingError, nearest

Slices = list[np.ndarray]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class UnitEvidence:
    """What is known about the units of one group beside their weights; None: nobody looked.

    mean, mean_square   [units] of a unit's activations, over samples and positions
    zero_share          [units] share of its activations that are zero, 0 ... 1
    gate_gradients      [draws, units] of the loss by a factor 1 on a unit's activations, one draw or sample a row
    hessian_slices      diagonal of the loss's Hessian, a list shaped like slices
    rng                 for criteria that draw
    aggregate           key of AGGREGATES: how the scores of a unit's slices become one
    """

    mean: np.ndarray | None = None
    mean_square: np.ndarray | None = None
    zero_share: np.ndarray | None = None
    gate_gradients: np.ndarray | None = None
    hessian_slices: Slices | None = None
    rng: np.random.Generator | None = None
    aggregate: str = "sum"


Score = Callable[[Slices, UnitEvidence], np.ndarray]


@dataclass(frozen=True)
class Criterion:
    """A row of CRITERIA: a score function, the kinds of evidence it needs, its paper, the role of its slices."""

    name: str
    score: Score
    needs: tuple[str, ...]
    paper: str
    slices_of: str


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str, needs: tuple[str, ...] = (), paper: str = "", slices_of: str = "write"
) -> Callable[[Score], Score]:
    """Enter a score function in CRITERIA. `needs`: "moments", "gradient", "hessian"; `slices_of`: "write", "scale"."""

    def enter(score: Score) -> Score:
        CRITERIA[name] = Criterion(name, score, needs, paper, slices_of)
        return score

    return enter


def find_criterion(name: str) -> Criterion:
    """The row of that name; SettingError with the nearest name where there is none."""
    if name not in CRITERIA:
        raise SettingError(f"no criterion is called {name!r}; {nearest(name, CRITERIA)}")
    return CRITERIA[name]


AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sum": lambda scores: scores.sum(axis=0),
    "mean": lambda scores: scores.mean(axis=0),
    "max": lambda scores: scores.max(axis=0),
    "product": lambda scores: scores.prod(axis=0),
}


def combine(scores: list[np.ndarray], aggregate: str) -> np.ndarray:
    """One score a unit, [units] float64, from one [units] array a slice."""
    if aggregate not in AGGREGATES:
        raise SettingError(f"no aggregate is called {aggregate!r}; {nearest(aggregate, AGGREGATES)}")
    if not scores:
        raise SettingError("this group has no tensor for the criterion to look at; choose another criterion")
    return AGGREGATES[aggregate](np.asarray(scores, dtype=np.float64))


# ---- from weights ----


def _each(slices: Slices, evidence: UnitEvidence, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return combine([score(np.asarray(part, dtype=np.float64)) for part in slices], evidence.aggregate)


@criterion("l1", paper="arXiv:1608.08710")
def l1(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """Σ |w|. Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710."""
    return _each(slices, evidence, lambda w: np.abs(w).sum(axis=1))


@criterion("l2", paper="arXiv:1608.08710")
def l2(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """√Σ w². The other norm of Li et al., ICLR 2017, arXiv:1608.08710."""
    return _each(slices, evidence, lambda w: np.linalg.norm(w, axis=1))


@criterion("fpgm", paper="arXiv:1811.00250")
def geometric_median(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """Σ over all units of ‖w - w'‖: the most replaceable goes first. He et al., CVPR 2019, arXiv:1811.00250."""
    return _each(slices, evidence, lambda w: cdist(w, w).sum(axis=1))


@criterion("lamp", paper="arXiv:2010.07611")
def lamp(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """‖w‖² / Σ ‖w'‖² over the units with ‖w'‖ ≥ ‖w‖, itself included: 1 for the largest, comparable between groups.

    Lee et al., Layer-adaptive Sparsity for Magnitude-based Pruning, ICLR 2021, arXiv:2010.07611 (of weights).
    """
    squares = _each(slices, evidence, lambda w: (w**2).sum(axis=1))
    ascending = np.sort(squares)
    suffix = np.cumsum(ascending[::-1])[::-1]
    at_least = suffix[np.searchsorted(ascending, squares)]
    return np.divide(squares, at_least, out=np.zeros_like(squares), where=at_least > 0)


@criterion("bn_scale", paper="arXiv:1708.06519", slices_of="scale")
def bn_scale(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """|γ| of the BatchNormalization behind a channel, mean over a unit's entries.

    Network Slimming, Liu et al., ICCV 2017, arXiv:1708.06519; SettingError for a group that no normalization scales.
    """
    if not slices:
        raise SettingError(
            "criterion 'bn_scale' reads BatchNormalization scales and this group has none (folded into the weights at "
            "export?); choose 'l2' or export without folding"
        )
    return _each(slices, evidence, lambda gamma: np.abs(gamma).mean(axis=1))


@criterion("random")
def random(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """Uniform draws: the baseline that every criterion must beat. Mittal et al., WACV 2018, arXiv:1801.10447."""
    rng = _present(evidence.rng, "random", "a seeded generator (rng)")
    if not slices:
        raise SettingError("this group has no tensor for the criterion to look at; choose another criterion")
    return rng.random(len(slices[0]))


# ---- from activations ----


@criterion("apoz", needs=("moments",), paper="arXiv:1607.03250")
def apoz(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """1 - average percentage of zeros. Network Trimming, Hu et al. 2016, arXiv:1607.03250."""
    return 1.0 - np.asarray(_present(evidence.zero_share, "apoz", "shares of zero activations"), dtype=np.float64)


@criterion("activation_mean", needs=("moments",), paper="arXiv:1611.06440")
def activation_mean(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """|mean activation|. Molchanov et al., ICLR 2017, arXiv:1611.06440 (section 2.2)."""
    return np.abs(np.asarray(_present(evidence.mean, "activation_mean", "activation moments"), dtype=np.float64))


@criterion("activation_variance", needs=("moments",), paper="arXiv:1611.06440")
def activation_variance(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """E a² - (E a)²: what a bias cannot replace. Molchanov et al., ICLR 2017, arXiv:1611.06440 (there its root)."""
    mean = np.asarray(_present(evidence.mean, "activation_variance", "activation moments"), dtype=np.float64)
    square = np.asarray(_present(evidence.mean_square, "activation_variance", "activation moments"), dtype=np.float64)
    return np.maximum(square - mean**2, 0.0)


# ---- from gradients ----


@criterion("taylor", needs=("gradient",), paper="arXiv:1906.10771")
def taylor(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """E g² with g = Σ a ∂L/∂a over the unit's activations: what the loss would change, to first order, if the unit were zero.

    Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv:1906.10771, with gates; the sum over
    activations is that of Molchanov et al., ICLR 2017, arXiv:1611.06440.
    """
    gradients = np.asarray(_present(evidence.gate_gradients, "taylor", "gradients of the outputs"), dtype=np.float64)
    scores: np.ndarray = np.square(gradients).mean(axis=0)
    return scores


@criterion("hessian", needs=("hessian",), paper="LeCun, Denker, Solla 1989")
def hessian_diagonal(slices: Slices, evidence: UnitEvidence) -> np.ndarray:
    """½ Σ h w² with h the Hessian's diagonal. Optimal Brain Damage, LeCun, Denker, Solla, NIPS 1989."""
    curvature = _present(evidence.hessian_slices, "hessian", "the Hessian's diagonal")
    if [part.shape for part in slices] != [part.shape for part in curvature]:
        raise DataError("gradient evidence does not fit the weights of this group; collect it again on this model")
    pairs = [(np.asarray(w, np.float64), np.asarray(h, np.float64)) for w, h in zip(slices, curvature, strict=True)]
    return combine([0.5 * (h * w**2).sum(axis=1) for w, h in pairs], evidence.aggregate)


def _present(value: T | None, name: str, what: str) -> T:
    if value is None:
        raise SettingError(f"criterion {name!r} needs {what} and none were given; collect that evidence or choose 'l2'")
    return value


# ---- scores of different groups on one scale ----


def _over(scores: np.ndarray, scale: float) -> np.ndarray:
    return scores / scale if scale > 0 else scores.copy()


NORMALISERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda s: s.copy(),
    "sum": lambda s: _over(s, float(s.sum())),
    "mean": lambda s: _over(s, float(s.mean())),
    "max": lambda s: _over(s, float(s.max())),
    "l2": lambda s: _over(s, float(np.linalg.norm(s))),
    "range": lambda s: _over(s - s.min(), float(np.ptp(s))),
    "standard": lambda s: _over(s - s.mean(), float(s.std())),
}


def normalise(scores: np.ndarray, how: str) -> np.ndarray:
    """Scores [units] of one group on a scale that groups share; `how` is a key of NORMALISERS.

    The set of Torch-Pruning (Fang et al., DepGraph, CVPR 2023, arXiv:2301.12900), which says "standarization" for range
    and "gaussian" for standard; its "lamp" is a criterion here.
    """
    if how not in NORMALISERS:
        raise SettingError(f"no normalisation is called {how!r}; {nearest(how, NORMALISERS)}")
    return NORMALISERS[how](np.asarray(scores, dtype=np.float64))


# ---- choosing ----


BLOCKS = (16, 8)
"""Channels in a block of onnxruntime's NCHWc convolutions: with AVX-512, and with AVX or NEON."""

WIDE = 64
"""Units from which on counts become multiples of 16 by default: that loses at most an eighth of the group, and on six real
models at an amount of a half not over 0.6 % of the parameters; 16 throughout loses up to 3 %, and 15 % of the multiply-adds
at three quarters, where groups of 24 are left whole."""


def step_of(units: int, round_to: int | None) -> int:
    """What the count of a group of so many units is a multiple of; None: 16 for wide groups, 8 for others.

    A file is made on one machine and run on others. A multiple of 16 is one of 8 too, so it is whole blocks on both.
    """
    if round_to is not None:
        return round_to
    return BLOCKS[0] if units >= WIDE else BLOCKS[1]


def kept_count(units: int, amount: float, minimum: int = 1, round_to: int | None = 1) -> int:
    """How many of `units` stay when a share `amount` (0 ... 1) should go.

    A cut count becomes the nearest multiple of `round_to` (None: see `step_of`; halves keep more), never zero, at least
    `minimum`; a group smaller than that is not rounded.
    """
    if not 0 <= amount <= 1:
        raise SettingError(f"amount is {amount}; it is the share of channels to remove, between 0 and 1")
    return _rounded(int(np.floor(units * (1 - amount) + 0.5 + 1e-9)), units, minimum, round_to)


def _rounded(kept: int, units: int, minimum: int, round_to: int | None) -> int:
    """As kept_count, from a count."""
    if kept >= units:
        return units
    step = step_of(units, round_to)
    if step > 1 and units >= step:
        kept = step * max(1, int(np.floor(kept / step + 0.5)))
        minimum = -(-minimum // step) * step
    return min(units, max(kept, minimum, 1))


def keep_largest(scores: np.ndarray, count: int) -> np.ndarray:
    """bool [units], the `count` largest scores; of equal ones the lower index."""
    keep = np.zeros(len(scores), dtype=bool)
    keep[np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[:count]] = True
    return keep


def choose_local(
    scores: Mapping[str, np.ndarray],
    amounts: float | Mapping[str, float],
    *,
    minimum: int = 1,
    round_to: int | None = 1,
) -> dict[str, np.ndarray]:
    """Per group, remove its own share of its own units: name -> bool [units], True = kept.

    amounts    share to remove, 0 ... 1: one for all groups, or one a group (a group that is not named stays whole)
    """
    kept = {}
    for name, values in _finite(scores).items():
        amount = amounts.get(name, 0.0) if isinstance(amounts, Mapping) else amounts
        kept[name] = keep_largest(values, kept_count(len(values), amount, minimum, round_to))
    return kept


def choose_global(
    scores: Mapping[str, np.ndarray],
    costs: Mapping[str, float],
    amount: float,
    *,
    minimum: int = 1,
    floor: float = 0.0,
    round_to: int | None = 1,
) -> dict[str, np.ndarray]:
    """One threshold over all groups: the lowest scores go until `amount` of the summed cost went. name -> bool [units].

    costs      of one unit of each group, >= 0 (1 each: `amount` is a share of channels)
    Each group keeps at least `minimum` units, and the share `floor` of its own (else one threshold may close a layer, and
    the network with it); its count is rounded afterwards, so the share that goes is near `amount`.
    Scores must be comparable between groups: normalise. Of equal ones the lower index is kept.
    """
    if not 0 <= amount <= 1:
        raise SettingError(f"amount is {amount}; it is the share of the cost to remove, between 0 and 1")
    values = _finite(scores)
    total = sum(len(v) * costs[name] for name, v in values.items())
    least = {name: max(minimum, 1, int(np.ceil(floor * len(v) - 1e-9))) for name, v in values.items()}
    left, gone, spent = {name: len(v) for name, v in values.items()}, 0.0, amount * total * (1 - 1e-12)
    for _, _, _, name in sorted(
        (score, position, -unit, name)
        for position, (name, group) in enumerate(values.items())
        for unit, score in enumerate(group.tolist())
    ):
        if gone >= spent:
            break
        if left[name] > least[name]:
            left[name] -= 1
            gone += costs[name]
    return {name: keep_largest(v, _rounded(left[name], len(v), least[name], round_to)) for name, v in values.items()}


def _finite(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise DataError(f"group {name!r}: scores are not finite; look for NaN or Inf in its weights or evidence")
    return {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
