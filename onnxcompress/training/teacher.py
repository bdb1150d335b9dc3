"""The teacher: the values that the student learns from, computed once for each sample where they fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcompress.data import Data
from onnxcompress.errors import ModelError
from onnxcompress.evidence.expose import exposed
from onnxcompress.model import Model
from onnxcompress.runtime.session import Session, open_session

Rows = dict[str, np.ndarray]


@dataclass(eq=False)
class Teacher:
    """Made by `Teacher.of`. kept: index of a sample -> its rows of each value."""

    session: Session
    names: Sequence[str]
    kept: dict[int, Rows] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, names: Sequence[str], *, threads: int = 1) -> Teacher:
        """Of these values. ModelError for one that no run shows."""
        shown = exposed(model, list(dict.fromkeys(names)))
        for name, why in shown.left_out.items():
            raise ModelError(f"{model.source.name}: {name!r} cannot be learned from: {why}; name another value")
        return cls(open_session(shown.model, threads=threads, name=model.source.name), shown.outputs)

    def remember(
        self, data: Data, batch: int, limit: int, progress: Callable[[int, int, str], None] | None = None
    ) -> bool:
        """Compute all samples now, in their own order, so that no epoch and no resumed run sees other rounding.

        limit  bytes; False, and nothing is kept, where the values take more or do not fall apart into samples
        """
        done = total = 0
        for indices, feed in data.indexed(batch):
            rows = _apart(self.session.run(feed), len(indices))
            if rows is None or not (done or self._falls_apart(data, indices, rows)):
                self.kept.clear()
                return False
            self.kept.update(zip(indices.tolist(), rows, strict=True))
            done, total = done + len(indices), total + sum(each.nbytes for row in rows for each in row.values())
            if total / done * data.samples > limit:
                self.kept.clear()
                return False
            if progress is not None:
                progress(done, data.samples, "teacher")
        return True

    def _falls_apart(self, data: Data, indices: np.ndarray, rows: Sequence[Rows]) -> bool:
        """Does one sample alone have the shape of its rows in a batch? Otherwise the first axis is not the batch's."""
        first = next(data.batches(1))
        alone = self.session.run(first)
        return all(alone[name].shape == rows[0][name].shape for name in self.names)

    def values(self, indices: np.ndarray, feed: Mapping[str, np.ndarray], *, fresh: bool = False) -> Rows:
        """By name, for these samples; fresh: of a feed that is not as the samples were."""
        rows = [self.kept[index] for index in indices.tolist() if index in self.kept]
        if fresh or len(rows) < len(indices):
            return self.session.run(feed)
        if len(rows) == 1:
            return rows[0]
        return {name: np.concatenate([row[name] for row in rows]) for name in self.names}


def _apart(values: Rows, count: int) -> list[Rows] | None:
    """One sample's rows each; None where a first axis is no multiple of their number."""
    if count == 1:
        return [values]
    if any(not array.ndim or len(array) % count for array in values.values()):
        return None
    parts = {name: np.split(array, count) for name, array in values.items()}
    return [{name: part[number].copy() for name, part in parts.items()} for number in range(count)]
