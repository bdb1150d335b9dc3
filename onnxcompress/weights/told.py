"""What the nodes of a file say of its tensors: how symbols were made bytes (forms.py), and the shape of what they become.

All of it is a guess, by the nodes of the main graph; who uses it makes the bytes again and sees whether they are the same.

words    numbers ─Cast─▶ Gather from the words' lengths ◀─Cast─ lengths
planes   bytes ─Cast─▶ Gather from a table (or Div, Mod) ─▶ … ─▶ Add ◀─ … the same of the next plane
levels   bits ─BitShift─▶ … ─▶ Split ─▶ …     order of the leaves, and where each begins ─ScatterElements─▶ CumSum ─▶ Gather
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxcompress.weights import wire
from onnxcompress.weights.plain import planes
from onnxcompress.weights.tunstall import WORDS, Dictionary, kinds_of, words_of
from onnxcompress.weights.wire import Stored

NODE_FIELD = 1
LARGEST_NODE = 1 << 12
"""Bytes of a node that is read: those of a chain are short."""

LONGEST_CHAIN = 40
"""Nodes from symbols to the tensor that they become."""

NARROW = {2: np.uint8, 4: np.uint16, 6: np.int32, 7: np.int64}
"""TensorProto.DataType of the numbers that chains have."""


@dataclass(frozen=True)
class Told:
    """By the name of an initializer.

    words    what it is numbers of                      shapes  of the first tensor that is made of it
    planes   where the highest begins -> all planes of its symbols, each with its bits
    counts   bits of Huffman's codes -> how often each symbol occurs
    """

    words: dict[str, Dictionary] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    planes: dict[int, tuple[tuple[Stored, int], ...]] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)


def told(data: wire.Buffer, tensors: list[Stored]) -> Told:
    """What the nodes of a serialised model say; tensors: all that are in it."""
    known = {
        one.name: one for one in tensors if one.name and one.dtype in NARROW and one.depth == 2 and not one.outside
    }
    if not any(one.dtype == 2 for one in known.values()):
        return Told()
    graph = _Graph(data, known, list(_nodes(data)))
    return Told(dict(_words(graph)), dict(_shapes(graph)), dict(_planes(graph)), dict(_levels(graph)))


class _Graph:
    """Nodes by what they make and by what they read; constants by name."""

    def __init__(self, data: wire.Buffer, known: Mapping[str, Stored], nodes: list[onnx.NodeProto]) -> None:
        self.known, self.nodes, self._data = known, nodes, data
        self.maker = {name: node for node in nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def stored(self, name: str) -> Stored | None:
        """The constant that a value is, behind a Cast or without."""
        node = self.maker.get(name)
        return self.known.get(node.input[0] if node is not None and node.op_type == "Cast" else name)

    def array(self, name: str) -> np.ndarray | None:
        """Its numbers; None where it is none, or not of its size."""
        one = self.stored(name)
        if one is None:
            return None
        kind = np.dtype(NARROW[one.dtype]).newbyteorder("<")
        count = int(np.prod(one.dims, dtype=object))
        if one.size != count * kind.itemsize:
            return None
        return np.frombuffer(self._data, kind, count, one.start).reshape(one.dims)


def _words(graph: _Graph) -> Iterator[tuple[str, Dictionary]]:
    for node in graph.nodes:
        if node.op_type != "Gather" or len(node.input) != 2:
            continue
        lengths, numbers = (graph.stored(name) for name in node.input)
        if lengths is None or numbers is None or lengths.dtype != 2 or numbers.dtype != 2:
            continue
        if lengths.dims == (lengths.size,) and lengths.size <= WORDS:
            words = _dictionary(graph.array(node.input[0]))
            if words is not None:
                yield numbers.name, words


def _dictionary(lengths: np.ndarray | None) -> Dictionary | None:
    kinds = kinds_of(lengths) if lengths is not None and len(lengths) > 1 and lengths.min() > 0 else None
    try:
        return None if kinds is None or lengths is None else words_of(lengths, kinds)
    except ValueError:
        return None


def _shapes(graph: _Graph) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Forward from each tensor of bytes to the first Reshape to several axes, or the tensor's own shape."""
    for name, one in graph.known.items():
        if one.dtype != 2 or name not in graph.readers:
            continue
        front, seen = [name], 0
        while front and seen < LONGEST_CHAIN:
            for node in graph.readers.get(front.pop(0), []):
                seen += 1
                shape = graph.array(node.input[1]) if node.op_type == "Reshape" and len(node.input) == 2 else None
                if shape is not None and shape.ndim == 1 and len(shape) > 1 and shape.min() > 0:
                    yield name, tuple(shape.tolist())
                    front, seen = [], LONGEST_CHAIN
                    break
                front += [each for each in node.output if each]


