"""Forms that give every symbol the same room: a byte, digits of a byte, planes of bits, types below a byte."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxcompress.weights.coded import Coded
from onnxcompress.weights.pen import NODE_BYTES, Form, Lookup, Pen
from onnxcompress.weights.tunstall import digits

# -- a byte a symbol ---------------------------------------------------------------------------------------------------


def _bytes(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    symbols = coded.symbols if coded.width > 1 else coded.symbols.reshape(coded.shape)
    return look(pen.node("Cast", pen.constant(symbols), to=ir.DataType.INT32))


def numbered(symbols: np.ndarray, entries: int) -> Coded:
    """Symbols that stand for themselves."""
    return Coded((len(symbols),), symbols, np.arange(entries, dtype=np.float32)[None, :, None])


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


def computed(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    """The same bytes by division instead of a table, which takes more than the symbols where they are few: 243 rows of five digits."""
    count, base = digits(coded.entries), max(coded.entries, 2)
    stored = pen.node("Cast", pen.constant(packed(coded.symbols, coded.entries)[:, None]), to=ir.DataType.INT32)
    powers = pen.constant((base ** np.arange(count)[::-1]).astype(np.int32)[None])
    found = pen.node("Mod", pen.node("Div", stored, powers), pen.constant(np.array([base], np.int32)))
    return look(_cut(pen, found, len(coded.symbols)))


def _unpacked(pen: Pen, stored: np.ndarray, rows: ir.Value, count: int, size: int, width: int = 1) -> ir.Value:
    """Rows of what each byte stands for, one after another, without what fills the last byte: `size` entries of `width`."""
    found = pen.node("Gather", rows, pen.node("Cast", pen.constant(stored), to=ir.DataType.INT32))
    return found if len(stored) * count == size else _cut(pen, found, size * width)


def _cut(pen: Pen, found: ir.Value, size: int) -> ir.Value:
    """The first so many numbers, in one row."""
    ends = (np.array([0], np.int64), np.array([size], np.int64))
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
    size = len(coded.symbols)

    def unpacked(part: np.ndarray, bits: int, left: int) -> ir.Value:
        rows = pen.numbers(table(2**bits).astype(np.int32) << left)
        return pen.shape(_unpacked(pen, packed(part, 2**bits), rows, 8 // bits, size), (size,))

    return look(_summed(pen, coded, unpacked))


def computed_planes(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
    """The same bytes without tables, as `computed`."""

    def unpacked(part: np.ndarray, bits: int, left: int) -> ir.Value:
        found = computed(pen, numbered(part, 2**bits), lambda numbers: numbers)
        return pen.node("Mul", found, pen.constant(np.array([1 << left], np.int32))) if left else found

    return look(_summed(pen, coded, unpacked))


def _summed(pen: Pen, coded: Coded, unpacked: Callable[[np.ndarray, int, int], ir.Value]) -> ir.Value:
    """All planes together; unpacked(symbols of one, its bits, how far left they belong) -> int32 [size]."""
    left, parts = sum(planes(coded.entries)), list[ir.Value]()
    for bits in planes(coded.entries):
        left -= bits
        parts.append(unpacked((coded.symbols >> left) & (2**bits - 1), bits, left))
    return reduce(lambda one, other: pen.node("Add", one, other), parts)


# -- types below a byte ------------------------------------------------------------------------------------------------


def _narrow(kind: type, bits: int) -> Form:
    def size(coded: Coded) -> float | None:
        return len(coded.symbols) * bits / 8 if coded.entries <= 2**bits else None

    def write(pen: Pen, coded: Coded, look: Lookup) -> ir.Value:
        symbols = coded.symbols if coded.width > 1 else coded.symbols.reshape(coded.shape)
        return look(pen.node("Cast", pen.constant(symbols.astype(kind)), to=ir.DataType.INT32))

    return Form(size, write, {4: 21, 2: 25}[bits], auto=False)


PLAIN: dict[str, Form] = {
    "bytes": Form(lambda coded: len(coded.symbols), _bytes),
    "packed": Form(_packed_size, _packed),
    "planes": Form(_planes_size, _planes),
    "uint4": _narrow(ml_dtypes.uint4, 4),
    "uint2": _narrow(ml_dtypes.uint2, 2),
}
"""Name -> form. In order of the time that a file takes to load."""
