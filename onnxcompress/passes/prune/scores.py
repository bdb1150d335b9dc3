"""Scores of the units of every group by one criterion: fetches the slices and the evidence that its row asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcompress.channels import Channels, Group
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.operators.layer import layers
from onnxcompress.passes.prune.criteria import Criterion, UnitEvidence, find_criterion
from onnxcompress.passes.prune.free import slices_of


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
    """One need for each value whose activations a criterion looks at."""
    wanted = []
    for kind in criterion.needs:
        for group in groups:
            for value, _ in readers_of(model, group):
                axis = channel_axis(channels, value, group)
                if axis is not None:
                    wanted.append(Need(kind, value, axis))
    return list(dict.fromkeys(wanted))


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
    """Activations of each unit, averaged over its positions and readers; None where a wish was not met."""
    if "moments" not in criterion.needs:
        return UnitEvidence(rng=rng, aggregate=aggregate)
    found = []
    for value, positions in readers_of(model, group):
        axis = channel_axis(channels, value, group)
        moments = evidence.get(Need("moments", value, -1 if axis is None else axis))
        if moments is not None:
            found.append(
                [getattr(moments, name)[positions].mean(axis=1) for name in ("mean", "mean_square", "zero_share")]
            )
    if not found:
        return None
    mean, mean_square, zero_share = np.mean(found, axis=0)
    return UnitEvidence(mean=mean, mean_square=mean_square, zero_share=zero_share, rng=rng, aggregate=aggregate)
