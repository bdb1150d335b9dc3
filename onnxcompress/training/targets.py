"""What the student learns from which values of the teacher: chosen by what an output is, or named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxcompress.errors import ModelError, SettingError, nearest
from onnxcompress.model import Model
from onnxcompress.model.edit import axes_of, walk
from onnxcompress.training.graph import Criterion
from onnxcompress.training.losses import LOSSES, Loss
from onnxcompress.training.pairs import Pair, channel_axis
from onnxcompress.training.pen import Pen, element_of, is_float, shape_of

TEACHER = "teacher/"
"""Before the name of each of the teacher's values that the step graph takes."""

LABELS = "labels of the data"
"""Stands where a value of the teacher would, for what labels say."""

AUTO = "auto"

PASSED = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
"""Operators between a Softmax and the output that change no number."""

ENDS = {
    "Softmax": ("soft-cross-entropy", "probabilities of a Softmax: the logits before it are learned"),
    "LogSoftmax": ("soft-cross-entropy", "logarithms of a Softmax: the logits before it are learned"),
    "Sigmoid": ("binary", "probabilities of a Sigmoid: the log odds before it are learned"),
}
"""Operator that makes an output -> the loss on what it reads, and why."""


@dataclass(frozen=True)
class Target:
    """One term of the loss. student, teacher: values; axis of the classes, None where there are none; why: for the report.

    frames  of text: the axis of frames, and the class that is the blank
    """

    name: str
    student: str
    teacher: str
    loss: str
    axis: int | None
    weight: float
    why: str
    frames: tuple[int, int] | None = None


def targets_of(
    student: Model,
    teacher: Model,
    *,
    loss: str = AUTO,
    features: Sequence[str | Pair] = (),
    feature_loss: str = "attention",
    feature_weight: float | None = None,
) -> list[Target]:
    """A term for each float output, and one for each pair of features ("NAME", or "STUDENT=TEACHER" where names differ).

    feature_weight  of each; None: that of the loss's paper
    SettingError for a loss that does not fit what it would be given, ModelError for a value that is not there.
    """
    for name in (loss, feature_loss):
        if name != AUTO and name not in LOSSES:
            raise SettingError(f"no loss is called {name!r}; {nearest(name, LOSSES)}")
    if features and LOSSES[feature_loss].of != "features":
        raise SettingError(
            f"{feature_loss!r} is a loss of {LOSSES[feature_loss].of}; for features give one of {_of('features')}"
        )
    found = [_output(value, teacher, loss) for value in student.ir.graph.outputs if is_float(value)]
    if not found:
        raise ModelError(f"{student.source.name}: no output holds floats; there is nothing to learn from the teacher")
    weight = LOSSES[feature_loss].weight if feature_weight is None else feature_weight
    for each in features:
        pair = each if isinstance(each, Pair) else _named(student, teacher, each)
        name = pair.student if pair.student == pair.teacher else f"{pair.student}={pair.teacher}"
        found.append(Target(name, pair.student, pair.teacher, feature_loss, pair.axis, weight, pair.why))
    return found


def _named(student: Model, teacher: Model, wish: str) -> Pair:
    """NAME, or STUDENT=TEACHER, checked."""
    one, _, other = wish.partition("=")
    values = []
    for model, name in ((student, one), (teacher, other or one)):
        known = {v.name: v for node in model.ir.graph for v in node.outputs if is_float(v) and v.name}
        if name in _in_bodies(model):
            raise ModelError(
                f"{model.source.name}: {name!r} is not of the main graph: a value inside an If, Loop or Scan is not shown outside; "
                "name what the body gives"
            )
        if name not in known:
            raise ModelError(f"{model.source.name}: no value is called {name!r}; {nearest(name, known)}")
        values.append(known[name])
    axes = [channel_axis(value) for value in values]
    return Pair(one, other or one, axes[0] if axes[0] == axes[1] else None, "named by --features")


def _in_bodies(model: Model) -> set[str | None]:
    """Values of bodies."""
    everywhere = {value.name for node in walk(model.ir) for value in node.outputs}
    return everywhere - {value.name for node in model.ir.graph for value in node.outputs}


def _of(kind: str) -> str:
    return ", ".join(name for name, each in LOSSES.items() if each.of == kind)


def _output(value: ir.Value, teacher: Model, loss: str) -> Target:
    """The term of one output."""
    output = value.name or ""
    twin = next((each for each in teacher.ir.graph.outputs if each.name == output), None)
    if twin is None:
        raise ModelError(
            f"{teacher.source.name}: has no output {output!r}, the student has; give the student's own teacher"
        )
    end, other = end_of(value), end_of(twin)
    axis: int | None
    if end is not None and other is not None and end[0] == other[0]:
        usual, why = ENDS[end[0]]
        (_, reads, axis), taught = end, other[1]
        kind = LOSSES[usual].of
    else:
        usual, why, kind = "mse", "plain numbers, which may be logits or an embedding", "features"
        reads, taught, axis = value, twin, channel_axis(value)
        axis = -1 if axis is None else axis
    chosen = usual if loss == AUTO else loss
    if kind != "features" and LOSSES[chosen].of not in (kind, "features"):
        raise SettingError(
            f"{chosen!r} is a loss of {LOSSES[chosen].of}, output {output!r} has {kind}; give one of {_of(kind)}"
        )
    if loss != AUTO:
        why = f"chosen; the output holds {why}"
    return Target(output, reads.name or "", taught.name or "", chosen, axis, 1.0, why)  # type: ignore[union-attr]


