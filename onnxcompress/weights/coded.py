"""Coded: a tensor as symbols of codebooks. What clustering, binarization and entropy codes make, whatever the form in the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from onnxcompress.weights import books, trellis

CODED = "onnxcompress.coded"
"""Key of a tensor's meta: its values as Coded, or those that it had before an edit; the file gets symbols where they still fit."""

MOST_ENTRIES = 256
"""Entries of one book: a symbol is a byte."""


@dataclass(frozen=True, eq=False)
class Coded:
    """values[i] = books[groups[i along axis], symbols[i]] * scales[i along axis].

    shape    of the tensor
    symbols  uint8 [size / width], for each `width` weights that follow each other in memory
    books    [G, K, width] in the tensor's type, K <= 256
    scales   [shape[axis]] in the tensor's type; None: no factor
    groups   int [shape[axis]], which book each slice along `axis` uses; None: there is one book
    axis     of books and scales
    states   of a trellis that symbols go through, along all axes but `axis`: books have 2K entries (see trellis.py); 1: none
    form     in which the file holds the symbols, a key of `forms.FORMS`; auto: the smallest

    With `width` > 1 (product quantization) several books need axis 0, and whole vectors in a slice. A trellis needs width 1, an
    even K, and the first or last axis.
    """

    shape: tuple[int, ...]
    symbols: np.ndarray
    books: np.ndarray
    scales: np.ndarray | None = None
    groups: np.ndarray | None = None
    axis: int = 0
    form: str = "auto"
    states: int = 1

    def __post_init__(self) -> None:
        size, length = prod(self.shape), self.shape[self.axis] if self.shape else 1
        count, entries, width = self.books.shape
        assert self.symbols.dtype == np.uint8 and self.symbols.shape == (size // width,) and size % width == 0
        assert 0 < entries <= MOST_ENTRIES
        ends = (0, len(self.shape) - 1)
        assert self.states == 1 or (width == 1 and entries % 4 == 0 and self.axis % len(self.shape) in ends)
        assert self.scales is None or self.scales.shape == (length,)
        assert (count == 1) if self.groups is None else self.groups.shape == (length,)
        assert self.groups is None or width == 1 or (self.axis == 0 and (size // length) % width == 0)

    @property
    def size(self) -> int:
        """Weights."""
        return prod(self.shape)

    @property
    def entries(self) -> int:
        """K: what a symbol may be; of one book, unless a trellis chooses the half of it."""
        return self.books.shape[1] // (1 if self.states == 1 else 2)

    @property
    def width(self) -> int:
        """Weights a symbol stands for."""
        return self.books.shape[2]

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return self.books.dtype

    @property
    def paths(self) -> tuple[int, int, int]:
        """The shape in which symbols go through a trellis along the second axis."""
        length = self.shape[self.axis]
        return (
            (length, self.size // length, 1) if self.axis % len(self.shape) == 0 else (1, self.size // length, length)
        )

    def numbers(self) -> np.ndarray:
        """uint8 [size / width], of entries: the symbols, or what they are in the state of the trellis."""
        if self.states == 1:
            return self.symbols
        return trellis.levels_of(self.symbols.reshape(self.paths), self.states).reshape(-1)

    def along(self, each: np.ndarray) -> np.ndarray:
        """One number a slice along `axis`, in a shape that broadcasts over the tensor."""
        return each.reshape([-1 if axis == self.axis % len(self.shape) else 1 for axis in range(len(self.shape))])

    def decode(self) -> np.ndarray:
        """The values, as onnxruntime computes them: a lookup, and one multiplication in the tensor's type."""
        numbers = self.numbers()
        if self.groups is None:
            values = self.books[0][numbers].reshape(self.shape)
        elif self.width > 1:
            groups = np.repeat(self.groups, len(numbers) // self.shape[0])
            values = self.books[groups, numbers].reshape(self.shape)
        else:
            values = self.books[self.along(self.groups), numbers.reshape(self.shape), 0]
        return values if self.scales is None else values * self.along(self.scales)

    def transposed(self) -> Coded:
        """Of a matrix: symbols, books and scales of the transposed one. ValueError where symbols stand for vectors."""
        if self.width > 1 or len(self.shape) != 2:
            raise ValueError("only a matrix with a symbol for each weight can be transposed")
        flat = np.ascontiguousarray(self.symbols.reshape(self.shape).T).reshape(-1)
        return replace(self, shape=self.shape[::-1], symbols=flat, axis=1 - self.axis % 2)

    def entropy(self) -> float:
        """Shannon entropy of the symbols, bits a weight; of all books together, as one code for the tensor sees them."""
        counts = np.bincount(self.symbols)
        shares = counts[counts > 0] / max(len(self.symbols), 1)
        return float(-(shares * np.log2(shares)).sum() / self.width)


def recoded(values: np.ndarray, like: Coded) -> Coded | None:
    """Symbols for values that may have been cut or set to zero since they were coded; None where they are in no book any more.

    Books and scales of `like` are tried first, then the values' own: up to 256 that differ, in the tensor or in each slice.
    """
    if values.shape == like.shape and np.array_equal(like.decode(), values):
        return like
    if values.dtype != like.dtype or not values.size:
        return None
    found = _again(values, like)
    return None if found is None else replace(found, form=like.form)


def _again(values: np.ndarray, like: Coded) -> Coded | None:
    if like.width > 1:
        return vectors_of(values, like.books[0]) if like.groups is None and like.scales is None else None
    scaled = None if like.scales is None else _scaled(values, like)
    return scaled or per_tensor(values) or per_slice(values, like.axis)


def per_tensor(values: np.ndarray) -> Coded | None:
    """One book of the values that occur; None for more than 256."""
    found = books.per_tensor(_bits(values).reshape(-1), floats=True)
    if found is None:
        return None
    book, symbols = found
    return Coded(values.shape, symbols, book.view(values.dtype)[None, :, None])


def per_slice(values: np.ndarray, axis: int) -> Coded | None:
    """A book for each slice along `axis`, all as long as the longest; None for more than 256, or more than half as many as weights."""
    count, stride = values.shape[axis], prod(values.shape[axis + 1 :])
    slices = _bits(values).reshape(-1, count, stride)
    found = books.of_slices(slices, min(MOST_ENTRIES, values.size // count // 2), floats=True)
    if found is None:
        return None
    tables, symbols = found
    groups = np.arange(count)
    return Coded(values.shape, symbols, tables.view(values.dtype)[:, :, None], groups=groups, axis=axis)


def _bits(values: np.ndarray) -> np.ndarray:
    """Unsigned numbers of these bits; there is one zero."""
    return np.ascontiguousarray(values + values.dtype.type(0)).view(f"u{values.itemsize}")


def _scaled(values: np.ndarray, like: Coded) -> Coded | None:
    """One book times the scale of each slice, where the slices that are left are found again by their largest value."""
    assert like.scales is not None
    if like.groups is not None:
        return None
    book = np.unique(
        np.append(like.books[0, :, 0], values.dtype.type(0)) if (values == 0).any() else like.books[0, :, 0]
    )
    rows = np.moveaxis(values, like.axis, 0).reshape(values.shape[like.axis], -1)
    products = np.abs(like.scales[:, None] * book)
    order = np.argsort(products, axis=None, kind="stable")
    sizes = products.reshape(-1)[order]
    scales, symbols = np.ones(len(rows), values.dtype), np.zeros(rows.shape, np.uint8)
    for number, row in enumerate(rows):
        largest = np.abs(row).max()
        first, last = np.searchsorted(sizes, largest), np.searchsorted(sizes, largest, side="right")
        owners = (
            dict.fromkeys((order[first:last] // len(book)).tolist()) if largest > 0 else {number % len(like.scales): 0}
        )
        for owner in sorted(owners, key=lambda each: each != number):
            entries = like.scales[owner] * book
            placed = np.argsort(entries, kind="stable")
            at = placed[np.minimum(np.searchsorted(entries, row, sorter=placed), len(book) - 1)]
            if np.array_equal(entries[at], row):
                scales[number], symbols[number] = like.scales[owner], at
                break
        else:
            return None
    shape = (values.shape[like.axis], *np.delete(values.shape, like.axis))
    flat = np.ascontiguousarray(np.moveaxis(symbols.reshape(shape), 0, like.axis)).reshape(-1)
    return Coded(values.shape, flat, book[None, :, None], scales, axis=like.axis)


def vectors_of(values: np.ndarray, book: np.ndarray) -> Coded | None:
    """Symbols of vectors that are all in the book."""
    entries, width = book.shape
    if values.size % width:
        return None
    rows = np.ascontiguousarray(values.reshape(-1, width))
    distinct, where = np.unique(np.concatenate([book, rows]), axis=0, return_inverse=True)
    first = np.full(len(distinct), -1)
    first[where.reshape(-1)[:entries][::-1]] = np.arange(entries)[::-1]
    symbols = first[where.reshape(-1)[entries:]]
    if (symbols < 0).any():
        return None
    return Coded(values.shape, symbols.astype(np.uint8), book[None])
