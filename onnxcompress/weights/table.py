"""The table at the end of a packed file: which segments there are, how each is coded, and of which the files consist."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.weights.codecs import Spec

COUNTS = struct.Struct("<II")
FILE = struct.Struct("<HQI")
SEGMENT = struct.Struct("<BBBBBHQQQIQIQI")

MOST_OPEN = 16
"""Segments that are read in parts at a time: each holds a block in memory, or what was made of all its symbols."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment as the table has it: place of its first byte in the container, and a column for each fact about its blocks.

    sides    (coders, lengths) of the streams of `Spec.sides`; None where it has none
    entries  [blocks, kinds], of arrays behind gaps       coders, lengths  [blocks, streams]
    """

    spec: Spec
    crc: int
    at: int
    sides: tuple[np.ndarray, np.ndarray] | None
    entries: np.ndarray
    coders: np.ndarray
    lengths: np.ndarray

    @property
    def stored(self) -> int:
        """Bytes in the container, without the table."""
        return self.side_bytes + int(self.lengths.sum())

    @property
    def side_bytes(self) -> int:
        """Of which its sides."""
        return int(self.sides[1].sum()) if self.sides is not None else 0

    def record(self) -> bytes:
        """For the table."""
        spec = self.spec
        facts = (spec.form, spec.width, spec.rotate, spec.gaps, spec.kinds, spec.entries, spec.size, spec.common)
        head = SEGMENT.pack(*facts, spec.stride, spec.count, spec.run, spec.runs, spec.symbols, self.crc)
        return head + b"".join(map(_bytes, (*(self.sides or ()), self.entries, self.coders, self.lengths)))


@dataclass(frozen=True, eq=False)
class Member:
    """A file in the container: name ("" for the model itself), size, and runs: which segment, how many bytes."""

    name: str
    size: int
    segments: np.ndarray
    lengths: np.ndarray

    def record(self) -> bytes:
        """For the table."""
        name = self.name.encode()
        return FILE.pack(len(name), self.size, len(self.segments)) + name + _bytes(self.segments) + _bytes(self.lengths)


def _bytes(column: np.ndarray) -> bytes:
    return column.astype(column.dtype.newbyteorder("<")).tobytes()


class Table:
    """Reads the table, which may claim anything: ValueError or struct.error for what does not fit."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def parsed(self, start: int, end: int) -> tuple[list[Member], list[Segment]]:
        """Members and segments; the blocks fill the container from `start` to `end`."""
        files, count = self._numbers(COUNTS)
        members = [self._member() for _ in range(self._possible(files, FILE))]
        segments, at = [], start
        for _ in range(self._possible(count, SEGMENT)):
            segments.append(self._segment(at))
            at += segments[-1].stored
            if at > end:
                raise ValueError("blocks beyond the end of the file")
        if at != end or self._place != len(self._data) or not members or members[0].name:
            raise ValueError("a table that does not fit its file")
        _check_runs(members, segments)
        return members, segments

    def _possible(self, count: int, each: struct.Struct) -> int:
        if count * each.size > len(self._data):
            raise ValueError("more entries than the table has bytes")
        return count

    def _numbers(self, form: struct.Struct) -> tuple[int, ...]:
        found = form.unpack_from(self._data, self._place)
        self._place += form.size
        return found

    def _column(self, kind: str, *shape: int) -> np.ndarray:
        count = int(np.prod(shape, dtype=object))
        if count * np.dtype(kind).itemsize > len(self._data) - self._place:
            raise ValueError("more entries than the table has bytes")
        found = np.frombuffer(self._data, kind, count, self._place).reshape(shape)
        self._place += found.nbytes
        return found

    def _member(self) -> Member:
        length, size, runs = self._numbers(FILE)
        name = self._column("u1", length).tobytes().decode("utf-8")
        return Member(name, size, self._column("<u4", runs), self._column("<u8", runs))

    def _segment(self, at: int) -> Segment:
        form, width, rotate, gaps, kinds, entries, size, common, stride, count, run, runs, symbols, crc = self._numbers(
            SEGMENT
        )
        spec = Spec(form, width, rotate, size, gaps, common, stride, count, entries, kinds, run, runs, symbols)
        spec.check()
        sides = None
        if number := sum(size for size, _ in spec.sides):
            sides = (self._column("u1", number), self._column("<u4", number))
        steps = self._column("<u4", spec.blocks if gaps else 0, spec.kinds)
        if gaps and any(int(each.sum()) > spec.length(block) for block, each in enumerate(steps)):
            raise ValueError("more entries than a block has")
        coders = self._column("u1", spec.blocks, spec.streams)
        return Segment(spec, crc, at, sides, steps, coders, self._column("<u4", spec.blocks, spec.streams))


def _check_runs(members: Sequence[Member], segments: Sequence[Segment]) -> None:
    """ValueError unless the runs of each file add up to its size, and those that read a segment in parts to all of it."""
    sizes = np.array([each.spec.size for each in segments], np.uint64)
    taken: dict[int, int] = {}
    for member in members:
        if len(member.segments) and int(member.segments.max()) >= len(segments):
            raise ValueError("a run of no segment")
        if sum(member.lengths.tolist()) != member.size:
            raise ValueError("runs that do not add up to their file")
        part = np.flatnonzero(sizes[member.segments] != member.lengths) if len(member.segments) else ()
        for run in part:
            segment, length = int(member.segments[run]), int(member.lengths[run])
            taken[segment] = taken.get(segment, 0) + length
            if taken[segment] == int(sizes[segment]):
                del taken[segment]
            if len(taken) > MOST_OPEN:
                raise ValueError("too many segments that are read in parts")
    if taken:
        raise ValueError("runs that do not fit their segments")
