"""Tensors with few distinct values found again as symbols and books: of the whole tensor, or of each slice along an axis.

Values are bit patterns (unsigned integers), so that -0.0, NaN and every type come back as they were.
"""

from __future__ import annotations

from math import prod

import numpy as np

MOST = 256
"""Entries of a book: a symbol is a byte."""

SAMPLE = 1 << 12
"""Values that are looked at first: of most dense tensors all of them differ."""

PIECE = 1 << 20
FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5, 0xD6E8FEB86659FD93)
"""Odd numbers by which a hash multiplies: the first that keeps the entries of a book apart is used."""

HASH = 16


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, each once; by a sort, which is several times as fast as numpy's unique."""
    found = np.sort(values, axis=None)
    return found[np.append(True, found[1:] != found[:-1])] if len(found) else found


def ordered(values: np.ndarray, floats: bool) -> np.ndarray:
    """Distinct bit patterns, by value for floats and as unsigned otherwise."""
    found = distinct(values)
    return found[np.argsort(_keys(found), kind="stable")] if floats else found


def _keys(values: np.ndarray) -> np.ndarray:
    """Unsigned numbers in the order of the floats that these are the bits of."""
    top = values.dtype.type(1 << (8 * values.itemsize - 1))
    return np.where(values & top, ~values, values | top)


def _unkeyed(keys: np.ndarray) -> np.ndarray:
    """The bits again."""
    top = keys.dtype.type(1 << (8 * keys.itemsize - 1))
    return np.where(keys & top, keys ^ top, ~keys)


def per_tensor(values: np.ndarray, floats: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """(book [K], symbols uint8 [n]); None for more than 256 distinct values. Linear time: no sort of the whole."""
    seen = distinct(values[:: max(1, len(values) // SAMPLE)])
    while len(seen) <= MOST:
        book = ordered(seen, floats)
        symbols, more = _looked_up(values, book)
        if symbols is not None:
            return book, symbols
        seen = np.union1d(seen, more)
    return None


def _looked_up(values: np.ndarray, book: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Symbols, or None and values that are not in the book."""
    slots = _hash(book)
    if slots is None:
        return _searched(values, book)
    factor, shift = slots
    table = np.zeros(1 << HASH, np.uint8)
    table[_slot(book, factor, shift)] = np.arange(len(book))
    symbols = np.empty(len(values), np.uint8)
    for start in range(0, len(values), PIECE):
        piece = values[start : start + PIECE]
        own = table.take(_slot(piece, factor, shift))
        strange = piece[book.take(own) != piece]
        if len(strange):
            return None, distinct(strange)
        symbols[start : start + PIECE] = own
    return symbols, book[:0]


def _searched(values: np.ndarray, book: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The same by bisection, for a book that no factor keeps apart."""
    order = np.argsort(book)
    own = order.astype(np.uint8)[np.minimum(np.searchsorted(book, values, sorter=order), len(book) - 1)]
    strange = distinct(values[book.take(own) != values])
    return (None, strange) if len(strange) else (own, strange)


def _hash(book: np.ndarray) -> tuple[int, int] | None:
    """Factor and shift that give every entry of the book a slot of its own."""
    bits = 8 * book.itemsize
    if bits <= HASH:
        return 1, 0
    for factor in FACTORS:
        own = factor & ((1 << bits) - 1)
        if len(distinct(_slot(book, own, bits - HASH))) == len(book):
            return own, bits - HASH
    return None


def _slot(values: np.ndarray, factor: int, shift: int) -> np.ndarray:
    return (values * values.dtype.type(factor) >> values.dtype.type(shift)).astype(np.intp)


def per_slice(
    values: np.ndarray, dims: tuple[int, ...], floats: bool
) -> tuple[np.ndarray, np.ndarray, int, int] | None:
    """(books [count, K], symbols uint8 [n], stride, count): element i is in slice (i // stride) % count.

    The first axis along which a few slices have at most 256 values, each of them four times or more; shorter books are
    filled up with their last entry.
    """
    for axis in dict.fromkeys((0, len(dims) - 1, *range(1, len(dims) - 1))):
        count, stride = dims[axis], prod(dims[axis + 1 :])
        most = min(MOST, len(values) // max(count, 1) // 4)
        if count < 2 or most < 2:
            continue
        slices = values.reshape(-1, count, stride)
        if any(len(distinct(_some(slices[:, which]))) > most for which in {0, count // 2, count - 1}):
            continue
        found = _books(slices, most, floats)
        if found is not None:
            return (*found, stride, count)
    return None


def _some(values: np.ndarray) -> np.ndarray:
    """A few of a slice."""
    flat = values.reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLE)]


def _books(slices: np.ndarray, most: int, floats: bool) -> tuple[np.ndarray, np.ndarray] | None:
    rows = np.ascontiguousarray(np.moveaxis(slices, 1, 0)).reshape(slices.shape[1], -1)
    rows = _keys(rows) if floats else rows
    placed = np.sort(rows, axis=1)
    new = np.ones(placed.shape, bool)
    np.not_equal(placed[:, 1:], placed[:, :-1], out=new[:, 1:])
    lengths = new.sum(axis=1)
    longest = int(lengths.max())
    if longest > most:
        return None
    found = np.repeat(placed[:, -1:], longest, axis=1)
    which, _ = np.nonzero(new)
    rank = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    found[which, rank] = placed[new]
    symbols = np.empty(rows.shape, np.uint8)
    for number, (row, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        symbols[number] = found[number, :length].searchsorted(row)
    moved = np.moveaxis(symbols.reshape(len(rows), len(slices), -1), 0, 1)
    return _unkeyed(found) if floats else found, np.ascontiguousarray(moved).reshape(-1)
