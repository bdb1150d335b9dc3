"""How the bytes of one tensor become streams of byte symbols, and come back: a row of FORMS a way, the smallest wins.

bytes -> values (unsigned, as wide as the type) -> elements (form: themselves, symbols of a book, nibbles, bits)
      -> optionally gaps and the elements that are left -> one stream for each byte of an element -> a coder each
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxcompress.weights import books, gaps, scales, streams

BLOCK = 1 << 20
"""Elements that are coded together: each block has frequencies, coders and a checksum of its own."""

PLAIN, BOOK, SLICES, NIBBLES, PAIRS, BITS, SCALED = range(7)
SPLITS = {NIBBLES: 4, PAIRS: 2, BITS: 1}
"""Form -> bits of each element that a byte is split into, the lowest first."""

MOST_ENTRIES = 1 << 22
"""Of all books of a tensor together: what is decoded before the first block."""


@dataclass(frozen=True)
class Spec:
    """What the container says of a segment, beside its blocks.

    form     a row of FORMS                     width   bytes of a value: 1, 2, 4 or 8
    rotate   1: floats, whose sign goes to the lowest bit, so that the highest byte is all exponent
    gaps     bits of a gap, 0: none             common  the element that gaps leave out
    stride, count   of slices (SLICES, SCALED)  entries of each book (BOOK, SLICES, SCALED)
    size     in bytes
    """

    form: int
    width: int
    rotate: int
    size: int
    gaps: int = 0
    common: int = 0
    stride: int = 1
    count: int = 1
    entries: int = 0

    @property
    def elements(self) -> int:
        """In all blocks."""
        return self.size // self.width * (8 // SPLITS[self.form] if self.form in SPLITS else 1)

    @property
    def element_width(self) -> int:
        """Bytes of an element."""
        return self.width if self.form == PLAIN else 1

    @property
    def streams(self) -> int:
        """Of a block."""
        return self.element_width + (1 if self.gaps else 0)

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(bytes of a value, values) of each array that comes before the blocks: books; or the base, scales and what they miss."""
        if self.form == SCALED:
            return [(self.width, self.entries), (self.width, self.count), (1, self.count * self.entries)]
        return [(self.width, self.count * self.entries)] if self.form in (BOOK, SLICES) else []

    @property
    def blocks(self) -> int:
        """How many there are."""
        return -(-self.elements // BLOCK)

    def check(self) -> None:
        """ValueError for what no writer says."""
        fits = (
            self.form in FORMS and self.width in (1, 2, 4, 8) and self.rotate in (0, 1) and self.size % self.width == 0
        )
        coded = self.form in (BOOK, SLICES, SCALED)
        if not fits or self.gaps not in (0, *gaps.BITS) or (self.form in SPLITS and self.width > 1):
            raise ValueError("a form that is not known")
        if self.form == SCALED and self.width != 4:
            raise ValueError("a form that is not known")
        if self.common >> (8 * self.element_width) or (coded and not 0 < self.entries <= books.MOST):
            raise ValueError("values that do not fit their type")
        if not 0 < self.stride <= max(self.size, 1) or self.count < 1 or self.count * self.entries > MOST_ENTRIES:
            raise ValueError("more books than a tensor has")

    def length(self, block: int) -> int:
        """Elements of a block."""
        return min(BLOCK, self.elements - block * BLOCK)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A tensor on its way into the file: elements [n] of all blocks, and the arrays of `Spec.sides`."""

    spec: Spec
    elements: np.ndarray
    sides: tuple[np.ndarray, ...] = ()

    def streams(self, block: int) -> tuple[int, list[np.ndarray]]:
        """Entries of the block's arrays, and its streams: gaps first."""
        return split(self.spec, self.elements[block * BLOCK : (block + 1) * BLOCK])


@dataclass(frozen=True)
class Form:
    """restore(spec, books, elements [n], number of the first) -> values."""

    name: str
    restore: Callable[[Spec, np.ndarray, np.ndarray, int], np.ndarray]


def _plain(spec: Spec, table: np.ndarray, elements: np.ndarray, start: int) -> np.ndarray:
    return elements


def _book(spec: Spec, table: np.ndarray, elements: np.ndarray, start: int) -> np.ndarray:
    if elements.max(initial=0) >= len(table):
        raise ValueError("a symbol beyond its book")
    return table.take(elements)


def unfolded(spec: Spec, sides: list[np.ndarray]) -> np.ndarray:
    """All books, one after another."""
    if spec.form == SCALED:
        return scales.books_of(*sides).reshape(-1)
    return sides[0] if sides else np.zeros(0, typed(spec.width))


def _slices(spec: Spec, table: np.ndarray, elements: np.ndarray, start: int) -> np.ndarray:
    if elements.max(initial=0) >= spec.entries:
        raise ValueError("a symbol beyond its book")
    which = np.arange(start, start + len(elements)) // spec.stride % spec.count
    return table.take(which * spec.entries + elements)


def _joined(spec: Spec, table: np.ndarray, elements: np.ndarray, start: int) -> np.ndarray:
    bits = SPLITS[spec.form]
    parts = elements.reshape(-1, 8 // bits)
    if elements.max(initial=0) >> bits:
        raise ValueError("a symbol with too many bits")
    whole = parts[:, 0].copy()
    for number in range(1, parts.shape[1]):
        whole |= parts[:, number] << np.uint8(bits * number)
    return whole


FORMS = {
    PLAIN: Form("plain", _plain),
    BOOK: Form("book", _book),
    SLICES: Form("book a slice", _slices),
    SCALED: Form("book, scale a slice", _slices),
    NIBBLES: Form("4-bit symbols", _joined),
    PAIRS: Form("2-bit symbols", _joined),
    BITS: Form("bits", _joined),
}


def typed(width: int) -> np.dtype:
    """Of values of so many bytes."""
    return np.dtype(f"<u{width}")


def fit(values: np.ndarray, dims: tuple[int, ...], floats: bool, entropy: str) -> Fitted:
    """The form and gaps that take the fewest bytes, by the counts of a piece in the middle.

    values   flat, unsigned     dims  of the tensor, of which only books a slice make use; () where they are not known
    """
    best: tuple[float, Fitted] | None = None
    for fitted in _candidates(values, dims, floats):
        for each in (fitted, *_with_gaps(fitted)):
            size = cost(each, entropy)
            if best is None or size < best[0]:
                best = size, each
    assert best is not None
    return best[1]


def _candidates(values: np.ndarray, dims: tuple[int, ...], floats: bool) -> Iterator[Fitted]:
    spec = Spec(PLAIN, values.itemsize, int(floats and values.itemsize > 1), values.nbytes)
    yield Fitted(spec, values)
    if spec.width == 1:
        for form, bits in SPLITS.items():
            yield Fitted(replace(spec, form=form), _split(values, bits))
        return
    found = books.per_tensor(values, floats)
    if found is not None:
        yield Fitted(replace(spec, form=BOOK, entries=len(found[0])), found[1], (found[0],))
        if len(found[0]) <= FEW:
            return
    sliced = books.per_slice(values, dims, floats) if len(dims) > 1 else None
    if sliced is not None and sliced[0].size <= MOST_ENTRIES:
        table, symbols, stride, count = sliced
        own = replace(spec, form=SLICES, stride=stride, count=count, entries=table.shape[1])
        yield Fitted(own, symbols, (table.reshape(-1),))
        if (product := scales.scaled(table) if floats and spec.width == 4 else None) is not None:
            scaled = replace(own, form=SCALED, entries=len(product.base))
            which = np.arange(len(symbols)) // stride % count
            sides = (product.base, product.scales, product.missed.reshape(-1))
            yield Fitted(scaled, product.place[which, symbols], sides)


FEW = 32
"""Distinct values of a tensor up to which its slices are not looked at one by one."""


def _split(values: np.ndarray, bits: int) -> np.ndarray:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (values[:, None] >> shifts & np.uint8((1 << bits) - 1)).reshape(-1)


LEAST_COMMON = 0.3
"""Share of one element from which gaps are tried."""


def _with_gaps(fitted: Fitted) -> Iterator[Fitted]:
    """The same with the most common element left out, where there is one."""
    sample = fitted.elements[:: max(1, len(fitted.elements) // books.SAMPLE)]
    if not len(sample) or fitted.spec.form in SPLITS:
        return
    middle = np.sort(sample)
    found = books.distinct(sample)
    counts = np.searchsorted(middle, found, side="right") - np.searchsorted(middle, found)
    if counts.max() >= LEAST_COMMON * len(sample):
        for bits in gaps.BITS:
            yield replace(fitted, spec=replace(fitted.spec, gaps=bits, common=int(found[counts.argmax()])))


def cost(fitted: Fitted, entropy: str) -> float:
    """Bytes of the whole, nearly: by a piece in the middle."""
    spec = fitted.spec
    if not spec.blocks:
        return 0.0
    start = max(0, (len(fitted.elements) - PIECE) // 2)
    _, parts = split(spec, fitted.elements[start : start + PIECE])
    size = sum(streams.expected(part, entropy) for part in parts) / min(PIECE, len(fitted.elements))
    aside = sum(streams.expected(part, entropy) for side in fitted.sides for part in planes(side, spec.rotate))
    return size * spec.elements + STREAM_BYTES * spec.blocks * len(parts) + aside


PIECE = 1 << 17
"""Elements by which forms are compared."""

STREAM_BYTES = 5
"""Of the container's table, for a stream."""


def split(spec: Spec, elements: np.ndarray) -> tuple[int, list[np.ndarray]]:
    """Entries, and the streams of one block."""
    if not spec.gaps:
        return len(elements), planes(elements, spec.rotate if spec.form == PLAIN else 0)
    steps, left = gaps.split(elements, spec.common, spec.gaps)
    return len(steps), [steps, *planes(left, spec.rotate if spec.form == PLAIN else 0)]


def join(spec: Spec, table: np.ndarray, parts: list[np.ndarray], block: int) -> np.ndarray:
    """Values of one block from its streams; ValueError where they do not fit each other."""
    elements = merged(parts[1:] if spec.gaps else parts, spec.rotate if spec.form == PLAIN else 0)
    if spec.gaps:
        elements = gaps.join(parts[0], elements, spec.common, spec.length(block))
    return FORMS[spec.form].restore(spec, table, elements, block * BLOCK)


def planes(values: np.ndarray, rotate: int) -> list[np.ndarray]:
    """The bytes of each value, the lowest of all first."""
    width = values.itemsize
    if width == 1:
        return [np.ascontiguousarray(values)]
    if rotate:
        one, rest = values.dtype.type(1), values.dtype.type(8 * width - 1)
        values = values << one | values >> rest
    octets = np.ascontiguousarray(values, typed(width)).view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(octets[:, place]) for place in range(width)]


def merged(parts: list[np.ndarray], rotate: int) -> np.ndarray:
    """Values again."""
    width = len(parts)
    if width == 1:
        return parts[0]
    octets = np.empty((len(parts[0]), width), np.uint8)
    for place, part in enumerate(parts):
        octets[:, place] = part
    values = octets.view(typed(width)).reshape(-1)
    if rotate:
        one, rest = values.dtype.type(1), values.dtype.type(8 * width - 1)
        values = values >> one | values << rest
    return values


def entropy_bits(fitted: Fitted) -> float | None:
    """Shannon entropy of the elements, bits a value of the tensor; None where they are no symbols (dense floats)."""
    spec = fitted.spec
    if spec.element_width > 1 or not spec.size:
        return None
    counts = sum(streams.counted(fitted.elements[at : at + BLOCK]) for at in range(0, len(fitted.elements), BLOCK))
    used = np.asarray(counts)[np.asarray(counts) > 0]
    return float((used * np.log2(used.sum() / used)).sum() / (spec.size // spec.width))
