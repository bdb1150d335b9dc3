"""Ridge regression from sums over rows, for every form of layer: rows [groups, n, k] times weights [groups, out, k].

A dense layer is one group, a grouped convolution has its own, a depthwise one a group a channel. With X the rows of a group
and Y what they should become,

    min over W, b of  ‖Y − X Wᵀ − b‖² + λ ‖W − W₀‖²          (W₀, the present weights, is where no data speaks)

in float64, from the centred Gram matrix. λ is chosen by cross-validation: the rows lie in parts, each of which judges the fit
of all others; of the λ that do as well as the best within one standard error, the largest is taken (Breiman, Friedman, Olshen,
Stone 1984, section 3.4.3). Where it does not beat the present weights on the same rows, there is no fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from onnxcompress.errors import DataError

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ as shares of the Gram's mean diagonal."""

LEAST_GAIN = 1e-6
"""Share of the error on held-out rows by which a fit must be better: more than rounding."""

HOPELESS = 1.25
"""A ridge whose error on the parts so far is so many times the best one's is tried on no more of them."""

SMALL = 64
"""Columns up to which the systems of all groups are solved at once: below, the calls for each would take the time."""


STRIP = 256
"""Rows of a Gram matrix that are changed at once: a copy of the whole would take as much as it does."""

SUMS = ("x", "y", "power", "gram", "cross")


def _check_finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise DataError("activations are not finite; look for NaN or Inf in the data or the model")


