"""Who shares a codebook: all weights of a tensor, those of a channel, channels that differ by a scale, groups of channels alike.

Weights are seen as rows [channels, n]. What a sharing takes in the file beside its symbols, at 4 bits and 16-bit entries, for a
convolution of 256 channels of 2304: tensor 32 bytes, scaled 544, grouped (8) 512, channel 8,192 of 294,912.
Which one loses least differs from layer to layer: see `candidates` in allocation.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from onnxcompress.passes.cluster.books import Books
from onnxcompress.passes.cluster.kmeans import (
    BLOCK,
    GROUPS,
    Atoms,
    ascending,
    atoms_of,
    books,
    condensed,
    lloyd,
    row_books,
)

ROUNDS = 6
"""Of scales and book, or of groups and their books, in turns; the error falls by less than 0.02 dB in later ones."""

SUMMARY = 64
"""Atoms of a row by which rows that are alike find each other."""

Weights = np.ndarray | None
"""What a squared error costs, [n] along a row or [channels, n]; None: all the same."""

Sharing = Callable[[np.ndarray, int, Weights, str, int], Books]


def shared(
    rows: np.ndarray, entries: int, sharing: str, weights: Weights = None, *, start: str = "optimal", seed: int = 0
) -> Books:
    """The books of one sharing, entries as float16 where that is fine enough; zero is one of them where weights are pruned.

    rows  [channels, n]       sharing  a key of SHARINGS       start, seed  of k-means, see kmeans.STARTS
    """
    if not pruned(rows):
        return SHARINGS[sharing](rows, entries, weights, start, seed).halved()
    left = np.broadcast_to(1.0 if weights is None else weights, rows.shape) * (rows != 0)
    found = SHARINGS[sharing](rows, max(entries - 1, 1), left, start, seed).halved()
    return replace(found, entries=np.concatenate([np.zeros((len(found.entries), 1)), found.entries], axis=1))


PRUNED = 0.02
"""Share of exact zeros from which a tensor was pruned: trained weights are hardly ever zero."""


def pruned(rows: np.ndarray) -> bool:
    """Has a tensor zeros that must stay?"""
    return bool((rows == 0).mean() >= PRUNED) if rows.size else False


def placed(rows: np.ndarray, found: Books) -> np.ndarray:
    """The nearest entry for each weight [channels, n], uint8; what is exactly zero gets an entry that is, if there is one."""
    tables = found.tables(len(rows))
    order = np.argsort(tables, axis=1, kind="stable")
    sorted_ = np.take_along_axis(tables, order, axis=1)
    middles = ((sorted_[:, 1:] + sorted_[:, :-1]) / 2).astype(rows.dtype)
    symbols = np.empty(rows.shape, np.uint8)
    for part in _parts(rows):
        below = np.zeros(rows[part].shape, np.uint8)
        for middle in middles[part].T:
            below += rows[part] > middle[:, None]
        symbols[part] = np.take_along_axis(order[part].astype(np.uint8), below, axis=1)
    zero = np.flatnonzero((found.entries == 0).all(axis=0))
    if len(zero) and pruned(rows):
        symbols[rows == 0] = zero[0]
    return symbols


def lost(rows: np.ndarray, symbols: np.ndarray, found: Books, weights: Weights = None) -> float:
    """Σ weight · squared error."""
    total, tables = 0.0, found.tables(len(rows))
    for part in _parts(rows):
        error = np.take_along_axis(tables[part], symbols[part], axis=1) - rows[part]
        square = np.square(error, out=error)
        total += float((square if weights is None else square * _of(weights, part)).sum())
    return total


def _parts(rows: np.ndarray) -> Iterator[slice]:
    """Some rows at a time."""
    step = max(1, BLOCK // max(rows.shape[1], 1))
    return (slice(first, first + step) for first in range(0, len(rows), step))


def _of(weights: np.ndarray, part: slice) -> np.ndarray:
    return weights if weights.ndim == 1 else weights[part]


# -- the sharings -----------------------------------------------------------------------------------------------------------


def _tensor(rows: np.ndarray, entries: int, weights: Weights, start: str, seed: int) -> Books:
    return Books(_book(rows, entries, weights, start, seed)[None])


def _book(rows: np.ndarray, entries: int, weights: Weights, start: str, seed: int) -> np.ndarray:
    """One book [entries] for all rows; a shorter one is filled with its last entry."""
    if start != "optimal":
        flat = None if weights is None else np.broadcast_to(weights, rows.shape).reshape(1, -1)
        return row_books(rows.reshape(1, -1), entries, flat, start=start, seed=seed)[0]
    found = books(rows, [entries], weights, exact=GROUPS * entries)[entries]
    return np.pad(found, (0, entries - len(found)), mode="edge")


def _channel(rows: np.ndarray, entries: int, weights: Weights, start: str, seed: int) -> Books:
    return Books(row_books(rows, entries, weights, start=start, seed=seed), np.arange(len(rows)))


def _scaled(rows: np.ndarray, entries: int, weights: Weights, start: str, seed: int) -> Books:
    """One book for rows of one size, and a scale a row: each is best for the other and the symbols, in turns."""
    scales = sizes(rows, weights)
    heavy = scales[:, None] ** 2 * (1.0 if weights is None else weights)
    heavy = np.broadcast_to(heavy, rows.shape) if weights is not None else heavy
    narrow = rows / scales[:, None].astype(rows.dtype)
    found = Books(_book(narrow, entries, heavy, start, seed)[None], scales=scales)
    for _ in range(ROUNDS):
        found = _alternated(rows, found, weights)
    return found


def sizes(rows: np.ndarray, weights: Weights) -> np.ndarray:
    """Root of the mean square of each row [channels], 1 for rows of zeros."""
    mass = (
        np.full(len(rows), float(rows.shape[1]))
        if weights is None
        else np.broadcast_to(weights, rows.shape).sum(axis=1)
    )
    power = np.concatenate(
        [
            (np.square(rows[p], dtype=np.float64) * (1.0 if weights is None else _of(weights, p))).sum(axis=1)
            for p in _parts(rows)
        ]
    )
    sizes = np.sqrt(np.divide(power, mass, out=np.zeros_like(power), where=mass > 0))
    return np.where(sizes > 0, sizes, 1.0)


def _alternated(rows: np.ndarray, found: Books, weights: Weights) -> Books:
    """Nearest entries, then the best scale of each row for them, then the best entry of each symbol."""
    entries, count = found.entries[0], len(found.entries[0])
    scales = found.factors(len(rows)).copy()
    mass, total = np.zeros(count), np.zeros(count)
    symbols = placed(rows, found)
    for part in _parts(rows):
        values, heavy = entries[symbols[part]], 1.0 if weights is None else _of(weights, part)
        power = (values**2 * heavy).sum(axis=1)
        along = (values * rows[part] * heavy).sum(axis=1)
        scales[part] = np.where((power > 0) & (along > 0), along / np.where(power > 0, power, 1.0), scales[part])
        own = scales[part][:, None]
        where = symbols[part].reshape(-1)
        mass += np.bincount(where, np.broadcast_to(own**2 * heavy, rows[part].shape).reshape(-1), count)
        total += np.bincount(where, (own * rows[part] * heavy).reshape(-1), count)
    entries = np.where(mass > 0, total / np.where(mass > 0, mass, 1.0), entries)
    return Books(entries[None], scales=scales)


def _grouped(count: int) -> Sharing:
    """A few books, and each row uses the one that fits it best: k-means of rows, by the error that a book makes on them.

    Who goes with whom is found on a summary of each row, beginning with rows of about the same size.
    """

    def made(rows: np.ndarray, entries: int, weights: Weights, start: str, seed: int) -> Books:
        groups, tables = _alike(summary(rows, weights), min(count, len(rows)), entries)
        for group, table in enumerate(tables):
            mine = groups == group
            heavy = weights if weights is None or weights.ndim == 1 else weights[mine]
            tables[group] = lloyd(atoms_of(rows[mine], heavy), table[None])[0]
        return Books(tables, groups)

    return made


def summary(rows: np.ndarray, weights: Weights) -> Atoms:
    """Each row in SUMMARY atoms."""
    return condensed(ascending(rows, weights), SUMMARY)


def _alike(rows: Atoms, count: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups [channels], at most `count` and all used, and the book of each."""
    sizes = (rows.values**2 * rows.weights).sum(axis=1) / np.maximum(rows.weights.sum(axis=1), 1e-300)
    now = np.empty(len(sizes), int)
    now[np.argsort(sizes, kind="stable")] = np.arange(len(sizes)) * count // len(sizes)
    for _ in range(ROUNDS):
        groups = now
        pooled = _pooled(rows, groups)
        tables = row_books(pooled.values, entries, pooled.weights)
        now = np.argmin([_row_errors(rows, table) for table in tables], axis=0)
        now = np.unique(now, return_inverse=True)[1]
        if np.array_equal(now, groups):
            break
    return groups, tables


