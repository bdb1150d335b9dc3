"""A packed model for a session: the message without its large initializers, and these as arrays, decoded one by one."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np

from onnxcompress.errors import ModelError
from onnxcompress.weights import wire
from onnxcompress.weights.beside import LEAST_BESIDE, array_of, without
from onnxcompress.weights.container import Container, Pieces
from onnxcompress.weights.packed import LARGEST_MESSAGE
from onnxcompress.weights.wire import Stored

INITIALIZER_DEPTH = 2
"""Of a tensor of the main graph itself: in the graph, in the model."""


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
        kind = array_of(one)
        if number is None or kind is None or one.depth != INITIALIZER_DEPTH or one.name in arrays:
            continue
        del later[one.start, one.size]
        made = np.empty(one.size, np.uint8)
        _fill(made, 0, container.blocks(container.segments[number]))
        arrays[one.name] = made.view(kind).reshape(one.dims)
        moved[one.whole[0]] = one
    for (place, _), number in later.items():
        _fill(hollow, place, container.blocks(container.segments[number]))
    try:
        return without(data, moved), arrays
    except ValueError as error:
        raise ModelError(f"{container.name}: does not hold an ONNX model; pack it again") from error


def _fill(into: np.ndarray, place: int, pieces: Iterator[np.ndarray]) -> None:
    for piece in pieces:
        into[place : place + len(piece)] = piece
        place += len(piece)
