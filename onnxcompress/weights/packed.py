"""An ONNX file (with the files of its external data) into a container and back, byte for byte.

The values of each tensor go to a segment of their own, those of small tensors of one type to one together, and what is left
of the files (the graph, the names) to another, so that what comes back is the same file, not only the same model.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.errors import ModelError
from onnxcompress.files import inside
from onnxcompress.weights import codecs, wire
from onnxcompress.weights.choice import Made, fit
from onnxcompress.weights.codecs import Fitted
from onnxcompress.weights.container import Container, Member, Pieces, Writer
from onnxcompress.weights.streams import zipped
from onnxcompress.weights.told import Told, told
from onnxcompress.weights.wire import Stored

WIDTHS = {
    **{1: 4, 6: 4, 12: 4, 14: 4},  # FLOAT, INT32, UINT32, COMPLEX64
    **{4: 2, 5: 2, 10: 2, 16: 2},  # UINT16, INT16, FLOAT16, BFLOAT16
    **{7: 8, 11: 8, 13: 8, 15: 8},  # INT64, DOUBLE, UINT64, COMPLEX128
}
"""TensorProto.DataType -> bytes of a value; all others are taken by the byte."""

FLOATS = {1, 10, 11, 14, 15, 16}

NARROWER = {21, 22, 25, 26}
"""UINT4, INT4, UINT2, INT2: several a byte, in the shape of the tensor."""

SMALL = 2048
"""Bytes below which a tensor has no segment of its own."""

SMALLEST = 32
"""Bytes below which it stays where it is."""

GRAPH = "graph and names"


@dataclass(frozen=True, eq=False)
class Packed:
    """A segment for the report: whose values, how they were stored.

    name, dtype, shape   of the tensor; of many small ones their number in `tensors`, of the graph dtype 0
    bytes, stored        before and after, the share of the table included
    entropy              of the symbols, bits a value; None where it has none
    gzip, zstd           bytes of the same in gzip -9 and zstd -19, where they were asked for
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    tensors: int
    width: int
    bytes: int
    stored: int
    form: str
    entropy: float | None = None
    gzip: int | None = None
    zstd: int | None = None


@dataclass(eq=False)
class _Pool:
    """Small tensors of one width, and the number of their segment."""

    width: int
    floats: bool
    segment: int
    parts: list[np.ndarray] = field(default_factory=list)


Run = tuple[int | _Pool, int]
"""Number of a segment, or a pool that gets one later; and how many bytes."""


@dataclass(frozen=True, eq=False)
class _File:
    """One file to pack: its bytes, and the tensors in it by place, none inside another."""

    name: str
    data: wire.Buffer
    holes: list[Stored]


