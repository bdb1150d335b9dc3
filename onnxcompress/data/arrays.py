"""Arrays from .npz and .npy files of unknown origin, and into the type that a port takes.

No pickles, no more memory than the machine has, and whatever is wrong with a file is one DataError line: headers are
read and checked against the size of the file before anything is allocated.
"""

from __future__ import annotations

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxcompress.errors import DataError
from onnxcompress.runtime.session import Port

# What zipfile, zlib and numpy.lib.format raise on damaged files (found by fuzzing, tests/data/test_arrays.py).
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError, KeyError, IndexError,
    NotImplementedError, OverflowError, MemoryError, RecursionError, RuntimeError, AttributeError, SyntaxError,
    tokenize.TokenError,
)  # fmt: skip
READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
NUMBERS = "biuf"
BLOCK = 1 << 20  # elements that are checked at once: small beside a batch, large beside numpy's overhead
LONGEST_REASON = 200


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, from the headers alone; the name in an .npy is empty. DataError for a file that is damaged."""
    with _damage(path):
        size = path.stat().st_size
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                return {"": _checked(path, "", _header(file), size)}
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as part:
                    shapes[name] = _checked(path, name, _header(part), member.file_size)
            total = sum(member.file_size for member in archive.infolist())
        if total > memory_of_machine():
            raise DataError(f"{path}: unpacks to {total} bytes, more than this machine's memory; give fewer samples")
        return shapes


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name (an .npy stays on the disk, memory-mapped). DataError for a file that is damaged."""
    array_shapes(path)
    with _damage(path):
        if path.suffix == ".npy":
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        arrays = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as part:
                    name = member.filename.removesuffix(".npy")
                    arrays[name] = np.lib.format.read_array(part, allow_pickle=False)
        return arrays


def fitted(array: np.ndarray, port: Port, where: str) -> tuple[np.ndarray, str]:
    """The array in the port's type, and a sentence where that needed a cast.

    A cast is made where it changes no value (floats may lose precision, never become infinite). DataError otherwise.
    """
    want, have = port.dtype, array.dtype
    shown = f"{where}: input {port.name!r}"
    if want is None:
        raise DataError(f"{shown} is a {port.type}, which cannot be fed from arrays")
    if want.kind == "O":
        if have.kind not in "OUS":
            raise DataError(f"{shown} takes strings, {have} is given")
        return array.astype(object), ""
    if have.kind not in NUMBERS:
        raise DataError(f"{shown} takes {want}, {have} is given; save plain numbers")
    if have == want:
        return array, ""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(want)
        if have.kind == want.kind == "f":
            kept = np.isfinite(cast) | ~np.isfinite(array)
        else:
            kept = (cast.astype(have) == array) & ((cast < 0) == (array < 0))
    if not kept.all():
        value = array[~kept].flat[0]
        raise DataError(f"{shown} takes {want}, {have} is given and {value} does not fit; convert it before")
    return cast, "" if have.newbyteorder("=") == want else f"input {port.name!r} is given as {have} and fed as {want}"


def check_finite(array: np.ndarray, port: Port, where: str, first: int = 0) -> None:
    """DataError that names input and sample (counted from `first`) where a value is NaN or infinite; [samples, ...]."""
    if array.dtype.kind != "f" or array.size == 0:
        return
    step = max(1, BLOCK // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), step):
        block = array[start : start + step]
        if np.isfinite(block).all():
            continue
        row = next(i for i, each in enumerate(block) if not np.isfinite(each).all())
        value = block[row][~np.isfinite(block[row])].flat[0]
        raise DataError(
            f"{where}: input {port.name!r}, sample {first + start + row} holds {value}; remove that sample or repair it"
        )


def memory_of_machine() -> int:
    """Bytes of physical memory; without limit where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and bytes of the header."""
    version = np.lib.format.read_magic(file)
    if version not in READ_HEADER:
        raise ValueError(f"version {version} of the format is for records, not for numbers")
    shape, _, dtype = READ_HEADER[version](file)
    return shape, dtype, file.tell()


def _checked(path: Path, name: str, header: tuple[tuple[int, ...], np.dtype[Any], int], size: int) -> tuple[int, ...]:
    shape, dtype, offset = header
    shown = f"{path}: array {name!r}" if name else str(path)
    if dtype.hasobject:
        raise DataError(f"{shown} holds Python objects, which are not loaded; save plain numbers")
    if any(dim < 0 for dim in shape) or math.prod(shape) * dtype.itemsize > size - offset:
        raise DataError(f"{shown} is cut short or damaged: its header promises {list(shape)} {dtype}; save it again")
    return shape


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise DataError(f"{path}: not a readable {path.suffix or 'array'} file ({reason}); save it again") from error
