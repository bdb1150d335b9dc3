"""A packed model for a session: the message without its large initializers, and these as arrays, decoded one by one."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np

from onnxcompress.errors import ModelError
from onnxcompress.weights import wire
from onnxcompress.weights.container import Container, Pieces
from onnxcompress.weights.packed import GRAPH_FIELD, LARGEST_MESSAGE
from onnxcompress.weights.wire import Stored

INITIALIZER_FIELD = 5
INITIALIZER_DEPTH = 2
"""Of a tensor of the main graph itself: in the graph, in the model."""

LEAST_BESIDE = 1 << 12
"""Bytes of an initializer that onnxruntime is handed beside the message instead of in it."""

ARRAYS = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 10: "<f2", 11: "<f8"}
"""TensorProto.DataType of weights that numpy and onnxruntime lay out alike. Integers of 32 and 64 bits may be shapes: these stay."""

BESIDE = "beside the message"


def loadable(container: Container) -> tuple[bytes, dict[str, np.ndarray]]:
    """An ONNX message without its large initializers, and these by name, for a container of one file.

    So that a session holds the weights once: they are decoded one by one, and never part of a message.
    """
    pieces = Pieces(container)
    main = container.members[0]
    if main.size >= LARGEST_MESSAGE:
        raise ModelError(f"{container.name}: declares a model of {main.size} bytes, more than protobuf reads")
    hollow = _untouched(main.size)
    place, later = 0, {}
    for (number, own, run), length in zip(pieces.of(main), main.lengths.tolist(), strict=True):
        if own and length >= LEAST_BESIDE:
            later[place, length] = number
        else:
            _fill(hollow, place, run)
        place += length
    return _without(hollow, container, later)


def _untouched(size: int) -> np.ndarray:
    """Zeros, of which only the pages that are written to take memory (4 kB each, where the system lets itself be told)."""
    if not size:
        return np.zeros(0, np.uint8)
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def _without(
    hollow: np.ndarray, container: Container, later: dict[tuple[int, int], int]
) -> tuple[bytes, dict[str, np.ndarray]]:
    """The message where initializers of the main graph lie beside it; the other tensors that are still missing are filled in."""
    data = hollow.data
    arrays: dict[str, np.ndarray] = {}
    moved: dict[int, Stored] = {}
    for one in wire.stored(data, container.name):
        number = later.get((one.start, one.size))
        kind = np.dtype(ARRAYS.get(one.dtype, "V1"))
        if number is None or one.depth != INITIALIZER_DEPTH or one.name in arrays:
            continue
        if kind.kind == "V" or int(np.prod(one.dims, dtype=object)) * kind.itemsize != one.size:
            continue
        del later[one.start, one.size]
        made = np.empty(one.size, np.uint8)
        _fill(made, 0, container.blocks(container.segments[number]))
        arrays[one.name] = made.view(kind).reshape(one.dims)
        moved[one.whole[0]] = one
    for (place, _), number in later.items():
        _fill(hollow, place, container.blocks(container.segments[number]))
    try:
        return _rebuilt(data, moved), arrays
    except ValueError as error:
        raise ModelError(f"{container.name}: does not hold an ONNX model; pack it again") from error


def _rebuilt(data: memoryview, moved: dict[int, Stored]) -> bytes:
    made = []
    for number, kind, tag, place, stop in wire.fields(data, 0, len(data)):
        if number != GRAPH_FIELD or kind != wire.LENGTH:
            made.append(bytes(data[tag:stop]))
            continue
        inner = [
            wire.message(INITIALIZER_FIELD, wire.external_tensor(data, moved[at], BESIDE))
            if at in moved
            else bytes(data[at:end])
            for _, _, at, _, end in wire.fields(data, place, stop)
        ]
        made.append(wire.message(GRAPH_FIELD, b"".join(inner)))
    return b"".join(made)


def _fill(into: np.ndarray, place: int, pieces: Iterator[np.ndarray]) -> None:
    for piece in pieces:
        into[place : place + len(piece)] = piece
        place += len(piece)
