"""Which channels to keep so that what reads them can be refitted best: selection on the Gram matrix of their input.

A reader with weights W [out, n] is fed channels x [n]; over all samples and positions G = Σ x xᵀ [n, n], and T = WᵀW
[n, n] (for a kernel, the sum of W_pᵀW_p over its positions p). After cutting to the columns S, and refitting W by least
squares, the output error is

    E(S) = tr( T (G - G[:,S] G[S,S]⁻¹ G[S,:]) )

G carries a ridge on its diagonal, λ = ridge · mean(diag G), as if each channel had independent noise of variance λ.
Every function here measures exactly this E, as a share of E(∅) = tr(T G). Pass the covariance in place of XᵀX where
biases are refitted too: the mean is then free. Single steps and swaps are exact and cost O(n²), by the tableau of
`tableau.py`, so every function is O(n³) in all. Arguments that the functions share:

    gram       [n, n] float64, or a list of them where readers are fed different tensors: their errors add, and a target
               that is scaled weighs its reader
    target     [n, n], or a list alike
    keep       how many units stay, 1 ... units
    ridge      λ as a share of gram's mean diagonal, no unit
    positions  [units, k] columns of each unit, or a list alike (k may differ by reader); None: one column a unit.
               Columns that no unit names are always kept.
    returns    sorted indices of the kept units; ties keep the lower index
    raises     SettingError for a keep out of range; DataError for matrices that are not finite, do not fit each other,
               or are singular

Nearest work: OSSCAR (arXiv:2403.12983) takes this objective and swaps channels on it; CORP (arXiv:2602.05243) and
SPA/OBSPA (arXiv:2403.18955, the nearest one on ONNX graphs) score each unit once and compensate in closed form; Optimal
Brain Surgeon (Hassibi, Stork 1993) is the single step. Here a group may have several readers, a unit several columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve

from onnxcompress.errors import DataError, SettingError
from onnxcompress.passes.prune.tableau import Queue, Reader, cholesky, pivot, swap_changes, tableau

Matrices = np.ndarray | Sequence[np.ndarray]
Positions = np.ndarray | Sequence[np.ndarray] | None

RIDGE = 1e-6  # the least that keeps inverses in float64 exact to about 1e-7 at n = 2048


class Elimination(NamedTuple):
    """Units in the order in which they went, and the relative error (0 ... 1) after each of them went; both [count]."""

    order: np.ndarray
    errors: np.ndarray


def eliminate(
    gram: Matrices, target: Matrices, ridge: float = RIDGE, positions: Positions = None, count: int | None = None
) -> Elimination:
    """Remove the unit whose loss raises E least, `count` times (default: all): one run answers for every keep.

    Each step is exact, also at n = 2048: rank updates are postponed and applied as one matrix product.
    The order of Optimal Brain Surgeon (Hassibi, Stork, NIPS 1993) with whole channels as in SPA (arXiv:2403.18955).
    """
    readers = _readers(gram, target, ridge, positions)
    queues = [Queue(*tableau(r, np.arange(len(r.gram))), r.positions) for r in readers]
    units = len(readers[0].positions)
    return _run(queues, units if count is None else count, _least, _total(readers))


def error_curve(
    gram: Matrices, target: Matrices, order: np.ndarray, ridge: float = RIDGE, positions: Positions = None
) -> np.ndarray:
    """Relative error after each unit of `order` [count] went, in that order: [count], rising to at most 1."""
    readers = _readers(gram, target, ridge, positions)
    queues = [Queue(*tableau(r, np.arange(len(r.gram))), r.positions) for r in readers]
    given = iter(np.asarray(order))
    return _run(queues, len(order), lambda gains, alive: next(given), _total(readers)).errors


def backward_elimination(
    gram: Matrices, target: Matrices, keep: int, ridge: float = RIDGE, positions: Positions = None
) -> np.ndarray:
    """What `eliminate` leaves when `keep` units are left."""
    units = _unit_count(gram, target, keep, positions)
    gone = eliminate(gram, target, ridge, positions, units - keep).order
    return np.setdiff1d(np.arange(units), gone)


def forward_selection(
    gram: Matrices, target: Matrices, keep: int, ridge: float = RIDGE, positions: Positions = None
) -> np.ndarray:
    """Add the unit that lowers E most, `keep` times: orthogonal least squares (Chen, Billings, Luo 1989)."""
    _unit_count(gram, target, keep, positions)
    readers = _readers(gram, target, ridge, positions)
    queues = [Queue(*tableau(r, _always(r)), r.positions) for r in readers]
    return np.sort(_run(queues, keep, _most, _total(readers)).order)


def thinet_greedy(
    gram: Matrices, target: Matrices, keep: int, ridge: float = RIDGE, positions: Positions = None
) -> np.ndarray:
    """Remove units so that what they contributed, summed, stays least: min Σ_{a,b ∈ R} M[a,b] with M = T ∘ G, no refit.

    No inverse, so ridge is not used. Luo, Wu, Lin, ICCV 2017, arXiv:1707.06342 (there on sampled positions).
    """
    units = _unit_count(gram, target, keep, positions)
    m = _contributions(_readers(gram, target, 0.0, positions))
    rise = m.diagonal().copy()
    removed = np.zeros(units, dtype=bool)
    for _ in range(units - keep):
        unit = _least(rise, ~removed)
        removed[unit] = True
        rise += 2 * m[unit]
    return np.flatnonzero(~removed)


def lasso_selection(
    gram: Matrices, target: Matrices, keep: int, ridge: float = RIDGE, positions: Positions = None
) -> np.ndarray:
    """Units with a non-zero factor in min_β ½‖Y - Σ β_c X_c W_cᵀ‖² + μ‖β‖₁, μ such that `keep` are left.

    In Gram form ½βᵀMβ - βᵀM1 + μ‖β‖₁, M = T ∘ G. Where no μ gives that count, the least |β_c| √M[c,c] go.
    No inverse, so ridge is not used. He, Zhang, Sun, ICCV 2017, arXiv:1707.06168 (their refit is a pass of its own).
    """
    _unit_count(gram, target, keep, positions)
    m = _contributions(_readers(gram, target, 0.0, positions))
    linear = m.sum(axis=1)
    low, high = 0.0, float(np.abs(linear).max())
    beta = best = np.ones(len(m))
    for _ in range(40):  # halves the penalty's logarithm: far beyond what a count can react to
        penalty = np.sqrt(low * high) if low else high * 1e-2
        beta = _coordinate_descent(m, linear, penalty, beta)
        count = np.count_nonzero(beta)
        if keep <= count <= np.count_nonzero(best):
            best = beta
        if count == keep:
            break
        low, high = (penalty, high) if count > keep else (low, penalty)
    strength = np.abs(best) * np.sqrt(m.diagonal().clip(min=0))
    return np.sort(np.argsort(-strength, kind="stable")[:keep])


def local_search(
    gram: Matrices,
    target: Matrices,
    keep: int,
    ridge: float = RIDGE,
    positions: Positions = None,
    start: np.ndarray | None = None,
    swaps: int = 1000,
) -> np.ndarray:
    """Swap a kept unit for a removed one while that lowers E: all pairs are compared exactly, the best is taken.

    start    kept units to begin with (default: backward elimination, so the result is never worse than that)
    swaps    at most this many; the search ends by itself where no swap helps
    The local search of OSSCAR (Meng et al., ICML 2024, arXiv:2403.12983), with every pair considered.
    """
    units = _unit_count(gram, target, keep, positions)
    if start is None:
        start = backward_elimination(gram, target, keep, ridge, positions)
    inside = np.isin(np.arange(units), start)
    if np.count_nonzero(inside) != keep:
        raise SettingError(f"the start of a local search names {np.count_nonzero(inside)} units; it must name {keep}")
    readers = _readers(gram, target, ridge, positions)
    tableaus = [tableau(r, np.concatenate([_always(r), r.positions[inside].ravel()])) for r in readers]
    least = 1e-9 * _total(readers)  # a swap that gains less is within the rounding of the updates
    for _ in range(swaps):
        s, r = np.flatnonzero(inside), np.flatnonzero(~inside)
        if not len(r):
            break
        change = np.zeros((len(s), len(r)))
        for (a, z), reader in zip(tableaus, readers, strict=True):
            change += swap_changes(a, z, reader.positions[s], reader.positions[r])
        out, into = np.unravel_index(np.argmin(change), change.shape)
        if change[out, into] > -least:
            break
        for (a, z), reader in zip(tableaus, readers, strict=True):
            pivot(a, z, reader.positions[r[into]], entering=True)
            pivot(a, z, reader.positions[s[out]], entering=False)
        inside[[s[out], r[into]]] = False, True
    return np.flatnonzero(inside)


def reconstruction_error(
    gram: Matrices, target: Matrices, kept: np.ndarray, ridge: float = RIDGE, positions: Positions = None
) -> float:
    """E(kept) / E(∅) after a refit, 0 ... 1: noise over signal of the readers' outputs, so SQNR = -10 log10 of it."""
    readers = _readers(gram, target, ridge, positions)
    gone = np.setdiff1d(np.arange(len(readers[0].positions)), kept)
    error = 0.0
    for g, t, places in readers:
        r = places[gone].ravel()
        s = np.setdiff1d(np.arange(len(g)), r)
        cross = g[np.ix_(s, r)]
        left = g[np.ix_(r, r)] - (cross.T @ cho_solve(cholesky(g[np.ix_(s, s)]), cross) if len(s) else 0.0)
        error += float(np.sum(t[np.ix_(r, r)] * left))
    return max(error, 0.0) / _total(readers)


