"""Trellis-coded books: K symbols a weight choose among 2K entries, the half of them by the symbols of the columns before it.

What is gained is what neighbours can give each other: with 16 symbols about 1 dB over the best book of 16 entries at the same bytes
(see weights/trellis.py for the code and the papers). A row is a path, from its first column to its last:

- `followed`     the best path of every row, by the Viterbi algorithm, errors weighed by the Gram's diagonal
- `compensated`  the same with each error made up for by the columns behind it: every state keeps the row as its own best path has
                 left it (per-survivor processing: Raheli, Polydoros, Tzou, IEEE Transactions on Communications 1995), so that GPTQ's
                 recursion runs once a state; the best survivor of a block goes on. QTIP (Tseng et al. 2024, arXiv:2406.11235) makes
                 up for blocks of columns after each has been coded
- `alternated`   paths and the entries that are best for them, in turns

Symbols here are the entries, so that all of books.py works on them; `Clustered.coded` turns a path into symbols of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxcompress.errors import DataError
from onnxcompress.passes.cluster.books import Books, Gram, diagonal, loss, refitted, rescaled
from onnxcompress.passes.cluster.sharing import Weights, shared
from onnxcompress.passes.quantize.rounding import DAMPING, factored
from onnxcompress.weights.trellis import rules

STATES = 8
"""Of the trellis."""

SHORTEST = 32
"""Columns of a row below which it gains little: a path begins in one state."""

CELLS = 1 << 21
"""Of states times columns times rows that are kept at once."""

BLOCK = 32
"""Columns between two decisions of `compensated`."""

ROUNDS = 4
"""Of paths and entries on a sample."""

SAMPLE = 1 << 17
"""Weights that entries are learnt from before the whole is coded."""


@dataclass(frozen=True, eq=False)
class Trellis(Books):
    """Books of 2K entries, ascending; entry i is in subset i mod 4, and a state allows two subsets."""

    states: int = STATES


class _Subsets:
    """The nearest entry of a subset: entries of all books on one line, each book in a stretch of its own."""

    def __init__(self, books: Books, out: int) -> None:
        entries = books.entries
        self._entries, self._group = entries, books.of(out)
        self._far = max(float(np.abs(entries).max()), 1e-300)
        self._begin = 4 * self._far * self._group
        order = [np.argsort(entries[:, c::4], axis=1, kind="stable") for c in range(4)]
        self._order = [4 * each + c for c, each in enumerate(order)]
        ascending = [np.take_along_axis(entries, each, axis=1) for each in self._order]
        shift = 4 * self._far * np.arange(len(entries))[:, None]
        self._middles = [((each[:, 1:] + each[:, :-1]) / 2 + shift).reshape(-1) for each in ascending]

    def __call__(self, subset: int, wish: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Levels uint8 and values [..., out] for wishes [..., out]."""
        near = np.clip(wish, -1.9 * self._far, 1.9 * self._far) + self._begin
        order = self._order[subset]
        place = np.searchsorted(self._middles[subset], near) - self._group * (order.shape[1] - 1)
        levels = order[self._group, place]
        return levels.astype(np.uint8), self._entries[self._group, levels]


@dataclass(frozen=True, eq=False)
class _Steps:
    """Into each state [S] lead two: `before` [2, S] them, `subset` [2, S] whose entry is taken on the way."""

    before: np.ndarray
    subset: np.ndarray

    @classmethod
    def of(cls, states: int) -> _Steps:
        """Of one of the codes."""
        odd, turned = (each.astype(int) for each in rules(states))
        now = np.arange(states)
        before = np.stack([now >> 1, now >> 1 | states >> 1])
        return cls(before, 2 * (now & 1 ^ turned[before]) + odd[before])


