"""Distillation: a student's weights are fine-tuned until it answers like its teacher; labels may help, or teach alone.

Hinton, Vinyals, Dean 2015, arXiv:1503.02531. What is learned follows from what each output is (training/targets.py) and what labels are
(training/labels.py); the result is compared with the teacher on held-out samples, as every other result is with its original. Without a
teacher it is compared with the student as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from onnxcompress.methods.aims import Aims, aims_of, answering, identity_of, learned_in_words, speaking
from onnxcompress.methods.integers import limits_of
from onnxcompress.model import Loadable, Model, load
from onnxcompress.model.save import finished, to_bytes, written_as
from onnxcompress.plan import Plan
from onnxcompress.result import Result
from onnxcompress.run import Clock, How, costs, judged, opened
from onnxcompress.runtime.session import open_session
from onnxcompress.training.augment import Changes, words
from onnxcompress.training.connectors import connector_size, disconnected
from onnxcompress.training.ensemble import Mean
from onnxcompress.training.integers import Levels
from onnxcompress.training.judge import Judge, LabelJudge, how_many
from onnxcompress.training.kept import Booked, Dense, Moving
from onnxcompress.training.lesson import Lesson, held_of
from onnxcompress.training.loop import Trained, train
from onnxcompress.training.pairs import Pair
from onnxcompress.training.parameters import Parameters
from onnxcompress.training.recipe import Recipe
from onnxcompress.training.targets import AUTO, LABELS, Target, targets_of
from onnxcompress.training.trials import room_of


@dataclass(frozen=True)
class Distill(Recipe):
    """Learn from a teacher."""

    name: ClassVar[str] = "distill"

    loss: Annotated[
        str,
        Field(
            description="auto: soft-cross-entropy on what a Softmax reads, binary on what a Sigmoid reads, else mse; or "
            "soft-cross-entropy, frames, reverse-kl, js, alpha, logits-mse, binary, mse, relative-mse, cosine, channel-wise"
        ),
    ] = AUTO
    temperature: Annotated[
        float | None,
        Field(gt=0, description="of losses of logits; default 4, of alpha 1: softer shows more of the teacher"),
    ] = None
    hard: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="share of --labels in the loss; default 0.1 beside a teacher where they are classes or values of an output "
            "and no metric reads them, 1 without a teacher; 0: they only judge",
        ),
    ] = None
    alphabet: Annotated[
        str | None,
        Field(
            description="of labels that are text: a file with the character of each class of the output, a line each, an empty one for "
            "the blank (without one it is the first class); default: the model's metadata, as PaddleOCR writes them"
        ),
    ] = None
    teacher_weights: Annotated[
        tuple[float, ...] | None, Field(description="of several teachers, in their order, such as 2,1; default equal")
    ] = None
    ensemble: Annotated[
        Mean,
        Field(
            description="several teachers say the mean of their probabilities, or of the numbers that are learned (of logits: the "
            "geometric mean of probabilities): probabilities or numbers"
        ),
    ] = "probabilities"
    cache: Annotated[
        str | None,
        Field(description="folder where the teacher's answers are kept, for later runs with the same samples"),
    ] = None
    features: Annotated[
        tuple[str, ...],
        Field(
            description="also learn this inner value, NAME or STUDENT=TEACHER; may come several times; auto: the last of each "
            "resolution, by what it was cut from, else by depth (--dry-run lists them)"
        ),
    ] = ()
    feature_loss: Annotated[
        str,
        Field(
            description="mse, relative-mse, cosine, channel-wise; any width: attention, similarity, relational-distance, "
            "relational-angle, hint (mse after a learned connector, which is thrown away)"
        ),
    ] = "attention"
    feature_weight: Annotated[
        float | None, Field(gt=0, description="of each of these in the loss; default that of the loss's paper")
    ] = None

    def targets(self, student: Model, teacher: Model, pairs: Sequence[Pair] = ()) -> list[Target]:
        """What is learned from what; pairs: of inner values that were found, beside those that are named."""
        features: list[str | Pair] = [*(each for each in self.features if each != AUTO), *pairs]
        return targets_of(
            student, teacher, loss=self.loss, features=features, feature_loss=self.feature_loss,
            feature_weight=self.feature_weight,
        )  # fmt: skip

    @property
    def recipe(self) -> Recipe:
        """The part that any training has."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.__dataclass_fields__})


