"""Ridge regression from sums over rows, for every form of layer: rows [groups, n, k] times weights [groups, out, k].

A dense layer is one group, a grouped convolution has its own, a depthwise one a group a channel. With X the rows of a group
and Y what they should become,

    min over W, b of  ‖Y − X Wᵀ − b‖² + λ ‖W − W₀‖²          (W₀, the present weights, is where no data speaks)

in float64, from the centred Gram matrix; validated.py chooses λ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from onnxcompress.errors import DataError

SMALL = 64
"""Columns up to which the systems of all groups are solved at once: below, the calls for each would take the time."""


STRIP = 256
"""Rows of a Gram matrix that are changed at once: a copy of the whole would take as much as it does."""

STRIP_BYTES = 16 << 20
"""Of a weight whose error is told: the products of the whole would take twice as much as it does."""

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
        """Σ ‖y − W x − b‖² for a weight [groups, out, k] and a bias [groups, out]; a strip of the outputs at a time."""
        total, step = 0.0, max(1, STRIP_BYTES // max(weight[:, 0].nbytes, 1))
        for start in range(0, weight.shape[1], step):
            part = slice(start, start + step)
            some, shift, y = weight[:, part], bias[:, part], self.y[:, part]
            square = ((some @ self.gram) * some).sum(-1)
            fed = (some @ self.x[:, :, None])[:, :, 0]
            cross = (some * self.cross[:, part]).sum(-1)
            told = self.power[:, part] + square + self.count * shift**2 - 2 * cross - 2 * shift * y + 2 * shift * fed
            total += float(told.sum())
        return max(total, 0.0)


@dataclass(eq=False)
class Held:
    """Rows as they are, in float32: where there are fewer of them than columns, their error on a weight is had sooner, and so is a fit.

    count  rows      x, y, power  as of Sums      parts  (x [groups, n, k], y [groups, n, out]) as they came
    """

    count: int = 0
    x: Any = 0.0
    y: Any = 0.0
    power: Any = 0.0
    parts: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """As `Sums.add`."""
        _check_finite(x, y)
        self._take(x.shape[1], x.sum(1), y.sum(1), (y**2).sum(1))
        self.parts.append((x.astype(np.float32), y.astype(np.float32)))

    def absorb(self, other: Held) -> None:
        """Take other rows in."""
        self._take(other.count, other.x, other.y, other.power)
        self.parts += other.parts

    def _take(self, count: int, x: np.ndarray, y: np.ndarray, power: np.ndarray) -> None:
        self.count += count
        self.x, self.y, self.power = self.x + x, self.y + y, self.power + power

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """As `Sums.error`, within 1e-6 of the power of y."""
        columns = weight.astype(np.float32).transpose(0, 2, 1)
        total = 0.0
        for x, y in self.parts:
            lack = y - x @ columns
            lack -= bias.astype(np.float32)[:, None]
            total += float(np.einsum("gno,gno->", lack, lack, dtype=np.float64))
        return total


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
    lack = weight @ gram
    np.subtract(cross, lack, out=lack)
    level = np.einsum("gkk->g", gram) / gram.shape[-1]
    for share in shares:
        step = divided(gram, share * level + 1e-12, lack)
        if step is None:
            yield None
            continue
        new = np.add(step, weight, out=step)
        yield new, bias if fixed_bias else (sums.y - (new @ sums.x[:, :, None])[:, :, 0]) / sums.count


def divided(gram: np.ndarray, level: np.ndarray, lack: np.ndarray) -> np.ndarray | None:
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
        found[group] = lacking
        found[group] = cho_solve(factor, found[group].T, overwrite_b=True, check_finite=False).T
    return found


def in_db(signal: float, error: float) -> float:
    """Ratio of two powers in decibels."""
    return float(10 * np.log10(max(signal, 1e-300) / max(error, 1e-300)))
