"""One-dimensional k-means: optimal for a tensor, near it for thousands of rows at once.

    minimise Σ w_i (x_i − nearest entry)²

values ─▶ atoms (distinct values, or bins of their leading bits, each with its weight and its mean)
       ─▶ groups of atoms ─dynamic programming─▶ books of 1, 2, ... entries ─Lloyd on the atoms─▶ books

The cost of an interval follows from prefix sums, and where the best last interval begins moves one way only, so that a layer of
the dynamic programme takes n log n steps (divide and conquer; Wu, Journal of Algorithms 1991; Grønlund et al. 2017,
arXiv:1701.07204). With at most EXACT distinct values the result is the optimum. Beyond, atoms are joined to GROUPS first, and
Lloyd's algorithm on the atoms takes it from there.

Rows start from the same programme on few groups each, all rows at once, and go on with Lloyd on their sorted weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

EXACT = 2048
"""Distinct values up to which the dynamic programme takes each by itself."""

GROUPS = 16
"""Above that atoms are joined to so many groups an entry, at least FEWEST; Lloyd's algorithm then came within 1e-4 of the optimum."""

FEWEST = 256

FEW = 1 << 16
"""Values up to which each distinct one is an atom; beyond, atoms are bins."""

DROPPED = 13
"""Bits of a float32 that do not tell bins apart: 10 of the mantissa are left, a thousandth of the value."""

BLOCK = 1 << 20
"""Values that are held in float64 at once."""

STEPS = 100
"""Of Lloyd's algorithm at most."""

CELLS = 1 << 21
"""Entries of the cost matrices that are held at once where rows are solved together."""

MOST_BY_ROW = 32
"""Entries up to which rows start from the dynamic programme: its cost grows with their cube."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """Values [rows, n] ascending along a row, float64, and the weight of each, at least 0."""

    values: np.ndarray
    weights: np.ndarray


# -- a tensor -----------------------------------------------------------------------------------------------------------------


def books(
    values: np.ndarray, entries: Sequence[int], weights: np.ndarray | None = None, *, exact: int = EXACT
) -> dict[int, np.ndarray]:
    """Number of entries -> the book, float64 ascending, shorter where there are fewer distinct values.

    values   of any shape      weights  that broadcasts over it, at least 0; None: all alike
    exact    distinct values up to which the book is the optimum
    """
    atoms = atoms_of(values, weights)
    found = _optimal(atoms, entries, exact)
    if atoms.values.shape[1] <= exact:
        return found
    return {size: lloyd(atoms, book[None])[0] for size, book in found.items()}


def atoms_of(values: np.ndarray, weights: np.ndarray | None = None) -> Atoms:
    """One row: the distinct values, or beyond FEW values their bins by leading bits; what weighs nothing is left out."""
    flat = np.atleast_1d(values)
    if flat.size <= FEW:
        distinct, where = np.unique(flat.astype(np.float64), return_inverse=True)
        heavy = None if weights is None else np.broadcast_to(weights, flat.shape).reshape(-1)
        mass, total = np.bincount(where.reshape(-1), heavy).astype(np.float64), None
    else:
        mass, total = _binned(flat, weights)
        distinct = total
    used = mass > 0
    if not used.any():
        return atoms_of(values)
    if total is not None:
        distinct = np.divide(total, mass, out=np.zeros_like(total), where=used)
    return Atoms(distinct[used][None], mass[used][None])


def _binned(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight and weighted sum of each bin, ascending."""
    bins = 1 << (32 - DROPPED)
    mass, total = np.zeros(bins), np.zeros(bins)
    for block, heavy in _blocks(values, weights):
        keys = (block.view(np.uint32) >> DROPPED).astype(np.int64)
        weighed = block.astype(np.float64)
        mass += np.bincount(keys, heavy, bins)
        total += np.bincount(keys, weighed if heavy is None else weighed * heavy, bins)
    half = bins // 2  # the sign bit is set for negative numbers, whose bits ascend away from zero
    return tuple(np.concatenate([each[half:][::-1], each[:half]]) for each in (mass, total))  # type: ignore[return-value]