def _pooled(rows: Atoms, groups: np.ndarray) -> Atoms:
    """All rows of each group together, in 4 SUMMARY atoms; short ones are filled with atoms that weigh nothing."""
    values, weights = [], []
    for group in range(groups.max() + 1):
        own = ascending(*(each[groups == group].reshape(1, -1) for each in (rows.values, rows.weights)))
        own = condensed(own, 4 * SUMMARY)
        room = ((0, 0), (0, 4 * SUMMARY - own.values.shape[1]))
        values.append(np.pad(own.values, room, mode="edge"))
        weights.append(np.pad(own.weights, room))
    return Atoms(np.concatenate(values), np.concatenate(weights))


def _row_errors(rows: Atoms, table: np.ndarray) -> np.ndarray:
    """[channels] Σ weight · squared error on one book, ascending."""
    at = np.searchsorted((table[1:] + table[:-1]) / 2, rows.values)
    return np.asarray((np.square(table[at] - rows.values) * rows.weights).sum(axis=1))


SHARINGS: dict[str, Sharing] = {
    "tensor": _tensor,
    "scaled": _scaled,
    "4 books": _grouped(4),
    "16 books": _grouped(16),
    "channel": _channel,
}
"""Name -> (rows, entries, weights, start, seed) -> books."""
