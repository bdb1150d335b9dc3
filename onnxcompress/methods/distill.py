"""Distillation: a student's weights are fine-tuned until it answers like its teacher; no labels are needed.

Hinton, Vinyals, Dean 2015, arXiv:1503.02531. What is learned follows from what each output is (training/targets.py); the result is
compared with the teacher on held-out samples, as every other result is with its original.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress import budgets as gates
from onnxcompress.compare import Comparison, check_signatures
from onnxcompress.data import Data
from onnxcompress.errors import SettingError
from onnxcompress.files import check_output
from onnxcompress.methods.integers import limits_of
from onnxcompress.model import Loadable, Model, load
from onnxcompress.model.save import finished, to_bytes, written_as
from onnxcompress.plan import Plan
from onnxcompress.result import Result
from onnxcompress.run import Clock, How, costs, judged, opened
from onnxcompress.runtime.session import open_session
from onnxcompress.training.integers import Levels
from onnxcompress.training.judge import MOST, SHARE, Judge
from onnxcompress.training.kept import Booked, Dense, Moving
from onnxcompress.training.loop import Lesson, Trained, held_of, train
from onnxcompress.training.parameters import Parameters
from onnxcompress.training.recipe import Recipe
from onnxcompress.training.targets import AUTO, Target, losses_in_words, targets_of
from onnxcompress.training.teacher import Teacher


@dataclass(frozen=True)
class Distill(Recipe):
    """Learn from a teacher."""

    name: ClassVar[str] = "distill"

    loss: Annotated[
        str,
        Field(
            description="auto: soft-cross-entropy on what a Softmax reads, binary on what a Sigmoid reads, else mse; or "
            "soft-cross-entropy, reverse-kl, js, alpha, logits-mse, binary, mse"
        ),
    ] = AUTO
    temperature: Annotated[
        float | None,
        Field(gt=0, description="of losses of logits; default 4, of alpha 1: softer shows more of the teacher"),
    ] = None
    features: Annotated[
        tuple[str, ...],
        Field(description="also learn this inner value, NAME or STUDENT=TEACHER; may come several times"),
    ] = ()
    feature_loss: Annotated[
        str,
        Field(description="mse; any width: attention, similarity, relational-distance, relational-angle"),
    ] = "attention"
    feature_weight: Annotated[float, Field(gt=0, description="of each of these in the loss")] = 1.0

    def targets(self, student: Model, teacher: Model) -> list[Target]:
        """What is learned from what."""
        return targets_of(
            student, teacher, loss=self.loss, features=self.features, feature_loss=self.feature_loss,
            feature_weight=self.feature_weight,
        )  # fmt: skip

    @property
    def recipe(self) -> Recipe:
        """The part that any training has."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.__dataclass_fields__})


def distilled(
    student: Loadable,
    teacher: Loadable,
    data: Any,
    settings: Distill,
    *,
    budgets: Mapping[str, float] | None = None,
    checkpoint: str | Path | None = None,
    dry: bool = False,
    how: How | None = None,
) -> Result:
    """Train the student on the samples for calibration, and judge it beside the teacher on those that are held out.

    data        what `open_data` takes; None is a SettingError: synthetic inputs teach nothing
    checkpoint  a file written after each epoch; where it is there, training goes on from it
    dry         say what would be learned, and train nothing
    ModelError where student and teacher take or give other things; `Result.original` is the teacher.
    """
    if data is None:
        raise SettingError("distill needs inputs like those of use: give --data; labels are not needed")
    how = how or How()
    wanted = dict(budgets or {})
    gates.validate(wanted)
    clock = Clock()
    with clock("load"):
        taught, taking = load(_bytes_of(teacher)), load(student)
        _check_alike(taught, taking, how)
        if checkpoint is not None:
            check_output(checkpoint, [each.source.path for each in (taught, taking) if each.source.path is not None])
        feed = opened(taught.source.runnable, data, how, name=taught.source.name)
    targets = settings.targets(taking, taught)
    before, after = costs(taught, taking, feed)
    if dry:
        return Result(
            taught,
            taking,
            (_listed(settings, taking, targets),),
            before,
            after,
            notes=feed.notes,
            seconds=clock.seconds,
        )
    with clock("compare"):
        start = judged(taught, taking, feed, how)
    with clock("distill"):
        made = _taught(taking, taught, targets, feed, settings, checkpoint, how)
    with clock("compare"):
        comparison = judged(taught, made.model, feed, how)
    amounts = {name: (getattr(before, name), getattr(after, name)) for name in ("bytes", "parameters", "macs")}
    verdicts = gates.check(wanted, comparison, {name: pair for name, pair in amounts.items() if None not in pair})
    plan = _told(settings, taking, targets, made, start)
    return Result(taught, made.model, (plan,), before, after, comparison, tuple(verdicts), feed.notes, clock.seconds)