def _planes(graph: _Graph) -> Iterator[tuple[int, tuple[tuple[Stored, int], ...]]]:
    """Of a sum of three that of two is found first, and then the whole."""
    for node in graph.nodes:
        if node.op_type == "Add":
            found = _parts(graph, node.output[0])
            bits = tuple(bits for _, bits in found)
            if len(found) > 1 and planes(2 ** sum(bits)) == bits:
                yield found[0][0].start, tuple(found)


def _parts(graph: _Graph, value: str, digits: int = 0) -> list[tuple[Stored, int]]:
    """The tensor of bytes at the beginning of a chain and the bits of its digits, of each part of a sum; empty for no chain."""
    one = graph.stored(value)
    if one is not None:
        return [(one, 8 // digits)] if one.dtype == 2 and digits in (2, 4, 8) else []
    node = graph.maker.get(value)
    if node is None:
        return []
    if node.op_type == "Add" and len(node.input) == 2 and not digits:
        each = [_parts(graph, name) for name in node.input]
        return [*each[0], *each[1]] if all(each) else []
    if node.op_type in ("Gather", "Div") and len(node.input) == 2:
        beside = graph.stored(node.input[node.op_type == "Div"])
        digits = beside.dims[-1] if beside is not None and beside.dims else digits
        return _parts(graph, node.input[node.op_type == "Gather"], digits)
    return _parts(graph, node.input[0], digits) if node.op_type in ("Reshape", "Slice", "Mul", "Mod", "Cast") else []


def _levels(graph: _Graph) -> Iterator[tuple[str, np.ndarray]]:
    """Bits and the leaves that belong to them follow each other, as they are written."""
    bits = total = begins = None
    for node in graph.nodes:
        if node.op_type == "BitShift":
            bits, begins = graph.stored(node.input[0]), None
        elif node.op_type == "Split" and begins is None and len(node.input) > 1:
            lengths = graph.array(node.input[1])
            total = None if lengths is None or not lengths.size else int(lengths.reshape(-1)[0])
        elif node.op_type == "ScatterElements":
            begins = graph.array(node.input[1])
        elif node.op_type == "Gather" and bits is not None and begins is not None and total is not None:
            order = graph.array(node.input[0])
            counts = None if order is None or order.dtype != np.uint8 else _counts(order, begins, total)
            if counts is not None:
                yield bits.name, counts
            bits = begins = None


def _counts(order: np.ndarray, begins: np.ndarray, total: int) -> np.ndarray | None:
    """[256]: of the leaves in this order, each from where it begins to the next one's place."""
    found = np.diff(np.concatenate([[0], begins.reshape(-1).astype(np.int64), [total]]))
    if order.ndim != 1 or len(order) != len(found) or found.min() < 1 or len(np.unique(order)) != len(order):
        return None
    counts = np.zeros(256, np.int64)
    counts[order] = found
    return counts


def _nodes(data: wire.Buffer) -> Iterator[onnx.NodeProto]:
    """Nodes of the main graph that have an output and are short."""
    for number, kind, _, start, stop in wire.fields(data, 0, len(data)):
        if number != wire.GRAPH_FIELD or kind != wire.LENGTH:
            continue
        for inner, how, _, place, end in wire.fields(data, start, stop):
            if inner != NODE_FIELD or how != wire.LENGTH or end - place > LARGEST_NODE:
                continue
            try:
                node = onnx.NodeProto.FromString(bytes(data[place:end]))
            except DecodeError:
                continue
            if node.input and node.output:
                yield node