def distilled(
    student: Loadable,
    teacher: Loadable | Sequence[Loadable] | None,
    data: Any,
    settings: Distill,
    *,
    budgets: Mapping[str, float] | None = None,
    checkpoint: str | Path | None = None,
    dry: bool = False,
    how: How | None = None,
) -> Result:
    """Train the student on the samples for calibration, and judge it beside the teacher on those that are held out.

    teacher     several answer as one, and the first is what the result is compared with; None: labels alone teach, and the student
                is judged beside what it was
    data        what `open_data` takes; None is a SettingError: synthetic inputs teach nothing
    checkpoint  a file written after each epoch; where it is there, training goes on from it
    dry         say what would be learned, and train nothing
    ModelError where student and teacher take or give other things; `Result.original` is the teacher.
    """
    how = how or How()
    given = _several(teacher)
    _check_asked(settings, given, data, how)
    wanted = dict(budgets or {})
    gates.validate(wanted)
    clock = Clock()
    with clock("load"):
        teachers, taking = [load(_bytes_of(each)) for each in given], load(student)
        taught = teachers[0] if teachers else load(_bytes_of(student))
        for each in teachers:
            _check_alike(each, taking, how)
        if checkpoint is not None:
            check_output(checkpoint, [each.source.path for each in (*teachers, taking) if each.source.path is not None])
        feed = opened(taught, data, how)
    aims = aims_of(settings, taking, teachers, feed, how)
    Changes.of(settings.augment, settings.mixup, feed.calibration)
    before, after = costs(taught, taking, feed)
    if dry:
        return Result(
            taught,
            taking,
            (_listed(settings, taking, aims, _room(aims.student or taking, teachers, aims, feed, settings, how)),),
            before,
            after,
            notes=feed.notes,
            seconds=clock.seconds,
        )
    asked = how if _scored(aims, how) else replace(how, labels=None)
    with clock("compare"):
        start = judged(taught, taking, feed, asked)
    with clock("distill"):
        made, told = _taught(aims.student or taking, teachers, aims, feed, settings, checkpoint, how)
    with clock("compare"):
        comparison = judged(taught, made.model, feed, asked)
        if asked is not how:
            told = [_by_labels(aims, taking, made.model, feed, how), *told]
    amounts = {name: (getattr(before, name), getattr(after, name)) for name in ("bytes", "parameters", "macs")}
    verdicts = gates.check(wanted, comparison, {name: pair for name, pair in amounts.items() if None not in pair})
    plan = _told(settings, taking, aims, made, start, told)
    return Result(taught, made.model, (plan,), before, after, comparison, tuple(verdicts), feed.notes, clock.seconds)


def _several(teacher: Loadable | Sequence[Loadable] | None) -> list[Loadable]:
    """Bytes and texts are one teacher."""
    if teacher is None:
        return []
    return [*teacher] if isinstance(teacher, list | tuple) else [teacher]  # type: ignore[list-item]


def _bytes_of(model: Loadable) -> Loadable:
    """A Model may be edited: what it computes now is the teacher, not the file that it came from."""
    return to_bytes(finished(model)) if isinstance(model, Model) else model


def _check_alike(teacher: Model, student: Model, how: How) -> None:
    before = open_session(teacher.source.runnable, threads=how.threads, name=teacher.source.name)
    after = open_session(to_bytes(finished(student)), threads=how.threads, name=student.source.name)
    check_signatures(before, after)


def _check_asked(settings: Distill, teachers: Sequence[Loadable], data: Any, how: How) -> None:
    """SettingError for what cannot be, before anything is loaded."""
    if not teachers and (how.labels is None or settings.hard == 0):
        raise SettingError("no teacher is named; give --teacher model.onnx, or --labels to learn from them alone")
    if data is None:
        raise SettingError("distill needs inputs like those of use: give --data; labels are not needed")
    if settings.hard and how.labels is None:
        raise SettingError(f"--hard {settings.hard:g} is the share of labels in the loss; give --labels")
    if not teachers and settings.features:
        raise SettingError("features are learned from a teacher; give --teacher model.onnx")


def _scored(aims: Aims, how: How) -> bool:
    """Whether labels tell an accuracy: classes do, and whatever a metric reads."""
    return aims.labels is None or aims.labels.kind == "classes" or how.metric is not None


def _by_labels(aims: Aims, before: Model, after: Model, feed: Data, how: How) -> str:
    """Where labels are probabilities or numbers: how the held-out ones are met."""
    assert aims.labels is not None
    judge = LabelJudge(aims.targets[-1], aims.labels, feed.held_out, how.batch, how.threads)
    return f"held-out labels: {judge.stands(before).words} before, {judge.stands(after).words} after"