def _bytes_of(model: Loadable) -> Loadable:
    """A Model may be edited: what it computes now is the teacher, not the file that it came from."""
    return to_bytes(finished(model)) if isinstance(model, Model) else model


def _check_alike(teacher: Model, student: Model, how: How) -> None:
    before = open_session(teacher.source.runnable, threads=how.threads, name=teacher.source.name)
    after = open_session(to_bytes(finished(student)), threads=how.threads, name=student.source.name)
    check_signatures(before, after)


def _taught(
    student: Model,
    teacher: Model,
    targets: list[Target],
    feed: Data,
    settings: Distill,
    checkpoint: str | Path | None,
    how: How,
) -> Trained:
    """Run the loop on the samples for calibration."""
    session = Teacher.of(teacher, [target.teacher for target in targets], threads=how.threads)
    training, kept = feed.calibration.kept_back(SHARE, MOST)
    judge = Judge.of(teacher, kept, batch=how.batch, threads=how.threads, limit=how.memory_limit)
    session.remember(training, how.batch, how.memory_limit, how.progress)
    lesson = Lesson(
        student, session, targets, training, settings.recipe,
        temperature=settings.temperature, threads=how.threads,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        identity=teacher.fingerprint, progress=how.progress, guesses=_guesses(student, teacher), limits=limits_of(student),
        judge=judge,
    )  # fmt: skip
    return train(lesson)


def _guesses(student: Model, teacher: Model) -> dict[str, np.ndarray]:
    """The weights that coded ones were made of: the teacher's of the same name and shape."""
    both = {name: value for name, value in teacher.initializers.items() if name in student.initializers}
    return {name: teacher.array(name) for name in both if student.array(name).shape == teacher.array(name).shape}


def _listed(settings: Distill, student: Model, targets: list[Target]) -> Plan:
    """What a dry run says."""
    held = held_of(student, settings)
    notes = [
        *losses_in_words(targets),
        f"{held.layout.size} numbers of {len(held.forms)} tensors would be trained",
        *_coded_in_words(held),
    ]
    return Plan(
        settings.name, _fields(settings), student.fingerprint, [vars(target) for target in targets], notes=notes
    )


def _told(settings: Distill, student: Model, targets: list[Target], made: Trained, start: Comparison) -> Plan:
    """The plan of the report: a row an epoch, what was learned and why, and what the student was before."""
    notes = [
        f"before distillation it {start.verdict}",
        *losses_in_words(targets),
        f"{made.parameters} numbers were trained",
        *_coded_in_words(held_of(student, settings)),
    ]
    moved = [name for name, value in student.initializers.items() if written_as(value) and not _still(made.model, name)]
    if moved:
        notes.append(f"{len(moved)} weights that were coded are dense again: training moved their values")
    notes.extend(made.sources)
    notes.extend(each for each in (made.norms, made.kept) if each is not None)
    if made.resumed:
        notes.append(f"epochs 1 to {made.resumed} come from the checkpoint")
    return Plan(settings.name, _fields(settings), student.fingerprint, made.curve, notes=notes)


def _coded_in_words(held: Parameters) -> list[str]:
    """Which tensors train in the form in which they are stored."""
    kinds = {name: type(form) for name, form in held.forms.items()}
    books = sum(kind is Booked for kind in kinds.values())
    moving = sum(kind is Moving for kind in kinds.values())
    levels = sum(kind is Levels for kind in kinds.values())
    zeros = sum(isinstance(form, Dense) and form.zeros is not None for form in held.forms.values())
    found = {
        f"{books} coded weights: symbols stay, books and scales train": books,
        f"{moving} coded weights: symbols, books and scales train": moving,
        f"{levels} tensors of integers: they stay integers on their grids, activations are rounded as in the file": levels,
        f"{zeros} pruned weights: their zeros stay": zeros,
    }
    return [sentence for sentence, count in found.items() if count]


def _still(model: Model, name: str) -> bool:
    return name in model.initializers and written_as(model.initializers[name]) is not None


def _fields(settings: Distill) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()}


__all__ = ["Distill", "distilled"]
