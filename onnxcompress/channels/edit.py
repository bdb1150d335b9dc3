"""The only writers of channel edits: cut units out of a graph, zero them where they are, or put them in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.analyse import Channels, Group
from onnxcompress.model import Model, Origin
from onnxcompress.model.edit import is_vector, set_constant, untie, walk
from onnxcompress.operators.ties import Keep


def keep_mask(channels: Channels, removed: np.ndarray) -> Keep:
    """Labels -> which of them stay, when the units `removed` go."""
    gone = np.zeros(int(channels.unit.max(initial=-1)) + 1, bool)
    gone[removed] = True
    return lambda labels: ~gone[channels.unit[labels]]


def cut(model: Model, channels: Channels, removed: np.ndarray) -> Model:
    """The model without the units `removed`: constants sliced, nodes patched, value shapes and origins adapted.

    removed  [m] unit numbers of `channels`, which must be the analysis of this model
    """
    keep = keep_mask(channels, removed)
    graph = model.ir.clone()
    slices: dict[str, dict[int, np.ndarray]] = {}
    for site in channels.ties.sites.values():
        kept = keep(site.labels)
        if not kept.all():
            slices.setdefault(site.tensor, {})[site.axis] = np.flatnonzero(kept)
    for name, axes in slices.items():
        set_constant(graph, name, _taken(model.array(name), axes))
    _patch(graph, channels, keep)
    origin = dict(model.origin)
    for name, axes in slices.items():
        _stamp(origin, name, axes)
    narrowed = _activations(channels, keep)
    for name, lost in narrowed.items():
        _stamp(origin, name, lost)
    _reshape_values(graph, narrowed)
    for name in slices:
        value = graph.graph.initializers[name]
        if is_vector(value.const_value.numpy()):  # type: ignore[union-attr]
            origin.update(dict.fromkeys(untie(graph, value), origin[name]))  # a tied matrix came down to one channel
    return model.edited(graph, origin)


def _taken(values: np.ndarray, axes: Mapping[int, np.ndarray]) -> np.ndarray:
    """The entries at these places of each of these axes."""
    for axis, places in axes.items():
        values = np.take(values, places, axis=axis)
    return values


def zero(model: Model, channels: Channels, removed: np.ndarray) -> Model:
    """The model with the same units zeroed instead of cut: every slice that writes, biases, scales or reads them."""
    keep = keep_mask(channels, removed)
    graph = model.ir.clone()
    for site in channels.ties.sites.values():
        kept = keep(site.labels)
        if site.role == "carry" or kept.all():
            continue
        values = graph.graph.initializers[site.tensor].const_value.numpy().copy()  # type: ignore[union-attr]
        np.moveaxis(values, site.axis, 0)[~kept] = 0
        set_constant(graph, site.tensor, values)
    return model.edited(graph)


def movable(channels: Channels, group: Group) -> bool:
    """Can its units change places? Not where a value has only some of them, which then would be a mixture of two of the original."""
    held = np.isin(channels.unit, group.units)
    for tracks in channels.tracks.values():
        for track in tracks:
            if track.labels is not None and held[track.labels].any():
                present = np.unique(channels.unit[track.labels[held[track.labels]]])
                if len(present) != group.size:
                    return False
    return True


Moved = dict[tuple[str, int], np.ndarray]
"""Tensor or value, and axis -> the place that each position's entries come from."""


def reordered(model: Model, channels: Channels, orders: Sequence[tuple[Group, np.ndarray]]) -> tuple[Model, Moved]:
    """The same function with units in other places, and what moved where.

    orders  groups that are `movable`, and for each of their units the number of the one that comes to its place
    """
    moved: Moved = {}
    origin, graph = dict(model.origin), model.ir.clone()
    for group, order in orders:
        for member in group.members:
            whole = moved.setdefault(
                (member.tensor, member.axis), np.arange(model.array(member.tensor).shape[member.axis])
            )
            whole[member.positions] = member.positions[order]
    tensors: dict[str, dict[int, np.ndarray]] = {}
    for (name, axis), places in moved.items():
        tensors.setdefault(name, {})[axis] = places
    for name, axes in tensors.items():
        set_constant(graph, name, _taken(model.array(name), axes))
        _stamp(origin, name, axes)
    for name, tracks in channels.tracks.items():
        for axis, track in enumerate(tracks):
            came = None if track.labels is None else _places(channels, track.labels, orders)
            if came is not None:
                _stamp(origin, name, {axis: came})
    return model.edited(graph, origin), moved


def _places(channels: Channels, labels: np.ndarray, orders: Sequence[tuple[Group, np.ndarray]]) -> np.ndarray | None:
    """Where each position of an axis with these labels comes from; None where nothing moves."""
    units = channels.unit[labels]
    found: np.ndarray | None = None
    for group, order in orders:
        held = np.flatnonzero(np.isin(units, group.units))
        if len(held):
            number = {int(unit): place for place, unit in enumerate(group.units)}
            numbers = np.array([number[int(unit)] for unit in units[held]])
            rows = held[np.argsort(numbers, kind="stable")].reshape(group.size, -1)
            found = np.arange(len(labels)) if found is None else found
            found[rows] = rows[order]
    return found


def _patch(graph: ir.Model, channels: Channels, keep: Keep) -> None:
    nodes = {node.name: node for node in walk(graph)}
    for patch in channels.ties.patches:
        patch.apply(graph, nodes[patch.node], keep)


def _activations(channels: Channels, keep: Keep) -> Mapping[str, Mapping[int, np.ndarray]]:
    """Value name -> axis -> indices kept, for values that lose some."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for name, tracks in channels.tracks.items():
        for axis, track in enumerate(tracks):
            if track.labels is not None and not (kept := keep(track.labels)).all():
                found.setdefault(name, {})[axis] = np.flatnonzero(kept)
    return found


def _stamp(origin: dict[str, Origin], name: str, axes: Mapping[int, np.ndarray]) -> None:
    for axis, indices in axes.items():
        origin[name] = origin.get(name, Origin(name)).cut(axis, indices)


def _reshape_values(graph: ir.Model, lost: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    """Recorded shapes follow; a shape that depended on a cut axis in an unknown way was frozen before."""
    for node in walk(graph):
        for value in node.outputs:
            gone = lost.get(value.name or "")
            if gone is not None and value.shape is not None:
                sizes = list(value.shape)
                for axis, indices in gone.items():
                    sizes[axis] = len(indices)
                value.shape = ir.Shape(sizes)