def _blocks(values: np.ndarray, weights: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Flat float32 values and their weights, BLOCK or so at a time."""
    spread = None if weights is None else np.broadcast_to(weights, values.shape)
    step = max(1, BLOCK * len(values) // values.size)
    for start in range(0, len(values), step):
        part = np.ascontiguousarray(values[start : start + step], np.float32).reshape(-1)
        for first in range(0, len(part), BLOCK):
            heavy = None if spread is None else spread[start : start + step].reshape(-1)[first : first + BLOCK]
            yield part[first : first + BLOCK], heavy


def _optimal(atoms: Atoms, entries: Sequence[int], exact: int) -> dict[int, np.ndarray]:
    """Books by dynamic programming on the atoms of one row, or on groups of them."""
    ends = np.arange(atoms.values.shape[1] + 1)[None]
    if ends.shape[1] - 1 > exact:
        ends = np.unique(_grouped(atoms, max(GROUPS * max(entries), FEWEST)), axis=1)
    prefix = [sums[0, ends[0]] for sums in _prefix(atoms)]
    begins = _programme(prefix, max(entries))
    return {size: _means(prefix, _traced(begins, min(size, len(begins)))) + _centre(atoms)[0, 0] for size in entries}


def _prefix(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of w, w x and w x², about the mean of the row, over the first 0, 1, ... atoms; [rows, n + 1] each."""
    x = atoms.values - _centre(atoms)
    parts = (atoms.weights, atoms.weights * x, atoms.weights * x**2)
    return tuple(_cumulated(each) for each in parts)  # type: ignore[return-value]


def _cumulated(each: np.ndarray) -> np.ndarray:
    """Sums over the first 0, 1, ... of a row."""
    sums = np.zeros((len(each), each.shape[1] + 1))
    np.cumsum(each, axis=1, out=sums[:, 1:])
    return sums


def _with_ends(inner: np.ndarray, count: int) -> np.ndarray:
    """Ends between intervals [rows, m] with 0 before them and `count` behind."""
    ends = np.zeros((len(inner), inner.shape[1] + 2), int)
    ends[:, 1:-1], ends[:, -1] = inner, count
    return ends


def _centre(atoms: Atoms) -> np.ndarray:
    mass = atoms.weights.sum(axis=1, keepdims=True)
    total = (atoms.weights * atoms.values).sum(axis=1, keepdims=True)
    return np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)


