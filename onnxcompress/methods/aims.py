"""What a student learns from whom: the teachers' values, labels, or both; several teachers as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from onnxcompress.data import Data
from onnxcompress.errors import DataError, ModelError, SettingError
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model import Model
from onnxcompress.run import How
from onnxcompress.runtime.session import Session, open_session
from onnxcompress.training.augment import words
from onnxcompress.training.connectors import connected
from onnxcompress.training.ensemble import Ensemble, Part, weights_of
from onnxcompress.training.labels import Labels, labelled
from onnxcompress.training.losses import LOSSES
from onnxcompress.training.pairs import Pair, found_pairs
from onnxcompress.training.targets import AUTO, LABELS, Target, end_of, losses_in_words, targets_of
from onnxcompress.training.teacher import Teacher, inner

if TYPE_CHECKING:
    from onnxcompress.methods.distill import Distill

HARD = 0.1
"""Share of labels beside a teacher: a low one, as Hinton et al. advise."""


class Aims(NamedTuple):
    """The terms of the loss, the labels that one of them learns, and sentences about these.

    student the student with connectors, where a term wants them
    others  for each teacher but the first: name of an output's term -> its value in that teacher
    """

    targets: list[Target]
    labels: Labels | None = None
    notes: tuple[str, ...] = ()
    others: tuple[Mapping[str, str], ...] = ()
    student: Model | None = None


def aims_of(settings: Distill, student: Model, teachers: Sequence[Model], feed: Data, how: How) -> Aims:
    """What is learned from whom. SettingError, ModelError, DataError where teachers or labels do not fit."""
    targets, connecting = _from_teacher(settings, student, teachers[0], feed) if teachers else ([], None)
    found = _with_labels(settings, student, targets, feed, how)._replace(student=connecting)
    found = found._replace(notes=(*found.notes, *(_unlike(student, teachers[0]) if teachers else ())))
    weights = weights_of(settings.teacher_weights, max(len(teachers), 1))
    if len(teachers) < 2:
        return found
    others = tuple(_same_terms(settings, student, teachers[0], each) for each in teachers[1:])
    shares = ", ".join(f"{weight:.2g} of {each.source.name}" for weight, each in zip(weights, teachers, strict=True))
    told = (
        f"{len(teachers)} teachers answer as one, by the mean of {settings.ensemble}: {shares}; judged beside the first"
    )
    return found._replace(others=others, notes=(*found.notes, told))


def _from_teacher(settings: Distill, student: Model, teacher: Model, feed: Data) -> tuple[list[Target], Model | None]:
    """The teacher's terms, and the student with connectors where some want them. Shapes of inner values are those of one sample."""
    if not settings.features:
        return settings.targets(student, teacher), None
    one = next(feed.calibration.batches(1))
    shapes = (run_shapes(student, one), run_shapes(teacher, one))
    pairs: list[Pair] = []
    if AUTO in settings.features:
        outputs = [each.student for each in targets_of(student, teacher, loss=settings.loss)]
        pairs = found_pairs(student, teacher, shapes, outputs)
        if not pairs:
            raise ModelError(
                f"{student.source.name}: no inner values have the same resolution as in {teacher.source.name}; name pairs, "
                "--features STUDENT=TEACHER"
            )
    targets = settings.targets(student, teacher, pairs)
    connecting, targets = connected(student, targets, shapes)
    return targets, None if connecting is student else connecting


def _same_terms(settings: Distill, student: Model, first: Model, teacher: Model) -> dict[str, str]:
    """The values of another teacher that stand for those of the first."""
    own = {each.name: each.teacher for each in targets_of(student, teacher, loss=settings.loss)}
    before, after = (_ends(model) for model in (first, teacher))
    for name in own:
        if before.get(name) != after.get(name):
            raise ModelError(
                f"{teacher.source.name}: output {name!r} ends in {after.get(name)}, in {first.source.name} in {before.get(name)}; "
                "give teachers whose outputs are of one kind"
            )
    return own


def _unlike(student: Model, teacher: Model) -> list[str]:
    """A warning for each output that is probabilities in one of the two and plain numbers in the other."""
    mine, taught = _ends(student), _ends(teacher)
    return [
        f"warning: output {name!r} ends in {mine[name]} in the student and in {taught[name]} in {teacher.source.name}, so that unlike "
        "numbers are learned and compared; give a teacher that ends as the student does"
        for name in mine
        if taught.get(name, mine[name]) != mine[name]
    ]


def _ends(model: Model) -> dict[str, str]:
    """The operator that makes probabilities of each output."""
    ends = {value.name or "": end_of(value) for value in model.ir.graph.outputs}
    return {name: "no Softmax or Sigmoid" if end is None else end[0] for name, end in ends.items()}


