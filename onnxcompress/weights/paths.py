"""The nodes by which a file follows a trellis, written and read: see trellis.py for what they compute.

symbols [A, T, B] ─Mod 2─▶ lowest bits ─Pad─▶ one, two, three columns later ─▶ state ─▶ symbol + K · state ─▶ entry, by a table

The table says which entry of a book a symbol is in a state; a tensor's book is laid out by it once, and weights look up in that.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcompress.weights.coded import Coded
from onnxcompress.weights.pen import NODE_BYTES, Pen
from onnxcompress.weights.trellis import CODES, memory, table

NODES = 16
"""Of a tensor, beside those of its symbols."""


def size(coded: Coded) -> float:
    """Bytes in the file beside symbols and books; the table is shared by all tensors with as many symbols."""
    return 0.0 if coded.states == 1 else NODES * NODE_BYTES


def write(pen: Pen, coded: Coded, symbols: ir.Value) -> ir.Value:
    """The values of a tensor's entries, in its shape, from int32 symbols in any."""
    back, (before, length, after) = memory(coded.states), coded.paths
    symbols = pen.shape(symbols, (before, length, after))
    bits = pen.node("Mod", symbols, pen.constant(np.array(2, np.int32)))
    bits = pen.node("Pad", bits, pen.constant(np.array([0, back, 0, 0, 0, 0], np.int64)))
    numbers = symbols
    for place in range(back):
        ends = (np.array([each], np.int64) for each in (back - 1 - place, back - 1 - place + length, 1))
        earlier = pen.node("Slice", bits, *(pen.constant(each) for each in ends))
        weight = pen.constant(np.array(coded.entries << place, np.int32))
        numbers = pen.node("Add", numbers, pen.node("Mul", earlier, weight))
    numbers = pen.shape(numbers, coded.shape)
    laid = pen.numbers(table(coded.states, coded.entries))
    if coded.groups is None:
        return pen.node("Gather", pen.shared("Gather", pen.floats(coded.books[0, :, 0]), laid), numbers)
    books = pen.shape(pen.node("Gather", pen.floats(coded.books[:, :, 0]), laid, axis=1), (-1,))
    begins = pen.numbers(coded.along(coded.groups * coded.states * coded.entries))
    return pen.node("Gather", books, pen.node("Add", numbers, begins))


def read(nodes: list[ir.Node], memory_of: Mapping[ir.Value, np.ndarray], shape: tuple[int, ...]) -> Coded | None:
    """What `write` wrote, without scales; None for other chains. nodes: of the chain; memory_of: the numbers of its values."""
    by_op = {op: [node for node in nodes if node.op_type == op] for op in ("Mod", "Pad", "Gather")}
    if len(by_op["Mod"]) != 1 or len(by_op["Pad"]) != 1 or not by_op["Gather"]:
        return None
    laid = next((node for node in by_op["Gather"] if _lays_out(node, memory_of)), None)
    symbols, pads = memory_of.get(_first(by_op["Mod"][0])), memory_of.get(by_op["Pad"][0].inputs[1])  # type: ignore[arg-type]
    if laid is None or symbols is None or pads is None or symbols.ndim != 3 or pads.size != 6:
        return None
    books = memory_of[_first(laid)]
    books = books.reshape(-1, books.shape[-1])
    states, entries = 1 << int(pads[1]), books.shape[1] // 2
    fits = states in CODES and 2 <= entries <= 128 and not entries % 2
    if not fits or not np.array_equal(memory_of[laid.inputs[1]], table(states, entries)):  # type: ignore[index]
        return None
    groups, axis = _groups(nodes[0], memory_of, len(books), states * entries), _axis(symbols.shape, shape)
    if axis is None or not _within(symbols, entries) or (groups is None) != (len(books) == 1):
        return None
    if groups is not None and (groups.shape != (shape[axis],) or not _within(groups, len(books))):
        return None
    flat = symbols.astype(np.uint8).reshape(-1)
    return Coded(shape, flat, books[:, :, None], None, groups, axis, states=states)


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _lays_out(node: ir.Node, memory_of: Mapping[ir.Value, np.ndarray]) -> bool:
    """Does it lay out a book, whose values are floats, by a table of numbers?"""
    book, numbers = (memory_of.get(value) for value in node.inputs[:2] if value is not None)
    if book is None or numbers is None or book.dtype.kind != "f" or numbers.ndim != 1:
        return False
    return book.ndim == node.attributes.get_int("axis", 0) + 1  # type: ignore[operator]


def _groups(node: ir.Node, memory_of: Mapping[ir.Value, np.ndarray], books: int, each: int) -> np.ndarray | None:
    """Which book each slice has: of the constant that is added to the numbers that a node looks up, where there are several."""
    numbers = node.inputs[1] if node.op_type == "Gather" else None
    added = None if numbers is None else numbers.producer()
    if books == 1 or added is None or added.op_type != "Add" or added.inputs[1] is None:
        return None
    return memory_of[added.inputs[1]].reshape(-1) // each


def _within(numbers: np.ndarray, most: int) -> bool:
    return bool(numbers.min(initial=0) >= 0 and numbers.max(initial=0) < most)


def _axis(paths: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    for axis in (0, len(shape) - 1):
        length = shape[axis]
        rest = int(np.prod(shape)) // max(length, 1)
        if paths == ((length, rest, 1) if axis == 0 else (1, rest, length)):
            return axis
    return None
