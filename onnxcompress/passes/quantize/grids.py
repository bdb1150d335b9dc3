"""The grids of all values that integer nodes read or write, from what was seen of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from onnxcompress.evidence.kinds import KINDS, Histogram, Range
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.model.edit import walk
from onnxcompress.operators.layer import by_node
from onnxcompress.passes.quantize.chosen import RANGES, needless
from onnxcompress.passes.quantize.grid import Grid, grid_of
from onnxcompress.passes.quantize.ranges import calibrate, holding, reaching, read_energy, within
from onnxcompress.passes.quantize.shares import NEAR, Share, activation, derived, shares


def grids_of(
    model: Model,
    nodes: Collection[str],
    evidence: Evidence,
    method: str,
    *,
    percentile: float,
    ends: bool,
    symmetric: bool = False,
) -> dict[str, Grid]:
    """A grid for each value that the nodes read or write; those that share one get the same.

    method     a key of CALIBRATORS, `percentile` its setting     ends  the outputs of the model are floats
    symmetric  zero is the level in the middle, but for what an operator's own kernel fixes
    """
    gone, found = needless(model, nodes, ends=ends), shares(model, nodes)
    grids: dict[str, Grid] = {}
    for share in found:
        grid = None if gone.issuperset(share.values) else _grid(model, share, evidence, method, percentile, symmetric)
        if grid is not None:
            grids |= dict.fromkeys(share.values, grid)
    makers = {node.name: node for node in walk(model.ir)}
    for share in found:
        source = activation(makers[share.of]) if share.of else ""
        grid = derived(makers[share.of], grids[source]) if source in grids else None
        if grid is not None:
            grids |= dict.fromkeys(share.values, grid)
    return grids


def _grid(
    model: Model, share: Share, evidence: Evidence, method: str, percentile: float, symmetric: bool
) -> Grid | None:
    if share.fixed is not None:
        return grid_of(*share.fixed, "uint8", symmetric=False)
    seen = _seen(share, evidence)
    if seen is None:
        return None
    seen = within(within(seen, *share.limits), -share.flat, share.flat)
    told = _energy(model, share, evidence) if method == "output" else {"percentile": percentile}
    low, high = calibrate(share.ranges[0], seen, method, "uint8", symmetric=symmetric, **told)
    grid = grid_of(*reaching(low, high, share.limits), "uint8", symmetric=symmetric)
    return grid if share.holds is None or symmetric else holding(grid, share.holds, NEAR)


def _seen(share: Share, evidence: Evidence) -> Histogram | Range | None:
    """What was seen of all values that share a grid: the histograms, or where only ranges were asked for, these."""
    for kind in RANGES:
        found: Any = None
        for value in share.ranges:
            each = evidence.get(Need(kind, value, 0))
            if each is not None:
                found = KINDS[kind].merge(replace(found) if found is not None else None, each)
        if found is not None:
            return found  # type: ignore[no-any-return]
    return None


def _energy(model: Model, share: Share, evidence: Evidence) -> dict[str, Any]:
    """What is known of the channels of values, and what the layers that read them make of each; nothing where no layer does."""
    readers = [layer for layer in by_node(model).values() if layer.reads in share.values]
    for each in readers:
        seen = evidence.get(Need("moments", each.reads, each.channel_axis))
        if seen is not None:
            same = [layer for layer in readers if layer.reads == each.reads]
            weights = [model.array(layer.weight) for layer in same]
            return {"moments": seen, "energy": read_energy(same, weights, len(seen.mean))}
    return {}