def speaking(aims: Aims, teachers: Sequence[Model], settings: Distill, threads: int) -> Teacher | None:
    """All teachers as one that answers with what is learned; None where that is labels alone."""
    taught = [each for each in aims.targets if each.teacher != LABELS]
    if not taught:
        return None
    if not aims.others:
        return Teacher.of(teachers[0], [each.teacher for each in taught], threads=threads)
    parts: dict[str, Part] = {}
    for each in taught:
        more = [other[each.name] for other in aims.others if each.name in other]
        axis = -1 if each.axis is None else each.axis
        parts.setdefault(each.teacher, Part((each.teacher, *more), LOSSES[each.loss].of, axis))
    names = [[part.names[n] for part in parts.values() if n < len(part.names)] for n in range(len(teachers))]
    members = [inner(model, own, threads=threads)[0] for model, own in zip(teachers, names, strict=True)]
    weights = weights_of(settings.teacher_weights, len(teachers))
    return Teacher(Ensemble(members, weights, tuple(parts.values()), settings.ensemble), tuple(parts))


def answering(teachers: Sequence[Model], settings: Distill, threads: int) -> Session | Ensemble:
    """What a student is judged beside while it trains: the teacher's outputs, the weighted means of these where there are several."""
    members = [
        open_session(each.source.runnable, threads=threads, lean=True, name=each.source.name) for each in teachers
    ]
    if len(members) == 1:
        return members[0]
    parts = tuple(Part((port.name,) * len(members), "features", -1) for port in members[0].outputs)
    return Ensemble(members, weights_of(settings.teacher_weights, len(members)), parts, "numbers")


def identity_of(teachers: Sequence[Model], settings: Distill) -> str:
    """Names the teachers and how they are combined."""
    if len(teachers) < 2:
        return "".join(each.fingerprint for each in teachers)
    shares = weights_of(settings.teacher_weights, len(teachers)).tolist()
    return f"{[each.fingerprint for each in teachers]} {shares} {settings.ensemble}"


def _with_labels(settings: Distill, student: Model, targets: list[Target], feed: Data, how: How) -> Aims:
    """The teacher's terms with those of labels: (1 - hard) of the former and hard of the latter, as Hinton et al. mix them."""
    share = settings.hard if settings.hard is not None and targets else HARD if targets else 1.0
    if how.labels is None or share == 0:
        return Aims(targets)
    if settings.hard is None and how.metric is not None and targets:
        more = f"; --hard {HARD:g} lets the student learn them too" if _learnable(settings, student, feed, how) else ""
        return Aims(targets, notes=(f"labels are the metric's, and not learned{more}",))
    found = labelled(student, how.labels, feed, smoothing=settings.smoothing, weight=share, alphabet=settings.alphabet)
    if isinstance(found, str) and (settings.hard is not None or not targets):
        raise DataError(f"labels: {found}; the student cannot learn them")
    if not isinstance(found, str) and found[1].kind == "text" and settings.mixup:
        raise SettingError("mixup mixes labels, and there is no mean of two texts; leave it out, or give --hard 0")
    if isinstance(found, str):
        return Aims(targets, notes=(f"labels only judge: {found}",))
    outputs = {value.name for value in student.ir.graph.outputs}
    mixed = [replace(each, weight=each.weight * (1 - share)) if each.name in outputs else each for each in targets]
    left = [_as_labels_say(each, found[0]) if settings.loss == AUTO else each for each in mixed if each.weight]
    return Aims([*left, found[0]], found[1])


def _learnable(settings: Distill, student: Model, feed: Data, how: How) -> bool:
    """Whether an output could learn what a metric reads; texts of other characters, and numbers that mean something else, it cannot."""
    try:
        found = labelled(student, how.labels, feed, smoothing=0.0, weight=HARD, alphabet=settings.alphabet)
        return not isinstance(found, str)
    except DataError:
        return False


def _as_labels_say(target: Target, labels: Target) -> Target:
    """Plain numbers that labels show to be class scores are learned as such."""
    if target.loss != "mse" or labels.loss not in ("cross-entropy", "ctc") or target.student != labels.student:
        return target
    return replace(target, loss="soft-cross-entropy", axis=labels.axis, why="labels show that these are class scores")


def learned_in_words(settings: Distill, aims: Aims) -> list[str]:
    """A sentence for each term, and for what is done to labels and inputs."""
    notes = [*losses_in_words(aims.targets), *aims.notes]
    if aims.labels is not None and aims.labels.smoothing:
        notes.append(f"labels are smoothed: all classes have {aims.labels.smoothing:g} alike")
    changed = [*(words(each) for each in settings.augment), *([f"mixup={settings.mixup:g}"] if settings.mixup else [])]
    if changed:
        notes.append(f"inputs change in each epoch: {', '.join(changed)}; the teacher sees them as the student does")
    return notes