def end_of(value: ir.Value) -> tuple[str, ir.Value, int | None] | None:
    """The Softmax or Sigmoid that makes the output, what it reads, and the axis of the classes."""
    node = value.producer()
    while node is not None and node.op_type in PASSED and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.domain:
        return None
    if node.op_type == "Div":
        return _written_out(node)
    if node.op_type not in ENDS or node.inputs[0] is None:
        return None
    return node.op_type, node.inputs[0], node.attributes.get_int("axis", -1) if node.op_type != "Sigmoid" else None


def _written_out(node: ir.Node) -> tuple[str, ir.Value, int | None] | None:
    """A Softmax of single operators: exp(x) over its own sum along one axis, spread again."""
    exponential, below = node.inputs[0], node.inputs[1]
    total = None if below is None else below.producer()
    while total is not None and total.op_type in ("Reshape", "Expand", "Unsqueeze") and total.inputs[0] is not None:
        total = total.inputs[0].producer()
    maker = None if exponential is None else exponential.producer()
    if maker is None or maker.op_type != "Exp" or maker.inputs[0] is None:
        return None
    if total is None or total.op_type != "ReduceSum" or total.inputs[0] is not exponential or exponential is None:
        return None
    axes = None if exponential.shape is None else axes_of(total, len(exponential.shape))
    return ("Softmax", maker.inputs[0], axes[0]) if axes is not None and len(axes) == 1 else None


def criterion(
    targets: Sequence[Target], shapes: Mapping[str, tuple[int, ...]], *, temperature: float | None
) -> Criterion:
    """The weighted terms as a criterion of the step graph.

    shapes       of the teacher's values, for this batch
    temperature  of losses of logits that have one; None: each loss's own
    """

    def terms(op: Pen, values: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        found, taught = {}, {}
        for target in targets:
            student = values[target.student]
            if target.teacher not in taught:
                given = op.input(f"{TEACHER}{target.teacher}", shapes[target.teacher], element_of(student))
                taught[target.teacher] = given
            term = _term(op, target, student, taught[target.teacher], temperature)
            found[target.name] = term if target.weight == 1.0 else op.Mul(term, target.weight)
        return found

    return terms


def _term(op: Pen, target: Target, student: ir.Value, teacher: ir.Value, temperature: float | None) -> ir.Value:
    each = LOSSES[target.loss]
    one, two = shape_of(student), shape_of(teacher)
    if each.of == "text" and target.frames is not None:
        time, blank = target.frames
        return each(op, _frames_first(op, student, time, target.axis, two[0]), teacher, blank=blank)
    if each.of == "labels":
        axis = target.axis if target.axis is not None else -1
        return each(op, _rows(op, student, axis), _rows(op, teacher, -1))
    if one != two and not (each.widths and one[0] == two[0] and _same_places(target, one, two)):
        raise ModelError(
            f"{target.student!r} is {list(one)} in the student, {target.teacher!r} {list(two)} in the teacher, and "
            f"{target.loss!r} wants them alike; choose other values, or a loss that compares within each model: {_wide()}; or hint, "
            "with a connector"
        )
    if each.of == "logits":
        student, teacher = (_rows(op, value, target.axis) for value in (student, teacher))
    if each.channels:
        student, teacher = (_channels_second(op, value, target.axis) for value in (student, teacher))
    return each(op, student, teacher, **({} if temperature is None else {"temperature": temperature}))


def _same_places(target: Target, one: tuple[int, ...], two: tuple[int, ...]) -> bool:
    """Attention maps have a number for each place; the others a number for each pair of samples."""
    at = 1 if target.axis is None else target.axis
    places = [math.prod(size for a, size in enumerate(shape) if a not in (0, at % len(shape))) for shape in (one, two)]
    return not LOSSES[target.loss].channels or (len(one) > 2 and places[0] == places[1])


def _wide() -> str:
    return ", ".join(name for name, each in LOSSES.items() if each.widths)


def _channels_second(op: Pen, x: ir.Value, axis: int | None) -> ir.Value:
    """[n, c, *places]."""
    rank = len(shape_of(x))
    at = 1 if axis is None else axis % rank
    return x if at <= 1 or rank < 3 else op.Transpose(x, perm=[0, at, *(a for a in range(1, rank) if a != at)])  # type: ignore[no-any-return]


def _frames_first(op: Pen, x: ir.Value, time: int, axis: int | None, lines: int) -> ir.Value:
    """[frames, lines, classes]; also of [lines * frames, classes], in the order that `time` tells."""
    if len(shape_of(x)) == 2:
        x, axis = op.Reshape(x, [*((lines, -1) if time else (-1, lines)), shape_of(x)[1]]), 2
    at = (-1 if axis is None else axis) % 3
    return op.Transpose(x, perm=[time, 3 - time - at, at])  # type: ignore[no-any-return]


def _rows(op: Pen, x: ir.Value, axis: int | None) -> ir.Value:
    """[rows, classes]."""
    rank = len(shape_of(x))
    at = (-1 if axis is None else axis) % rank
    if at != rank - 1:
        x = op.Transpose(x, perm=[*(a for a in range(rank) if a != at), at])
    return x if rank == 2 else op.Reshape(x, [-1, shape_of(x)[-1]])  # type: ignore[no-any-return]


def losses_in_words(targets: Sequence[Target]) -> list[str]:
    """A sentence for each term."""
    return [
        f"{target.name}: {f'{target.weight:g} of ' if target.weight != 1 else ''}{target.loss} on {target.student!r} ({target.why})"
        for target in targets
    ]


__all__ = ["AUTO", "LABELS", "TEACHER", "Loss", "Target", "criterion", "end_of", "losses_in_words", "targets_of"]