@dataclass(eq=False)
class Sums:
    """Sums over rows: enough for the fit and for its error on other rows.

    count  rows      x [groups, k]      y, power (of y²) [groups, out]      gram [groups, k, k]      cross [groups, out, k]
    single products of rows in float32, summed up in float64: half the time, right to 4e-7 of √(Gᵢᵢ Gⱼⱼ), for ridges well above
    """

    count: int = 0
    x: Any = 0.0
    y: Any = 0.0
    power: Any = 0.0
    gram: Any = 0.0
    cross: Any = 0.0
    single: bool = False

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take rows [groups, n, k] and what they should become [groups, n, out] in. DataError where they are not finite."""
        _check_finite(x, y)
        sums = x.sum(1), y.sum(1), (y**2).sum(1)
        if self.single:
            x, y = x.astype(np.float32), y.astype(np.float32)
        self._take(x.shape[1], *sums, x.transpose(0, 2, 1) @ x, y.transpose(0, 2, 1) @ x)

    def absorb(self, other: Sums) -> None:
        """Take the sums of other rows in."""
        count, *sums = (getattr(other, name) for name in ("count", *SUMS))
        self._take(count, *(sums if self.count else [np.array(each) for each in sums]))

    def release(self, other: Sums) -> None:
        """Give sums that were absorbed back."""
        for name in SUMS:
            np.subtract(getattr(self, name), getattr(other, name), out=getattr(self, name))
        self.count -= other.count

    def _take(self, count: int, *sums: np.ndarray) -> None:
        """In place, as a Gram may fill a tenth of the memory."""
        for name, more in zip(SUMS, sums, strict=True):
            present = getattr(self, name)
            if np.ndim(present):
                present += more
            else:
                setattr(self, name, more.astype(np.float64, copy=False))
        self.count += count

    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Gram and cross moments about the means."""
        x, y = self.x / self.count, self.y / self.count
        gram = x[:, :, None] * (self.count * x[:, None, :])
        np.subtract(self.gram, gram, out=gram)
        return gram, self.cross - self.count * y[:, :, None] * x[:, None, :]

    def centre(self) -> tuple[np.ndarray, np.ndarray]:
        """`centred`, in place of the sums about zero: what is left of those is good for no more than the means."""
        mean = self.x / self.count
        for start in range(0, self.x.shape[1], STRIP):
            part = slice(start, start + STRIP)
            self.gram[:, part] -= mean[:, part, None] * self.x[:, None, :]
        self.cross -= self.y[:, :, None] * mean[:, None, :]
        return self.gram, self.cross

    def about(self, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gram and cross moments when a bias [groups, out] is given."""
        return self.gram.copy(), self.cross - bias[:, :, None] * self.x[:, None, :]

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Σ ‖y − W x − b‖² for a weight [groups, out, k] and a bias [groups, out]."""
        square = ((weight @ self.gram) * weight).sum(-1)
        fed = (weight @ self.x[:, :, None])[:, :, 0]
        cross = (weight * self.cross).sum(-1)
        total = self.power + square + self.count * bias**2 - 2 * cross - 2 * bias * self.y + 2 * bias * fed
        return float(max(total.sum(), 0.0))


@dataclass(eq=False)
class Held:
    """Rows that only judge, as they are, in float32: where there are fewer of them than columns, their error on a weight is had sooner.

    count  rows      power  [groups, out] Σ y²      parts  (x [groups, n, k], y [groups, n, out]) as they came
    """

    count: int = 0
    power: Any = 0.0
    parts: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """As `Sums.add`."""
        _check_finite(x, y)
        self.count += x.shape[1]
        self.power = self.power + (y**2).sum(1)
        self.parts.append((x.astype(np.float32), y.astype(np.float32)))

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """As `Sums.error`, within 1e-6 of the power of y."""
        columns = weight.astype(np.float32).transpose(0, 2, 1)
        total = 0.0
        for x, y in self.parts:
            lack = y - x @ columns
            lack -= bias.astype(np.float32)[:, None]
            total += float(np.einsum("gno,gno->", lack, lack, dtype=np.float64))
        return total


@dataclass(frozen=True, eq=False)
class Fit:
    """New weight [groups, out, k] and bias [groups, out], the ridge that did best, and SQNR on held-out rows before and after."""

    weight: np.ndarray
    bias: np.ndarray
    ridge: float
    before_db: float
    after_db: float


def solve(
    rest: Sums,
    judges: Sequence[Sums],
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    fixed_bias: bool = False,
    towards: np.ndarray | None = None,
) -> Fit | None:
    """The ridge that `judges` choose, each left out of its fit in turn, then fitted on all (`rest` takes them in).

    rest     rows that judge nothing, may be empty
    weight   [groups, out, k] present          bias  [groups, out] present, given for good where fixed_bias
    towards  [groups, out, k] W₀, where it is not the present weight
    None where the ridge does not beat the present weights on the rows of `judges`.
    """
    start = weight if towards is None else towards
    present = sum(judge.error(weight, bias) for judge in judges)
    for judge in judges:
        rest.absorb(judge)
    errors = _cross_validated(rest, judges, start, bias, fixed_bias)
    chosen = largest_of_best(errors)
    ridge, error = RIDGES[chosen], float(errors[:, chosen].sum())
    if not error < present * (1 - LEAST_GAIN):
        return None
    found = regressed(rest, start, bias, ridge, fixed_bias=fixed_bias)
    signal = sum(float(judge.power.sum()) for judge in judges)
    return None if found is None else Fit(*found, ridge, in_db(signal, present), in_db(signal, error))


def shifted(rest: Sums, judges: Sequence[Sums], weight: np.ndarray, bias: np.ndarray) -> Fit | None:
    """The bias that is best for a weight that stays; arguments as for `solve`. None where it does no better on held-out rows."""
    present = sum(judge.error(weight, bias) for judge in judges)
    for judge in judges:
        rest.absorb(judge)
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


def _cross_validated(
    total: Sums, judges: Sequence[Sums], start: np.ndarray, bias: np.ndarray, fixed_bias: bool
) -> np.ndarray:
    """Error of each ridge on each of `judges`, with what all rows but its own give; infinite where hopeless. [judges, ridges]"""
    errors = np.zeros((len(judges), len(RIDGES)))
    for number, judge in enumerate(judges):
        so_far = errors[:number].sum(0)
        alive = np.isfinite(so_far) & (so_far <= HOPELESS * so_far.min())
        errors[number, ~alive] = np.inf
        total.release(judge)
        found = ridges(total, start, bias, [RIDGES[at] for at in np.flatnonzero(alive)], fixed_bias=fixed_bias)
        errors[number, alive] = [np.inf if each is None else judge.error(*each) for each in found]
        total.absorb(judge)
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


def regressed(
    sums: Sums, weight: np.ndarray, bias: np.ndarray, share: float, *, fixed_bias: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """W₀ + (C − W₀ G)(G + λ)⁻¹, and the bias that goes with it; None where rounding makes G + λ indefinite.

    weight  W₀      share  λ over the mean diagonal of G; the rest as for `solve`
    """
    return next(ridges(sums, weight, bias, [share], fixed_bias=fixed_bias))


def ridges(
    sums: Sums,
    weight: np.ndarray,
    bias: np.ndarray,
    shares: Sequence[float],
    *,
    fixed_bias: bool,
    moments: tuple[np.ndarray, np.ndarray] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray] | None]:
    """What `regressed` gives for one share after another; `moments`: what `centred` or `about` gave, where that is known."""
    gram, cross = moments or (sums.about(bias) if fixed_bias else sums.centred())
    lack = cross - weight @ gram
    level = np.einsum("gkk->g", gram) / gram.shape[-1]
    for share in shares:
        step = _solved(gram, share * level + 1e-12, lack)
        if step is None:
            yield None
            continue
        new = np.add(step, weight, out=step)
        yield new, bias if fixed_bias else (sums.y - (new @ sums.x[:, :, None])[:, :, 0]) / sums.count


def _solved(gram: np.ndarray, level: np.ndarray, lack: np.ndarray) -> np.ndarray | None:
    """lack (gram + level)⁻¹, group by group; None where that is not positive definite. [groups, out, k]"""
    size = gram.shape[-1]
    if size <= SMALL:
        try:
            return np.linalg.solve(gram + level[:, None, None] * np.eye(size), lack.swapaxes(1, 2)).swapaxes(1, 2)
        except np.linalg.LinAlgError:
            return None
    found = np.empty_like(lack)
    for group, lacking in enumerate(lack):
        one = gram[group].copy()
        one.flat[:: size + 1] += level[group]
        try:  # the transpose is the same matrix in the order that is overwritten without a copy
            factor = cho_factor(one.T, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            return None
        found[group] = cho_solve(factor, lacking.T, check_finite=False).T
    return found


def in_db(signal: float, error: float) -> float:
    """Ratio of two powers in decibels."""
    return float(10 * np.log10(max(signal, 1e-300) / max(error, 1e-300)))
