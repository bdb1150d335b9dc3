"""Shapes as values: which element of a small integer tensor is the size of which axis.

An axis's own Shape adapts by itself when it is cut, as long as the number only travels to where a shape is expected. A size
that is computed with (a head count from a width, a scale from a dimension) would change meaning: its axis is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of, input_of, ints_of, set_elements
from onnxcompress.operators.flow import Flow
from onnxcompress.operators.ties import Keep, Track
from onnxcompress.operators.view import Size

SHAPE_INPUT = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3, "Tile": 1}
"""Operator -> the input at which it expects a shape."""

Elements = list[Track | None]


def follow_sizes(flow: Flow) -> None:
    """Carry size elements through a node that only picks and joins them; freeze their axes where it computes with them."""
    node, known = flow.node, flow.ties.elements
    carried = [index for index, value in enumerate(node.inputs) if value is not None and value in known]
    if not carried or (node.op_type in SHAPE_INPUT and carried == [SHAPE_INPUT[node.op_type]]):
        return
    elements = _picked(node, known)
    if elements is None:
        for index in carried:
            for track in known[node.inputs[index]]:  # type: ignore[index]
                if track is not None:
                    flow.freeze(track, "its size is computed with")
    elif any(track is not None for track in elements):
        known[node.outputs[0]] = elements


def _picked(node: ir.Node, known: dict[ir.Value, Elements]) -> Elements | None:
    """The elements that a picking node hands on; None for a node that does anything else."""
    first = input_of(node, 0)
    if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
        return known.get(first) if first is not None else None
    if node.op_type == "Concat":
        return [element for value in node.inputs for element in _elements(value, known)]
    if first not in known:
        return None
    if node.op_type == "Gather" and (indices := constant_of(input_of(node, 1))) is not None:
        places = indices.reshape(-1)
        inside = all(-len(known[first]) <= place < len(known[first]) for place in places)
        return [known[first][int(place)] for place in places] if inside else None
    if node.op_type == "Slice":
        starts, ends = ints_of(input_of(node, 1)), ints_of(input_of(node, 2))
        steps = [1] if input_of(node, 4) is None else ints_of(input_of(node, 4))
        if starts and ends and steps:
            return known[first][starts[0] : ends[0] : steps[0]]
    return None


def _elements(value: ir.Value | None, known: dict[ir.Value, Elements]) -> Elements:
    if value in known:
        return known[value]
    constant = constant_of(value)
    if constant is not None:
        return [None] * int(np.size(constant))
    length = value.shape[0] if value is not None and value.shape is not None and len(value.shape) == 1 else 1
    return [None] * (length if isinstance(length, int) else 1)


def known_sizes(flow: Flow, index: int, sizes: tuple[Size, ...]) -> tuple[Size, ...]:
    """The sizes that a shape input asks for: symbols come from the axes whose Shape they are."""
    value = input_of(flow.node, index)
    elements = flow.ties.elements.get(value, []) if value is not None else []
    if len(elements) != len(sizes):
        return sizes
    return tuple(
        size if isinstance(size, int) or element is None or element.size is None else element.size
        for size, element in zip(sizes, elements, strict=True)
    )


def patch_sizes(flow: Flow, index: int, tracks: list[Track], copied: Mapping[int, Track] | None = None) -> None:
    """Where a labelled axis has its size written in a shape input, a cut writes the new size.

    -1 and the axis's own Shape adapt by themselves and are left alone. A size of another labelled axis freezes it.
    copied  output axis written as 0 -> the input axis that lends it its size; it adapts where both carry the same labels
    """
    value = input_of(flow.node, index)
    given = ints_of(value)
    elements = flow.ties.elements.get(value, []) if value is not None else []
    labelled = {axis: track.labels for axis, track in enumerate(tracks) if track.labels is not None}
    for axis, element in enumerate(elements):
        if element is None or element.labels is None:
            continue
        if element.labels is labelled.get(axis):
            labelled.pop(axis)
        else:
            flow.freeze(element, "its size is the size of another axis")
    for axis, lender in (copied or {}).items():
        if lender.labels is labelled.get(axis):
            labelled.pop(axis, None)
        elif axis not in labelled:
            flow.freeze(lender, "its size is the size of another axis")
    if given is not None:
        labelled = {axis: labels for axis, labels in labelled.items() if axis < len(given) and given[axis] != -1}
    if not labelled:
        return

    def apply(graph: ir.Model, node: ir.Node, keep: Keep) -> None:
        left = {axis: int(keep(labels).sum()) for axis, labels in labelled.items()}
        changed = {axis: count for axis, count in left.items() if count != len(labelled[axis])}
        if changed:
            set_elements(graph, node, index, changed)

    flow.patch(apply)


def shape(flow: Flow) -> None:
    """Shape: its elements are the sizes of the input's axes."""
    tracks = flow.tracks(0)
    if tracks is None:
        flow.emit([flow.closed(None, "it is a shape")])
        return
    sizes = tracks[flow.view.number("start", 0) : flow.node.attributes.get_int("end")]
    flow.ties.elements[flow.node.outputs[0]] = list(sizes)
    flow.emit([flow.closed(len(sizes), "it is a shape")])


def size(flow: Flow) -> None:
    """Size: a product of all sizes, so none of them may change."""
    for track in flow.tracks(0) or []:
        flow.freeze(track, "its size is computed with")
    flow.emit([])
