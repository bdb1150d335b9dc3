"""The only writers of channel edits: cut units out of a graph, or zero them where they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.analyse import Channels
from onnxcompress.model import Model, Origin
from onnxcompress.model.edit import set_constant, walk
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
        values = model.array(name)
        for axis, indices in axes.items():
            values = np.take(values, indices, axis=axis)
        set_constant(graph, name, values)
    _patch(graph, channels, keep)
    origin = dict(model.origin)
    for name, axes in slices.items():
        _stamp(origin, name, axes)
    narrowed = _activations(channels, keep)
    for name, lost in narrowed.items():
        _stamp(origin, name, lost)
    _reshape_values(graph, narrowed)
    return model.edited(graph, origin)


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
