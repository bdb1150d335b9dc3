"""Orders of channels that forms ask for, made by the weights around them where all that holds these channels can change places.

What writes a layer's inputs, reads its outputs or scales them on the way has its channels in the order of the groups then (see
channels/), and the chain needs no Gather. Where channels are an input or output of the model, meet others in a sum whose order is taken,
or lie under an operator that is not followed, the Gather stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.channels.analyse import Channels, Group, analyse
from onnxcompress.channels.edit import Moved, movable, reordered
from onnxcompress.model import Model
from onnxcompress.model.edit import coded_of
from onnxcompress.operators.layer import Layer


@dataclass(frozen=True, eq=False)
class Ordered:
    """A layer that is to become a chain with orders of channels at its ends.

    reads   the input channel that each channel of the chain comes from; None: as they are
    writes  the channel of the chain that each output channel comes from; None likewise
    """

    layer: Layer
    reads: np.ndarray | None
    writes: np.ndarray | None


def settled(model: Model, wanted: Sequence[Ordered]) -> tuple[Model, list[Ordered]]:
    """The model with its channels in these orders as far as can be, and what each chain still has to do itself."""
    channels = analyse(model)
    claimed: dict[str, tuple[Group, np.ndarray]] = {}
    for each in wanted:
        for axis, order in _ends(model, each):
            found = None if order is None else _claim(model, channels, each.layer.weight, axis, order)
            if found is not None and found[0].name not in claimed:
                claimed[found[0].name] = found
    if not claimed:
        return model, list(wanted)
    new, moved = reordered(model, channels, list(claimed.values()))
    return new, [_left(model, each, moved) for each in wanted]


def _ends(model: Model, each: Ordered) -> list[tuple[int, np.ndarray | None]]:
    """Axis of the weight -> for each position there the one whose channel should be there, at both ends."""
    outs, ins = _axes(each.layer)
    writes = None if each.writes is None else np.argsort(each.writes)
    return [(ins, each.reads), (outs, writes)]


def _axes(layer: Layer) -> tuple[int, int]:
    """Of outputs and inputs."""
    return (1, 0) if layer.op == "ConvTranspose" else (layer.order[0], layer.order[1])


def _claim(
    model: Model, channels: Channels, weight: str, axis: int, order: np.ndarray
) -> tuple[Group, np.ndarray] | None:
    """The group that has all positions of this axis once, and the order of its units that brings these channels there."""
    for group in channels.groups:
        members = [each for each in group.members if (each.tensor, each.axis) == (weight, axis)]
        if len(members) != 1 or members[0].positions.shape != (len(order), 1):
            continue
        if any(coded_of(model.initializers[each.tensor]) is not None for each in group.members):
            return None
        places = members[0].positions[:, 0]
        unit_at = np.argsort(places)
        return (group, unit_at[order[places]]) if movable(channels, group) else None
    return None


def _left(model: Model, each: Ordered, moved: Moved) -> Ordered:
    """What is still to be done where positions of the weight hold other channels than before."""
    outs, ins = _axes(each.layer)
    now_in, now_out = moved.get((each.layer.weight, ins)), moved.get((each.layer.weight, outs))
    reads, writes = each.reads, each.writes
    if now_in is not None:
        reads = np.argsort(now_in)[np.arange(len(now_in)) if reads is None else reads]
    if now_out is not None:
        writes = now_out if writes is None else writes[now_out]
    return Ordered(each.layer, reads, writes)
