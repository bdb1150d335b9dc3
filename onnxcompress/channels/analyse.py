"""From labels to units and groups: which slices of which tensors go together, and what is frozen, by whom and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxcompress.model import Model
from onnxcompress.model.edit import bodies_of
from onnxcompress.operators import FLOWS, Flow, Reason, Settings, Site, Ties, Track, case_of, follow
from onnxcompress.operators.shapes import follow_sizes

ATTEMPTS = 4
"""Walks at most: how often the live factor of a split axis may move on to the next one."""


@dataclass(frozen=True, eq=False)
class Member:
    """What one unit of a group occupies on one axis of one constant tensor: positions [units, k], and the tensor's role."""

    tensor: str
    axis: int
    role: str
    node: str
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """Interchangeable units: each occupies equally many positions of the same tensor axes.

    name     the weight that writes the channels (the first in graph order), numbered where several groups share it
    units    [n] component numbers, ascending by position
    members  the tensor axes that they occupy
    """

    name: str
    units: np.ndarray
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)


@dataclass(frozen=True)
class Frozen:
    """Channels of one weight that cannot go, with the operator at fault."""

    name: str
    channels: int
    why: str
    by: str


@dataclass(frozen=True, eq=False)
class Channels:
    """The analysis of one model.

    ties    sites and patches as the rows wrote them down
    unit    [labels] int64: label -> unit (connected component)
    groups  what may be cut, in graph order
    frozen  what may not, and why
    tracks  value name -> its axes, for values with labels: how activations are indexed by unit
    """

    ties: Ties
    unit: np.ndarray
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    tracks: dict[str, list[Track]]


def analyse(model: Model, settings: Settings | None = None) -> Channels:
    """Follow every node, read out components, and move a split axis to its next factor where the first came out frozen."""
    settings = settings or Settings()
    key = f"channels {settings.inexact} {settings.inner}"
    return model.remember(key, lambda m: _analyse(m, settings))


def _analyse(model: Model, settings: Settings) -> Channels:
    best, dead = _once(model, settings)
    for _ in range(ATTEMPTS):
        moved = {name: settings.factors.get(name, 0) + 1 for name, more in dead.items() if more}
        if not moved:
            break
        settings = Settings(settings.inexact, settings.inner, {**settings.factors, **moved})
        found, dead = _once(model, settings)
        if _freedom(found) >= _freedom(best):
            best = found
    return best


def _freedom(channels: Channels) -> int:
    return sum(group.size for group in channels.groups)


def _once(model: Model, settings: Settings) -> tuple[Channels, dict[str, bool]]:
    """One walk. Also: nodes that split an axis whose live factor came out frozen -> is there another factor to try?"""
    ties, known = walk_labels(model, settings)
    unit = components(ties)
    frozen = _frozen_units(ties, unit)
    dead = {
        name: settings.factors.get(name, 0) + 1 < count
        for name, (labels, count) in ties.choices.items()
        if frozen[unit[labels]].all()
    }
    tracks = {
        value.name or "": axes for value, axes in known.items() if any(track.labels is not None for track in axes)
    }
    groups = _groups(ties, unit, frozen)
    return Channels(ties, unit, groups, _reasons(ties, unit, frozen), tracks), dead


def walk_labels(model: Model, settings: Settings) -> tuple[Ties, dict[ir.Value, list[Track]]]:
    """Follow all nodes in order of execution; the model's outputs freeze what they show."""
    ties, known = Ties(), {}
    for value in model.ir.graph.inputs:
        sizes = value.shape or ()
        reason = Reason("it is an input of the model", value.name or "")
        known[value] = [Track(size if isinstance(size, int) else size.value, reason=reason) for size in sizes]
    _walk(model.ir.graph, ties, known, settings)
    for value in model.ir.graph.outputs:
        for track in known.get(value, []):
            if track.labels is not None:
                ties.freeze(track.labels, Reason("it is an output of the model", value.name or ""))
    for site in ties.sites.values():
        if len(site.labels) != model.initializers[site.tensor].shape[site.axis]:  # type: ignore[index]
            ties.freeze(site.labels, Reason("its size is not the one that the graph expects", site.node))
        elif site.tensor in not_finite(model):  # no criterion ranks a mask of -Inf
            ties.freeze(site.labels, Reason("it holds Inf or NaN", site.tensor))
    return ties, known


def not_finite(model: Model) -> frozenset[str]:
    """Names of float constants that hold Inf or NaN, told once for a model."""
    return model.remember("not finite", _not_finite)


def _not_finite(model: Model) -> frozenset[str]:
    """Minima and maxima need no copy."""
    arrays = ((name, model.array(name)) for name in model.initializers)
    floats = ((name, x) for name, x in arrays if x.dtype.kind == "f" and x.size)
    return frozenset(name for name, x in floats if not np.isfinite([x.min(), x.max()]).all())


