"""Operators whose axes depend on the values of constants or attributes: one function each, with the patch that a cut needs.

FLOWS at the end lists them. Everything not understood calls `flow.refuse(why)`: closed by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import (
    axes_of,
    input_of,
    ints_of,
    new_constant,
    set_elements,
    set_vector,
)
from onnxcompress.operators.bodies import if_, loop
from onnxcompress.operators.extents import constant_of_shape, expand, pad, resize, tile
from onnxcompress.operators.flow import Flow
from onnxcompress.operators.follow import follow
from onnxcompress.operators.reshape import flatten, reshape
from onnxcompress.operators.shapes import shape, size
from onnxcompress.operators.ties import Keep, Reason, Track
from onnxcompress.operators.view import Case, letters, sizes_of


def concat(flow: Flow) -> None:
    """Laid end to end along `axis`; the other axes are the same. A part without labels is frozen weight for its neighbours only."""
    parts = [flow.tracks(index) for index in range(len(flow.node.inputs))]
    if any(part is None for part in parts) or len({len(part) for part in parts if part is not None}) != 1:
        flow.refuse("the ranks of its inputs are not known")
        return
    known = [part for part in parts if part is not None]
    axis = flow.view.number("axis", 0) % max(len(known[0]), 1)
    columns = [[part[place] for part in known] for place in range(len(known[0]))]
    flow.emit(
        [
            _end_to_end(flow, column, place) if place == axis else _meet_and_bind(flow, column, place)
            for place, column in enumerate(columns)
        ]
    )


def _meet_and_bind(flow: Flow, tracks: list[Track], axis: int) -> Track:
    """One axis that all inputs share; constants among them carry what the others have."""
    computed = [track for index, track in enumerate(tracks) if not flow.is_constant(index) or track.labels is not None]
    met = flow.meet(computed or tracks)
    for index, track in enumerate(tracks):
        if flow.is_constant(index) and track.labels is None:
            _bind_constant(flow, index, axis, met)
    return met


def _bind_constant(flow: Flow, index: int, axis: int, track: Track, role: str = "bias") -> None:
    name = flow.node.inputs[index].name or ""  # type: ignore[union-attr]
    if track.labels is None:
        flow.ties.close(name, axis, track.reason)
    else:
        flow.ties.bind(name, axis, track.labels, role, flow.node.name or "")


def _end_to_end(flow: Flow, tracks: list[Track], axis: int) -> Track:
    """Labels one after another; a closed part gets frozen labels of its own, so that the others stay free."""
    if not any(track.labels is not None for track in tracks):
        sizes = [track.size for track in tracks]
        total = sum(sizes) if all(isinstance(size, int) for size in sizes) else None  # type: ignore[arg-type]
        return Track(total, reason=tracks[0].reason)
    pieces = []
    for index, track in enumerate(tracks):
        if track.labels is None and not isinstance(track.size, int):
            for other in tracks:
                flow.freeze(other, "it is joined with a part of unknown size")
            return flow.closed(None, "it is joined with a part of unknown size")
        labels = track.labels
        if labels is None:
            labels = flow.ties.fresh(int(str(track.size)))
            flow.ties.freeze(labels, track.reason)
            if flow.is_constant(index):
                flow.ties.close(flow.node.inputs[index].name or "", axis, track.reason)  # type: ignore[union-attr]
        pieces.append(labels)
    joined = np.concatenate(pieces)
    return Track(len(joined), joined, rests=all(track.rests for track in tracks))


def split(flow: Flow) -> None:
    """The parts of an axis; their sizes are written out when a cut makes them unequal."""
    tracks = flow.opened(0)
    count = len(flow.node.outputs)
    if tracks is None:
        flow.refuse("the rank of its input is not known")
        return
    axis = flow.view.number("axis", 0) % max(len(tracks), 1)
    track = tracks[axis]
    sizes = _split_sizes(flow, track, count)
    if track.labels is None or sizes is None:
        flow.freeze(track, "its parts are not known")
        for output in range(count):
            size = sizes[output] if sizes is not None else None
            flow.emit([*tracks[:axis], Track(size, reason=track.reason), *tracks[axis + 1 :]], output)
        return
    parts = np.split(track.labels, np.cumsum(sizes)[:-1])
    for output, labels in enumerate(parts):
        flow.emit([*tracks[:axis], replace(track, labels=labels, size=len(labels)), *tracks[axis + 1 :]], output)

    def apply(graph: ir.Model, node: ir.Node, keep: Keep) -> None:
        left = np.array([int(keep(labels).sum()) for labels in parts], np.int64)
        node.attributes.pop("num_outputs", None)
        if input_of(node, 1) is None:
            node.resize_inputs(2)
            node.replace_input_with(1, new_constant(graph, f"{node.name}.split", left))
        else:
            set_vector(graph, node, 1, left)

    flow.patch(apply)


def _split_sizes(flow: Flow, track: Track, count: int) -> list[int] | None:
    given = ints_of(input_of(flow.node, 1))
    if given is not None or input_of(flow.node, 1) is not None:
        return given
    if not isinstance(track.size, int):
        return None
    chunk = -(-track.size // count)
    return [min(chunk, track.size - chunk * number) for number in range(count)]


def gather(flow: Flow) -> None:
    """Constant indices select labels; computed ones look rows up (an embedding), and the looked-up axis is closed."""
    data, indices = flow.tracks(0), flow.tracks(1)
    if data is None or indices is None:
        flow.refuse("the rank of its input is not known")
        return
    axis = flow.view.number("axis", 0) % max(len(data), 1)
    chosen = flow.view.constant(1)
    if chosen is None or flow.is_constant(0):
        names = letters(len(data))
        looked, stars = names[axis], letters(len(indices), "s")
        out = [*names[:axis], *stars, *names[axis + 1 :]]
        term = "w" if flow.is_constant(0) else "x"
        signature = f"{term}[{','.join(names)}] index[{','.join(stars)}] -> y[{','.join(out)}]"
        follow(flow, Case(signature, zeros="linear" if term == "w" else "keeps", adds_up=False))
        if term == "w" and looked:
            flow.ties.close(flow.node.inputs[0].name or "", axis, Reason("its rows are looked up by number", flow.name))  # type: ignore[union-attr]
        return
    track = data[axis]
    if track.labels is None or chosen.ndim > 1:
        flow.freeze(track, "it is selected by a table of numbers")
        flow.emit([*data[:axis], *[flow.closed(t.size, "selected") for t in indices], *data[axis + 1 :]])
        return
    if np.any((chosen < -len(track.labels)) | (chosen >= len(track.labels))):
        flow.refuse("it takes positions that do not exist")
        return
    picked = track.labels[chosen]
    if chosen.ndim == 0:
        flow.ties.freeze(track.labels, Reason("one position of it is taken by number", flow.name))
        flow.emit([*data[:axis], *data[axis + 1 :]])
        return
    flow.emit([*data[:axis], replace(track, labels=picked, size=len(picked)), *data[axis + 1 :]])
    whole = track.labels

    def apply(graph: ir.Model, node: ir.Node, keep: Keep) -> None:
        place = np.cumsum(keep(whole)) - 1
        left = chosen[keep(picked)] % len(whole)
        set_vector(graph, node, 1, place[left])

    flow.patch(apply)


def slice_(flow: Flow) -> None:
    """A run of labels with step one; other steps freeze the axis. Starts and ends are patched."""
    tracks = flow.opened(0)
    if tracks is None:
        flow.refuse("the rank of its input is not known")
        return
    rank = len(tracks)
    starts, ends, steps = (ints_of(input_of(flow.node, index)) for index in (1, 2, 4))
    named = input_of(flow.node, 3)
    axes = ints_of(named) if named is not None else list(range(len(starts or ends or [])))
    sizes = sizes_of(flow.node.outputs[0])
    result = list(tracks)
    if axes is None:
        flow.refuse("its axes are computed")
        return
    for number, axis in enumerate(axis % max(rank, 1) for axis in axes):
        size = sizes[axis] if sizes is not None and axis < len(sizes) else None
        step = 1 if input_of(flow.node, 4) is None else (steps[number] if steps is not None else None)
        if starts is None or ends is None or step is None:
            result[axis] = flow.end(tracks[axis], size, "where it is sliced is computed")
        else:
            result[axis] = _sliced(flow, tracks[axis], size, (number, starts[number], ends[number], step))
    flow.emit(result)


def _sliced(flow: Flow, track: Track, size: int | str | None, cut: tuple[int, int, int, int]) -> Track:
    number, start, end, step = cut
    if track.labels is None:
        return Track(size, reason=track.reason)
    if step != 1:
        return flow.end(track, size, f"it is sliced with step {step}")
    whole = track.labels
    low, high, _ = slice(start, end).indices(len(whole))

    def apply(graph: ir.Model, node: ir.Node, keep: Keep) -> None:
        left = np.concatenate([[0], np.cumsum(keep(whole))])
        set_elements(graph, node, 1, {number: int(left[low])})
        set_elements(graph, node, 2, {number: int(left[max(high, low)])})

    flow.patch(apply)
    return replace(track, labels=whole[low:high], size=max(high - low, 0))


def squeeze(flow: Flow) -> None:
    """Axes of size one go."""
    tracks = flow.opened(0)
    if tracks is None:
        flow.refuse("the rank of its input is not known")
        return
    every = [axis for axis, track in enumerate(tracks) if track.size == 1]
    axes = axes_of(flow.node, len(tracks), every)
    if axes is None or (not axes and not all(isinstance(track.size, int) for track in tracks)):
        flow.refuse("its axes are computed")
        return
    axes = axes or every
    for axis in axes:
        flow.freeze(tracks[axis], "it is squeezed away")
    flow.emit([track for axis, track in enumerate(tracks) if axis not in axes])


def unsqueeze(flow: Flow) -> None:
    """Axes of size one come."""
    tracks = flow.opened(0)
    axes = axes_of(flow.node, (len(tracks) if tracks is not None else 0) + len(ints_of(input_of(flow.node, 1)) or [0]))
    if tracks is None or axes is None:
        flow.refuse("its axes are computed")
        return
    rest = iter(tracks)
    count = len(tracks) + len(axes)
    flow.emit(
        [Track(1, reason=Reason("it has size one", flow.name)) if axis in axes else next(rest) for axis in range(count)]
    )


FLOWS: dict[str, Callable[[Flow], None]] = {
    "Concat": concat,
    "Split": split,
    "Gather": gather,
    "Slice": slice_,
    "Pad": pad,
    "Resize": resize,
    "Upsample": resize,
    "Expand": expand,
    "Tile": tile,
    "ConstantOfShape": constant_of_shape,
    "Shape": shape,
    "Size": size,
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "If": if_,
    "Loop": loop,
    "Scan": loop,
}
