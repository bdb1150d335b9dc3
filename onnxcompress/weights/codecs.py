"""How the bytes of one tensor become streams of byte symbols, and come back: a row of FORMS a way.

bytes -> values (unsigned, as wide as the type) -> elements (form: themselves, symbols of a book, digits, symbols of Tunstall words,
         of planes of bits, of Huffman's codes)
      -> by kinds of slices, each apart -> optionally gaps and the elements that are left -> one stream for each byte of an element
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcompress.weights import gaps, scales, streams, tunstall, whole
from onnxcompress.weights.plain import planes as bits_of_planes
from onnxcompress.weights.whole import Gathered

BLOCK = 1 << 18
"""Elements that are coded together: each block has frequencies and coders of its own."""

PLAIN, BOOK, SLICES, DIGITS, WORDS, SCALED, PLANES, LEVELS = range(8)

OF_SYMBOLS = (WORDS, PLANES, LEVELS)
"""Forms whose elements are not as many as their bytes."""

MOST_ENTRIES = 1 << 22
"""Of all books of a tensor together, and slices that have a kind: what is decoded before the first block."""

MOST_KINDS = 8
"""Of slices."""


@dataclass(frozen=True)
class Spec:
    """What the container says of a segment, beside its blocks.

    form     a row of FORMS                     width   bytes of a value: 1, 2, 4 or 8
    rotate   1: floats, whose sign goes to the lowest bit, so that the highest byte is all exponent
    gaps     bits of a gap, 0: none             common  the element that gaps leave out
    stride, count   of slices (SLICES, SCALED); count: words (WORDS)
    entries  of each book (BOOK, SLICES, SCALED), of a digit (DIGITS), kinds of symbols (WORDS, LEVELS), bits (PLANES)
    kinds    of slices, each with streams of its own: element i is in slice (i // run) % runs
    symbols  elements (of OF_SYMBOLS)           size    in bytes
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
    kinds: int = 1
    run: int = 1
    runs: int = 1
    symbols: int = 0

    @property
    def digits(self) -> int:
        """Of a byte."""
        return tunstall.digits(self.entries) if self.form == DIGITS else 1

    @property
    def elements(self) -> int:
        """In all blocks."""
        return self.symbols if self.form in OF_SYMBOLS else self.size // self.width * self.digits

    @property
    def element_width(self) -> int:
        """Bytes of an element."""
        return self.width if self.form == PLAIN else 1

    @property
    def streams(self) -> int:
        """Of a block."""
        return self.kinds * (self.element_width + (1 if self.gaps else 0))

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(bytes of a value, values) of each array that comes before the blocks.

        Books; or the base, scales and what they miss; or lengths of words; and the kind of each slice.
        """
        own: list[tuple[int, int]] = []
        if self.form == SCALED:
            own = [(self.width, self.entries), (self.width, self.count), (1, self.count * self.entries)]
        elif self.form in (BOOK, SLICES):
            own = [(self.width, self.count * self.entries)]
        elif self.form == WORDS:
            own = [(1, self.count)]
        elif self.form == LEVELS:
            own = [(1, self.entries)]
        return [*own, *([(1, self.runs)] if self.kinds > 1 else [])]

    @property
    def block(self) -> int:
        """Elements of a block: whole bytes."""
        return BLOCK - BLOCK % self.digits

    @property
    def blocks(self) -> int:
        """How many there are."""
        return -(-self.elements // self.block)

    def check(self) -> None:
        """ValueError for what no writer says."""
        fits = (
            self.form in FORMS and self.width in (1, 2, 4, 8) and self.rotate in (0, 1) and self.size % self.width == 0
        )
        if not fits or self.gaps not in (0, *gaps.BITS) or (self.form in (DIGITS, *OF_SYMBOLS) and self.width > 1):
            raise ValueError("a form that is not known")
        if self.form == SCALED and self.width != 4:
            raise ValueError("a form that is not known")
        least, most = ENTRIES[self.form]
        if self.common >> (8 * self.element_width) or not least <= self.entries <= most:
            raise ValueError("values that do not fit their type")
        if not 0 < self.stride <= max(self.size, 1) or self.count < 1 or self.count * self.entries > MOST_ENTRIES:
            raise ValueError("more books than a tensor has")
        if not 0 < self.kinds <= MOST_KINDS or self.run < 1 or not 0 < self.runs <= MOST_ENTRIES:
            raise ValueError("more kinds than there can be")
        if self.form == WORDS and not (self.count <= tunstall.WORDS and self.size <= self.symbols <= 255 * self.size):
            raise ValueError("more symbols than words hold")
        if self.form in (PLANES, LEVELS):
            self._check_whole()

    def _check_whole(self) -> None:
        most = whole.MOST if self.form == PLANES else min(whole.MOST, 8 * self.size)
        if not self.symbols <= most or (
            self.form == PLANES
            and not (
                bits_of_planes(2**self.entries)[1:] and whole.size_of_planes(self.symbols, self.entries) == self.size
            )
        ):
            raise ValueError("more symbols than bits hold")

    def length(self, block: int) -> int:
        """Elements of a block."""
        return min(self.block, self.elements - block * self.block)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A tensor on its way into the file: elements [n] of all blocks, and the arrays of `Spec.sides`."""

    spec: Spec
    elements: np.ndarray
    sides: tuple[np.ndarray, ...] = ()

    def streams(self, block: int) -> tuple[list[int], list[np.ndarray]]:
        """Entries of the block's arrays, one a kind, and its streams: gaps first."""
        start = block * self.spec.block
        return split(self.spec, self.sides, self.elements[start : start + self.spec.block], start)


@dataclass(eq=False)
class Words:
    """Tunstall's words, and the symbols of a word that goes on in the next block."""

    words: tunstall.Dictionary
    left: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))