def followed(rows: np.ndarray, books: Trellis, gram: Gram = None) -> np.ndarray:
    """The path of every row with the least error, by the Gram's diagonal; levels uint8 [out, row]."""
    out, width = rows.shape
    narrow = (rows / books.factors(out)[:, None]).T
    stiff = np.broadcast_to(diagonal(gram, rows), rows.shape).T
    levels = np.empty((width, out), np.uint8)
    for part in _parts(out, books.states * width):
        near = _Subsets(books.of_rows(part, out), part.stop - part.start)
        levels[:, part] = _path(narrow[:, part], stiff[:, part], near, books.states)
    return np.ascontiguousarray(levels.T)


def _parts(out: int, each: int) -> Iterator[slice]:
    step = max(1, CELLS // each)
    return (slice(start, min(start + step, out)) for start in range(0, out, step))


def _path(wish: np.ndarray, stiff: np.ndarray, near: _Subsets, states: int) -> np.ndarray:
    """Levels [T, B] of the best paths for wishes [T, B]."""
    steps = _Steps.of(states)
    found = [near(subset, wish) for subset in range(4)]
    costs = np.stack([stiff * (values - wish) ** 2 for _, values in found], axis=1)  # [T, 4, B]
    length, count = wish.shape
    total = np.full((states, count), np.inf)
    total[0] = 0.0
    other = np.empty((length, states, count), bool)
    for t in range(length):
        one, two = (total[steps.before[way]] + costs[t, steps.subset[way]] for way in (0, 1))
        np.less(two, one, out=other[t])
        total = np.minimum(one, two)
    state, each = total.argmin(axis=0), np.arange(count)
    levels = np.empty((length, count), np.uint8)
    every = np.stack([level for level, _ in found])
    for t in range(length - 1, -1, -1):
        way = other[t, state, each].astype(int)
        levels[t] = every[steps.subset[way, state], t, each]
        state = steps.before[way, state]
    return levels


# -- with errors made up for ----------------------------------------------------------------------------------------------


def compensated(rows: np.ndarray, books: Trellis, gram: Gram, *, damping: float = DAMPING) -> np.ndarray:
    """Paths whose errors the columns behind make up for; levels uint8 [out, row]. A row keeps `followed` where that does better.

    rows  [out, row] float64 what is aimed at      gram  in any of its forms      damping  share of its mean diagonal
    """
    plain = followed(rows, books, gram)
    if gram is None or gram.ndim == 1:
        return plain
    if not np.isfinite(gram).all():
        raise DataError("the Gram matrix is not finite; look for NaN or Inf in the data or the model")
    out = len(rows)
    systems = [gram] if gram.ndim == 2 else list(gram)
    per = out // len(systems)
    found = np.empty(rows.shape, np.uint8)
    for number, one in enumerate(systems):
        mine = slice(number * per, (number + 1) * per)
        stiff, feedback = factored(one.astype(np.float64), damping)
        for part in _parts(per, books.states * BLOCK):
            own = slice(mine.start + part.start, mine.start + part.stop)
            found[own] = _Survivors(rows[own], books.of_rows(own, out), books.states, stiff**2, feedback).levels()
    better = loss(rows, found, books, gram) <= loss(rows, plain, books, gram)
    return np.where(better[:, None], found, plain)


class _Survivors:
    """Rows on their way through the trellis: each state's best path, and what it would have the columns behind be."""

    def __init__(self, rows: np.ndarray, books: Books, states: int, stiff: np.ndarray, feedback: np.ndarray) -> None:
        self._scale, self._stiff, self._feedback = books.factors(len(rows)), stiff, feedback
        self._target = np.ascontiguousarray(rows.T)
        self._steps, self._near, self._each = _Steps.of(states), _Subsets(books, len(rows)), np.arange(len(rows))
        self._total = np.full((states, len(rows)), np.inf)
        self._total[0] = 0.0

    def levels(self) -> np.ndarray:
        """uint8 [out, row], block after block."""
        width = len(self._target)
        levels, error = np.empty(self._target.shape, np.uint8), np.empty(self._target.shape)
        for start in range(0, width, BLOCK):
            stop = min(start + BLOCK, width)
            wishes = self._target[start:stop]
            if start:
                wishes = wishes - self._feedback[:start, start:stop].T @ error[:start]
            levels[start:stop], values = self._block(wishes, start)
            error[start:stop] = values - self._target[start:stop]
        return np.ascontiguousarray(levels.T)

    def _block(self, wishes: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Levels and values [n, out] of the best survivor behind the block; only it goes on."""
        length, states, out = len(wishes), *self._total.shape
        pulled = np.broadcast_to(wishes[:, None], (length, states, out)).copy()  # wishes of each survivor
        levels, values = np.empty((length, states, out), np.uint8), np.empty((length, states, out))
        for j in range(length):
            way, level, value = self._step(pulled[j], float(self._stiff[start + j]))
            before = self._steps.before[way, np.arange(states)[:, None]]
            for history in (levels[:j], values[:j], pulled[j + 1 :]):
                history[:] = np.take_along_axis(history, before[None], axis=1)
            levels[j], values[j] = level, value
            error = value - self._target[start + j]
            pulled[j + 1 :] -= self._feedback[start + j, start + j + 1 : start + length, None, None] * error
        best = self._total.argmin(axis=0)
        self._total[:] = np.inf
        self._total[best, self._each] = 0.0
        return levels[:, best, self._each], values[:, best, self._each]

    def _step(self, wish: np.ndarray, stiff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which of its two predecessors each state follows [S, out], with what level and value; the totals go on."""
        narrow = wish / self._scale
        states = len(wish)
        levels = np.empty((2, states, wish.shape[1]), np.uint8)
        values = np.empty((2, states, wish.shape[1]))
        for way in (0, 1):
            for subset in range(4):
                mine = self._steps.subset[way] == subset
                levels[way, mine], values[way, mine] = self._near(subset, narrow[self._steps.before[way][mine]])
        values *= self._scale
        totals = self._total[self._steps.before] + stiff * (values - wish[self._steps.before]) ** 2
        second = totals[1] < totals[0]
        self._total, level, value = (np.where(second, each[1], each[0]) for each in (totals, levels, values))
        return second.astype(int), level, value


# -- books -------------------------------------------------------------------------------------------------------------------


def trained(
    rows: np.ndarray, symbols: int, sharing: str, weights: Weights = None, *, states: int = STATES, seed: int = 0
) -> Trellis:
    """Books of 2 · `symbols` entries for paths: those that are best for single weights, then for paths of a sample of rows, in turns.

    rows  [out, row]       sharing  a key of SHARINGS       weights  what a squared error costs, [row] or [out, row]
    """
    found = shared(rows, 2 * symbols, sharing, weights, seed=seed)
    books = Trellis(np.sort(found.entries, axis=1), found.groups, found.scales, states)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(rows))[: max(1, SAMPLE // rows.shape[1])])
    part = replace(
        books,
        groups=None if books.groups is None else books.groups[drawn],
        scales=None if books.scales is None else books.scales[drawn],
    )
    sample = rows[drawn].astype(np.float64)
    gram = along(weights)
    for _ in range(ROUNDS):
        part = _refitted(sample, followed(sample, part, gram), part, gram)
    half = replace(books, entries=part.entries).halved()
    return replace(books, entries=half.entries, scales=half.scales)


def along(weights: Weights) -> np.ndarray | None:
    """[row] of weights a column, which are a Gram's diagonal; of [out, row] the mean: what a whole row counts moves no path of it."""
    return weights if weights is None or weights.ndim == 1 else weights.mean(axis=0)


def _refitted(rows: np.ndarray, levels: np.ndarray, books: Trellis, gram: Gram) -> Trellis:
    found = refitted(rows, levels, books, gram)
    found = found if found.scales is None else rescaled(rows, levels, found, gram)
    return replace(books, entries=found.entries, scales=found.scales)


def alternated(rows: np.ndarray, books: Trellis, gram: Gram) -> tuple[np.ndarray, Trellis]:
    """Levels uint8 [out, row] and their books, halved: paths, entries and scales that suit them, paths again."""
    half = _refitted(rows, compensated(rows, books, gram), books, gram).halved()
    books = replace(books, entries=half.entries, scales=half.scales)
    return compensated(rows, books, gram), books
