"""Where the bytes of tensors lie in a serialised ONNX model, found without parsing it: nothing is copied, whatever its size.

The message is walked as protobuf writes it (tag, length, content). Only the fields of WAY are entered; all others are stepped over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from mmap import mmap

from onnxcompress.errors import ModelError

Buffer = bytes | bytearray | memoryview | mmap

WAY: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Message of onnx.proto -> its fields on the way to a tensor."""

DEEPEST = 100
"""Messages inside each other that protobuf reads."""

DIMS, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA, DOUBLE_DATA, EXTERNAL, LOCATION = 1, 2, 4, 8, 9, 10, 13, 14
VALUES = (RAW_DATA, FLOAT_DATA, DOUBLE_DATA)
"""Fields of a TensorProto that hold values as little-endian bytes; in the others they are varints."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
GRAPH_FIELD = 7
"""Of a ModelProto."""


@dataclass
class Stored:
    """One TensorProto.

    start, size  of its bytes in the message; size 0: it holds none, or varints
    whole        (tag, end) of the TensorProto in the message, and depth: 2 for an initializer of the main graph
    external     entries of external_data, for a tensor that lies in another file
    """

    name: str = ""
    dtype: int = 0
    dims: tuple[int, ...] = ()
    start: int = 0
    size: int = 0
    whole: tuple[int, int] = (0, 0)
    depth: int = 0
    external: dict[str, str] = field(default_factory=dict)
    outside: bool = False


def stored(data: Buffer, name: str) -> list[Stored]:
    """Every tensor of a serialised ModelProto, in the order of the file; ModelError where it is none."""
    try:
        found = list(_walk(data, 0, len(data), "model", 0))
    except (IndexError, ValueError) as error:
        raise ModelError(f"{name}: not an ONNX model, or truncated; export it again") from error
    return found


def initializers(data: Buffer) -> Iterator[Stored]:
    """Those of the main graph alone: nodes are stepped over. ValueError or IndexError where it is no message."""
    for number, kind, _, place, stop in fields(data, 0, len(data)):
        if WAY["model"].get(number) == "graph" and kind == LENGTH:
            for inner, of, tag, at, end in fields(data, place, stop):
                if WAY["graph"].get(inner) == "tensor" and of == LENGTH:
                    yield _tensor(data, at, end, tag, 2)


def fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(field, wire type, tag's place, content's place, content's end) of one message; ValueError where it is none."""
    place = start
    while place < end:
        tag_at = place
        tag, place = varint(data, place, end)
        kind = tag & 7
        if kind == LENGTH:
            size, place = varint(data, place, end)
        elif kind == VARINT:
            size = varint(data, place, end)[1] - place
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError("a wire type that ONNX does not have")
        if place + size > end or not tag >> 3:
            raise ValueError("a field that is longer than its message")
        yield tag >> 3, kind, tag_at, place, place + size
        place += size


def varint(data: Buffer, place: int, end: int) -> tuple[int, int]:
    """The number, and the place behind it."""
    value = shift = 0
    while True:
        if place >= end or shift > 63:
            raise ValueError("a number that does not end")
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _walk(data: Buffer, start: int, end: int, message: str, depth: int) -> Iterator[Stored]:
    if depth > DEEPEST:
        raise ValueError("too deep")
    way = WAY[message]
    for number, kind, tag, place, stop in fields(data, start, end):
        inner = way.get(number) if kind == LENGTH else None
        if inner == "tensor":
            yield _tensor(data, place, stop, tag, depth + 1)
        elif inner is not None:
            yield from _walk(data, place, stop, inner, depth + 1)


def _tensor(data: Buffer, start: int, end: int, tag: int, depth: int) -> Stored:
    found, dims = Stored(whole=(tag, end), depth=depth), []
    for number, kind, _, place, stop in fields(data, start, end):
        if number == DIMS and kind == VARINT:
            dims.append(varint(data, place, stop)[0])
        elif number == DIMS and kind == LENGTH:
            while place < stop:
                value, place = varint(data, place, stop)
                dims.append(value)
        elif number == DATA_TYPE and kind == VARINT:
            found.dtype = varint(data, place, stop)[0]
        elif number == NAME and kind == LENGTH:
            found.name = _text(data, place, stop)
        elif number in VALUES and kind == LENGTH and stop - place > found.size:
            found.start, found.size = place, stop - place
        elif number == EXTERNAL and kind == LENGTH:
            entry = {key: _text(data, at, to) for key, of, _, at, to in fields(data, place, stop) if of == LENGTH}
            found.external[entry.get(1, "")] = entry.get(2, "")
        elif number == LOCATION and kind == VARINT:
            found.outside = varint(data, place, stop)[0] == 1
    found.dims = tuple(dims)
    return found


def _text(data: Buffer, start: int, end: int) -> str:
    return bytes(data[start:end]).decode("utf-8", "replace")


def number(value: int) -> bytes:
    """A varint."""
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)


def message(tag: int, content: bytes) -> bytes:
    """A field of known length."""
    return number(tag << 3 | LENGTH) + number(len(content)) + content


def around_values(data: Buffer, one: Stored) -> tuple[bytes, bytes]:
    """The TensorProto's fields without its values and where they lie: those that protobuf writes before them, and behind."""
    _, place = varint(data, one.whole[0], one.whole[1])
    _, place = varint(data, place, one.whole[1])
    kept = [
        (number_ < RAW_DATA, bytes(data[tag:stop]))
        for number_, _, tag, _, stop in fields(data, place, one.whole[1])
        if number_ not in (*VALUES, EXTERNAL, LOCATION)
    ]
    before, after = (b"".join(each for early, each in kept if early is side) for side in (True, False))
    return before, after


def external_tensor(data: Buffer, one: Stored, location: str) -> bytes:
    """The TensorProto's content without its values, which lie in the file `location` instead."""
    entries: Mapping[str, str] = {"location": location, "offset": "0", "length": str(one.size)}
    told = [message(EXTERNAL, message(1, key.encode()) + message(2, text.encode())) for key, text in entries.items()]
    return b"".join([*around_values(data, one), *told, number(LOCATION << 3 | VARINT), b"\x01"])
