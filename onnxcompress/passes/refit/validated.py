"""The ridge of a layer's fit, chosen by cross-validation, and the fit.

The rows lie in parts, each of which judges the fit of all others; of the λ that do as well as the best within one standard error, the
largest is taken (Breiman, Friedman, Olshen, Stone 1984, section 3.4.3). Where it does not beat the present weights on the same rows,
there is no fit.

Layers with more rows than columns are fitted from sums over them (solver.py), those with fewer from products of rows with each other:

    W = W₀ + (Y − b − X W₀ᵀ)ᵀ (X Xᵀ + λ)⁻¹ X           (kernel ridge regression; Saunders, Gammerman, Vovk, ICML 1998)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from onnxcompress.passes.refit.solver import Held, Sums, divided, in_db, regressed, ridges

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ as shares of the Gram's mean diagonal."""

LEAST_GAIN = 1e-6
"""Share of the error on held-out rows by which a fit must be better: more than rounding."""

HOPELESS = 1.25
"""A ridge whose error on the parts so far is so many times the best one's is tried on no more of them."""

Found = tuple[np.ndarray, np.ndarray]
"""Weight [groups, out, k] and bias [groups, out]."""


@dataclass(frozen=True, eq=False)
class Fit:
    """New weight [groups, out, k] and bias [groups, out], the ridge that did best, and SQNR on held-out rows before and after."""

    weight: np.ndarray
    bias: np.ndarray
    ridge: float
    before_db: float
    after_db: float


def solve(
    rest: Sums | Held,
    judges: Sequence[Sums] | Sequence[Held],
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    fixed_bias: bool = False,
    towards: np.ndarray | None = None,
) -> Fit | None:
    """The ridge that `judges` choose, each left out of its fit in turn, then fitted on all (`rest` takes them in).

    rest     rows that judge nothing, may be empty; of the same kind as the judges
    weight   [groups, out, k] present          bias  [groups, out] present, given for good where fixed_bias
    towards  [groups, out, k] W₀, where it is not the present weight
    None where the ridge does not beat the present weights on the rows of `judges`.
    """
    start = weight if towards is None else towards
    present = sum(judge.error(weight, bias) for judge in judges)
    signal = sum(float(judge.power.sum()) for judge in judges)
    for judge in judges:
        rest.absorb(judge)  # type: ignore[arg-type]
    system = (Many if isinstance(rest, Sums) else Few)(rest, judges, start, bias, fixed_bias)  # type: ignore[arg-type]
    errors = _cross_validated(len(judges), system.errors)
    chosen = largest_of_best(errors)
    error = float(errors[:, chosen].sum())
    if not error < present * (1 - LEAST_GAIN):
        return None
    found = system.fitted(RIDGES[chosen])
    return None if found is None else Fit(*found, RIDGES[chosen], in_db(signal, present), in_db(signal, error))


def shifted(
    rest: Sums | Held, judges: Sequence[Sums] | Sequence[Held], weight: np.ndarray, bias: np.ndarray
) -> Fit | None:
    """The bias that is best for a weight that stays; arguments as for `solve`. None where it does no better on held-out rows."""
    present = sum(judge.error(weight, bias) for judge in judges)
    for judge in judges:
        rest.absorb(judge)  # type: ignore[arg-type]
    error = 0.0
    for judge in judges:
        others = rest.count - judge.count
        if not others:
            return None
        lack = (rest.y - judge.y) - (weight @ (rest.x - judge.x)[:, :, None])[:, :, 0]
        error += judge.error(weight, lack / others)
    if not error < present * (1 - LEAST_GAIN):
        return None
    signal = sum(float(judge.power.sum()) for judge in judges)
    best = (rest.y - (weight @ rest.x[:, :, None])[:, :, 0]) / rest.count
    return Fit(weight, best, 0.0, in_db(signal, present), in_db(signal, error))


@dataclass(frozen=True, eq=False)
class Many:
    """More rows than columns. total: sums over all; judges: over parts of them; start: W₀; bias: as it is."""

    total: Sums
    judges: Sequence[Sums]
    start: np.ndarray
    bias: np.ndarray
    fixed_bias: bool

    def errors(self, number: int, shares: Sequence[float]) -> list[float]:
        """On one judge, of what all other rows give at some ridges; infinite where that is no number."""
        judge = self.judges[number]
        self.total.release(judge)
        found = ridges(self.total, self.start, self.bias, shares, fixed_bias=self.fixed_bias)
        errors = [np.inf if each is None else judge.error(*each) for each in found]
        self.total.absorb(judge)
        return errors

    def fitted(self, share: float) -> Found | None:
        """On all rows."""
        return regressed(self.total, self.start, self.bias, share, fixed_bias=self.fixed_bias)