def _walk(graph: ir.Graph, ties: Ties, known: dict[ir.Value, list[Track]], settings: Settings) -> None:
    for node in graph:
        for attribute in node.attributes.values():
            for body in bodies_of(attribute):
                _walk(body, ties, known, settings)
        flow = Flow(node, ties, known, settings)
        try:
            _follow_one(flow)
        except MISFITS:
            for value in node.outputs:
                known.pop(value, None)
            flow.refuse("its inputs and attributes contradict each other")


MISFITS = (LookupError, TypeError, ValueError, ArithmeticError, StopIteration, MemoryError)
"""What a row meets where a graph passes ONNX's checker and still contradicts itself: axes that do not exist, sizes below zero."""


def _follow_one(flow: Flow) -> None:
    node = flow.node
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if name in FLOWS:
        FLOWS[name](flow)
    elif (case := case_of(flow.view)) is not None:
        follow(flow, case)
    else:
        flow.refuse(f"{name} has no row for this setting")
    follow_sizes(flow)


def components(ties: Ties) -> np.ndarray:
    """Label -> unit: connected components of all pairs that go together."""
    if not ties.pairs:
        return np.arange(ties.count)
    left = np.concatenate([pair[0] for pair in ties.pairs])
    right = np.concatenate([pair[1] for pair in ties.pairs])
    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(ties.count, ties.count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _frozen_units(ties: Ties, unit: np.ndarray) -> np.ndarray:
    """[units] bool."""
    frozen = np.zeros(int(unit.max(initial=-1)) + 1, bool)
    for labels, _ in ties.frozen:
        frozen[unit[labels]] = True
    return frozen


def _groups(ties: Ties, unit: np.ndarray, frozen: np.ndarray) -> tuple[Group, ...]:
    """Units with the same footprint form a group: they occupy equally many positions of the same sites."""
    sites = [site for site in ties.sites.values() if not frozen[unit[site.labels]].all()]
    if not sites:
        return ()
    # a random weight per (site) turns each unit's row of counts into one number; equal rows stay equal
    weights = np.random.default_rng(0).integers(1, 1 << 40, len(sites))
    print_ = np.zeros(len(frozen), np.int64)
    for site, weight in zip(sites, weights, strict=True):
        np.add.at(print_, unit[site.labels], weight)
    free = np.flatnonzero((print_ != 0) & ~frozen)
    if not len(free):
        return ()
    _, index = np.unique(print_[free], return_inverse=True)
    number = np.full(len(frozen), -1)
    number[free] = index
    occupied: dict[int, list[Member]] = {}
    order: dict[int, np.ndarray] = {}
    for site in sites:
        for group, units, positions in _by_group(site, unit, number):
            order.setdefault(group, units)
            aligned = positions[np.argsort(units)][np.searchsorted(np.sort(units), order[group])]
            occupied.setdefault(group, []).append(Member(site.tensor, site.axis, site.role, site.node, aligned))
    # what no weight produces is not a channel
    produced = {group: members for group, members in occupied.items() if any(m.role == "write" for m in members)}
    names = _names(list(produced.values()))
    return tuple(
        Group(name, order[group], tuple(members))
        for name, (group, members) in zip(names, produced.items(), strict=True)
    )


def _by_group(site: Site, unit: np.ndarray, number: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """The groups met at one site: group, its units in order of first position, positions [units, k]."""
    units = unit[site.labels]
    groups = number[units]
    found = []
    for group in np.unique(groups[groups >= 0]):
        places = np.flatnonzero(groups == group)
        names, first = np.unique(units[places], return_index=True)
        by_unit = places[np.argsort(units[places], kind="stable")].reshape(len(names), -1)
        ordered = np.argsort(first)
        found.append((int(group), names[ordered], by_unit[ordered]))
    return found


def _names(groups: list[list[Member]]) -> list[str]:
    """The first weight that writes each group; a weight split over several groups has them numbered, since plans name them."""
    weights = [next(member.tensor for member in members if member.role == "write") for members in groups]
    return [
        weight if weights.count(weight) == 1 else f"{weight}#{weights[: place + 1].count(weight)}"
        for place, weight in enumerate(weights)
    ]


def _reasons(ties: Ties, unit: np.ndarray, frozen: np.ndarray) -> tuple[Frozen, ...]:
    """For each weight that writes channels: how many are frozen, by the first reason that reached them."""
    reason_of = np.full(len(frozen), -1)
    for number in range(len(ties.frozen) - 1, -1, -1):
        reason_of[unit[ties.frozen[number][0]]] = number
    found = []
    for site in ties.sites.values():
        if site.role != "write":
            continue
        numbers = reason_of[unit[site.labels]]
        for number in np.unique(numbers[numbers >= 0]):
            reason = ties.frozen[number][1]
            found.append(Frozen(site.tensor, int((numbers == number).sum()), reason.why, reason.by))
    return tuple(found)
