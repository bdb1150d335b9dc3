"""How the student stands on samples that do not train: of the states of its weights the best one is kept.

States are compared by the loss: a text classifier cut to a third was right on 97.3 % of other lines after one training and on all after
another, with losses of 0.19 and 0.12, and with logits 17.6 and 13.4 dB from the teacher's, which count what is certain anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxcompress.data import Data
from onnxcompress.difference import Differences
from onnxcompress.evidence.expose import exposed
from onnxcompress.model import Model
from onnxcompress.model.save import finished
from onnxcompress.runtime.loose import loose
from onnxcompress.runtime.session import Feeds, Session, open_session
from onnxcompress.training.ensemble import Ensemble
from onnxcompress.training.labels import Labels
from onnxcompress.training.targets import Target

SHARE, LEAST, MOST = 1 / 8, 16, 64
"""Of the samples that would train so many are kept back, within these ends: judging 64 costs as much as training on some 20. The
least is a third of fewer than 48 samples: two samples took magika for better, and it had 21.6 dB on others, 22.5 before."""


WORTH = 0.95
"""Share of the student's loss that a state has to be below: a smaller gain may be one of these samples alone. Magika with noise on its
weights gained 1.5 % on six samples, and had 21.2 dB on others, 22.5 before."""


def how_many(samples: int) -> int:
    """Samples to keep back, of all that would train."""
    return max(1, min(MOST, max(round(SHARE * samples), min(LEAST, samples // 3))))


Numbers = tuple[float, float]
"""Of a standing, in the order of its fields."""


@dataclass(frozen=True)
class Standing:
    """kept_loss: what is trained, on samples that are kept back, less is better; sqnr_db: of the outputs, of the worst one in dB.

    No state whose outputs are farther from the teacher's than the student's were before is kept.
    """

    kept_loss: float
    sqnr_db: float

    @property
    def words(self) -> str:
        """For the report."""
        return f"loss {self.kept_loss:.4g}, {self.sqnr_db:.1f} dB"

    def over(self, best: Numbers, first: Numbers) -> bool:
        """Is it better than the best so far, and clearly better than the student was at first?"""
        return self.kept_loss < min(best[0], WORTH * first[0]) and self.sqnr_db >= first[1]


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

    def __call__(self, student: Model, loss: Callable[[], float]) -> Standing:
        """As the file would answer that is written of it; loss: on the same samples."""
        session = open_session(loose(finished(student)), threads=self.threads, lean=True, name=student.source.name)
        running = {port.name: Differences(port) for port in self.teacher.outputs}
        for feed, answers in self._taught():
            given = session.run(feed)
            for name, each in running.items():
                each.add(answers[name], given[name], feed)
        found = [each.finished() for each in running.values()]
        return Standing(loss(), min((out.sqnr_db for out in found if out.sqnr_db is not None), default=0.0))

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

    def __call__(self, student: Model, loss: Callable[[], float]) -> Right:
        """As the file would answer that is written of it; the loss does not count."""
        return self.stands(student)

    def stands(self, student: Model) -> Right:
        """What its answers to these samples are worth."""
        shown = exposed(student, [self.target.student])
        session = open_session(shown.model, threads=self.threads, name=student.source.name)
        worth, right, count = 0.0, 0, 0
        for indices, feed in self.data.indexed(self.batch):
            value = session.run(feed)[self.target.student].astype(np.float64)
            each, hits = self.labels.judged(value, self.labels.values(indices), self.target.axis)
            worth, right, count = worth + float(each.sum()), right + int(hits.sum()), count + each.size
        likelihood = worth / max(count, 1)
        return Right(likelihood if np.isfinite(likelihood) else -np.inf, right / max(count, 1))