Table = np.ndarray | Words | Gathered
"""What `unfolded` makes of the sides."""

NOTHING = np.zeros(0, np.uint8)


@dataclass(frozen=True)
class Form:
    """restore(spec, table of `unfolded`, elements [n], number of the first) -> values."""

    name: str
    restore: Callable[[Spec, Table, np.ndarray, int], np.ndarray]


def _plain(spec: Spec, table: Table, elements: np.ndarray, start: int) -> np.ndarray:
    return elements


def _book(spec: Spec, table: Table, elements: np.ndarray, start: int) -> np.ndarray:
    assert isinstance(table, np.ndarray)
    if elements.max(initial=0) >= len(table):
        raise ValueError("a symbol beyond its book")
    return table.take(elements)


def unfolded(spec: Spec, sides: Sequence[np.ndarray]) -> Table:
    """All books, one after another; or the words."""
    if spec.form == SCALED:
        return scales.books_of(*sides[:3]).reshape(-1)
    if spec.form == WORDS:
        return Words(tunstall.words_of(sides[0], spec.entries))
    if spec.form in (PLANES, LEVELS):
        return Gathered(np.empty(spec.symbols, np.uint8), sides[0] if spec.form == LEVELS else NOTHING)
    return sides[0] if spec.form in (BOOK, SLICES) else np.zeros(0, typed(spec.width))


def _slices(spec: Spec, table: Table, elements: np.ndarray, start: int) -> np.ndarray:
    assert isinstance(table, np.ndarray)
    if elements.max(initial=0) >= spec.entries:
        raise ValueError("a symbol beyond its book")
    which = spread(start, len(elements), spec.stride, spec.count)
    which *= spec.entries
    which += elements
    return table.take(which)


def spread(start: int, length: int, run: int, runs: int) -> np.ndarray:
    """int32 [length]: the slice of each element from `start` on."""
    first, last = start // run, (start + length - 1) // run
    slices = (np.arange(first, last + 1) % runs).astype(np.int32)
    if last == first:
        return np.repeat(slices, length)
    counts = np.full(len(slices), run)
    counts[[0, -1]] = run - start % run, start + length - last * run
    return np.repeat(slices, counts) if run > 1 else slices


def _joined(spec: Spec, table: Table, elements: np.ndarray, start: int) -> np.ndarray:
    parts = elements.reshape(-1, spec.digits)
    if elements.max(initial=0) >= spec.entries:
        raise ValueError("a digit that is too large")
    whole = parts[:, 0].copy()
    for number in range(1, parts.shape[1]):
        whole *= np.uint8(spec.entries)
        whole += parts[:, number]
    return whole


