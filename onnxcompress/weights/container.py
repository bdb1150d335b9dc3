"""The packed file: segments (a tensor, or many small ones together) as coded blocks, and the files that they are pieces of.

    head 16 | blocks, back to back | table (zstd) | trailer 32          all numbers little-endian; docs/container.md has every byte

A file is a list of runs, each the next bytes of one segment, so that nothing overlaps and nothing is left out. The table stands
at the end, so that a file is written in one pass; what it claims is checked against the bytes that are there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from onnxcompress.errors import ModelError
from onnxcompress.weights import codecs, streams
from onnxcompress.weights.codecs import Fitted
from onnxcompress.weights.table import COUNTS, Member, Segment, Table

MAGIC, END = b"\x89ONNXZ\r\n", b"\x1aZXNNO\r\n"
VERSION = 3
READ = (2, VERSION)
"""Version 2 has fewer forms."""
HEAD = struct.Struct("<8sHHI")
TRAILER = struct.Struct("<IIIQ4x8s")
LARGEST_TABLE = 1 << 26
SUFFIX = ".onnxz"


def is_packed(source: object) -> bool:
    """Whether a file (a path, or its name), or bytes, begin as a container does."""
    if isinstance(source, str | Path):
        try:
            with open(source, "rb") as file:
                return file.read(len(MAGIC)) == MAGIC
        except OSError:  # who reads it next says what is wrong
            return False
    return isinstance(source, bytes) and source[: len(MAGIC)] == MAGIC


class Writer:
    """Makes a container piece by piece: `begin`, `add` for each segment, `end`. The pieces go straight to a file."""

    def __init__(self, entropy: str = "ans") -> None:
        streams.check_entropy(entropy)
        self.entropy = entropy
        self.segments: list[Segment] = []
        self._at = 0

    def begin(self) -> bytes:
        """The head."""
        self._at = HEAD.size
        return HEAD.pack(MAGIC, VERSION, 0, 0)

    def add(self, fitted: Fitted, crc: int) -> Iterator[bytes]:
        """The stored bytes of one segment; it is `segments[-1]` when they are all taken. crc: of what it stands for."""
        spec, at, sides = fitted.spec, self._at, None
        if fitted.sides:
            coders, payloads = self._coded([part for side in fitted.sides for part in codecs.planes(side, spec.rotate)])
            sides = (coders, np.array([len(each) for each in payloads], np.uint32))
            yield from self._placed(payloads)
        rows: list[tuple[list[int], np.ndarray, list[int]]] = []
        for block in range(spec.blocks):
            entries, parts = fitted.streams(block)
            coders, payloads = self._coded(parts)
            rows.append((entries, coders, [len(each) for each in payloads]))
            yield from self._placed(payloads)
        shape = (spec.blocks, spec.streams)
        self.segments.append(
            Segment(
                *(spec, crc, at, sides),
                np.array([row[0] for row in rows] if spec.gaps else [], np.uint32),
                np.array([row[1] for row in rows], np.uint8).reshape(shape),
                np.array([row[2] for row in rows], np.uint32).reshape(shape),
            )
        )

    def _placed(self, payloads: Sequence[bytes]) -> Iterator[bytes]:
        whole = b"".join(payloads)
        self._at += len(whole)
        yield whole

    def _coded(self, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, list[bytes]]:
        found = [streams.coded(part, self.entropy) for part in parts]
        return np.array([coder for coder, _ in found], np.uint8), [payload for _, payload in found]

    def end(self, members: Sequence[Member]) -> bytes:
        """Table and trailer."""
        records = [COUNTS.pack(len(members), len(self.segments))]
        records += [member.record() for member in members] + [segment.record() for segment in self.segments]
        raw = b"".join(records)
        packed = streams.zipped(raw)
        return packed + TRAILER.pack(zlib.crc32(packed), len(packed), len(raw), self._at, END)


class Container:
    """An open container: `members` and `segments` from its table, and their bytes, block by block. Use it as a context.

    ModelError, in one line, for what is truncated, damaged, of another version, or claims what cannot be.
    """

    def __init__(self, source: Path | bytes, name: str | None = None) -> None:
        self.name = name or (str(source) if isinstance(source, Path) else "bytes")
        self._data = source if isinstance(source, bytes) else None
        self._file: BinaryIO | None = None
        try:
            if isinstance(source, Path):
                self._file = source.open("rb")
            self.size = len(source) if isinstance(source, bytes) else source.stat().st_size
            self.members, self.segments = self._table()
        except OSError as error:
            self.close()
            raise ModelError(f"{self.name}: cannot be read: {error.strerror}") from error
        except (ValueError, struct.error) as error:
            self.close()
            raise self._damaged(error) from error
        except ModelError:
            self.close()
            raise

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The file, if there is one."""
        if self._file is not None:
            self._file.close()

    def read(self, at: int, count: int) -> bytes:
        """Bytes of the container; ValueError where it ends before."""
        if at < 0 or count < 0 or at + count > self.size:
            raise ValueError("bytes beyond the end of the file")
        if self._data is not None:
            return self._data[at : at + count]
        assert self._file is not None
        self._file.seek(at)
        found = self._file.read(count)
        if len(found) != count:
            raise ValueError("bytes beyond the end of the file")
        return found

    def blocks(self, segment: Segment) -> Iterator[np.ndarray]:
        """What a segment stands for, as uint8 arrays of at most a block each; its checksum is checked behind the last."""
        try:
            spec = segment.spec
            sides = self._sides(segment)
            table = codecs.unfolded(spec, sides)
            crc, at, made = 0, segment.at + segment.side_bytes, 0
            for block in range(spec.blocks):
                parts = self._parts(segment, sides, block, at)
                at += int(segment.lengths[block].sum(dtype=np.int64))
                octets = codecs.join(spec, sides, table, parts, block).astype(codecs.typed(spec.width), copy=False)
                piece = np.ascontiguousarray(octets).view(np.uint8)
                made += len(piece)
                if made > spec.size:
                    raise ValueError("more bytes than it says")
                crc = zlib.crc32(piece.data, crc)
                yield piece
            if made != spec.size:
                raise ValueError("fewer bytes than it says")
            if crc != segment.crc:
                raise ValueError("a checksum does not fit")
        except OSError as error:
            raise ModelError(f"{self.name}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise self._damaged(error) from error

    def _sides(self, segment: Segment) -> list[np.ndarray]:
        """The arrays before the blocks."""
        spec = segment.spec
        if segment.sides is None:
            return []
        coders, lengths = segment.sides
        counts = [count for width, count in spec.sides for _ in range(width)]
        parts = iter(self._decoded(segment.at, coders, lengths, counts))
        sides = [codecs.merged([next(parts) for _ in range(width)], spec.rotate) for width, _ in spec.sides]
        if spec.kinds > 1 and sides[-1].max() >= spec.kinds:
            raise ValueError("a kind that there is not")
        return sides

    def _parts(self, segment: Segment, sides: list[np.ndarray], block: int, at: int) -> list[np.ndarray]:
        spec = segment.spec
        if spec.gaps:
            counts = segment.entries[block].tolist()
        elif spec.kinds > 1:
            kind = codecs.kinds_of(spec, sides[-1], block * spec.block, spec.length(block))
            counts = np.bincount(kind, minlength=spec.kinds).tolist()
        else:
            counts = [spec.length(block)]
        counts = [count for count in counts for _ in range(spec.streams // spec.kinds)]
        return self._decoded(at, segment.coders[block], segment.lengths[block], counts)

    def _decoded(self, at: int, coders: np.ndarray, lengths: np.ndarray, counts: list[int]) -> list[np.ndarray]:
        whole, parts, place = memoryview(self.read(at, int(lengths.sum(dtype=np.int64)))), [], 0
        for coder, length, count in zip(coders.tolist(), lengths.tolist(), counts, strict=True):
            parts.append(streams.decoded(coder, whole[place : place + length], count))
            place += length
        return parts

    def _table(self) -> tuple[list[Member], list[Segment]]:
        if self.size < HEAD.size or self.read(0, len(MAGIC)) != MAGIC:
            raise ModelError(f"{self.name}: not a packed model; make one with onnxcompress pack")
        _, version, flags, _ = HEAD.unpack(self.read(0, HEAD.size))
        if version not in READ or flags:
            raise ModelError(
                f"{self.name}: packed in version {version}, and this onnxcompress reads {VERSION}; update it"
            )
        crc, packed, raw, at, end = TRAILER.unpack(self.read(self.size - TRAILER.size, TRAILER.size))
        if end != END or at < HEAD.size or at + packed + TRAILER.size != self.size or raw > LARGEST_TABLE:
            raise ValueError("its end is missing")
        data = self.read(at, packed)
        if zlib.crc32(data) != crc:
            raise ValueError("a checksum does not fit")
        return Table(streams.unzipped(data, raw)).parsed(HEAD.size, at)

    def _damaged(self, error: Exception) -> ModelError:
        return ModelError(f"{self.name}: damaged or truncated ({error}); pack the model again, or copy the file again")


class Pieces:
    """The bytes of members, run by run. Segments that are read in parts are read on where the run before ended."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._open: dict[int, _Cursor] = {}

    def of(self, member: Member) -> Iterator[tuple[int, bool, Iterator[np.ndarray]]]:
        """(segment, whole, its bytes as uint8 arrays) of each run; take them all before the next run."""
        for segment, length in zip(member.segments.tolist(), member.lengths.tolist(), strict=True):
            own = self._container.segments[segment]
            whole = own.spec.size == length
            if whole:
                yield segment, True, self._container.blocks(own)
                continue
            if segment not in self._open:
                self._open[segment] = _Cursor(self._container.blocks(own), own.spec.size)
            yield segment, False, self._open[segment].take(length)
            if self._open[segment].done:
                del self._open[segment]


class _Cursor:
    """Reads a segment on and on."""

    def __init__(self, blocks: Iterator[np.ndarray], size: int) -> None:
        self._blocks, self._piece, self._unread = blocks, np.zeros(0, np.uint8), size

    @property
    def done(self) -> bool:
        """Has all been read?"""
        return not self._unread

    def take(self, length: int) -> Iterator[np.ndarray]:
        while length:
            if not len(self._piece):
                self._piece = next(self._blocks)
            piece, self._piece = self._piece[:length], self._piece[length:]
            length, self._unread = length - len(piece), self._unread - len(piece)
            yield piece
        if not self._unread:
            next(self._blocks, None)  # which looks at the checksum
