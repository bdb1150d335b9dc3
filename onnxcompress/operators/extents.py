"""Operators that make axes longer, or values of a given shape: padding, resampling, repeating, filling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxcompress.model.edit import input_of, ints_of
from onnxcompress.operators.flow import LONGEST, Flow
from onnxcompress.operators.shapes import patch_sizes
from onnxcompress.operators.ties import Track
from onnxcompress.operators.view import sizes_of


def pad(flow: Flow) -> None:
    """Axes padded by nothing stay; padding along a labelled axis freezes it."""
    tracks, pads = flow.opened(0), ints_of(input_of(flow.node, 1))
    if tracks is None or pads is None:
        flow.refuse("its pads are computed")
        return
    rank = len(tracks)
    named = input_of(flow.node, 3)
    axes = list(range(rank)) if named is None else ints_of(named)
    if axes is None:
        flow.refuse("its axes are computed")
        return
    padded = {axis % rank for number, axis in enumerate(axes) if pads[number] or pads[number + len(axes)]}
    sizes = sizes_of(flow.node.outputs[0])
    keeps_zero = flow.view.text("mode", "constant") != "constant" or not np.any(flow.view.constant(2))
    result = []
    for axis, track in enumerate(tracks):
        if axis in padded:
            size = sizes[axis] if sizes is not None else None
            result.append(flow.end(track, size, "it is padded"))
        else:
            result.append(replace(track, rests=track.rests and keeps_zero))
    flow.emit(result)


def resize(flow: Flow) -> None:
    """Axes that keep their size stay; those that are resampled are closed. A given size is patched."""
    tracks, sizes = flow.opened(0), sizes_of(flow.node.outputs[0])
    if tracks is None:
        flow.refuse("the rank of its input is not known")
        return
    scales = flow.view.constant(2) if flow.node.op_type == "Resize" else flow.view.constant(1)
    result = []
    for axis, track in enumerate(tracks):
        size = sizes[axis] if sizes is not None else None
        same = (scales is not None and axis < scales.size and scales.reshape(-1)[axis] == 1) or (
            track.labels is not None and size == len(track.labels)
        )
        result.append(track if same else flow.end(track, size, "it is resampled"))
    flow.emit(result)
    if flow.node.op_type == "Resize" and input_of(flow.node, 3) is not None:
        patch_sizes(flow, 3, result)


def expand(flow: Flow) -> None:
    """Axes are repeated where the shape asks for it; labelled ones keep their size, and the shape is patched."""
    tracks, sizes = flow.opened(0), sizes_of(flow.node.outputs[0])
    if tracks is None or sizes is None:
        flow.refuse("its shape is not known")
        return
    lead = len(sizes) - len(tracks)
    result = [flow.closed(size, "it is repeated") for size in sizes]
    for axis, track in enumerate(tracks):
        if track.labels is not None and sizes[lead + axis] == len(track.labels):
            result[lead + axis] = track
        else:
            result[lead + axis] = flow.end(track, sizes[lead + axis], "it is repeated")
    flow.emit(result)
    patch_sizes(flow, 1, result)


def tile(flow: Flow) -> None:
    """Axes repeated: the copies of a channel go together."""
    tracks, repeats = flow.opened(0), ints_of(input_of(flow.node, 1))
    sizes = sizes_of(flow.node.outputs[0])
    if tracks is None:
        flow.refuse("the rank of its input is not known")
        return
    result = []
    for axis, track in enumerate(tracks):
        times = repeats[axis] if repeats is not None else None
        size = sizes[axis] if sizes is not None else None
        if times is not None and track.labels is not None and len(track.labels) * times <= LONGEST:
            labels = np.tile(track.labels, times)
            result.append(replace(track, labels=labels, size=len(labels)))
        else:
            result.append(track if times == 1 else flow.end(track, size, "it is repeated"))
    flow.emit(result)


def constant_of_shape(flow: Flow) -> None:
    """A filled tensor is whatever it meets: fresh labels, no weights; its shape is patched."""
    sizes = sizes_of(flow.node.outputs[0])
    if sizes is None:
        flow.refuse("its shape is not known")
        return
    fill = flow.node.attributes.get("value")
    zero = fill is None or not np.any(fill.as_tensor().numpy())
    tracks = [
        Track(size, flow.ties.fresh(size), rests=zero)
        if isinstance(size, int) and 1 < size <= LONGEST
        else flow.closed(size, "it is filled")
        for size in sizes
    ]
    flow.emit(tracks)
    patch_sizes(flow, 0, tracks)
