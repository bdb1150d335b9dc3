"""How a file holds the symbols of a Coded tensor: a row a form, each a few nodes that onnxruntime folds when it loads the file.

symbols ─(the form)─▶ numbers of entries ─Gather from the book─▶ values ─Mul by scales─▶ the tensor

With one book the form looks up entries itself, in a table of what a byte stands for; after folding the model runs as with dense weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxcompress.weights.coded import Coded
from onnxcompress.weights.tunstall import Dictionary, dictionary, digits, encode

NODE_BYTES, TENSOR_BYTES = 40, 30
"""Of a node and of a tensor in the file, besides its numbers; short names included."""


def halved(values: np.ndarray) -> np.ndarray | None:
    """As float16, where that holds the numbers exactly and saves more than a node takes."""
    if values.dtype != np.float32 or values.nbytes <= 4 * NODE_BYTES:
        return None
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None


@dataclass
class Pen:
    """Adds constants and nodes to a graph; equal constants are written once."""

    graph: ir.Graph
    nodes: list[ir.Node] = field(default_factory=list)
    _made: dict[tuple, ir.Value] = field(default_factory=dict)
    _number: int = 0

    def name(self) -> str:
        """A short free name."""
        while (found := f"~{self._number}") in self.graph.initializers:
            self._number += 1
        self._number += 1
        return found

    def constant(self, values: np.ndarray) -> ir.Value:
        """An initializer, shared by all who want the same values."""
        key = (values.dtype.name, values.shape, values.tobytes())
        if key not in self._made:
            name = self.name()
            value = ir.val(name, const_value=ir.tensor(np.require(values, requirements="C"), name=name))
            self.graph.register_initializer(value)
            self._made[key] = value
        return self._made[key]

    def node(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """The output of a new node."""
        made = ir.node(op, inputs, attributes, name=self.name())
        made.outputs[0].name = made.name
        self.nodes.append(made)
        return made.outputs[0]

    def shared(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """The output of a node that others may have made already."""
        key = (op, *(each.name for each in inputs), *attributes.items())
        return self.once(key, lambda: self.node(op, *inputs, **attributes))

    def once(self, key: tuple, make: Callable[[], ir.Value]) -> ir.Value:
        """What `make` writes, the first time."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def numbers(self, values: np.ndarray) -> ir.Value:
        """Small integers, int32 in the graph, as narrow as they fit in the file."""
        narrow = next(t for t in (np.uint8, np.uint16, np.int32) if values.size == 0 or values.max() <= np.iinfo(t).max)
        stored = self.constant(values.astype(narrow))
        return stored if narrow == np.int32 else self.shared("Cast", stored, to=ir.DataType.INT32)

    def floats(self, values: np.ndarray) -> ir.Value:
        """Numbers in their type; as float16 in the file where that holds them exactly and is worth a node."""
        half = halved(values)
        return self.constant(values) if half is None else self.shared("Cast", self.constant(half), to=ir.DataType.FLOAT)

    def shape(self, value: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
        """Reshaped."""
        return self.node("Reshape", value, self.constant(np.array(sizes, np.int64)))

    def finish(self) -> None:
        """Put the nodes before all others."""
        if self.nodes:
            self.graph.insert_before(self.graph[0], self.nodes)


Lookup = Callable[[ir.Value], ir.Value]
"""int32 numbers of entries -> entries, where there is one book; the numbers themselves where there are several."""


@dataclass(frozen=True)
class Form:
    """size: bytes of the symbols in the file, None where it cannot hold them; write: their nodes, [n] or [n, width] or the tensor's shape.

    opset  the lowest        auto  chosen without being asked for        arranged  entries in the order that it needs
    """

    size: Callable[[Coded], float | None]
    write: Callable[[Pen, Coded, Lookup], ir.Value]
    opset: int = 17
    auto: bool = True
    arranged: Callable[[Coded], Coded] = lambda coded: coded


# -- a byte a symbol ---------------------------------------------------------------------------------------------------


def _bytes(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    symbols = coded.symbols if coded.width > 1 else coded.symbols.reshape(coded.shape)
    return look(pen.node("Cast", pen.constant(symbols), to=ir.DataType.INT32))


# -- several symbols a byte, as digits of a number ---------------------------------------------------------------------


def packed(symbols: np.ndarray, entries: int) -> np.ndarray:
    """uint8, the first symbol the highest digit; the end is filled with zeros."""
    count, base = digits(entries), max(entries, 2)
    filled = np.concatenate([symbols, np.zeros(-len(symbols) % count, np.uint8)]).reshape(-1, count)
    number = np.zeros(len(filled), np.int32)
    for place in range(count):
        number = number * base + filled[:, place]
    return number.astype(np.uint8)


def table(entries: int) -> np.ndarray:
    """uint8 [entries ** digits, digits]: what each byte stands for."""
    count, base = digits(entries), max(entries, 2)
    return (np.arange(base**count)[:, None] // base ** np.arange(count)[::-1] % base).astype(np.uint8)


def _packed_size(coded: Coded) -> float | None:
    count = digits(coded.entries)
    return -(-len(coded.symbols) // count) if count > 1 else None


def _packed(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    rows = table(coded.entries)
    rows[rows >= coded.entries] = 0  # a book of one entry is packed as two
    looked = look(pen.numbers(rows))
    width = coded.width if coded.groups is None else 1  # with several books these are still numbers of entries
    return _unpacked(pen, packed(coded.symbols, coded.entries), looked, rows.shape[1], len(coded.symbols), width)


def _unpacked(pen: Pen, stored: np.ndarray, rows: ir.Value, count: int, size: int, width: int = 1) -> ir.Value:
    """Rows of what each byte stands for, one after another, without what fills the last byte: `size` entries of `width`."""
    found = pen.node("Gather", rows, pen.node("Cast", pen.constant(stored), to=ir.DataType.INT32))
    if len(stored) * count == size:
        return found
    ends = (np.array([0], np.int64), np.array([size * width], np.int64))
    return pen.node("Slice", pen.shape(found, (-1,)), *(pen.constant(each) for each in ends))


# -- bits of a symbol apart: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1 -----------------------------------------------


def planes(entries: int) -> tuple[int, ...]:
    """Bits of each plane, the highest first, each a number that divides 8."""
    left = max(int(entries - 1).bit_length(), 1)
    return tuple(bits for bits in (4, 2, 1) if left & bits) if left < 8 else ()


def _planes_size(coded: Coded) -> float | None:
    found = planes(coded.entries)
    return len(coded.symbols) * sum(found) / 8 + 3 * NODE_BYTES * len(found) if len(found) > 1 else None


def _planes(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    left, total, size = sum(planes(coded.entries)), None, len(coded.symbols)
    for bits in planes(coded.entries):
        left -= bits
        part = (coded.symbols >> left) & (2**bits - 1)
        rows = pen.numbers(table(2**bits).astype(np.int32) << left)
        each = pen.shape(_unpacked(pen, packed(part, 2**bits), rows, 8 // bits, size), (size,))
        total = each if total is None else pen.node("Add", total, each)
    assert total is not None
    return look(total)


# -- types below a byte ------------------------------------------------------------------------------------------------


def _narrow(kind: type, bits: int) -> Form:
    def size(coded: Coded) -> float | None:
        return len(coded.symbols) * bits / 8 if coded.entries <= 2**bits else None

    def write(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
        symbols = coded.symbols if coded.width > 1 else coded.symbols.reshape(coded.shape)
        return look(pen.node("Cast", pen.constant(symbols.astype(kind)), to=ir.DataType.INT32))

    return Form(size, write, {4: 21, 2: 25}[bits], auto=False)


# -- an entropy code ---------------------------------------------------------------------------------------------------

_dictionaries: WeakKeyDictionary[Coded, Dictionary | None] = WeakKeyDictionary()
_streams: WeakKeyDictionary[Coded, np.ndarray] = WeakKeyDictionary()


def words_of(coded: Coded) -> Dictionary | None:
    """The Tunstall code of its symbols, made once."""
    if coded not in _dictionaries:
        _dictionaries[coded] = dictionary(np.bincount(coded.symbols, minlength=2))
    return _dictionaries[coded]


def codewords(coded: Coded, words: Dictionary) -> np.ndarray:
    """The coded symbols, made once: a model is written several times in a run."""
    if coded not in _streams:
        _streams[coded] = encode(coded.symbols, words)
    return _streams[coded]


def _tunstall_size(coded: Coded) -> float | None:
    words = words_of(coded) if coded.entries > 1 else None
    if words is None:
        return None
    bits = words.bits(np.bincount(coded.symbols, minlength=2))
    return len(coded.symbols) * bits / 8 + _words_size(words) + 11 * NODE_BYTES


def _words_size(words: Dictionary) -> float:
    return len(words.symbols) / digits(words.kinds) + len(words.lengths) + 5 * NODE_BYTES


def _words(pen: Pen, words: Dictionary) -> ir.Value:
    """int32 numbers of all words, one after another; tensors that have the same words share them."""
    every = _numbered(words.symbols, words.kinds)
    make = FORMS["packed" if digits(words.kinds) > 1 else "bytes"].write
    return pen.once(
        ("words", words.symbols.tobytes()), lambda: pen.shape(make(pen, every, lambda numbers: numbers), (-1,))
    )


def _tunstall(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    words = words_of(coded)
    assert words is not None
    return _runs(pen, codewords(coded, words), words, look(_words(pen, words)), len(coded.symbols))


def _runs(pen: Pen, codes: np.ndarray, words: Dictionary, entries: ir.Value, size: int) -> ir.Value:
    """The first `size` entries that codewords stand for: each word is a run in the table of all words.

    From one number of the table to the next it is a step of one inside a word, and a jump where a word ends.
    """
    zero, one = pen.constant(np.array(0, np.int64)), pen.constant(np.array([1], np.int32))
    first, last = pen.constant(np.array([0], np.int64)), pen.constant(np.array([-1], np.int64))
    stored = pen.node("Cast", pen.constant(codes), to=ir.DataType.INT32)
    lengths = pen.numbers(words.lengths)
    starts = pen.shared("CumSum", lengths, zero, exclusive=1)
    begins, length = pen.node("Gather", starts, stored), pen.node("Gather", lengths, stored)
    end = pen.node("Sub", pen.node("Add", begins, length), one)
    before = pen.node("Concat", pen.constant(np.array([0], np.int32)), pen.node("Slice", end, first, last), axis=0)
    steps = pen.shared("Expand", one, pen.constant(np.array([size], np.int64)))
    where = pen.node("CumSum", length, zero, exclusive=1)
    steps = pen.node("ScatterElements", steps, where, pen.node("Sub", begins, before), axis=0)
    return pen.node("Gather", entries, pen.node("CumSum", steps, zero))


# -- one entry that most weights have, the others apart -------------------------------------------------------------------

SHARES = 1 - 2.0 ** -np.arange(0.25, 5.75, 0.25)
"""Shares of the common entry for which words are made, so that tensors as sparse as each other have the same ones in the file."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A tensor whose entry 0 is common.

    mask  symbols 0 and 1: which weights have another entry      words  of the mask
    rest  the symbols of these, less one      form  in which they are stored
    """

    mask: Coded
    words: Dictionary
    rest: Coded
    form: str


_parts: WeakKeyDictionary[Coded, Parts | None] = WeakKeyDictionary()


def common_first(coded: Coded) -> Coded:
    """The same tensor, its most frequent entry being number 0."""
    common = int(np.bincount(coded.symbols).argmax())
    if common == 0:
        return coded
    order = np.r_[common, np.delete(np.arange(coded.entries), common)]
    return replace(coded, symbols=np.argsort(order).astype(np.uint8)[coded.symbols], books=coded.books[:, order])


def parts_of(coded: Coded) -> Parts | None:
    """Of a tensor as `common_first` has it, made once; None where there is one entry, or all weights have it."""
    if coded not in _parts:
        _parts[coded] = _parted(coded)
    return _parts[coded]


def _parted(coded: Coded) -> Parts | None:
    mask = (coded.symbols > 0).astype(np.uint8)
    if coded.entries < 2 or not mask.any():
        return None
    share = SHARES[np.abs(SHARES - (1 - mask.mean())).argmin()]
    words = dictionary(np.array([share, 1 - share]))
    assert words is not None
    rest = _numbered(coded.symbols[mask > 0] - 1, coded.entries - 1)
    sizes = {
        form: size for form in ("bytes", "packed", "planes", "tunstall") if (size := FORMS[form].size(rest)) is not None
    }
    return Parts(_numbered(mask, 2), words, rest, min(sizes, key=lambda form: sizes[form]))


def _numbered(symbols: np.ndarray, entries: int) -> Coded:
    """Symbols that stand for themselves."""
    return Coded((len(symbols),), symbols, np.arange(entries, dtype=np.float32)[None, :, None])


def _sparse_size(coded: Coded) -> float | None:
    parts = parts_of(common_first(coded))
    if parts is None:
        return None
    rest = FORMS[parts.form].size(parts.rest)
    assert rest is not None
    bits = parts.words.bits(np.bincount(parts.mask.symbols, minlength=2))
    return len(coded.symbols) * bits / 8 + _words_size(parts.words) + rest + 16 * NODE_BYTES


def _sparse(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    """Where the mask is set, the next number of the others; else zero: the common entry."""
    parts = parts_of(coded)
    assert parts is not None
    zero, one = pen.constant(np.array(0, np.int64)), pen.constant(np.array([1], np.int32))
    codes = codewords(parts.mask, parts.words)
    mask = _runs(pen, codes, parts.words, _words(pen, parts.words), len(coded.symbols))
    rest = FORMS[parts.form].write(pen, parts.rest, lambda numbers: pen.shared("Add", numbers, one))
    rest = pen.node("Concat", pen.constant(np.array([0], np.int32)), pen.shape(rest, (-1,)), axis=0)
    others = pen.node("Gather", rest, pen.node("CumSum", mask, zero))
    return look(pen.node("Mul", others, mask))


FORMS: dict[str, Form] = {
    "bytes": Form(lambda coded: len(coded.symbols), _bytes),
    "packed": Form(_packed_size, _packed),
    "planes": Form(_planes_size, _planes),
    "uint4": _narrow(ml_dtypes.uint4, 4),
    "uint2": _narrow(ml_dtypes.uint2, 2),
    "tunstall": Form(_tunstall_size, _tunstall),
    "sparse": Form(_sparse_size, _sparse, arranged=common_first),
}
"""Name -> form. In order of the time that a file takes to load."""

WORTH = 0.95
"""A form that loads more slowly must save at least a twentieth of the bytes."""


def bytes_of(coded: Coded, form: str) -> float | None:
    """Of a tensor in the file, its books and nodes counted; None where the form cannot hold it."""
    symbols = FORMS[form].size(coded)
    factors = [coded.books] if coded.scales is None else [coded.books, coded.scales]
    stored = sum((values if (half := halved(values)) is None else half).nbytes + NODE_BYTES for values in factors)
    several = 0 if coded.groups is None else 2 * len(coded.groups) + 3 * NODE_BYTES
    return None if symbols is None else symbols + stored + several + 5 * NODE_BYTES


def chosen(coded: Coded, opset: int = 17) -> str | None:
    """The form that a tensor gets: as wanted where that can hold it, else the smallest; None where dense is no larger."""
    dense = WORTH * coded.decode().nbytes
    sizes = {
        name: size
        for name, form in FORMS.items()
        if form.opset <= opset and (form.auto or name == coded.form) and (size := bytes_of(coded, name)) is not None
    }
    if coded.form in sizes:
        return coded.form if sizes[coded.form] < dense else None
    best = None
    for name, size in sizes.items():
        if size < (dense if best is None else WORTH * sizes[best]):
            best = name
    return best


def write(pen: Pen, coded: Coded, form: str) -> ir.Value:
    """The value of a tensor, computed from its symbols."""
    coded = FORMS[form].arranged(coded)
    count, entries, width = coded.books.shape
    if coded.groups is None:
        book = pen.floats(coded.books[0] if width > 1 else coded.books[0, :, 0])
        made = FORMS[form].write(pen, coded, lambda numbers: pen.node("Gather", book, numbers))
        made = made if form in AS_SHAPED and width == 1 else pen.shape(made, coded.shape)
    else:
        numbers = FORMS[form].write(pen, coded, lambda numbers: numbers)
        shape = coded.shape if width == 1 else (coded.shape[0], len(coded.symbols) // coded.shape[0])
        numbers = numbers if form in AS_SHAPED and width == 1 else pen.shape(numbers, shape)
        offsets = (coded.groups * entries).astype(np.int32)
        offsets = coded.along(offsets) if width == 1 else offsets[:, None]
        books = coded.books.reshape(count * entries, width)
        made = pen.node(
            "Gather", pen.floats(books if width > 1 else books[:, 0]), pen.node("Add", numbers, pen.numbers(offsets))
        )
        made = made if width == 1 else pen.shape(made, coded.shape)
    return made if coded.scales is None else pen.node("Mul", made, pen.floats(coded.along(coded.scales)))


AS_SHAPED = {"bytes", "uint4", "uint2"}
"""Forms that keep the tensor's shape by themselves."""