def _taught(
    student: Model,
    teachers: Sequence[Model],
    aims: Aims,
    feed: Data,
    settings: Distill,
    checkpoint: str | Path | None,
    how: How,
) -> tuple[Trained, list[str]]:
    """Run the loop on the samples for calibration; also sentences about the teacher's answers."""
    session, identity = speaking(aims, teachers, settings, how.threads), identity_of(teachers, settings)
    training, kept = feed.calibration.kept_back(how_many(feed.calibration.samples))
    if session is not None and not settings.changing:
        folder = None if settings.cache is None else Path(settings.cache)
        session.remember(feed.calibration, how.batch, how.memory_limit, how.progress, folder=folder, identity=identity)
    lesson = Lesson(
        student, session, aims.targets, training, settings.recipe,
        temperature=settings.temperature, threads=how.threads,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        identity=identity, progress=how.progress, labels=aims.labels,
        guesses=_guesses(student, teachers[0]) if teachers else {}, limits=limits_of(student),
        judge=_judge(teachers, aims, kept, settings, how),
    )  # fmt: skip
    made = train(lesson)
    return replace(made, model=disconnected(made.model)), [session.told] if session is not None and session.told else []


def _judge(teachers: Sequence[Model], aims: Aims, kept: Data, settings: Distill, how: How) -> Judge | LabelJudge:
    """Of states of the weights: by labels where these are learned, else by the teacher's answers."""
    if aims.labels is not None:
        return LabelJudge(aims.targets[-1], aims.labels, kept, how.batch, how.threads)
    return Judge.of(
        answering(teachers, settings, how.threads), kept, batch=how.batch, threads=how.threads, limit=how.memory_limit
    )


def _guesses(student: Model, teacher: Model) -> dict[str, np.ndarray]:
    """The weights that coded ones were made of: the teacher's of the same name and shape."""
    both = {name: value for name, value in teacher.initializers.items() if name in student.initializers}
    return {name: teacher.array(name) for name in both if student.array(name).shape == teacher.array(name).shape}


def _room(student: Model, teachers: Sequence[Model], aims: Aims, feed: Data, settings: Distill, how: How) -> str | None:
    """What a step would take in memory: the teacher answers for one minibatch, and its step is made."""
    session, (training, _) = (
        speaking(aims, teachers, settings, how.threads),
        feed.calibration.kept_back(how_many(feed.calibration.samples)),
    )
    lesson = Lesson(
        student, session, aims.targets, training, settings.recipe, settings.temperature, how.threads,
        labels=aims.labels, limits=limits_of(student),
    )  # fmt: skip
    return room_of(lesson, held_of(student, settings, limits=lesson.limits))


def _listed(settings: Distill, student: Model, aims: Aims, room: str | None) -> Plan:
    """What a dry run says."""
    held = held_of(student, settings)
    notes = [
        *learned_in_words(settings, aims),
        f"{held.layout.size} numbers of {len(held.forms)} tensors would be trained",
        *_coded_in_words(held),
        *([] if room is None else [room]),
    ]
    return Plan(
        settings.name, fields_of(settings), student.fingerprint, [vars(target) for target in aims.targets], notes=notes
    )


def _told(settings: Distill, student: Model, aims: Aims, made: Trained, start: Comparison, told: Sequence[str]) -> Plan:
    """The plan of the report: a row an epoch, what was learned and why, and what the student was before."""
    taught = any(target.teacher != LABELS for target in aims.targets)
    notes = [
        f"before distillation it {start.verdict}"
        if taught
        else "labels alone taught; the original is the student as it was",
        *learned_in_words(settings, aims),
        f"{made.parameters} numbers were trained",
        *_connectors_in_words(aims),
        *_coded_in_words(held_of(student, settings)),
    ]
    moved = [name for name, value in student.initializers.items() if written_as(value) and not _still(made.model, name)]
    if moved:
        notes.append(f"{len(moved)} weights that were coded are dense again: training moved their values")
    notes.extend([*told, *made.sources])
    notes.extend(each for each in (made.norms, made.rate, made.kept, made.memory) if each is not None)
    if made.resumed:
        notes.append(f"epochs 1 to {made.resumed} come from the checkpoint")
    return Plan(settings.name, fields_of(settings), student.fingerprint, made.curve, notes=notes)


def _connectors_in_words(aims: Aims) -> list[str]:
    """Numbers that the result does not have."""
    size = 0 if aims.student is None else connector_size(aims.student)
    return [f"{size} of these in connectors, which were thrown away at the end"] if size else []


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


def fields_of(settings: Distill) -> dict[str, Any]:
    """As a plan keeps them."""
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()}
    listed.pop("cache")  # where this machine keeps its answers
    return {**listed, "augment": [words(each) for each in settings.augment]}


__all__ = ["Distill", "distilled", "fields_of"]
