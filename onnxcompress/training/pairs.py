"""Pairs of inner values that a student may learn from its teacher: found by what they stand for, else by resolution and depth.

A *stage* is all values of one resolution (the axes besides the batch's and the channels'). As in the papers of attention transfer and
hints, what is compared is the last value of a stage, before the network goes to another resolution; a network of one resolution, as
transformers are, is compared at thirds of its depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.model import Origin
from onnxcompress.training.pen import is_float

MOST = 4
"""Pairs at most, the deepest ones: the papers compare three or four stages."""

FIRST = dict.fromkeys(
    (
        "Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "MaxPool",
        "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "PRelu", "Pad", "DepthToSpace",
    ),
    1,
)  # fmt: skip
LAST = dict.fromkeys(
    ("MatMul", "Gemm", "LayerNormalization", "RMSNormalization", "SkipLayerNormalization", "Gather"), -1
)
CHANNELS: dict[str, int] = {**FIRST, **LAST}
"""Operator -> the axis of the channels of what it gives."""

WEIGHTED = ("MatMul", "Gemm", "Gather")
"""Those that make channels where one operand is a constant; products of computed values are inside attention."""

THROUGH = {
    "Relu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Clip", "Gelu", "Erf", "Softplus", "Mish", "Add", "Sub",
    "Mul", "Div", "Concat", "Identity", "Dropout", "Cast", "BiasGelu", "FastGelu", "QuickGelu", "Sqrt", "Pow", "Exp",
}  # fmt: skip
"""Operators whose channels stand where those of their first computed input do."""


JOINS = ("Add", "LayerNormalization", "RMSNormalization", "SkipLayerNormalization")
"""Where the blocks of a network of one resolution end."""


@dataclass(frozen=True)
class Pair:
    """A value of the student and one of the teacher; axis of the channels in both, None where it is not known; why: for the report."""

    student: str
    teacher: str
    axis: int | None
    why: str


@dataclass(frozen=True)
class Spot:
    """A value that may be compared: the operator that makes it, its stage and axis of channels, where it stands (0 first, 1 last).

    joins  whether a block ends there: an Add of a bias is no such place
    """

    name: str
    made_by: str
    stage: tuple[int, ...]
    axis: int
    depth: float
    joins: bool = False


def channel_axis(value: ir.Value | None, _seen: set[ir.Value] | None = None) -> int | None:
    """The axis of a value's channels, as the operators before it tell; None where they do not."""
    seen = set() if _seen is None else _seen
    node = None if value is None or value in seen else value.producer()
    if node is None or value is None:
        return None
    seen.add(value)
    if node.op_type in CHANNELS:
        known = node.op_type not in WEIGHTED or any(
            each is not None and each.const_value is not None for each in node.inputs[:2]
        )
        return CHANNELS[node.op_type] if known else None
    if node.op_type == "Transpose":
        before, perm = channel_axis(node.inputs[0], seen), list(node.attributes.get_ints("perm", []))
        return perm.index(before % len(perm)) if before is not None and perm else None
    if node.op_type not in THROUGH:
        return None
    computed = [each for each in node.inputs if each is not None and each.const_value is None]
    widest = max((_rank(each) for each in computed), default=0)  # what is broadcast has fewer axes
    found = (channel_axis(each, seen) for each in computed if _rank(each) == widest)
    return next((axis for axis in found if axis is not None), None)


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)


def found_pairs(
    student: Model,
    teacher: Model,
    shapes: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]],
    learned: Iterable[str],
) -> list[Pair]:
    """Up to MOST, in the order of the student's graph.

    shapes   of all values of student and teacher for one feed
    learned  values of the student that are learned already: these and what follows them is left out
    """
    own, taught = _spots(student, shapes[0], learned), _spots(teacher, shapes[1], ())
    by_name = {spot.name: spot for spot in taught}
    stages = _stages(own)
    found = []
    for stage in stages:
        here = [spot for spot in own if spot.stage == stage]
        twins = {spot.name: _stands_for(spot, student, by_name) for spot in here}
        known = [spot for spot in here if twins[spot.name] is not None]
        for spot in _ends(known or here, thirds=len(stages) == 1):
            other = twins[spot.name] or _by_depth(spot, own, taught)
            if other is not None:
                found.append(Pair(spot.name, other.name, spot.axis, _why(spot, twins[spot.name])))
    return found[-MOST:]


def _why(spot: Spot, twin: Spot | None) -> str:
    place = f"the last of {'x'.join(map(str, spot.stage))}"
    if twin is None:
        return f"{place}; same resolution and about the same depth"
    return f"{place}; {'of the same name' if spot.name == twin.name else 'cut from it'}"


def _ends(spots: Sequence[Spot], *, thirds: bool) -> list[Spot]:
    """The last value of a stage; of a network of one stage one at each third of its depth."""
    if not thirds:
        return list(spots[-1:])
    joins = [spot for spot in spots if spot.joins] or list(spots)
    wanted = [joins[-1].depth * share for share in (1 / 3, 2 / 3, 1)] if joins else []
    nearest = [min(joins, key=lambda spot: abs(spot.depth - depth)) for depth in wanted]
    return list(dict.fromkeys(nearest))


def _stages(spots: list[Spot]) -> list[tuple[int, ...]]:
    """Each once, in order of its last value."""
    last = {spot.stage: number for number, spot in enumerate(spots)}
    return sorted(last, key=lambda stage: last[stage])


def _stands_for(spot: Spot, student: Model, taught: Mapping[str, Spot]) -> Spot | None:
    """What it is in the teacher: by its origin, or of the same name and made alike."""
    other = taught.get(student.origin.get(spot.name, Origin(spot.name)).name)
    alike = other is not None and (other.stage, other.axis, other.made_by) == (spot.stage, spot.axis, spot.made_by)
    return other if alike else None


def _by_depth(spot: Spot, own: Sequence[Spot], taught: Sequence[Spot]) -> Spot | None:
    """Of the same resolution, and made by the same operator if there is one, as far into the stage as the student's is in its own."""

    def alike(spots: Sequence[Spot]) -> list[Spot]:
        return [
            each for each in spots if (each.stage, each.axis, each.made_by) == (spot.stage, spot.axis, spot.made_by)
        ]

    mine, theirs = alike(own), alike(taught)
    if not theirs:
        return next((each for each in reversed(taught) if (each.stage, each.axis) == (spot.stage, spot.axis)), None)
    share = (mine.index(spot) + 1) / len(mine)
    return min(theirs, key=lambda each: abs((theirs.index(each) + 1) / len(theirs) - share))


def _spots(model: Model, shapes: Mapping[str, tuple[int, ...]], learned: Iterable[str]) -> list[Spot]:
    """All values of floats that have channels and places, before what is learned already."""
    after, found = set(learned), []
    nodes = list(model.ir.graph)
    for number, node in enumerate(nodes):
        if any(value is not None and value.name in after for value in node.inputs):
            after.update(value.name or "" for value in node.outputs)
        value = node.outputs[0]
        shape, name = shapes.get(value.name or ""), value.name or ""
        if name in after or shape is None or len(shape) < 3 or not is_float(value):
            continue
        axis = channel_axis(value)
        if axis is None:
            continue
        at = axis % len(shape)
        stage = tuple(size for a, size in enumerate(shape) if a not in (0, at))
        if prod(stage) > 1 and shape[at] > 1 and at:
            bias = node.op_type == "Add" and any(
                each is not None and each.const_value is not None for each in node.inputs
            )
            joins = node.op_type in JOINS and not bias
            found.append(Spot(name, node.op_type, stage, at, number / max(len(nodes) - 1, 1), joins))
    return found
