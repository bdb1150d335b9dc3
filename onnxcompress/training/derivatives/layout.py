"""Derivatives of operators that only move entries: reshaped, joined, cut, repeated, padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.training.derivatives.resize import resize
from onnxcompress.training.derivatives.site import Gradients, Rule, Site, summed_to, zeros_like
from onnxcompress.training.lowering import scattered
from onnxcompress.training.pen import Pen, shape_of


def _reshape(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same entries in the same order."""
    return [op.Reshape(dy, list(at.shape(0)))]


def _transpose(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    rank = len(at.shape(0))
    return [op.Transpose(dy, perm=np.argsort(at.attribute("perm", list(range(rank))[::-1])).tolist())]


def _concat(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    axis = at.axis(0)
    sizes = [at.shape(i)[axis] for i in range(len(at.x))]
    if len(sizes) == 1:
        return [dy]
    return op.Split(dy, sizes, axis=axis, outputs=len(sizes))  # type: ignore[no-any-return]


def _expand(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    return [summed_to(op, dy, at.shape(0))]


def _sizes_of_slice(at: Site) -> list[tuple[int, range]]:
    """Axis and the indices that are taken along it."""
    shape = at.shape(0)
    starts, ends = at.ints(1), at.ints(2)
    axes = at.ints(3) if at.has(3) else list(range(len(starts)))
    steps = at.ints(4) if at.has(4) else [1] * len(starts)
    found = []
    for start, end, axis, by in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis % len(shape)]
        found.append(
            (axis % len(shape), range(*slice(start, None if by < 0 and end < -size else end, by).indices(size)))
        )
    return found


def _slice(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """dy among zeros: one Pad for axes that are cut in one piece, then each axis with gaps."""
    shape = at.shape(0)
    begins, ends = [0] * len(shape), [0] * len(shape)
    gaps = []
    for axis, taken in _sizes_of_slice(at):
        if taken.step == 1:
            begins[axis], ends[axis] = taken.start, shape[axis] - taken.stop
        else:
            gaps.append((axis, taken))
    if any(begins) or any(ends):
        dy = op.Pad(dy, begins + ends)
    for axis, taken in gaps:
        dy = scattered(op, dy, np.array(taken), shape[axis], axis)
    return [dy]


def _pad(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Zeros around: cut off again. reflect, edge, wrap: each axis was a lookup, whose entries add up."""
    if at.wants(2):
        raise at.refused("the value that it pads with is trained")
    shape, mode = at.shape(0), at.attribute("mode", "constant")
    pads = at.ints(1)
    axes = [axis % len(shape) for axis in at.ints(3)] if at.has(3) else list(range(len(shape)))
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if not (begin or end):
            continue
        size = shape[axis]
        if mode != "constant" and min(begin, end) >= 0:
            taken = np.pad(np.arange(size), (begin, end), mode=mode)
            dy = scattered(op, dy, taken, size, axis)
        elif mode == "constant":
            low, high = max(begin, 0), shape_of(dy)[axis] - max(end, 0)
            dy = op.Slice(dy, [low], [high], [axis])
            cut = [0] * (2 * len(shape))
            cut[axis], cut[axis + len(shape)] = max(-begin, 0), max(-end, 0)
            dy = op.Pad(dy, cut) if any(cut) else dy
        else:
            raise at.refused(f"mode {mode!r} with negative pads")
    return [dy]


def _tile(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Each axis apart as [repeats, size]; the repeats add up."""
    shape, repeats = at.shape(0), at.ints(1)
    apart = op.Reshape(dy, [each for pair in zip(repeats, shape, strict=True) for each in pair])
    return [op.ReduceSum(apart, list(range(0, 2 * len(shape), 2)), keepdims=0), None]


def _cumulated(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Each entry is in all sums from its place on: the sums from the other end."""
    kind = {"exclusive": at.attribute("exclusive", 0), "reverse": 1 - at.attribute("reverse", 0)}
    return [op.CumSum(dy, at.x[1], **kind), None]


def _trilu(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    return [op.Trilu(dy, *at.x[1:], upper=at.attribute("upper", 1)), *[None] * (len(at.x) - 1)]


def _reversed(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Turned round once more."""
    axes = {"batch_axis": at.attribute("batch_axis", 1), "time_axis": at.attribute("time_axis", 0)}
    return [op.ReverseSequence(dy, at.x[1], **axes), None]


def split(op: Pen, at: Site, dys: Sequence[ir.Value | None]) -> Gradients:
    """The parts joined again; zeros for one that nothing reads."""
    parts = [zeros_like(op, y) if dy is None else dy for y, dy in zip(at.node.outputs, dys, strict=True)]
    return [op.Concat(*parts, axis=at.axis(0)) if len(parts) > 1 else parts[0]]


LAYOUT: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Concat": _concat,
    "Expand": _expand,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _tile,
    "CumSum": _cumulated,
    "Trilu": _trilu,
    "ReverseSequence": _reversed,
    "Resize": resize,
}
