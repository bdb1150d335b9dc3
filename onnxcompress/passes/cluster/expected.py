"""What each choice for a tensor is expected to bring to the outputs: squared errors, what they are multiplied by, how far they arrive."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from onnxcompress.allocate import Candidate
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.operators.layer import Layer
from onnxcompress.passes.cluster.allocation import SIZES, candidates
from onnxcompress.passes.cluster.layout import along
from onnxcompress.passes.cluster.tensors import Clustered


def needs_of(layer: Layer) -> list[Need]:
    """Moments of what a layer reads and writes, and how far a relative error of what it writes arrives."""
    axis = layer.channel_axis
    reads = [] if layer.op == "Gather" else [Need("moments", layer.reads, axis)]
    return [*reads, Need("moments", layer.writes, axis), Need("sensitivity of logits", layer.writes, axis)]


def expected(
    model: Model, found: Sequence[Clustered], evidence: Evidence, sharings: Collection[str]
) -> list[Candidate]:
    """Every choice of every tensor: bytes, and share of noise at the outputs.

    Where nothing was measured an error counts as a share of the tensor's own square, and arrives as the farthest of all. That of an
    embedding counts as many times as there are tensors: all others only add to the stream that begins with it (MiniLM without
    data, 4 bits: 5.6 dB where it counted once, 11.8 so).
    """
    known = {each.name: arriving(each, evidence) for each in found}
    most = max((value for value in known.values() if value is not None), default=1.0)
    tried = []
    for each in found:
        rows = each.rows(model.array(each.name))
        weights, power = met(each, rows.shape, evidence)
        if weights is None:
            power = float(np.square(rows, dtype=np.float64).sum())
        arrives = known[each.name]
        unknown = most * (len(found) if each.weight.op == "Gather" else 1)
        options = candidates(each.name, rows, power, unknown if arrives is None else arrives, SIZES, weights)
        mine = [option for option in options if option.setting.sharing in sharings]  # type: ignore[attr-defined]
        # where the books of the sharing that was asked for weigh too much, one is all that pays
        tried += mine or [option for option in options if option.setting.sharing == "tensor"]  # type: ignore[attr-defined]
    return tried


def arriving(each: Clustered, evidence: Evidence) -> float | None:
    """How far a relative error of what the layer writes arrives; None where that was not measured."""
    layer = each.weight.layer
    found = None if layer is None else evidence.get(Need("sensitivity of logits", layer.writes, layer.channel_axis))
    return None if found is None else float(found)


def met(each: Clustered, shape: tuple[int, ...], evidence: Evidence) -> tuple[np.ndarray | None, float]:
    """Mean square of what each weight of the rows is multiplied by, and the mean square of the whole output at a position."""
    layer = each.weight.layer
    if layer is None or layer.op == "Gather" or along(layer) is None:
        return None, 0.0
    reads, writes = (evidence.get(need) for need in needs_of(layer)[:2])
    if reads is None or writes is None:
        return None, 0.0
    per_group = reads.mean_square.reshape(layer.groups, -1)
    taps = shape[1] // per_group.shape[1] if shape[1] % per_group.shape[1] == 0 else 0
    power = float(writes.mean_square.sum())
    if not taps or shape[0] % layer.groups or power <= 0 or not per_group.any():
        return None, 0.0
    weights = np.repeat(per_group, taps, axis=1)
    return (weights[0] if layer.groups == 1 else np.repeat(weights, shape[0] // layer.groups, axis=0)), power
