"""Free cuts: units that go without any change of the output, found in the weights alone.

unread      every weight that reads the unit is zero
zero        everything that writes it is zero, and zero it stays on the way to its readers
constant    the same whatever the input, wherever weights read it; what they make of it goes into their bias
duplicate   written exactly like another unit of its group; the readers' weights of both are added into one

A constant behind zero padding is none: the kernel sees it within the image and zero beyond. One that is zero there has
nothing to fold and goes behind any padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.channels import Channels, Group, Member
from onnxcompress.channels.edit import keep_mask
from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, input_of, new_constant, set_constant, walk
from onnxcompress.operators.layer import Layer, by_node, layers
from onnxcompress.passes.prune.bounds import ANYTHING, bounds, is_padded


@dataclass(frozen=True, eq=False)
class FreeCuts:
    """[units of the group] bool each; `into` [units]: for a duplicate, the unit that takes its readers over, else -1."""

    unread: np.ndarray
    zero: np.ndarray
    constant: np.ndarray
    into: np.ndarray

    @property
    def all(self) -> np.ndarray:
        """[units] bool."""
        return self.unread | self.zero | self.constant | (self.into >= 0)


def slices_of(model: Model, member: Member) -> np.ndarray:
    """[units, elements]: what each unit occupies in one tensor."""
    return slices_in(model.array(member.tensor), member)


def slices_in(array: np.ndarray, member: Member) -> np.ndarray:
    """The same of any array of the tensor's shape."""
    return np.moveaxis(array, member.axis, 0)[member.positions].reshape(len(member.positions), -1)


def free_cuts(model: Model, channels: Channels, group: Group, *, exact: bool = True) -> FreeCuts:
    """What may go for nothing; at least one unit is left.

    exact  False where the analysis allows axes along which a cut changes what is left: no constants are looked for
    """
    none = np.zeros(group.size, bool)
    readers = [member for member in group.members if member.role == "read"]
    writers = [member for member in group.members if member.role in ("write", "bias", "scale")]
    blank = [~slices_of(model, member).any(axis=1) for member in readers]
    summed, moved = _units(channels.ties.summed, channels, group), _units(channels.ties.moved, channels, group)
    unread = np.logical_and.reduce(blank) & ~summed if blank else none
    silent = [~slices_of(model, member).any(axis=1) for member in writers]
    zero = np.logical_and.reduce(silent) & ~moved if silent and readers else none
    constant = _constant(model, group) & ~summed & ~unread & ~zero if exact else none
    into = np.full(group.size, -1)
    if readers and not summed.any():
        into = _duplicates(model, channels, group, unread | zero | constant)
    found = FreeCuts(unread, zero & ~unread, constant, into)
    return found if not found.all.all() else FreeCuts(_spared(unread), _spared(found.zero), _spared(constant), into)


def _spared(flags: np.ndarray) -> np.ndarray:
    """The same without the first unit: something must be left."""
    return np.concatenate([[False], flags[1:]])


def _units(labels: list[np.ndarray], channels: Channels, group: Group) -> np.ndarray:
    """Which units of the group carry any of these labels."""
    if not labels:
        return np.zeros(group.size, bool)
    return np.isin(group.units, np.unique(channels.unit[np.concatenate(labels)]))


def _duplicates(model: Model, channels: Channels, group: Group, gone: np.ndarray) -> np.ndarray:
    """For each unit, an earlier one that is written by the very same numbers and goes the same way, else -1."""
    written = [slices_of(model, member) for member in group.members if member.role != "read"]
    into = np.full(group.size, -1)
    if not written:
        return into
    rows = np.ascontiguousarray(np.hstack([part.astype(np.float64) for part in written])) + 0.0
    first: dict[bytes, int] = {}
    for unit in np.flatnonzero(~gone):
        keeper = first.setdefault(rows[unit].tobytes(), int(unit))
        into[unit] = keeper if keeper != unit else -1
    if (into >= 0).any():
        way = _ways(channels, group)
        into[[unit for unit in np.flatnonzero(into >= 0) if (way[unit] != way[into[unit]]).any()]] = -1
    return into


def _ways(channels: Channels, group: Group) -> np.ndarray:
    """[units, values that hold some of the units]: which. Behind a Split, parts may meet different operators."""
    held = [
        np.isin(group.units, channels.unit[track.labels])
        for tracks in channels.tracks.values()
        for track in tracks
        if track.labels is not None
    ]
    return np.stack([flags for flags in held if flags.any()] or [np.ones(group.size, bool)], axis=1)


