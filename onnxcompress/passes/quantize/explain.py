"""Which rounding costs what at the outputs: each one alone, with one session for all of them.

In the float graph every value and weight that the quantized graph rounds becomes `value + gate · (rounded - value)`
(evidence/gates.py). One run with one gate open tells what this rounding alone brings. Errors of different places are hardly
correlated, so that what a node brings is about the sum of what its weight, what it reads and what it writes bring; and the
whole is about the sum over all places, each counted once, however many nodes touch it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.difference import sqnr_db
from onnxcompress.evidence.gates import add_gate
from onnxcompress.evidence.kinds import Histogram
from onnxcompress.evidence.trial import Trial
from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of
from onnxcompress.operators.layer import by_node
from onnxcompress.passes.quantize.bins import Bins
from onnxcompress.passes.quantize.grid import Grid, grid_of
from onnxcompress.passes.quantize.pen import Decided, Pen
from onnxcompress.passes.quantize.rows import bias_adds, data_of, row_of
from onnxcompress.passes.quantize.shares import follows, roundings, shares
from onnxcompress.passes.quantize.write import DTYPES, written_to

BINS = 64
"""Of the histogram that a report shows."""


@dataclass(frozen=True)
class Touched:
    """The places that one node has rounded: keys of Brought.noise.

    own     its weight, its constant operands        reads, writes  grids of activations
    keeps   of those, what stays rounded for as long as this node is int8: all but a sum that it can hand out in float
    """

    own: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    keeps: tuple[str, ...]


@dataclass(frozen=True)
class Brought:
    """What each rounding alone brings.

    noise   place -> error power / signal power at the worst output; a place is "value/<name>", "weight/<name>" or
            "constants/<node>"
    nodes   node -> what it touches, for those that compute, in the order of the graph
    places  value -> its place; values on one shared grid are one place
    """

    noise: Mapping[str, float]
    nodes: Mapping[str, Touched]
    places: Mapping[str, str]

    @property
    def total(self) -> float:
        """Summed noise share of all places."""
        return sum(self.noise.values())

    def of(self, node: str) -> float:
        """Noise share if this node alone were int8."""
        return sum(self.parts(node).values())

    def parts(self, node: str) -> dict[str, float]:
        """The same by where it comes from."""
        touched = self.nodes[node]
        found = {name: getattr(touched, name) for name in ("own", "reads", "writes")}
        names = {"own": "weight", "reads": "what it reads", "writes": "what it writes"}
        return {names[name]: sum(self.noise[place] for place in dict.fromkeys(each)) for name, each in found.items()}


def brought(model: Model, decided: Decided, trial: Trial) -> Brought:
    """Measure every rounding of a plan by itself, on calibration samples: one run for each. Grids: of what the graph rounds."""
    graph, openings, touched, places = gated(model, decided)
    noise = trial.arriving(graph, openings) if openings else {}
    return Brought(noise, touched, places)


def decibel(noise: float) -> float:
    """Noise share -> SQNR in dB."""
    return sqnr_db(1.0, noise)


# -- what a report shows -------------------------------------------------------------------------------------------


def of_node(found: Brought, node: str) -> dict[str, Any]:
    """SQNR if this node alone were int8, and which of its roundings is the worst; nothing for nodes that only move.

    shares  of the summed error of all places: what two nodes share counts for both
    """
    if node not in found.nodes:
        return {}
    parts = found.parts(node)
    return {
        "alone_db": decibel(found.of(node)),
        "mostly": max(parts, key=lambda name: parts[name]),
        "parts_db": {name: decibel(noise) for name, noise in parts.items()},
        "shares": {name: noise / found.total if found.total else 0.0 for name, noise in parts.items()},
        "reads": [place.removeprefix("value/") for place in found.nodes[node].reads],
        "writes": [place.removeprefix("value/") for place in found.nodes[node].writes],
    }


def of_value(found: Brought, value: str, grid: Grid, seen: Histogram | None) -> dict[str, Any]:
    """What rounding it brings; where it was seen, its range, a coarse histogram, and how well the grid fits it.

    clipped  share of the entries beyond the ends of the grid
    bits     entropy of the levels: 8 where all 256 are equally used
    """
    place = found.places.get(value)
    alone = {} if place is None else {"alone_db": decibel(found.noise.get(place, 0.0)), "place": place}
    if seen is None or not seen.count:
        return alone
    middles = np.arange(grid.low, grid.high + 2) - 0.5
    steps = (middles - float(grid.zero)) * float(grid.scale)
    levels = np.diff(_below(seen, steps, whole=True))
    used = levels[levels > 0]
    edges = np.linspace(seen.minimum, seen.maximum, BINS + 1)
    first, last = _below(seen, steps[[0, -1]])
    return alone | {
        "seen": [seen.minimum, seen.maximum],
        "range": [float(grid.values(np.asarray(level))) for level in (grid.low, grid.high)],
        "clipped": float(np.clip(first + 1 - last, 0, 1)),
        "bits": float(abs((used * np.log2(used)).sum())),
        "histogram": np.rint(np.diff(_below(seen, edges, whole=True)) * seen.count).astype(np.int64).tolist(),
    }


def _below(seen: Histogram, ends: np.ndarray, *, whole: bool = False) -> np.ndarray:
    """[n] share of the entries below each end; `whole`: the outer ends are at infinity."""
    bins = Bins.of(seen)
    found = bins.below(np.nextafter(ends, -np.inf)) / bins.counts.sum()  # an entry at an end is not below it
    if whole:
        found[0], found[-1] = 0.0, 1.0
    return found


# -- the graph -----------------------------------------------------------------------------------------------------


@dataclass
class _Gates(Pen):
    """A graph that gets gates, and which places have one."""

    gates: dict[str, ir.Value] = field(default_factory=dict)

    def gate(self, place: str) -> ir.Value:
        """The gate of a place, made where it is first asked for."""
        if place not in self.gates:
            self.gates[place] = add_gate(self.graph, f"{place}.gate")
        return self.gates[place]

    def blend(
        self, value: ir.Value, change: list[ir.Value], place: str, readers: Sequence[tuple[ir.Node, int]]
    ) -> ir.Value:
        """value + gate · change, for these readers; `change` is the last of the values, the others lead to it."""
        scaled = self.node("Mul", [self.gate(place), change[-1]], self.free(f"{value.name}.opened"))
        blended = self.node("Add", [value, scaled], self.free(f"{value.name}.blended"), like=value)
        made = [each.producer() for each in (*change, scaled, blended)]
        new = [node for node in made if node is not None]
        producer = value.producer()
        if producer is None:
            self.graph.graph.insert_before(self.graph.graph[0], new)
        else:
            assert isinstance(producer.graph, ir.Graph)
            producer.graph.insert_after(producer, new)
        for node, index in readers:
            node.replace_input_with(index, blended)
        return blended

    def difference(self, value: ir.Value, grid: Grid) -> list[ir.Value]:
        """rounded(value) - value, as onnxruntime rounds."""
        zero = np.asarray(grid.zero).astype(grid.kind)
        name = self.free(f"{value.name}.rounding")
        ends = [self.constant(f"{name}.scale", np.asarray(grid.scale)), self.constant(f"{name}.zero", zero)]
        levels = self.node("QuantizeLinear", [value, *ends], f"{name}.levels", dtype=DTYPES[grid.kind])
        rounded = self.node("DequantizeLinear", [levels, *ends], f"{name}.rounded")
        return [levels, rounded, self.node("Sub", [rounded, value], f"{name}.difference")]


Found = tuple[ir.Model, dict[str, list[str]], dict[str, Touched], dict[str, str]]


def gated(model: Model, decided: Decided) -> Found:
    """The float graph with a gate at every place that is rounded: graph, place -> gates, what nodes touch, value -> place."""
    pen, nodes, grids = _Gates(model.ir.clone()), decided.nodes, decided.grids
    weighted = by_node(model)
    rounded = roundings(pen.graph, nodes, grids, weighted)
    places = {
        value: f"value/{share.values[0]}"
        for share in shares(model, nodes)
        if any(value in grids for value in share.values)
        for value in share.values
    }
    touched = {
        node.name or "": _touched(node, result, places, weighted.get(node.name or ""))
        for node, result in rounded.results.items()
        if not follows(node, grids)
    }
    _at_weights(pen, list(rounded.results), weighted, decided)
    for value, readers in rounded.read.items():
        name = value.name or ""
        pen.blend(value, pen.difference(value, grids[name]), places[name], readers)
    for value in rounded.written:
        _after(pen, value, grids[value.name or ""], places[value.name or ""])
    openings = {place: [gate.name or ""] for place, gate in pen.gates.items()}
    return pen.graph, openings, {name: _known(each, openings) for name, each in touched.items()}, places


def _touched(node: ir.Node, result: ir.Value, places: Mapping[str, str], layer: Any) -> Touched:
    operands = data_of(node)
    reads = [places[v.name or ""] for v in operands if constant_of(v) is None and (v.name or "") in places]
    writes = [places[result.name or ""]] if (result.name or "") in places else []
    own = [f"weight/{layer.weight}"] if layer is not None else []
    if any(constant_of(v) is not None for v in operands):
        own.append(f"constants/{node.name}")
    keeps = [*own, *reads, *([] if row_of(node).float_output else writes)]
    return Touched(tuple(own), *(tuple(dict.fromkeys(each)) for each in (reads, writes, keeps)))


def _known(touched: Touched, openings: Mapping[str, Any]) -> Touched:
    """Without places that nothing was rounded at."""
    return Touched(**{name: tuple(p for p in each if p in openings) for name, each in vars(touched).items()})


def _at_weights(
    pen: _Gates,
    chosen: list[ir.Node],
    weighted: Mapping[str, Any],
    decided: Decided,
) -> None:
    """Weights with their corrected biases, and constant operands."""
    weights, biases = decided.weights, decided.biases
    changes: dict[tuple[str, str], tuple[ir.Value, np.ndarray]] = {}
    readers = set(chosen) | bias_adds(chosen, weighted)
    for node in chosen:
        layer = weighted.get(node.name or "")
        if layer is not None and layer.weight in weights:
            place, stored = f"weight/{layer.weight}", weights[layer.weight]
            value = pen.graph.graph.initializers[layer.weight]
            changes[place, layer.weight] = (value, stored.grid.values(stored.levels))
            if layer.bias is not None and layer.bias in biases:
                changes[place, layer.bias] = (pen.graph.graph.initializers[layer.bias], biases[layer.bias])
        for value in (
            data_of(node) if row_of(node).form in ("computes", "affine") and not follows(node, decided.grids) else []
        ):
            values = constant_of(value)
            if values is not None:
                grid = grid_of(values.min(initial=0.0), values.max(initial=0.0), "uint8", symmetric=False)
                changes[f"constants/{node.name}", value.name or ""] = (value, grid.rounded(values))
    for (place, name), (value, rounded) in changes.items():
        values = constant_of(value)
        assert values is not None
        reading = [(node, index) for node, index in value.uses() if node in readers]
        if place.startswith("constants/"):
            reading = [(node, index) for node, index in reading if f"constants/{node.name}" == place]
        difference = pen.constant(f"{name}.difference", (rounded.astype(np.float32) - values).astype(np.float32))
        pen.blend(value, [difference], place, reading)


def _after(pen: _Gates, value: ir.Value, grid: Grid, place: str) -> None:
    """Behind a node, for all readers and the model's outputs; the name goes along."""
    name, readers = value.name or "", list(value.uses())
    value.name = f"{name}.exact"
    blended = pen.blend(value, pen.difference(value, grid), place, readers)
    blended.name, blended.type = name, value.type
    outputs = written_to(value)
    for index, output in enumerate(outputs):
        if output is value:
            outputs[index] = blended