def saliency(gram: Matrices, target: Matrices, ridge: float = RIDGE, positions: Positions = None) -> np.ndarray:
    """Relative error if this unit alone went and the rest were refitted: tr(T[J,J] (G⁻¹[J,J])⁻¹) / tr(T G), [units].

    Optimal Brain Surgeon for whole units, as SPA/OBSPA (arXiv:2403.18955) and CORP (arXiv:2602.05243) rank by.
    """
    readers = _readers(gram, target, ridge, positions)
    queues = [Queue(*tableau(r, np.arange(len(r.gram))), r.positions) for r in readers]
    return sum((queue.gains() for queue in queues), np.zeros(len(readers[0].positions))) / _total(readers)


Selector = Callable[[Matrices, Matrices, int, float, Positions], np.ndarray]
SELECTORS: dict[str, Selector] = {
    "thinet": thinet_greedy,
    "lasso": lasso_selection,
    "forward": forward_selection,
    "backward": backward_elimination,
    "osscar": local_search,
}


# ---- what the callers gave, as readers ----


def _readers(gram: Matrices, target: Matrices, ridge: float, positions: Positions) -> list[Reader]:
    grams, targets = _listed(gram), _listed(target)
    places = [None] * len(grams) if positions is None else _listed(positions)
    if not grams or not len(grams) == len(targets) == len(places):
        counts = f"{len(grams)} Gram matrices, {len(targets)} targets and {len(places)} positions"
        raise DataError(f"{counts}; give one of each for every reader")
    if ridge < 0:
        raise SettingError(f"ridge is {ridge}; it must be 0 or more")
    readers = [_reader(g, t, ridge, p) for g, t, p in zip(grams, targets, places, strict=True)]
    units = sorted({len(reader.positions) for reader in readers})
    if len(units) > 1:
        raise DataError(f"readers of one group name {units} units; they must agree")
    return readers