def merged(model: Model, group: Group, into: np.ndarray) -> dict[str, np.ndarray]:
    """Reader tensors with the duplicates' weights added to those of the units that stay."""
    changed: dict[str, np.ndarray] = {}
    pairs = np.flatnonzero(into >= 0)
    for member in group.members:
        if member.role != "read" or not len(pairs):
            continue
        values = changed.get(member.tensor, model.array(member.tensor).copy())
        moved = np.moveaxis(values, member.axis, 0)
        for unit in pairs:
            moved[member.positions[into[unit]]] += moved[member.positions[unit]]
        changed[member.tensor] = values
    return changed


# -- constants -----------------------------------------------------------------------------------------------------

CHANNEL_AXIS = {"Conv": 1, "Gemm": -1, "MatMul": -1}
"""Operators whose bias can take a constant input in -> the axis along which they read channels."""


def _constant(model: Model, group: Group) -> np.ndarray:
    """[units] bool: is every weight that reads the unit fed a constant that its bias can take in?"""
    pairs = _read_by(model, group)
    seen = {member.tensor for _, member in pairs}
    if not pairs or any(member.tensor not in seen for member in group.members if member.role == "read"):
        return np.zeros(group.size, bool)
    return np.logical_and.reduce([_foldable(model, layer, member) for layer, member in pairs])


def _read_by(model: Model, group: Group) -> list[tuple[Layer, Member]]:
    """Every known layer that reads the group, with the weight's axis that does."""
    by_weight: dict[str, list[Layer]] = {}
    for layer in layers(model):
        by_weight.setdefault(layer.weight, []).append(layer)
    return [(layer, m) for m in group.members if m.role == "read" for layer in by_weight.get(m.tensor, [])]


def _foldable(model: Model, layer: Layer, member: Member) -> np.ndarray:
    """[units] bool, for one reader."""
    node = next((node for node in model.ir.graph if node.name == layer.name), None)
    plain = node is not None and layer.op in CHANNEL_AXIS and layer.groups == 1 and (layer.outs, layer.ins) == (1, 1)
    if node is None or not plain or node.inputs[1].name != layer.weight:  # type: ignore[union-attr]
        return np.zeros(len(member.positions), bool)
    low, high = _fed(model, layer)
    same = (low == high)[member.positions].all(axis=1)
    takes = layer.op != "MatMul" or layer.bias is not None
    if takes and not (layer.op == "Conv" and is_padded(node)):
        return same
    return same & ~low[member.positions].any(axis=1)


def _fed(model: Model, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """[in] least and largest of each channel that a layer reads."""
    width = layer.matrix(model.array(layer.weight)).shape[1]
    fed = bounds(model).get(layer.reads, ANYTHING).along(CHANNEL_AXIS[layer.op])
    return np.broadcast_to(fed.low, (width,)), np.broadcast_to(fed.high, (width,))


def folded(
    model: Model, narrow: Model, channels: Channels, removed: np.ndarray, constant: list[tuple[Group, np.ndarray]]
) -> Model:
    """The narrow model with what its layers made of the constants in their biases.

    model     before the cut, which `channels` are of     removed   unit numbers that went
    constant  group, indices of its constant units that went
    """
    shifts: dict[str, np.ndarray] = {}
    read = by_node(model)
    for group, units in constant:
        for layer, member in _read_by(model, group):
            columns = member.positions[units].reshape(-1)
            weight = layer.matrix(model.array(layer.weight)).astype(np.float64)
            by_column = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
            shift = by_column[:, columns] @ _fed(model, layer)[0][columns]
            shifts[layer.name] = shifts.get(layer.name, 0.0) + shift
    keep, graph = keep_mask(channels, removed), narrow.ir.clone()
    for node in list(walk(graph)):
        layer, shift = read.get(node.name or ""), shifts.get(node.name or "")  # type: ignore[assignment]
        if shift is not None and shift.any():
            site = channels.ties.sites.get((layer.weight, layer.order[0]))
            _add_to_bias(graph, node, layer, shift if site is None else shift[keep(site.labels)])
    return narrow.edited(graph)


def _add_to_bias(graph: ir.Model, node: ir.Node, layer: Layer, shift: np.ndarray) -> None:
    """Into the node's own bias, or that of the Add behind a MatMul; one that others read is copied first."""
    place = 2
    if layer.op == "MatMul":
        node, place = next((user, 1 - index) for user, index in node.outputs[0].uses())
    old = input_of(node, place)
    if old is None:
        values = graph.graph.initializers[layer.weight].const_value.numpy()  # type: ignore[union-attr]
        if len(node.inputs) <= place:
            node.resize_inputs(place + 1)
        node.replace_input_with(place, new_constant(graph, f"{layer.weight}.bias", shift.astype(values.dtype)))
        return
    values = constant_of(old)
    assert values is not None
    new = (values.astype(np.float64) + shift).astype(values.dtype)
    if len(list(old.uses())) == 1:
        set_constant(graph, old.name or "", new)
    else:
        node.replace_input_with(place, new_constant(graph, f"{old.name}.shifted", new))