def _cost(prefix: Sequence[np.ndarray], first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of one entry for the atoms from `first` up to, not including, `end`."""
    mass, total, square = (sums[end] - sums[first] for sums in prefix)
    return np.maximum(square - np.divide(total**2, mass, out=np.zeros_like(total), where=mass > 0), 0.0)


def _programme(prefix: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """For 1, 2, ... intervals and each number of first atoms: where the last interval of the best partition begins."""
    count = len(prefix[0]) - 1
    every = np.arange(count + 1)
    least = _cost(prefix, np.zeros_like(every), every)
    begins = [np.zeros(count + 1, int)]
    for _ in range(1, min(most, count)):
        least, begin = _layer(least, prefix)
        begins.append(begin)
    return begins


def _layer(before: np.ndarray, prefix: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """min over j <= i of before[j] + cost(j, i) for every i, and the first such j, which never falls as i rises."""
    count = len(before) - 1
    least, begin = np.zeros(count + 1), np.zeros(count + 1, int)
    step = 1 << max(count.bit_length() - 1, 0)
    while step:
        rows = np.arange(step, count + 1, 2 * step)
        low, after = begin[rows - step], rows + step
        high = np.where(after <= count, begin[np.minimum(after, count)], rows)
        lengths = np.minimum(high, rows) - low + 1
        starts = np.cumsum(lengths) - lengths
        tried = np.arange(lengths.sum()) + np.repeat(low - starts, lengths)
        costs = before[tried] + _cost(prefix, tried, np.repeat(rows, lengths))
        best = np.minimum.reduceat(costs, starts)
        hits = np.flatnonzero(costs == np.repeat(best, lengths))
        least[rows], begin[rows] = best, tried[hits[np.searchsorted(hits, starts)]]
        step //= 2
    return least, begin


def _traced(begins: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Ends of the intervals of the best partition into `size`, 0 first."""
    ends = [len(begins[0]) - 1]
    for begin in begins[size - 1 :: -1]:
        ends.append(int(begin[ends[-1]]))
    return np.unique(ends)


def _means(prefix: Sequence[np.ndarray], ends: np.ndarray) -> np.ndarray:
    mass, total = (np.diff(sums[ends]) for sums in prefix[:2])
    return total[mass > 0] / mass[mass > 0]


# -- rows -----------------------------------------------------------------------------------------------------------------------


def row_books(
    rows: np.ndarray, entries: int, weights: np.ndarray | None = None, *, start: str = "optimal", seed: int = 0
) -> np.ndarray:
    """A book for each row [rows, n], float64 ascending [rows, entries]; the last entries of a row may be equal.

    weights  [n] or [rows, n], at least 0        start  a key of STARTS        seed  of starts that are drawn
    """
    found = np.empty((len(rows), entries))
    step = max(1, BLOCK // max(rows.shape[1], 1))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        heavy = weights if weights is None or weights.ndim == 1 else weights[part]
        atoms = ascending(rows[part], heavy)
        found[part] = lloyd(atoms, STARTS[start](atoms, entries, np.random.default_rng([seed, first])))
    return found


def ascending(rows: np.ndarray, weights: np.ndarray | None) -> Atoms:
    """Rows [rows, n] sorted, with their weights; a row that weighs nothing counts as all alike."""
    if weights is None:
        values = np.sort(rows, axis=1).astype(np.float64)
        return Atoms(values, np.ones(values.shape))
    order = np.argsort(rows, axis=1, kind="stable")
    heavy = np.broadcast_to(weights, rows.shape).astype(np.float64)
    heavy = np.where(heavy.sum(axis=1, keepdims=True) > 0, heavy, 1.0)
    return Atoms(*(np.take_along_axis(each, order, axis=1) for each in (rows.astype(np.float64), heavy)))


def lloyd(atoms: Atoms, book: np.ndarray, *, fixed: float | None = None, steps: int = STEPS) -> np.ndarray:
    """Lloyd's algorithm from a book [rows, entries] on sorted atoms: exact means by prefix sums, until nothing moves.

    fixed  an entry of this value stays where it is
    """
    centre = _centre(atoms)
    mass, total, _ = _prefix(atoms)
    book = np.sort(book, axis=1) - centre
    stays = np.zeros(book.shape, bool) if fixed is None else book == fixed - centre
    values, before = atoms.values - centre, None
    for _ in range(steps):
        ends = _found(values, (book[:, 1:] + book[:, :-1]) / 2)
        if before is not None and np.array_equal(ends, before):
            break
        before = ends
        ends = _with_ends(ends, values.shape[1])
        weight, sums = (np.diff(np.take_along_axis(each, ends, axis=1), axis=1) for each in (mass, total))
        moved = (weight > 0) & ~stays
        book = np.where(moved, np.divide(sums, weight, out=np.zeros_like(sums), where=weight > 0), book)
    return book + centre


def _found(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How many values [rows, n], ascending, lie at or below each number [rows, m]: a binary search for all at once."""
    if len(values) == 1:
        return np.searchsorted(values[0], wanted[0], side="right")[None]
    low, high = np.zeros(wanted.shape, int), np.full(wanted.shape, values.shape[1])
    for _ in range(values.shape[1].bit_length()):
        middle = (low + high) // 2
        right = np.take_along_axis(values, np.minimum(middle, values.shape[1] - 1), axis=1) <= wanted
        open_ = low < high
        low, high = np.where(open_ & right, middle + 1, low), np.where(open_ & ~right, middle, high)
    return low


# -- starts ---------------------------------------------------------------------------------------------------------------------

Start = Callable[[Atoms, int, np.random.Generator], np.ndarray]


def _by_programme(atoms: Atoms, entries: int, rng: np.random.Generator) -> np.ndarray:
    """The optimum of four groups of atoms an entry, or of all atoms where there are few; for many entries `_companded`."""
    if entries > MOST_BY_ROW:
        return _companded(atoms, entries)
    groups = min(max(4 * entries, 48), atoms.values.shape[1])
    step = max(1, CELLS // (groups + 1) ** 2)
    parts = range(0, len(atoms.values), step)
    return np.concatenate(
        [_together(Atoms(*(e[p : p + step] for e in vars(atoms).values())), groups, entries) for p in parts]
    )


def _together(atoms: Atoms, groups: int, entries: int) -> np.ndarray:
    """The dynamic programme of all rows at once, on the whole matrix of intervals."""
    ends = _grouped(atoms, groups)
    mass, total, square = (np.take_along_axis(sums, ends, axis=1) for sums in _prefix(atoms))
    mass, total, square = (each[:, None, :] - each[:, :, None] for each in (mass, total, square))
    cost = square - np.divide(total**2, mass, out=np.zeros_like(total), where=mass > 0)
    cost = np.where(np.tri(ends.shape[1], k=-1, dtype=bool), np.inf, np.maximum(cost, 0.0))
    least, begins = cost[:, 0], []
    for _ in range(1, entries):
        sums = least[:, :, None] + cost
        begin = sums.argmin(axis=1)
        least = np.take_along_axis(sums, begin[:, None], axis=1)[:, 0]
        begins.append(begin)
    at = np.full((len(ends), 1), ends.shape[1] - 1)
    traced = [at]
    for begin in reversed(begins):
        traced.append(np.take_along_axis(begin, traced[-1], axis=1))
    traced.append(np.zeros_like(at))
    places = np.concatenate(traced[::-1], axis=1)
    return _interval_means(atoms, np.take_along_axis(ends, places, axis=1))


def _interval_means(atoms: Atoms, ends: np.ndarray) -> np.ndarray:
    """Mean of each interval; of an empty one the nearest atom's value."""
    mass, total, _ = _prefix(atoms)
    weight, sums = (np.diff(np.take_along_axis(each, ends, axis=1), axis=1) for each in (mass, total))
    nearest = np.take_along_axis(atoms.values, np.minimum(ends[:, :-1], atoms.values.shape[1] - 1), axis=1)
    means = np.divide(sums, weight, out=np.zeros_like(sums), where=weight > 0) + _centre(atoms)
    return np.sort(np.where(weight > 0, means, nearest), axis=1)


def _grouped(atoms: Atoms, groups: int) -> np.ndarray:
    """Ends [rows, groups + 1] of groups that hold few of the weight and of the range: at equal steps of both together."""
    count = atoms.values.shape[1]
    if count <= groups:
        return np.broadcast_to(np.arange(count + 1), (len(atoms.values), count + 1))
    ends = _found(_spread(atoms), np.broadcast_to(np.arange(1, groups) / groups, (len(atoms.values), groups - 1)))
    return _with_ends(ends, count)


def _spread(atoms: Atoms) -> np.ndarray:
    """Share of the weight and of the range up to each atom, half and half; ascends from about 0 to 1."""
    mass = np.cumsum(atoms.weights, axis=1)
    range_ = atoms.values[:, -1:] - atoms.values[:, :1]
    reached = (atoms.values - atoms.values[:, :1]) / np.where(range_ > 0, range_, 1.0)
    return (mass / mass[:, -1:] + reached) / 2


def _companded(atoms: Atoms, entries: int) -> np.ndarray:
    """Entries as dense as the cube root of the density, which is best for many (Panter, Dite, Proceedings of the IRE 1951)."""
    ends = _grouped(atoms, min(2 * entries, atoms.values.shape[1]))
    mass = np.diff(np.take_along_axis(_prefix(atoms)[0], ends, axis=1), axis=1)
    edges = np.pad((atoms.values[:, 1:] + atoms.values[:, :-1]) / 2, ((0, 0), (1, 1)), mode="edge")
    edges[:, 0], edges[:, -1] = atoms.values[:, 0], atoms.values[:, -1]
    edges = np.take_along_axis(edges, ends, axis=1)
    level = _cumulated(np.cbrt(mass * np.diff(edges, axis=1) ** 2))
    top = level[:, -1:]
    wanted = (np.arange(entries) + 0.5) / entries * top
    at = np.clip(_found(level, wanted), 1, level.shape[1] - 1)
    (low, high), (least, most) = (
        [np.take_along_axis(each, place, axis=1) for place in (at - 1, at)] for each in (level, edges)
    )
    share = np.divide(wanted - low, high - low, out=np.zeros_like(wanted), where=high > low)
    return least + share * (most - least)


def condensed(atoms: Atoms, count: int) -> Atoms:
    """At most `count` atoms a row instead, each the mean of neighbours that hold few of the weight and of the range."""
    ends = _grouped(atoms, count)
    mass = np.diff(np.take_along_axis(_prefix(atoms)[0], ends, axis=1), axis=1)
    return Atoms(_interval_means(atoms, ends), mass)


def _linear(atoms: Atoms, entries: int, rng: np.random.Generator) -> np.ndarray:
    """Equal steps from the least to the largest value."""
    return np.linspace(atoms.values[:, 0], atoms.values[:, -1], entries, axis=1)


def _density(atoms: Atoms, entries: int, rng: np.random.Generator) -> np.ndarray:
    """Equal steps of the cumulative distribution."""
    mass = np.cumsum(atoms.weights, axis=1)
    levels = np.broadcast_to((np.arange(entries) + 0.5) / entries, (len(mass), entries))
    ends = _found(mass / mass[:, -1:], levels)
    return np.take_along_axis(atoms.values, np.minimum(ends, atoms.values.shape[1] - 1), axis=1)


def _random(atoms: Atoms, entries: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur, Vassilvitskii, SODA 2007): each entry drawn by its weighted squared distance to those before."""
    found = np.empty((len(atoms.values), entries))
    odds = atoms.weights
    for number in range(entries):
        mass = np.cumsum(odds, axis=1)
        at = _found(mass, rng.random((len(mass), 1)) * mass[:, -1:])
        found[:, [number]] = np.take_along_axis(atoms.values, np.minimum(at, mass.shape[1] - 1), axis=1)
        distance = (atoms.values - found[:, [number]]) ** 2 * atoms.weights
        odds = distance if number == 0 else np.minimum(odds, distance)
    return np.sort(found, axis=1)


STARTS: dict[str, Start] = {"optimal": _by_programme, "linear": _linear, "density": _density, "random": _random}
"""Where Lloyd's algorithm begins; the last three as in Deep Compression (Han et al., ICLR 2016, arXiv:1510.00149, section 3.2)."""
