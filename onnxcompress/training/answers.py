"""What a teacher said, in a file: each sample's rows one after the other, read back one sample at a time, so that memory is bounded.

    rows of sample 0 | rows of sample 1 | ... | index (JSON) | length of the index, 8 bytes

A file is found by what it is the answer to: the teachers, the values, how they are combined, the samples themselves and in which batches
they ran, and the version of onnxruntime. Whatever differs has another name, so that no answer is stale.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from onnxcompress.data import Data
from onnxcompress.errors import DataError
from onnxcompress.files import write_atomic

Rows = dict[str, np.ndarray]
TAIL = 8
SUFFIX = ".answers"


def key_of(identity: str, names: Sequence[str], data: Data, batch: int) -> str:
    """Hex digest of all that the answers depend on."""
    digest = hashlib.sha256(f"{identity} {list(names)} {batch} {onnxruntime.__version__}".encode())
    for _, feed in data.indexed(batch):
        for name, array in feed.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(
                repr(array.tolist()).encode() if array.dtype.kind == "O" else np.ascontiguousarray(array).tobytes()
            )
    return digest.hexdigest()


def write(path: Path, key: str, answers: Iterable[Rows]) -> None:
    """All answers in the order of their samples: the whole file or nothing."""
    write_atomic(path, _pieces(key, answers))


def _pieces(key: str, answers: Iterable[Rows]) -> Iterator[bytes]:
    index: list[list[list[Any]]] = []
    offset = 0
    for rows in answers:
        parts = []
        for name, array in rows.items():
            data = np.ascontiguousarray(array).tobytes()
            parts.append([name, array.dtype.str, list(array.shape), offset, len(data), zlib.crc32(data)])
            offset += len(data)
            yield data
        index.append(parts)
    tail = json.dumps({"key": key, "samples": index}).encode()
    yield tail
    yield len(tail).to_bytes(TAIL, "little")


class Filed(Mapping[int, Rows]):
    """Index of a sample -> its rows, as a file has them. Made by `Filed.found`."""

    def __init__(self, path: Path, places: dict[int, list[list[Any]]]) -> None:
        self.path, self.places = path, places

    @classmethod
    def found(cls, path: Path, key: str, indices: np.ndarray) -> Filed | None:
        """The answers in a file for these samples, in their order; None where the file is missing, cut short or of another key."""
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(size - TAIL, 0))
                length = int.from_bytes(file.read(TAIL), "little")
                if not 0 < length <= size - TAIL:
                    return None
                file.seek(size - TAIL - length)
                told = json.loads(file.read(length))
            samples = told["samples"]
            ends = [part[3] + part[4] for parts in samples for part in parts]
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            return None
        if told["key"] != key or len(samples) != len(indices) or max(ends, default=0) != size - TAIL - length:
            return None
        return cls(path, dict(zip(indices.tolist(), samples, strict=True)))

    def __getitem__(self, index: int) -> Rows:
        """Raises DataError where the bytes are not those that were written."""
        found: Rows = {}
        with open(self.path, "rb") as file:
            for name, dtype, shape, offset, length, check in self.places[index]:
                file.seek(offset)
                data = file.read(length)
                if len(data) != length or zlib.crc32(data) != check:
                    raise DataError(f"{self.path}: answers of a teacher are damaged; delete this file")
                found[name] = np.frombuffer(data, np.dtype(dtype)).reshape(shape)
        return found

    def __contains__(self, index: object) -> bool:
        return index in self.places

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size
