"""Books of slices found again as one book times a scale each, as weights on a grid with a scale a channel have them.

    books[slice, k] = base[k] · scale[slice], in float32, and a step or two of its last bit

so that a slice costs its scale instead of a whole book. Bit patterns are kept: what the product misses is stored beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcompress.weights.books import distinct

TOLERANCE = 1e-6
"""Relative; the product of two float32 is nearer."""

ANCHORS = 24
"""Entries of the base that a slice's largest value is taken for, before it is given up."""

FIRST = 8
"""Slices that are looked at before all are."""

NUDGES = (0, 1, -1, 2, -2)
"""Steps of a scale's last bit that are tried."""


@dataclass(frozen=True, eq=False)
class Scaled:
    """base uint32 [B], scales uint32 [G]: bits of float32; missed uint8 [G, B], modulo 256; place uint8 [G, K], of entries in the base."""

    base: np.ndarray
    scales: np.ndarray
    missed: np.ndarray
    place: np.ndarray


def books_of(base: np.ndarray, scales: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """uint32 [G, B] again."""
    with np.errstate(all="ignore"):  # a damaged file may hold any number
        products = scales.view(np.float32)[:, None] * base.view(np.float32)
    return products.view(np.uint32) + missed.reshape(products.shape).view(np.int8).astype(np.int32).view(np.uint32)


def scaled(books: np.ndarray) -> Scaled | None:
    """uint32 [G, K] books, shorter ones filled up with their last entry; None where they are no multiples of one."""
    values = books.view(np.float32).astype(np.float64)
    if not np.isfinite(values).all():
        return None
    fullest = distinct(values[np.argmax((np.diff(values, axis=1) != 0).sum(axis=1))])
    base = _base(fullest[fullest != 0])
    if base is None or _steps(values[:: max(1, len(values) // FIRST)], base) is None:
        return None
    steps = _steps(values, base)
    if steps is None:
        return None
    zeros = distinct(books[values == 0])[::-1]  # -0.0 first
    base = np.concatenate([base[base < 0], zeros.view(np.float32).astype(np.float64), base[base > 0]])
    return _exact(books, values, base.astype(np.float32), steps)


def _base(row: np.ndarray) -> np.ndarray | None:
    """The entries of a book, not zero: whole numbers where they lie on a grid through zero, or as they are."""
    if len(row) < 2:
        return None
    step = np.diff(np.append(row, 0.0 if (row > 0).all() or (row < 0).all() else row[-1])).__abs__()
    step = step[step > 0].min()
    whole = np.rint(row / step)
    largest = np.abs(row).argmax()
    step = row[largest] / whole[largest] if whole[largest] else step
    whole = np.rint(row / step)
    if np.abs(whole * step - row).max() <= TOLERANCE * np.abs(row).max() and np.abs(whole).max() <= 127:
        most = int(np.abs(whole).max())
        return np.array([number for number in range(-most - 1, most + 1) if number], np.float64)
    return row


def _steps(values: np.ndarray, base: np.ndarray) -> np.ndarray | None:
    """The scale of each row for which all its entries are in the base; None where there is none for some row.

    Its largest value is taken for the largest entry of that sign, then for the next one, and so on.
    """
    order = np.argsort(-np.abs(base), kind="stable")
    rows = np.arange(len(values))
    anchors = values[rows, np.abs(values).argmax(axis=1)]
    steps = np.where(anchors == 0, 1.0, np.nan)
    for sign in (1, -1):
        for entry in base[order[np.sign(base[order]) == sign]][:ANCHORS]:
            open_ = rows[np.isnan(steps) & (np.sign(anchors) == sign)]
            if not len(open_):
                break
            tried = anchors[open_] / entry
            wanted = values[open_]
            near = base[_nearest(wanted / tried[:, None], base)] * tried[:, None]
            fits = ((np.abs(near - wanted) <= TOLERANCE * np.abs(wanted)) | (wanted == 0)).all(axis=1)
            steps[open_[fits]] = tried[fits]
    return None if np.isnan(steps).any() else steps


def _nearest(wanted: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Index of the entry of a sorted base that is nearest to each."""
    right = np.maximum(np.minimum(np.searchsorted(base, wanted), len(base) - 1), 1)
    left = right - 1
    return np.where(np.abs(base[left] - wanted) <= np.abs(base[right] - wanted), left, right)


def _exact(books: np.ndarray, values: np.ndarray, base: np.ndarray, steps: np.ndarray) -> Scaled | None:
    """Places, the best of the scales next to each step, and what their products miss."""
    if len(base) > 256:
        return None
    place = _nearest(values / steps[:, None], base.astype(np.float64))
    for zero in np.flatnonzero(base == 0):
        place[books == base[zero : zero + 1].view(np.uint32)] = zero
    bits, found = base.view(np.uint32), steps.astype(np.float32).view(np.uint32)
    best, open_ = np.full(len(books), -1), np.arange(len(books))
    scales = found.copy()
    for nudge in NUDGES:
        tried = (scales[open_].astype(np.int64) + nudge).astype(np.uint32)
        with np.errstate(all="ignore"):
            products = tried.view(np.float32)[:, None] * base.take(place[open_])
        hits = (products.view(np.uint32) == books[open_]).sum(axis=1)
        better = hits > best[open_]
        found[open_[better]], best[open_[better]] = tried[better], hits[better]
        open_ = open_[best[open_] < books.shape[1]]
        if not len(open_):
            break
    rows = np.arange(len(books))[:, None]
    exact = books_of(bits, found, np.zeros((len(books), len(base)), np.uint8))
    wrong = books.astype(np.int64) - exact[rows, place].astype(np.int64)
    if np.abs(wrong).max() > 127:
        return None
    missed = np.zeros(exact.shape, np.int8)
    missed[np.broadcast_to(rows, place.shape), place] = wrong
    made = Scaled(bits, found.astype(np.uint32), missed.view(np.uint8), place.astype(np.uint8))
    return made if np.array_equal(books_of(made.base, made.scales, made.missed)[rows, place], books) else None
