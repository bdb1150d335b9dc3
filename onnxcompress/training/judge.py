"""How the student stands on samples that do not train: the state of the weights that answers most like the teacher is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.data import Data
from onnxcompress.difference import Differences, either
from onnxcompress.model import Model
from onnxcompress.model.save import finished
from onnxcompress.runtime.loose import loose
from onnxcompress.runtime.session import Feeds, Session, open_session

SHARE, MOST = 1 / 8, 64
"""Of the samples that would train, and at most so many, are kept back: judging 64 costs as much as training on some 20."""


@dataclass(frozen=True, order=True)
class Standing:
    """sqnr_db: lowest of the outputs beside the teacher's, dB, -inf where one is not finite; agreement of decisions, 1 without any."""

    sqnr_db: float
    agreement: float


@dataclass(eq=False)
class Judge:
    """Made by `Judge.of`. answers: of the teacher, a batch each, where they fit in memory."""

    teacher: Session
    data: Data
    batch: int
    threads: int
    answers: list[dict[str, Any]] | None

    @classmethod
    def of(cls, teacher: Model, data: Data, *, batch: int, threads: int, limit: int) -> Judge:
        """data: samples kept back; limit: bytes of the teacher's answers that are held, else they are computed each time."""
        session = open_session(teacher.source.runnable, threads=threads, lean=True, name=teacher.source.name)
        judge, held, size = cls(session, data, batch, threads, None), [], 0
        for feed in data.batches(batch):
            held.append(session.run(feed))
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
        db = min((out.sqnr_db for out in found if out.sqnr_db is not None), default=0.0)
        return Standing(db, min(either(out.agreement, 1.0) for out in found))

    def _taught(self) -> Iterator[tuple[Feeds, dict[str, Any]]]:
        for number, feed in enumerate(self.data.batches(self.batch)):
            yield feed, self.teacher.run(feed) if self.answers is None else self.answers[number]
