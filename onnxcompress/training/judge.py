"""How the student stands on samples that do not train: the state of the weights that answers most like the teacher is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxcompress.data import Data
from onnxcompress.difference import Differences, either
from onnxcompress.evidence.expose import exposed
from onnxcompress.model import Model
from onnxcompress.model.save import finished
from onnxcompress.runtime.loose import loose
from onnxcompress.runtime.session import Feeds, Session, open_session
from onnxcompress.training.ensemble import Ensemble
from onnxcompress.training.labels import Labels
from onnxcompress.training.targets import Target

SHARE, MOST = 1 / 8, 64
"""Of the samples that would train, and at most so many, are kept back: judging 64 costs as much as training on some 20."""


Numbers = tuple[float, float]
"""Of a standing, in the order of its fields."""


@dataclass(frozen=True)
class Standing:
    """How near the outputs are to the teacher's, dB of the worst one, -inf where one is not finite.

    logits_db  with probabilities as logits, by which states are compared (difference.py says why)
    sqnr_db    as they are: no state that is farther than the student was before is kept
    """

    logits_db: float
    sqnr_db: float

    @property
    def words(self) -> str:
        """For the report."""
        return f"{self.logits_db:.1f} dB" + ("" if self.logits_db == self.sqnr_db else " of logits")

    def over(self, best: Numbers, first: Numbers) -> bool:
        """Is it better than the best so far, where the student began as `first`?"""
        return self.logits_db > best[0] and self.sqnr_db >= first[1]


@dataclass(eq=False)
class Judge:
    """Made by `Judge.of`. answers: of the teacher, a batch each, where they fit in memory."""

    standing: ClassVar[type[Standing]] = Standing
    teacher: Session | Ensemble
    data: Data
    batch: int
    threads: int
    answers: list[dict[str, Any]] | None

    @classmethod
    def of(cls, teacher: Session | Ensemble, data: Data, *, batch: int, threads: int, limit: int) -> Judge:
        """teacher: its outputs are the answers; data: samples kept back; limit: bytes of answers that are held."""
        judge, held, size = cls(teacher, data, batch, threads, None), [], 0
        for feed in data.batches(batch):
            held.append(teacher.run(feed))
            size += sum(array.nbytes for array in held[-1].values() if isinstance(array, np.ndarray))
            if size > limit:
                return judge
        judge.answers = held
        return judge

    def __call__(self, student: Model) -> Standing:
        """As the file would answer that is written of it."""
        session = open_session(loose(finished(student)), threads=self.threads, lean=True, name=student.source.name)
        running = {port.name: Differences(port) for port in self.teacher.outputs}
        for feed, answers in self._taught():
            given = session.run(feed)
            for name, each in running.items():
                each.add(answers[name], given[name], feed)
        found = [each.finished() for each in running.values()]
        floats = [(out.sqnr_db, out.logits_db) for out in found if out.sqnr_db is not None]
        return Standing(
            min(either(logits, db) for db, logits in floats) if floats else 0.0,
            min((db for db, _ in floats), default=0.0),
        )

    def _taught(self) -> Iterator[tuple[Feeds, dict[str, Any]]]:
        for number, feed in enumerate(self.data.batches(self.batch)):
            yield feed, self.teacher.run(feed) if self.answers is None else self.answers[number]


@dataclass(frozen=True)
class Right:
    """likelihood: mean logarithm of what labels get, less the mean square error where they are numbers; accuracy: right decisions."""

    likelihood: float
    accuracy: float

    @property
    def words(self) -> str:
        """For the report."""
        return f"loss of labels {-self.likelihood:.3g}, {self.accuracy:.1%} right"

    def over(self, best: Numbers, first: Numbers) -> bool:
        """Is it better than the best so far?"""
        return (self.likelihood, self.accuracy) > best


@dataclass(frozen=True, eq=False)
class LabelJudge:
    """By labels: `target` says which value of the student is about them."""

    standing: ClassVar[type[Right]] = Right
    target: Target
    labels: Labels
    data: Data
    batch: int
    threads: int

    def __call__(self, student: Model) -> Right:
        """As the file would answer that is written of it."""
        shown = exposed(student, [self.target.student])
        session = open_session(shown.model, threads=self.threads, name=student.source.name)
        worth, right, count = 0.0, 0, 0
        for indices, feed in self.data.indexed(self.batch):
            value = session.run(feed)[self.target.student].astype(np.float64)
            each, hits = self.labels.judged(value, self.labels.values(indices), self.target.axis)
            worth, right, count = worth + float(each.sum()), right + int(hits.sum()), count + each.size
        likelihood = worth / max(count, 1)
        return Right(likelihood if np.isfinite(likelihood) else -np.inf, right / max(count, 1))