class Packer:
    """Makes the container of one model: `pieces` are its bytes in order; `report` says what became of each tensor, afterwards.

    peers     also code every tensor with gzip -9 and zstd -19, for the report: a few MB a second
    progress  called with bytes done and in all
    repeated  bytes of tensors that are the same as one before, which the container holds once
    """

    def __init__(
        self, entropy: str = "ans", *, peers: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._writer = Writer(entropy)
        self._peers = peers
        self._progress = progress
        self._done = self._total = 0
        self._twins: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
        self._pools: dict[tuple[int, bool], _Pool] = {}
        self._told = Told()
        self._planes: dict[int, int] = {}
        self.report: list[Packed] = []
        self.repeated = 0

    def pieces(self, model: Path | bytes) -> Iterator[bytes]:
        """The container of a file, or of its bytes. ModelError where it is no ONNX model, or its external data is missing."""
        data = mapped(model) if isinstance(model, Path) else model
        name, folder = (str(model), model.parent) if isinstance(model, Path) else ("bytes", None)
        found = wire.stored(data, name)
        files = _layout(data, name, folder, found)
        self._told = told(data, found)
        yield self._writer.begin()
        yield from self._files(files)

    def _files(self, files: list[_File]) -> Iterator[bytes]:
        self._total = sum(len(file.data) for file in files)
        runs: list[list[Run]] = []
        graph = _Pool(1, False, -1)
        for file in files:
            runs.append([])
            place = 0
            for hole in [*file.holes, Stored(start=len(file.data))]:
                if hole.start > place:
                    graph.parts.append(np.frombuffer(file.data, np.uint8, hole.start - place, place))
                    runs[-1].append((graph, hole.start - place))
                if hole.size:
                    runs[-1].append((yield from self._tensor(file.data, hole)))
                place = hole.start + hole.size
        for pool in (graph, *self._pools.values()):
            yield from self._pool(pool, GRAPH if pool is graph else "small tensors")
        members = [_member(file, run) for file, run in zip(files, runs, strict=True)]
        before = sum(segment.stored for segment in self._writer.segments)
        end = self._writer.end(members)
        self._share(len(end), before)
        yield end

    def _tensor(self, data: wire.Buffer, hole: Stored) -> Generator[bytes, None, Run]:
        """The pieces of a tensor's segment; returns the run that stands for it."""
        inside = hole.whole != Stored.whole  # in the model's own file
        if inside and hole.start in self._told.planes and hole.start not in self._planes:
            yield from self._of_planes(data, self._told.planes[hole.start])
        if inside and hole.start in self._planes:
            self._tick(hole.size)
            return self._planes[hole.start], hole.size
        width, floats = WIDTHS.get(hole.dtype, 1), hole.dtype in FLOATS
        width = width if hole.size % width == 0 else 1
        octets = np.frombuffer(data, np.uint8, hole.size, hole.start)
        self._tick(hole.size)
        if hole.size < SMALL:
            pool = self._pools.setdefault((width, floats), _Pool(width, floats, -1))
            pool.parts.append(octets)
            return pool, hole.size
        crc = zlib.crc32(octets.data)
        number, twin = self._twins.get((hole.size, crc), (-1, octets))
        if number >= 0 and np.array_equal(twin, octets):
            self.repeated += hole.size
            return number, hole.size
        values = octets.view(codecs.typed(width))
        dims = hole.dims if int(np.prod(hole.dims, dtype=object)) * width == hole.size else ()
        shape = hole.dims if hole.dtype in NARROWER else self._told.shapes.get(hole.name, ())
        made = Made(self._told.words.get(hole.name), self._told.counts.get(hole.name), (), shape)
        fitted = fit(values, dims, floats, self._writer.entropy, made if width == 1 else None)
        yield from self._add(fitted, octets, crc, Packed(hole.name, hole.dtype, hole.dims, 1, width, hole.size, 0, ""))
        self._twins[hole.size, crc] = len(self._writer.segments) - 1, octets
        _forget(data, hole)
        return len(self._writer.segments) - 1, hole.size

    def _of_planes(self, data: wire.Buffer, planes: tuple[tuple[Stored, int], ...]) -> Iterator[bytes]:
        """The segment of all planes of a tensor's symbols, where they are in order and large enough, and it is smaller so."""
        holes = [hole for hole, _ in planes]
        starts = [hole.start for hole in holes]
        sizes = [hole.size for hole in holes]
        if starts != sorted(set(starts)) or min(sizes) < SMALLEST or sum(sizes) < SMALL or {*starts} & {*self._planes}:
            return
        octets = np.concatenate([np.frombuffer(data, np.uint8, hole.size, hole.start) for hole in holes])
        each = tuple((hole.size, bits) for hole, bits in planes)
        made = Made(planes=each, shape=self._told.shapes.get(holes[0].name, ()))
        fitted = fit(octets, (), False, self._writer.entropy, made)
        if fitted.spec.form != codecs.PLANES:
            return
        line = Packed(holes[0].name, holes[0].dtype, (len(octets),), len(holes), 1, len(octets), 0, "")
        yield from self._add(fitted, octets, zlib.crc32(octets.data), line)
        self._planes |= dict.fromkeys(starts, len(self._writer.segments) - 1)

    def _pool(self, pool: _Pool, name: str) -> Iterator[bytes]:
        octets = np.concatenate(pool.parts) if pool.parts else np.zeros(0, np.uint8)
        values = octets.view(codecs.typed(pool.width))
        spec = codecs.Spec(codecs.PLAIN, pool.width, int(pool.floats and pool.width > 1), len(octets))
        line = Packed(name, 0, (), len(pool.parts), pool.width, len(octets), 0, "")
        yield from self._add(Fitted(spec, values), octets, zlib.crc32(octets.data), line)
        pool.segment = len(self._writer.segments) - 1
        if name == GRAPH:
            self._tick(len(octets))

    def _add(self, fitted: Fitted, octets: np.ndarray, crc: int, line: Packed) -> Iterator[bytes]:
        yield from self._writer.add(fitted, crc)
        spec = fitted.spec
        known: dict[str, Any] = {
            "stored": self._writer.segments[-1].stored,
            "form": codecs.FORMS[spec.form].name
            + (f", gaps of {spec.gaps} bits" if spec.gaps else "")
            + (f", {spec.kinds} kinds of slices" if spec.kinds > 1 else ""),
            "entropy": codecs.entropy_bits(fitted) if line.dtype else None,
        }
        if self._peers:
            known |= {"gzip": len(zlib.compress(octets.data, 9)), "zstd": len(zipped(octets.data, 19))}
        self.report.append(replace(line, **known))

    def _share(self, table: int, total: int) -> None:
        """The bytes of the table beside those of each segment, by its records."""
        records = [len(segment.record()) for segment in self._writer.segments]
        whole = max(sum(records), 1)
        self.report = [
            replace(one, stored=one.stored + round(table * record / whole))
            for one, record in zip(self.report, records, strict=True)
        ]

    def _tick(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)


def _member(file: _File, runs: list[Run]) -> Member:
    numbers = [run.segment if isinstance(run, _Pool) else run for run, _ in runs]
    return Member(
        file.name, len(file.data), np.array(numbers, np.uint32), np.array([size for _, size in runs], np.uint64)
    )


def mapped(path: Path) -> wire.Buffer:
    """A file as bytes that the system reads when they are touched. ModelError where that cannot be done."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path}: is a folder; name the .onnx file in it") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


def _forget(data: wire.Buffer, hole: Stored) -> None:
    """What was read of a mapped file need not stay in memory."""
    if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        first = -(-hole.start // mmap.PAGESIZE) * mmap.PAGESIZE
        if (length := hole.start + hole.size - first) > 0:
            data.madvise(mmap.MADV_DONTNEED, first, length)


def _layout(data: wire.Buffer, name: str, folder: Path | None, found: list[Stored]) -> list[_File]:
    """The model and the files of its external data, with the tensors that were found in each."""
    if not any(
        field_ == wire.GRAPH_FIELD and kind == wire.LENGTH for field_, kind, *_ in wire.fields(data, 0, len(data))
    ):
        raise ModelError(f"{name}: holds no graph; is this an ONNX model?")
    files = [_File("", data, [one for one in found if one.size >= SMALLEST and not one.outside])]
    outside: dict[Path, _File] = {}
    for one in found:
        if one.outside:
            file = _outside(one, name, folder, outside)
            hole = _place(one, file, name)
            if hole.size >= SMALLEST:
                file.holes.append(hole)
    for file in outside.values():
        apart: list[Stored] = []
        for hole in sorted(file.holes, key=lambda each: (each.start, -each.size)):
            if not apart or hole.start >= apart[-1].start + apart[-1].size:
                apart.append(hole)
        file.holes[:] = apart
    return [*files, *outside.values()]


def _outside(one: Stored, name: str, folder: Path | None, known: dict[Path, _File]) -> _File:
    """The external file of a tensor, opened at its first use."""
    if folder is None:
        raise ModelError(
            f"{name}: initializer {one.name!r} lies in an external file; give the model's path instead of its bytes"
        )
    location = one.external.get("location", "")
    path = inside(folder, location)
    if path not in known:
        if not path.is_file():
            raise ModelError(
                f"{name}: initializer {one.name!r} reads {location!r}, which is missing; copy that file beside the model"
            )
        known[path] = _File(location, mapped(path), [])
    return known[path]


def _place(one: Stored, file: _File, name: str) -> Stored:
    """A tensor's place in its external file."""
    try:
        start = int(one.external.get("offset") or 0)
        size = int(one.external.get("length") or 0) or len(file.data) - start
    except ValueError as error:
        raise ModelError(f"{name}: initializer {one.name!r} has an unreadable place in {file.name!r}") from error
    if start < 0 or size < 0 or start + size > len(file.data):
        raise ModelError(
            f"{name}: initializer {one.name!r} needs bytes {start} to {start + size} of {file.name!r}, which is shorter"
        )
    return Stored(one.name, one.dtype, one.dims, start, size)


def contents(container: Container) -> Iterator[tuple[str, Iterator[memoryview]]]:
    """(name, its bytes in pieces) of each file, "" for the model; take all of one before the next."""
    pieces = Pieces(container)

    def of(member: Member) -> Iterator[memoryview]:
        for _, _, run in pieces.of(member):
            for piece in run:
                yield piece.data

    for member in container.members:
        yield member.name, of(member)


LARGEST_MESSAGE = 1 << 31
"""What protobuf reads at most, and so the most that a container can ask a reader to hold."""


def whole(container: Container) -> dict[str, bytearray]:
    """All files in memory; ModelError over 2 GiB."""
    total = sum(member.size for member in container.members)
    if total >= LARGEST_MESSAGE:
        raise ModelError(f"{container.name}: holds {total / 1e9:.1f} GB; unpack it first, and use the file")
    found = {}
    for name, pieces in contents(container):
        found[name] = bytearray()
        for piece in pieces:
            found[name] += piece
    return found
