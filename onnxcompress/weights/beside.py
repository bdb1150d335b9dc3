"""A message without its large initializers, and these as arrays beside it: who reads or writes a model holds its weights once.

protobuf parses a message into a copy and hands out a copy of each tensor's bytes, so that a file of 54 MB took 160 on its way in and
110 on its way out. Here weights go between a file and arrays, and only the rest is ever a message.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcompress.weights import wire
from onnxcompress.weights.wire import Buffer, Stored

INITIALIZER_FIELD = 5

LEAST_BESIDE = 1 << 12
"""Bytes of an initializer that stands beside the message instead of in it."""

ARRAYS = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 10: "<f2", 11: "<f8"}
"""TensorProto.DataType of weights that numpy and onnxruntime lay out alike. Integers of 32 and 64 bits may be shapes: these stay."""

TYPES = {ir.DataType(number) for number in ARRAYS}

BESIDE = "beside the message"


def array_of(one: Stored) -> np.dtype[np.generic] | None:
    """The type of its array; None where its values are to stay in the message."""
    kind = np.dtype(ARRAYS.get(one.dtype, "V1"))
    fits = kind.kind != "V" and int(np.prod(one.dims, dtype=object)) * kind.itemsize == one.size
    return kind if fits and not one.outside else None


def read_beside(path: Path) -> tuple[bytes, dict[str, np.ndarray], dict[str, int]]:
    """A file's message without the large initializers of its main graph, these by name, and where in the file each begins.

    ValueError, IndexError: it is no message.
    """
    moved: dict[int, Stored] = {}
    arrays: dict[str, np.ndarray] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        for one in wire.initializers(pages):
            kind = array_of(one) if one.size >= LEAST_BESIDE and one.name not in arrays else None
            if kind is not None:
                arrays[one.name] = values = np.empty(one.dims, kind)
                file.seek(one.start)
                file.readinto(values.reshape(-1).view(np.uint8).data)
                moved[one.whole[0]] = one
        return without(pages, moved), arrays, {one.name: one.start for one in moved.values()}


def without(data: Buffer, moved: Mapping[int, Stored]) -> bytes:
    """The message where these initializers of the main graph, by the place of their tag, lie beside it."""
    made = []
    for number, kind, tag, place, stop in wire.fields(data, 0, len(data)):
        if number != wire.GRAPH_FIELD or kind != wire.LENGTH:
            made.append(bytes(data[tag:stop]))
            continue
        inner = [
            wire.message(INITIALIZER_FIELD, wire.external_tensor(data, moved[at], BESIDE))
            if at in moved
            else bytes(data[at:end])
            for _, _, at, _, end in wire.fields(data, place, stop)
        ]
        made.append(wire.message(wire.GRAPH_FIELD, b"".join(inner)))
    return b"".join(made)


def together(data: bytes, arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The whole message in pieces, as protobuf would write it: the inverse of `without`."""
    for number, kind, tag, place, stop in wire.fields(data, 0, len(data)):
        if number != wire.GRAPH_FIELD or kind != wire.LENGTH:
            yield data[tag:stop]
            continue
        inner = list(_filled(data, place, stop, arrays))
        yield wire.number(wire.GRAPH_FIELD << 3 | wire.LENGTH) + wire.number(sum(map(len, inner)))
        yield from inner


def _filled(data: bytes, start: int, end: int, arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The fields of a graph, each whole or in pieces."""
    outside = {one.whole[0]: one for one in wire.initializers(data) if one.outside and one.name in arrays}
    for _, _, tag, _, stop in wire.fields(data, start, end):
        if tag not in outside:
            yield data[tag:stop]
            continue
        values = np.ascontiguousarray(arrays[outside[tag].name]).reshape(-1).view(np.uint8).data
        before, after = wire.around_values(data, outside[tag])
        head = before + wire.number(wire.RAW_DATA << 3 | wire.LENGTH) + wire.number(len(values))
        size = len(head) + len(values) + len(after)
        yield wire.number(INITIALIZER_FIELD << 3 | wire.LENGTH) + wire.number(size) + head
        yield values
        yield after


@contextmanager
def standing_beside(graph: ir.Model, arrays: Collection[str]) -> Iterator[None]:
    """The graph while these constants are names of data elsewhere and all others are in memory: cheaper than a clone."""
    values = graph.graph.initializers
    held = {name: value.const_value for name, value in values.items() if value.const_value is not None}
    try:
        for name, tensor in held.items():
            if name in arrays:
                values[name].const_value = ir.ExternalTensor(
                    BESIDE,
                    0,
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=name,
                    base_dir="",
                )
            elif isinstance(tensor, ir.ExternalTensor):
                values[name].const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=name)
        yield
    finally:
        for name, tensor in held.items():
            values[name].const_value = tensor
