"""Which tensors of a file are numbers of Tunstall's words (`runs.py` writes them): what they stand for is coded shorter than they are.

numbers ─Cast─▶ Gather from the words' lengths ◀─Cast─ lengths
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxcompress.weights import wire
from onnxcompress.weights.tunstall import WORDS, Dictionary, kinds_of, words_of
from onnxcompress.weights.wire import Stored

NODE_FIELD = 1
UINT8 = 2
LARGEST_NODE = 1 << 12
"""Bytes of a node that is read: those of a chain are short."""


def words_in(data: wire.Buffer, tensors: list[Stored]) -> dict[str, Dictionary]:
    """Name of a tensor -> its words, by the nodes of the main graph. A guess: who uses it must see whether the numbers are words."""
    known = {one.name: one for one in tensors if one.dtype == UINT8 and one.name}
    nodes = list(_nodes(data)) if known else []
    widened = {
        node.output[0]: known[node.input[0]] for node in nodes if node.op_type == "Cast" and node.input[0] in known
    }
    found: dict[str, Dictionary] = {}
    for node in nodes:
        if node.op_type != "Gather" or len(node.input) != 2:
            continue
        lengths, numbers = (widened.get(name) for name in node.input)
        if lengths is not None and numbers is not None and lengths.dims == (lengths.size,) and lengths.size <= WORDS:
            words = _words(np.frombuffer(data, np.uint8, lengths.size, lengths.start))
            if words is not None:
                found[numbers.name] = words
    return found


def _words(lengths: np.ndarray) -> Dictionary | None:
    kinds = kinds_of(lengths) if len(lengths) > 1 and lengths.min() > 0 else None
    try:
        return None if kinds is None else words_of(lengths, kinds)
    except ValueError:
        return None


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