def _worded(spec: Spec, table: Table, elements: np.ndarray, start: int) -> np.ndarray:
    assert isinstance(table, Words)
    if elements.max(initial=0) >= spec.entries:
        raise ValueError("a symbol beyond its words")
    symbols = np.concatenate([table.left, elements])
    codes = tunstall.encode(symbols, table.words)
    reached = int(table.words.lengths[codes].sum(dtype=np.int64))
    if reached > len(symbols):
        reached, codes = reached - int(table.words.lengths[codes[-1]]), codes[:-1]
    table.left = symbols[reached:].copy()
    if start + len(elements) == spec.elements and len(table.left):
        raise ValueError("symbols that are no word")
    return codes


def _of_planes(spec: Spec, table: Table, elements: np.ndarray, start: int) -> np.ndarray:
    assert isinstance(table, Gathered)
    if int(elements.max(initial=0)) >> spec.entries:
        raise ValueError("a symbol of more bits than its planes")
    return whole.to_planes(table.symbols, spec.entries) if table.add(elements, start) else NOTHING


def _of_levels(spec: Spec, table: Table, elements: np.ndarray, start: int) -> np.ndarray:
    assert isinstance(table, Gathered)
    return whole.to_levels(table.symbols, table.lengths) if table.add(elements, start) else NOTHING


FORMS = {
    PLAIN: Form("plain", _plain),
    BOOK: Form("book", _book),
    SLICES: Form("book a slice", _slices),
    SCALED: Form("book, scale a slice", _slices),
    DIGITS: Form("digits of bytes", _joined),
    WORDS: Form("words of symbols", _worded),
    PLANES: Form("planes of symbols", _of_planes),
    LEVELS: Form("codes of symbols", _of_levels),
}

ENTRIES = {
    **{PLAIN: (0, 0), BOOK: (1, 256), SLICES: (1, 256), SCALED: (1, 256)},
    **{DIGITS: (2, 16), WORDS: (2, 128), PLANES: (3, 7), LEVELS: (2, 256)},
}
"""Least and most that `Spec.entries` may be."""


def typed(width: int) -> np.dtype:
    """Of values of so many bytes."""
    return np.dtype(f"<u{width}")


def split(
    spec: Spec, sides: Sequence[np.ndarray], elements: np.ndarray, start: int
) -> tuple[list[int], list[np.ndarray]]:
    """Entries of each kind, and the streams of one block, kind by kind."""
    if spec.kinds == 1:
        count, found = _split(spec, elements)
        return [count], found
    kind = kinds_of(spec, sides[-1], start, len(elements))
    each = [_split(spec, elements[kind == number]) for number in range(spec.kinds)]
    return [count for count, _ in each], [part for _, parts in each for part in parts]


def _split(spec: Spec, elements: np.ndarray) -> tuple[int, list[np.ndarray]]:
    if not spec.gaps:
        return len(elements), planes(elements, spec.rotate if spec.form == PLAIN else 0)
    steps, left = gaps.split(elements, spec.common, spec.gaps)
    return len(steps), [steps, *planes(left, spec.rotate if spec.form == PLAIN else 0)]


def kinds_of(spec: Spec, own: np.ndarray, start: int, length: int) -> np.ndarray:
    """uint8: the kind of each element from `start` on; own [runs]: of each slice."""
    return own.take(spread(start, length, spec.run, spec.runs))


def join(spec: Spec, sides: Sequence[np.ndarray], table: Table, parts: Sequence[np.ndarray], block: int) -> np.ndarray:
    """Values of one block from its streams; ValueError where they do not fit each other."""
    start, length = block * spec.block, spec.length(block)
    each = len(parts) // spec.kinds
    if spec.kinds == 1:
        return FORMS[spec.form].restore(spec, table, _merged(spec, parts, length), start)
    kind = kinds_of(spec, sides[-1], start, length)
    elements = np.empty(length, typed(spec.element_width))
    for number in range(spec.kinds):
        where = kind == number
        elements[where] = _merged(spec, parts[number * each : (number + 1) * each], int(np.count_nonzero(where)))
    return FORMS[spec.form].restore(spec, table, elements, start)


def _merged(spec: Spec, parts: Sequence[np.ndarray], length: int) -> np.ndarray:
    elements = merged(parts[1:] if spec.gaps else parts, spec.rotate if spec.form == PLAIN else 0)
    return gaps.join(parts[0], elements, spec.common, length) if spec.gaps else elements


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


def merged(parts: Sequence[np.ndarray], rotate: int) -> np.ndarray:
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
