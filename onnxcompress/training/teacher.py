"""The teacher: the values that the student learns from, computed once for each sample, in memory or in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import disk_usage
from typing import Any, Protocol

import numpy as np

from onnxcompress.data import Data
from onnxcompress.errors import ModelError
from onnxcompress.evidence.expose import exposed
from onnxcompress.model import Model
from onnxcompress.runtime.session import Session, open_session
from onnxcompress.training.answers import SUFFIX, Filed, key_of, write

Rows = dict[str, np.ndarray]
Progress = Callable[[int, int, str], None]

SPARE = 0.5
"""Of the free space of the system's folder for temporary files, answers take no more."""


class Speaker(Protocol):
    """A session, or several that answer as one."""

    def run(self, feed: Mapping[str, Any], /) -> dict[str, Any]:
        """Values by name."""


@dataclass(eq=False)
class Teacher:
    """Made by `Teacher.of`.

    kept   index of a sample -> its rows of each value          told  where these are, in words
    """

    session: Speaker
    names: Sequence[str]
    kept: Mapping[int, Rows] = field(default_factory=dict)
    told: str = ""
    _folder: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, model: Model, names: Sequence[str], *, threads: int = 1) -> Teacher:
        """Of these values. ModelError for one that no run shows."""
        session, shown = inner(model, names, threads=threads)
        return cls(session, shown)

    def remember(
        self,
        data: Data,
        batch: int,
        limit: int,
        progress: Progress | None = None,
        *,
        folder: Path | None = None,
        identity: str = "",
    ) -> bool:
        """Compute all samples now, in their own order, so that no epoch and no resumed run sees other rounding.

        limit     bytes in memory; what takes more goes to a temporary file where there is room
        folder    where a file is kept for later runs with the same teacher and samples, and found by these
        identity  of the teacher, for that file
        False, and nothing is kept, where there is no room or the values do not fall apart into samples.
        """
        size = self._size(data, batch)
        if size is None:
            self.told = "the teacher answers in each epoch anew: its values do not fall apart into samples"
            return False
        if folder is not None:
            self._filed(data, batch, progress, folder, identity)
            if size <= limit:
                self.kept = {index: self.kept[index] for index in self.kept}
            return True
        if size <= limit:
            self.kept = dict(zip(data.indices.tolist(), self._answers(data, batch, progress), strict=True))
            self.told = f"the teacher's answers to {data.samples} samples are kept in memory ({_bytes(size)})"
            return True
        if size > SPARE * disk_usage(tempfile.gettempdir()).free:
            self.told = f"the teacher answers in each epoch anew: {_bytes(size)} of answers fit nowhere"
            return False
        self._folder = tempfile.TemporaryDirectory(prefix="onnxcompress-")
        self._write(Path(self._folder.name) / f"teacher{SUFFIX}", "", data, batch, progress)
        self.told = f"the teacher's answers to {data.samples} samples lie in a temporary file ({_bytes(size)})"
        return True

    def _filed(self, data: Data, batch: int, progress: Progress | None, folder: Path, identity: str) -> None:
        """From the folder, where an earlier run has left them; else into it."""
        key = key_of(identity, self.names, data, batch)
        path = folder / f"{key[:32]}{SUFFIX}"
        found = Filed.found(path, key, data.indices)
        if found is not None:
            self.kept = found
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(path, key, data, batch, progress)
        source = "were computed before" if found is not None else "are kept for later runs"
        self.told = (
            f"the teacher's answers to {data.samples} samples {source}, in {path} ({_bytes(path.stat().st_size)})"
        )

    def _write(self, path: Path, key: str, data: Data, batch: int, progress: Progress | None) -> None:
        write(path, key, self._answers(data, batch, progress))
        found = Filed.found(path, key, data.indices)
        assert found is not None
        self.kept = found

    def _answers(self, data: Data, batch: int, progress: Progress | None) -> Iterator[Rows]:
        """One sample's rows each, in the order of the samples."""
        done = 0
        for indices, feed in data.indexed(batch):
            rows = _apart(self.session.run(feed), len(indices))
            if rows is None:  # of a later batch, whose outputs are unlike those of the first: each sample by itself
                rows = [dict(self.session.run(feed)) for feed in replace(data, indices=indices).batches(1)]
            yield from rows
            done += len(indices)
            if progress is not None:
                progress(done, data.samples, "teacher")

    def _size(self, data: Data, batch: int) -> int | None:
        """Bytes of all answers, as the first batch tells; None where a sample alone has not the shape of its rows in a batch: then the
        first axis is not the batch's."""
        indices, feed = next(data.indexed(batch))
        rows, alone = _apart(self.session.run(feed), len(indices)), self.session.run(next(data.batches(1)))
        if rows is None or any(alone[name].shape != rows[0][name].shape for name in self.names):
            return None
        return int(sum(each.nbytes for row in rows for each in row.values()) / len(rows) * data.samples)

    def values(self, indices: np.ndarray, feed: Mapping[str, np.ndarray], *, fresh: bool = False) -> Rows:
        """By name, for these samples; fresh: of a feed that is not as the samples were."""
        if fresh or not all(index in self.kept for index in indices.tolist()):
            return self.session.run(feed)
        rows = [self.kept[index] for index in indices.tolist()]
        if len(rows) == 1:
            return rows[0]
        return {name: np.concatenate([row[name] for row in rows]) for name in self.names}


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def inner(model: Model, names: Sequence[str], *, threads: int = 1) -> tuple[Session, tuple[str, ...]]:
    """A session that answers with these values. ModelError for one that no run shows."""
    shown = exposed(model, list(dict.fromkeys(names)))
    for name, why in shown.left_out.items():
        raise ModelError(f"{model.source.name}: {name!r} cannot be learned from: {why}; name another value")
    return open_session(shown.model, threads=threads, name=model.source.name, lean=True), shown.outputs


def _apart(values: Mapping[str, np.ndarray], count: int) -> list[Rows] | None:
    """One sample's rows each; None where a first axis is no multiple of their number."""
    if count == 1:
        return [dict(values)]
    if any(not array.ndim or len(array) % count for array in values.values()):
        return None
    parts = {name: np.split(array, count) for name, array in values.items()}
    return [{name: part[number].copy() for name, part in parts.items()} for number in range(count)]
