"""Scores of the units of every group by one criterion: fetches the slices and the evidence that its row asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcompress.channels import Channels, Group
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.operators.layer import layers
from onnxcompress.passes.prune.criteria import Criterion, UnitEvidence, find_criterion
from onnxcompress.passes.prune.free import slices_in, slices_of


def readers_of(model: Model, group: Group) -> list[tuple[str, np.ndarray]]:
    """What a group's channels look like where weights read them: value name, and the units' positions [units, k] along its channel axis."""
    by_weight = {layer.weight: layer for layer in layers(model)}
    found: dict[str, np.ndarray] = {}
    for member in group.members:
        layer = by_weight.get(member.tensor)
        if member.role == "read" and layer is not None and layer.groups == 1:
            found.setdefault(layer.reads, member.positions)
    return list(found.items())


def channel_axis(channels: Channels, value: str, group: Group) -> int | None:
    """The axis of a value along which the group's units lie."""
    for axis, track in enumerate(channels.tracks.get(value, [])):
        if track.labels is not None and np.isin(channels.unit[track.labels], group.units).any():
            return axis
    return None


def needs_of(model: Model, channels: Channels, groups: Sequence[Group], criterion: Criterion) -> list[Need]:
    """One need for each value, or weight, that a criterion looks at beside the weights themselves."""
    wanted = [need for kind in criterion.needs for group in groups for need in NEEDS[kind](model, channels, group)]
    return list(dict.fromkeys(wanted))


def _of_readers(kind: str) -> Callable[[Model, Channels, Group], list[Need]]:
    """Of the values that the group's readers are fed."""

    def needs(model: Model, channels: Channels, group: Group) -> list[Need]:
        found = ((value, channel_axis(channels, value, group)) for value, _ in readers_of(model, group))
        return [Need(kind, value, axis) for value, axis in found if axis is not None]

    return needs


def _of_writers(model: Model, channels: Channels, group: Group) -> list[Need]:
    """Of the weights that write the group."""
    return [Need("hessian", member.tensor, 0) for member in group.members if member.role == "write"]


NEEDS: dict[str, Callable[[Model, Channels, Group], list[Need]]] = {
    "moments": _of_readers("moments"),
    "gradient": _of_readers("gradient"),
    "hessian": _of_writers,
}
"""What a criterion looks at -> the needs of one group."""


def score_groups(
    model: Model,
    channels: Channels,
    groups: Sequence[Group],
    criterion: Criterion,
    evidence: Evidence,
    aggregate: str,
    seed: int,
) -> dict[str, np.ndarray]:
    """Group name -> [units] float64, larger = keep. A group that the criterion has nothing to say about is ranked by l2."""
    rng = np.random.default_rng(seed)
    scores = {}
    for group in groups:
        members = [member for member in group.members if member.role == criterion.slices_of]
        known = _unit_evidence(model, channels, group, criterion, evidence, aggregate, rng)
        row = criterion if known is not None and (members or criterion.slices_of == "write") else find_criterion("l2")
        slices = [slices_of(model, member) for member in group.members if member.role == row.slices_of]
        scores[group.name] = row.score(slices, known or UnitEvidence(rng=rng, aggregate=aggregate))
    return scores


def _unit_evidence(
    model: Model,
    channels: Channels,
    group: Group,
    criterion: Criterion,
    evidence: Evidence,
    aggregate: str,
    rng: np.random.Generator,
) -> UnitEvidence | None:
    """What is known of each unit; None where a wish was not met."""
    found: dict[str, Any] = {}
    for kind in criterion.needs:
        known = READ[kind](model, channels, group, evidence)
        if known is None:
            return None
        found |= known
    return UnitEvidence(**found, rng=rng, aggregate=aggregate)


def _met(model: Model, channels: Channels, group: Group, evidence: Evidence, kind: str) -> list[tuple[Any, np.ndarray]]:
    """(evidence, positions [units, k]) for each value that the group's readers are fed and that somebody looked at."""
    found = []
    for value, positions in readers_of(model, group):
        axis = channel_axis(channels, value, group)
        known = evidence.get(Need(kind, value, -1 if axis is None else axis))
        if known is not None:
            found.append((known, positions))
    return found


def _moments(model: Model, channels: Channels, group: Group, evidence: Evidence) -> dict[str, Any] | None:
    """Averages over a unit's positions and readers."""
    names = ("mean", "mean_square", "zero_share")
    met = _met(model, channels, group, evidence, "moments")
    if not met:
        return None
    means = [[getattr(moments, name)[positions].mean(axis=1) for name in names] for moments, positions in met]
    return dict(zip(names, np.mean(means, axis=0), strict=True))


def _gate_gradients(model: Model, channels: Channels, group: Group, evidence: Evidence) -> dict[str, Any] | None:
    """One gate a unit shuts all its positions, wherever they are read: gradients add up."""
    met = _met(model, channels, group, evidence, "gradient")
    return {"gate_gradients": sum(g[:, positions].sum(axis=2) for g, positions in met)} if met else None


def _hessian_slices(model: Model, channels: Channels, group: Group, evidence: Evidence) -> dict[str, Any] | None:
    writers = [member for member in group.members if member.role == "write"]
    needs = [Need("hessian", member.tensor, 0) for member in writers]
    if any(need not in evidence for need in needs):
        return None
    slices = [slices_in(evidence[need], member) for need, member in zip(needs, writers, strict=True)]
    return {"hessian_slices": slices}


READ: dict[str, Callable[[Model, Channels, Group, Evidence], dict[str, Any] | None]] = {
    "moments": _moments,
    "gradient": _gate_gradients,
    "hessian": _hessian_slices,
}
"""What a criterion looks at -> fields of UnitEvidence; None where nobody looked."""
