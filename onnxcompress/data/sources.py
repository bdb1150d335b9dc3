"""Where data comes from: a row a kind of source, and `open_data` that finds the row."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.data.arrays import array_shapes, read_arrays
from onnxcompress.data.functions import called, is_function_name, named_function
from onnxcompress.data.images import SUFFIXES, ImageSettings, image_files, image_pieces
from onnxcompress.data.store import Data, Piece, Store
from onnxcompress.data.synthetic import SIZES, probe, synthetic_pieces
from onnxcompress.errors import DataError, SettingError, nearest
from onnxcompress.runtime.session import Port, Session

ARRAYS = (".npz", ".npy")
SYNTHETIC_SAMPLES = 32
LIMIT_STREAM = 2  # keeps the choice under a limit apart from other users of the same seed
UNNAMED = re.compile(r"arr_(\d+)")  # what numpy.savez calls arrays that were given without a name


@dataclass(frozen=True)
class Request:
    """What was asked of a source. notes is filled while it is opened."""

    source: Any
    ports: Sequence[Port]
    seed: int
    samples: int | None
    limit: int | None
    images: ImageSettings
    session: Session | None
    notes: list[str] = field(default_factory=list)


def open_data(
    source: Any,
    ports: Sequence[Port],
    *,
    seed: int = 0,
    samples: int | None = None,
    images: ImageSettings | None = None,
    limit: int | None = None,
    session: Session | None = None,
) -> Data:
    """Data for a model with these inputs, checked: names, types, shapes, NaN and infinity.

    source    .npz, .npy, a folder of these or of images, ``module:function``, a dict of arrays, an iterable of dicts,
              or None for synthetic inputs (a Data is returned as it is); how axes become samples: arrange.py
    seed      of the split, of the choice under `limit`, of synthetic values
    samples   how many synthetic ones
    limit     at most so many samples, chosen by the seed (of an iterable: the first ones)
    session   the loaded model: synthetic sizes are tried on it (see `probe`)

    DataError, one line with file, input and sample, for whatever does not fit.
    """
    if isinstance(source, Data):
        return source
    for name, value in (("samples", samples), ("limit", limit)):
        if value is not None and value < 1:
            raise SettingError(f"{name} is {value}; give 1 or more")
    if not ports:
        raise DataError("the model has no inputs; there is nothing that data could be fed to")
    request = Request(source, list(ports), seed, samples, limit, images or ImageSettings(), session)
    row = next(row for row in SOURCES if row.fits(source))
    pieces, what = row.open(request)
    store = Store(pieces, request.ports)
    total = int(store.starts[-1])
    if not total:
        raise DataError(f"{what}: holds no samples")
    indices = np.arange(total)
    if limit is not None and limit < total:
        indices = np.sort(np.random.default_rng([seed, LIMIT_STREAM]).permutation(total)[:limit])
        request.notes.append(f"{limit} of {total} samples are used")
    for at in sorted({store.piece_of(int(index)) for index in indices}):
        if not pieces[at].trusted:
            store.prepared(at)
    dropped = sum(layout.dropped for layout in store.layouts)
    if dropped:
        request.notes.append(f"{dropped} rows at the end are not used: the model takes a fixed number at a time")
    notes = (*request.notes, *store.casts)
    return Data(store, what, indices, seed, notes, synthetic=source is None)


def _synthetic(request: Request) -> tuple[list[Piece], str]:
    sizes = SIZES[0] if request.session is None else probe(request.ports, request.session, request.seed)
    samples = request.samples or SYNTHETIC_SAMPLES
    request.notes.append("inputs are synthetic: figures about the outputs say little about your own data; give --data")
    return synthetic_pieces(request.ports, samples, request.seed, sizes), "synthetic inputs"


def _mapping(request: Request) -> tuple[list[Piece], str]:
    return [_given(request.source, "data", request)], "arrays"


def _iterable(request: Request) -> tuple[list[Piece], str]:
    return _each(request.source, "data", request), "arrays"


def _function(request: Request) -> tuple[list[Piece], str]:
    spelled = request.source
    made = called(spelled, named_function(spelled), request.ports)
    if isinstance(made, Mapping | np.ndarray):
        return [_given(made, spelled, request)], spelled
    if isinstance(made, str | bytes) or not isinstance(made, Iterable):
        raise DataError(f"{spelled}: returned {type(made).__name__}; return a dict of arrays or an iterable of dicts")
    return _each(made, spelled, request), spelled


def _path(request: Request) -> tuple[list[Piece], str]:
    path = Path(request.source)
    if path.is_dir():
        return _folder(path, request)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; give an .npz, a folder, or module:function")
    if path.suffix not in ARRAYS:
        raise DataError(f"{path}: not an .npz or .npy; give one, a folder of them or of images, or module:function")
    return [_file(path, request)], path.name


def _folder(folder: Path, request: Request) -> tuple[list[Piece], str]:
    arrays = sorted(path for path in folder.iterdir() if path.suffix in ARRAYS and not path.name.startswith("."))
    if arrays:
        return [_file(path, request) for path in arrays], f"{len(arrays)} files in {folder.name}"
    files = image_files(folder)
    if not files:
        kinds = " ".join((*ARRAYS, *SUFFIXES))
        raise DataError(f"{folder}: holds no data; put files of these kinds into it: {kinds}")
    return image_pieces(files, request.ports, request.images), f"{len(files)} images in {folder.name}"


def _file(path: Path, request: Request) -> Piece:
    shapes = array_shapes(path)
    names = _names(list(shapes), request, str(path))

    def load() -> dict[str, np.ndarray]:
        arrays = read_arrays(path)
        return {port: arrays[given] for given, port in names.items()}

    return Piece(str(path), {port: shapes[given] for given, port in names.items()}, load)


def _given(item: Any, where: str, request: Request) -> Piece:
    """A piece from arrays in memory: a dict by input name, or one array for a model of one input."""
    if not isinstance(item, Mapping):
        item = {"": item}
    arrays = {str(name): _array(value, f"{where}: {name!r}") for name, value in item.items()}
    names = _names(list(arrays), request, where)
    held = {port: arrays[given] for given, port in names.items()}
    return Piece(where, {port: array.shape for port, array in held.items()}, lambda: held)


def _array(value: Any, where: str) -> np.ndarray:
    try:
        return np.asanyarray(value)
    except (ValueError, TypeError) as error:  # ragged lists
        raise DataError(f"{where} is not an array ({error})") from error


def _each(items: Iterable[Any], where: str, request: Request) -> list[Piece]:
    """A piece for each item, until the limit is reached: an iterable may have no end."""
    pieces: list[Piece] = []
    samples, iterator, end = 0, iter(items), object()
    for number in itertools.count():
        item = called(where, lambda: next(iterator, end))
        if item is end:
            break
        piece = _given(item, f"{where}, item {number}", request)
        samples += int(Store([piece], request.ports).starts[-1])
        pieces.append(piece)
        if request.limit is not None and samples >= request.limit:
            break
    return pieces


def _names(given: Sequence[str], request: Request, where: str) -> dict[str, str]:
    """Which array belongs to which input: by name; by place where numpy numbered them or there is but one."""
    known = [port.name for port in request.ports]
    if list(given) == [""]:
        if len(known) > 1:
            raise DataError(f"{where}: one array for {len(known)} inputs ({', '.join(known)}); give an .npz with all")
        return {"": known[0]}
    numbers = [UNNAMED.fullmatch(name) for name in given]
    if all(numbers) and len(given) == len(known) and not set(given) & set(known):
        placed = {name: known[int(match[1])] for name, match in zip(given, numbers, strict=True) if match}
        note = "arrays without names are taken in the order of the inputs"
        if note not in request.notes:
            request.notes.append(note)
        return placed
    for name in given:
        if name not in known:
            raise DataError(f"{where}: {name!r} is not an input of the model; {nearest(name, known)}")
    for name in known:
        if name not in given:
            raise DataError(f"{where}: nothing is given for the input {name!r}; add an array of that name")
    return {name: name for name in given}


@dataclass(frozen=True)
class Source:
    """One kind of source: which values it takes, and how it is opened (pieces, and what it is in a few words)."""

    fits: Callable[[Any], bool]
    open: Callable[[Request], tuple[list[Piece], str]]


def _refuse(request: Request) -> tuple[list[Piece], str]:
    kind = type(request.source).__name__
    raise DataError(f"data is a {kind}; give a path, module:function, a dict of arrays or None")


SOURCES = (
    Source(lambda source: source is None, _synthetic),
    Source(lambda source: isinstance(source, Mapping | np.ndarray), _mapping),
    Source(is_function_name, _function),
    Source(lambda source: isinstance(source, str | os.PathLike), _path),
    Source(lambda source: isinstance(source, Iterable) and not isinstance(source, bytes), _iterable),
    Source(lambda source: True, _refuse),
)