@dataclass(frozen=True, eq=False)
class Few:
    """Fewer rows than columns. total: all rows, those of the judges last; the rest as of Many."""

    total: Held
    judges: Sequence[Held]
    start: np.ndarray
    bias: np.ndarray
    fixed_bias: bool

    @cached_property
    def rows(self) -> np.ndarray:
        """X [groups, n, k]"""
        return np.concatenate([x for x, _ in self.total.parts], axis=1, dtype=np.float64)

    @cached_property
    def lack(self) -> np.ndarray:
        """What W₀ leaves of the goals, under the bias where that is given [groups, n, out]."""
        goals = np.concatenate([y for _, y in self.total.parts], axis=1, dtype=np.float64)
        goals -= self.rows @ self.start.transpose(0, 2, 1)
        return goals - self.bias[:, None] if self.fixed_bias else goals

    @cached_property
    def products(self) -> np.ndarray:
        """X Xᵀ"""
        return self.rows @ self.rows.transpose(0, 2, 1)

    @cached_property
    def places(self) -> list[slice]:
        """Where the rows of each judge lie."""
        counts = [judge.count for judge in self.judges]
        ends = accumulate(counts, initial=self.total.count - sum(counts))
        return [slice(*each) for each in pairwise(ends)]

    def errors(self, number: int, shares: Sequence[float]) -> list[float]:
        """As of Many."""
        mine, others = self.places[number], np.delete(np.arange(self.total.count), self.places[number])
        lack, across = self.lack[:, mine], self.products[:, others, mine]
        kernel, wanted = self.products[:, others[:, None], others], self.lack[:, others]
        if not self.fixed_bias:
            lack, across = lack - wanted.mean(1, keepdims=True), across - kernel.mean(2, keepdims=True)
        return [
            np.inf if each is None else float(np.square(lack - (each @ across).transpose(0, 2, 1)).sum())
            for each in self._mixtures(kernel, wanted, shares)
        ]

    def fitted(self, share: float) -> Found | None:
        """As of Many."""
        return next(self.fits([share]))

    def fits(self, shares: Sequence[float]) -> Iterator[Found | None]:
        """`fitted` for one ridge after another."""
        total = self.total
        for mixture in self._mixtures(self.products, self.lack, shares):
            if mixture is None:
                yield None
                continue
            weight = self.start + mixture @ self.rows
            bias = (total.y - (weight @ total.x[:, :, None])[:, :, 0]) / total.count
            yield weight, self.bias if self.fixed_bias else bias

    def _mixtures(self, kernel: np.ndarray, lack: np.ndarray, shares: Sequence[float]) -> Iterator[np.ndarray | None]:
        """Of rows, that are added to W₀ [groups, out, n]: about the means where the bias is free, so that each adds up to zero."""
        if not self.fixed_bias:
            mean = kernel.mean(1)
            kernel = kernel - mean[:, :, None] - mean[:, None, :] + mean.mean(1)[:, None, None]
            lack = lack - lack.mean(1, keepdims=True)
        level = np.einsum("gnn->g", kernel) / self.start.shape[2]
        for share in shares:
            yield divided(kernel, share * level + 1e-12, lack.transpose(0, 2, 1))


def _cross_validated(count: int, judged: Callable[[int, Sequence[float]], list[float]]) -> np.ndarray:
    """Error of each ridge on each of `count` judges, by what is `judged` at some of them; infinite where hopeless. [judges, ridges]"""
    errors = np.zeros((count, len(RIDGES)))
    for number in range(count):
        so_far = errors[:number].sum(0)
        alive = np.isfinite(so_far) & (so_far <= HOPELESS * so_far.min())
        errors[number, ~alive] = np.inf
        errors[number, alive] = judged(number, [RIDGES[at] for at in np.flatnonzero(alive)])
    return errors


def largest_of_best(errors: np.ndarray) -> int:
    """Of ascending ridges, the last one whose error is within one standard error of the least; [judges, ridges] of errors.

    The standard error is that of the difference to the best ridge, over the judges; none with a single one.
    """
    total = errors.sum(0)
    best = int(np.argmin(total))
    if len(errors) == 1 or not np.isfinite(total[best]):
        return best
    possible = np.flatnonzero(np.isfinite(total))
    behind = errors[:, possible] - errors[:, [best]]
    margin = np.sqrt(len(errors)) * behind.std(0, ddof=1)
    return int(possible[behind.sum(0) <= margin][-1])
