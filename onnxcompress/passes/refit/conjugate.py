"""Conjugate gradients for many small systems at once, each with entries that are held."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def conjugate(
    applied: Callable[[np.ndarray], np.ndarray],
    lack: np.ndarray,
    stiff: np.ndarray,
    free: np.ndarray,
    *,
    steps: int,
    close: float,
) -> np.ndarray:
    """x with applied(x) = lack where `free` and 0 elsewhere, all [systems, n]; all are stepped at once.

    applied  the systems' symmetric, positive semidefinite matrices      stiff  their diagonals, which precondition
    steps    at most so many, and twice n       close  share of a system's first residual at which it stops
    """
    found = np.zeros_like(lack)
    lack = np.where(free, lack, 0.0)
    ahead = lack / stiff
    towards, power = ahead.copy(), (lack * ahead).sum(axis=1)
    limit = close**2 * power
    for _ in range(min(steps, 2 * lack.shape[1])):
        open_ = power > limit
        if not open_.any():
            break
        pulled = np.where(free, applied(towards), 0.0)
        curve = (towards * pulled).sum(axis=1)
        step = np.divide(power, curve, out=np.zeros_like(power), where=open_ & (curve > 0))[:, None]
        found += step * towards
        lack = lack - step * pulled
        ahead = lack / stiff
        before, power = power, (lack * ahead).sum(axis=1)
        towards = ahead + np.divide(power, before, out=np.zeros_like(power), where=before > 0)[:, None] * towards
    return found
