"""Tensors with few distinct values found again as symbols and books: of the whole tensor, or of each slice along an axis.

Values are bit patterns (unsigned integers), so that -0.0, NaN and every type come back as they were. Packed files and coded tensors
(coded.py) look for them here.
"""

from __future__ import annotations

from math import prod

import numpy as np

MOST = 256
"""Entries of a book: a symbol is a byte."""

SAMPLE = 1 << 12
"""Values that are looked at first: of most dense tensors all of them differ."""

PIECE = 1 << 16
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
    signs = (values.view(f"i{values.itemsize}") >> (8 * values.itemsize - 1)).view(values.dtype)
    return values ^ (signs | top)


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
        seen = distinct(np.concatenate([seen, more]))
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

    The first axis along which slices have at most 256 values, each of them four times or more, or as few as a grid of 4 bits has
    (a depthwise kernel's); shorter books are filled up with their last entry.
    """
    for axis in dict.fromkeys((0, len(dims) - 1, *range(1, len(dims) - 1))):
        count, stride = dims[axis], prod(dims[axis + 1 :])
        length = len(values) // max(count, 1)
        if count < 2 or length < 4:
            continue
        slices = values.reshape(-1, count, stride)
        most = min(MOST, max(length // 4, SHORT))
        if any(len(distinct(_some(slices[:, which]))) > most for which in {0, count // 4, count // 2, count - 1}):
            continue
        found = of_slices(slices, most, floats)
        if found is not None:
            return (*found, stride, count)
    return None


def _some(values: np.ndarray) -> np.ndarray:
    """A few of a slice."""
    flat = values.reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLE)]


def of_slices(slices: np.ndarray, most: int, floats: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Slice by slice, many at a time: [outer, count, stride] -> books [count, K], symbols [n]; None where one has too many values."""
    outer, count, stride = slices.shape
    symbols = np.empty(slices.shape, np.uint8)
    step = max(1, ROWS // (outer * stride))
    each = []
    for start in range(0, count, step):
        rows = np.ascontiguousarray(np.moveaxis(slices[:, start : start + step], 1, 0)).reshape(-1, outer * stride)
        rows = _keys(rows) if floats else rows
        table = _distinct(rows)
        if table.shape[1] > most:
            return None
        each.append(_unkeyed(table) if floats else table)
        own = _placed(rows, table).reshape(-1, outer, stride)
        symbols[:, start : start + step] = np.moveaxis(own, 0, 1)
    longest = max(table.shape[1] for table in each)
    books = np.concatenate([np.pad(table, ((0, 0), (0, longest - table.shape[1])), mode="edge") for table in each])
    return books, symbols.reshape(-1)


SHORT = 17
"""Values of a slice however short it is: 16 levels, and zero with either sign."""

ROWS = 1 << 16
"""Elements whose slices are looked at together."""


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Sorted distinct numbers of each row, filled up with the last one."""
    placed = np.sort(rows, axis=1)
    new = np.ones(placed.shape, bool)
    np.not_equal(placed[:, 1:], placed[:, :-1], out=new[:, 1:])
    lengths = new.sum(axis=1)
    found = np.repeat(placed[:, -1:], int(lengths.max()), axis=1)
    which = np.repeat(np.arange(len(rows)), lengths)
    rank = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    found[which, rank] = placed[new]
    return found


def _placed(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
    """uint8: the place of each number in the table of its row."""
    if table.shape[1] > FEW:
        return np.stack([own.searchsorted(row) for own, row in zip(table, rows, strict=True)]).astype(np.uint8)
    found = np.zeros(rows.shape, np.uint8)
    for entry in range(table.shape[1] - 1):
        found += rows > table[:, entry, None]
    return found


FEW = 48
"""Entries of a row that are compared with all its numbers, one after another, which is faster than bisection."""
