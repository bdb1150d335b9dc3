"""Ridge regression from sums over rows, for every form of layer: rows [groups, n, k] times weights [groups, out, k].

A dense layer is one group, a grouped convolution has its own, a depthwise one a group a channel. With X the rows of a group
and Y what they should become,

    min over W, b of  ‖Y − X Wᵀ − b‖² + λ ‖W − W₀‖²          (W₀, the present weights, is where no data speaks)

in float64, from the centred Gram matrix. λ is the one of RIDGES whose fit on four fifths of the batches does best on the
rest; where none beats the present weights there, there is no fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from onnxcompress.errors import DataError

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ as shares of the Gram's mean diagonal."""

LEAST_GAIN = 1e-6
"""Share of the error on held-out rows by which a fit must be better: more than rounding."""


@dataclass(eq=False)
class Sums:
    """Sums over rows: enough for the fit and for its error on other rows.

    count  rows      x [groups, k]      y, power (of y²) [groups, out]      gram [groups, k, k]      cross [groups, out, k]
    """

    count: int = 0
    x: Any = 0.0
    y: Any = 0.0
    power: Any = 0.0
    gram: Any = 0.0
    cross: Any = 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take rows [groups, n, k] and what they should become [groups, n, out] in. DataError where they are not finite."""
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise DataError("activations are not finite; look for NaN or Inf in the data or the model")
        self._take(x.shape[1], x.sum(1), y.sum(1), (y**2).sum(1), x.transpose(0, 2, 1) @ x, y.transpose(0, 2, 1) @ x)

    def absorb(self, other: Sums) -> None:
        """Take the sums of other rows in."""
        self._take(*vars(other).values())

    def _take(self, count: int, *sums: np.ndarray) -> None:
        """In place, as a Gram may fill a tenth of the memory."""
        for name, more in zip(("x", "y", "power", "gram", "cross"), sums, strict=True):
            present = getattr(self, name)
            if np.ndim(present):
                present += more
            elif self.count == 0:
                setattr(self, name, more)
        self.count += count

    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Gram and cross moments about the means."""
        x, y = self.x / self.count, self.y / self.count
        gram = x[:, :, None] * (self.count * x[:, None, :])
        np.subtract(self.gram, gram, out=gram)
        return gram, self.cross - self.count * y[:, :, None] * x[:, None, :]

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


@dataclass(frozen=True, eq=False)
class Fit:
    """New weight [groups, out, k] and bias [groups, out], the ridge that did best, and SQNR on held-out rows before and after."""

    weight: np.ndarray
    bias: np.ndarray
    ridge: float
    before_db: float
    after_db: float


def solve(fit: Sums, judge: Sums, weight: np.ndarray, bias: np.ndarray, *, fixed_bias: bool = False) -> Fit | None:
    """The best of RIDGES on `judge`, then fitted on both (`fit` takes `judge` in); None where none beats the present weights.

    weight  [groups, out, k] present          bias  [groups, out] present, given for good where fixed_bias
    """
    present = judge.error(weight, bias)
    best, ridge = present * (1 - LEAST_GAIN), None
    for share in RIDGES:
        found = regressed(fit, weight, bias, share, fixed_bias=fixed_bias)
        error = np.inf if found is None else judge.error(*found)
        if error < best:
            best, ridge = error, share
    if ridge is None:
        return None
    if judge is not fit:
        fit.absorb(judge)
    found = regressed(fit, weight, bias, ridge, fixed_bias=fixed_bias)
    signal = float(judge.power.sum())
    return None if found is None else Fit(*found, ridge, in_db(signal, present), in_db(signal, best))


def regressed(
    sums: Sums, weight: np.ndarray, bias: np.ndarray, share: float, *, fixed_bias: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """W₀ + (C − W₀ G)(G + λ)⁻¹, and the bias that goes with it; None where rounding makes G + λ indefinite.

    share  λ over the mean diagonal of G; the rest as for `solve`
    """
    gram, cross = sums.about(bias) if fixed_bias else sums.centred()
    lack = cross - weight @ gram
    new = np.empty_like(weight)
    for group, (one, lacking) in enumerate(zip(gram, lack, strict=True)):
        one.flat[:: len(one) + 1] += share * np.trace(one) / len(one) + 1e-12
        try:  # the transpose is the same matrix in the order that is overwritten without a copy
            factor = cho_factor(one.T, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            return None
        new[group] = weight[group] + cho_solve(factor, lacking.T, check_finite=False).T
    return new, bias if fixed_bias else (sums.y - (new @ sums.x[:, :, None])[:, :, 0]) / sums.count


def in_db(signal: float, error: float) -> float:
    """Ratio of two powers in decibels."""
    return float(10 * np.log10(max(signal, 1e-300) / max(error, 1e-300)))