def _listed(value: Matrices) -> list[np.ndarray]:
    return [value] if isinstance(value, np.ndarray) and value.ndim == 2 else list(value)


def _reader(gram: np.ndarray, target: np.ndarray, ridge: float, positions: np.ndarray | None) -> Reader:
    gram, target = np.array(gram, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape != target.shape:
        raise DataError(f"Gram matrix {gram.shape} and target {target.shape}; both must be [n, n]")
    if not (np.isfinite(gram).all() and np.isfinite(target).all()):
        raise DataError("the Gram matrix or target of a reader is not finite; look for NaN or overflow in the data")
    gram += gram.T
    gram *= 0.5
    # A tensor that is zero throughout still needs a scale for its ridge; any does, its readers' error is zero.
    gram[np.diag_indices_from(gram)] += ridge * (gram.diagonal().mean() or 1.0)
    return Reader(gram, target, np.arange(len(gram))[:, None] if positions is None else np.asarray(positions))


def _unit_count(gram: Matrices, target: Matrices, keep: int, positions: Positions) -> int:
    units = len(_listed(gram)[0] if positions is None else _listed(positions)[0])
    if not 1 <= keep <= units:
        raise SettingError(f"keep is {keep}; this group has {units} units, keep between 1 and {units}")
    return units


def _always(reader: Reader) -> np.ndarray:
    return np.setdiff1d(np.arange(len(reader.gram)), reader.positions)


def _total(readers: list[Reader]) -> float:
    # Readers whose weights are all zero have nothing to lose: every share of nothing is 0.
    return float(sum(np.sum(r.target * r.gram) for r in readers)) or 1.0


def _contributions(readers: list[Reader]) -> np.ndarray:
    """M [units, units]: inner products of what units contribute to the outputs, Σ over their columns of T ∘ G."""
    total = 0.0
    for g, t, places in readers:
        m = t * g
        total = total + m[:, places].sum(axis=2)[places].sum(axis=1)
    return np.asarray(total)


def _coordinate_descent(m: np.ndarray, linear: np.ndarray, penalty: float, beta: np.ndarray) -> np.ndarray:
    """argmin ½βᵀMβ - βᵀlinear + penalty‖β‖₁ from a start β [n], cycling over the coordinates that may move."""
    beta, curvature = beta.copy(), m.diagonal().clip(min=1e-300)
    slope = m @ beta - linear
    for _ in range(100):  # a count settles long before the values do, and warm starts make most runs short
        largest = 0.0
        for c in np.flatnonzero((beta != 0) | (np.abs(slope) > penalty)):
            pull = beta[c] * curvature[c] - slope[c]
            value = np.sign(pull) * max(abs(pull) - penalty, 0.0) / curvature[c]
            step = value - beta[c]
            if step:
                beta[c] = value
                slope += step * m[c]
                largest = max(largest, step * step * curvature[c])
        if largest <= 1e-10 * abs(linear @ beta):
            break
    return beta


# ---- one way through the tableaus ----


def _run(queues: list[Queue], count: int, choose: Callable[[np.ndarray, np.ndarray], int], total: float) -> Elimination:
    """Take `count` units, each named by choose(gains, alive); errors are the summed gains as shares of total."""
    order, changes = np.zeros(count, dtype=int), np.zeros(count)
    for step in range(count):
        gains = sum((queue.gains() for queue in queues[1:]), queues[0].gains())
        order[step] = unit = choose(gains, queues[0].alive)
        changes[step] = gains[unit]
        for queue in queues:
            queue.take(unit)
    return Elimination(order, np.cumsum(changes) / total)


def _least(gains: np.ndarray, alive: np.ndarray) -> int:
    """The smallest, and of equal ones the last: the lower index is kept."""
    return len(gains) - 1 - int(np.argmin(np.where(alive, gains, np.inf)[::-1]))


def _most(gains: np.ndarray, alive: np.ndarray) -> int:
    return int(np.argmax(np.where(alive, gains, -np.inf)))
