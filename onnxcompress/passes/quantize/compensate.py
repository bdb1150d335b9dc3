"""Weights rounded layer by layer, each to make up for what the layers before it have lost.

float model ─── y ────────────────────────────┐
rounded model, walked beside it ── x ─▶ Gram, cross moments ─▶ aim ─▶ levels ─▶ bias ─▶ the next layer is fed by these

At each stop of the paired walk a layer is fed what the rounded layers before it really put out, activations on their grids
included. The weights that bring that nearest to the original's output are the aim (ridge regression, refit/solver.py; the
target of GPTAQ, Li et al. 2025, arXiv:2504.02692); they are rounded on the Gram matrix (rounding.py), scales chosen with its
diagonal as importance; the bias takes up the mean that is left (Nagel et al., ICCV 2019, arXiv:1906.04721, with the rounding of
activations counted too). Rows that are kept back choose between that and the plain nearest levels: never worse, layer by layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxcompress.evidence.branches import straight
from onnxcompress.evidence.paired import Pair, Paired
from onnxcompress.model import Model
from onnxcompress.model.edit import set_computed, set_constant, walk
from onnxcompress.operators.layer import Layer, by_node, layers
from onnxcompress.passes.quantize.fitting import Fitting, Tried, fits, fitting
from onnxcompress.passes.quantize.grid import LEAST, MOST, Grid
from onnxcompress.passes.quantize.levels import Leveled, made, pairs_of
from onnxcompress.passes.quantize.portable import Pairing
from onnxcompress.passes.quantize.rounding import DAMPING, ROUNDINGS, Lattice
from onnxcompress.passes.quantize.rows import weight_axis
from onnxcompress.passes.quantize.shares import roundings
from onnxcompress.passes.quantize.steps import restrict
from onnxcompress.passes.quantize.write import Pairs

SWEEPS = 4
"""Of coordinate descent over rows that have a Gram of their own."""


@dataclass(frozen=True)
class Compensation:
    """How weights are rounded on the walk.

    rounding  a key of ROUNDINGS      portable  no two neighbouring products leave 16 bits
    rows      at most so many rows (positions of samples) a layer       seed  which positions are drawn
    """

    rounding: str
    portable: bool
    rows: int = 4096
    seed: int = 0


def compensated(
    how: Compensation,
    model: Model,
    paired: Paired,
    nodes: Collection[str],
    grids: Mapping[str, Grid],
    start: Mapping[str, Leveled],
) -> dict[str, Leveled]:
    """Weight -> its levels and bias, for the weights of `start` (nearest levels), better on held-out rows or as they were.

    paired  the walk over calibration samples; what it is told to be the original and the current model is set here
    nodes   that run on integers      grids  of the values that are rounded
    Where samples always take the same branches of Ifs, the walk goes through these.
    Weights of which no rows can be gathered (`fits`) stay as in `start`.
    """
    model = straight(model.as_original(), nodes, paired.batches())
    todo = {layer.name: layer for layer in layers(model) if layer.name in nodes and layer.weight in start}
    places = {node.name or "": node for node in walk(model.ir)}
    todo = {name: layer for name, layer in todo.items() if fits(model, layer, places[name])}
    found = dict(start)
    both = replace(paired, original=model, current=as_rounded(model, nodes, grids, start))
    for pair in both.walk(list(todo)):
        layer = todo[pair.node]
        each = _rounded(how, model, layer, places[pair.node], pair, start[layer.weight])
        found[layer.weight] = each
        pair.replace(layer.weight, each.grid.values(each.levels))
        if each.bias is not None and layer.bias is not None:
            pair.replace(layer.bias, each.bias)
    return found


def as_rounded(
    model: Model, nodes: Collection[str], grids: Mapping[str, Grid], weights: Mapping[str, Leveled]
) -> Model:
    """The float graph with activations rounded where integer nodes round them, weights and biases as their levels say."""
    pen = Pairs(model.ir.clone(), grids, {}, by_node(model))
    for layer in pen.layers.values():
        each = weights.get(layer.weight)
        if each is not None and layer.name in nodes:
            set_computed(pen.graph, layer.weight, partial(each.grid.values, each.levels))
            if each.bias is not None and layer.bias is not None:
                set_constant(pen.graph, layer.bias, each.bias)
    places = roundings(pen.graph, nodes, grids, pen.layers)
    for value, readers in places.read.items():
        for node, index in readers:
            node.replace_input_with(index, pen.float_of(value, node))
    for value in places.written:
        pen.put(value, grids[value.name or ""])
    return model.edited(pen.graph)


# -- one layer -----------------------------------------------------------------------------------------------------


def _rounded(how: Compensation, model: Model, layer: Layer, node: ir.Node, pair: Pair, start: Leveled) -> Leveled:
    found = fitting(model, layer, node, pair, how.rows, how.seed)
    if found is None:
        return start
    stored = model.array(layer.weight)
    matrix = layer.matrix(stored)
    pairs = pairs_of(layer, matrix, how.portable)
    levels = layer.matrix(start.levels).reshape(len(matrix), -1)
    scale = np.broadcast_to(start.grid.scale.astype(np.float64).reshape(-1), (len(matrix),))
    before = found.present(levels, _lattice(scale, pairs))
    best = min((before, *_tried(how, layer, found, before)), key=lambda each: each.error)
    bias, cost = found.bias_like(model, best), start.cost_db
    whole = made(layer, stored, best.levels, best.lattice.scale[:, 0], weight_axis(layer), bias, cost)
    return replace(whole, held_out_db=(found.decibel(before.error), found.decibel(best.error)))


def _lattice(scale: np.ndarray, pairs: Pairing | None) -> Lattice:
    """int8, a scale a row."""
    return Lattice(scale[:, None], np.zeros((len(scale), 1)), LEAST, MOST, pairs=pairs)


def _tried(how: Compensation, layer: Layer, found: Fitting, start: Tried) -> Iterator[Tried]:
    """Nearest levels with a bias for these rows; then the aim, rounded on the Gram matrix."""
    if found.bias:
        yield found.tried(start.levels, start.lattice)
    if how.rounding == "nearest":
        return
    gram, aim = found.gram(), found.aim()
    for levels, lattice in _on_gram(how, layer, aim, gram, start.lattice):
        yield found.tried(levels, lattice)


def _on_gram(
    how: Compensation, layer: Layer, aim: np.ndarray, gram: np.ndarray, lattice: Lattice
) -> Iterator[tuple[np.ndarray, Lattice]]:
    """Levels of the aim [groups, out, k]: with each error weighed by what it meets, then on the whole Gram matrix."""
    groups, outs, k = aim.shape
    rows = aim.reshape(-1, k)
    if weight_axis(layer) is not None:
        power = np.einsum("gkk->gk", gram) + DAMPING * np.einsum("gkk->g", gram)[:, None] / k
        restricted = restrict(rows, LEAST, MOST, lattice.pairs, np.repeat(power, outs, axis=0))
        lattice = _lattice(restricted.scale, lattice.pairs)
        yield restricted.levels, lattice
    if outs == 1 and groups > 1 and lattice.pairs is None:
        yield _each_alone(rows, lattice.scale[:, 0], gram), lattice
        return
    yield ROUNDINGS[how.rounding](rows, lattice, gram if groups > 1 else gram[0]), lattice


def _each_alone(rows: np.ndarray, scale: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Coordinate descent from the nearest levels for rows [groups, k] with a Gram [groups, k, k] each, all at once: depthwise."""
    levels = np.clip(np.rint(rows / scale[:, None]), LEAST, MOST)
    error = levels * scale[:, None] - rows
    for _ in range(SWEEPS):
        for j in range(rows.shape[1]):
            stiff = gram[:, j, j]
            slope = np.einsum("gk,gk->g", gram[:, j], error)
            wish = levels[:, j] - np.divide(slope, stiff * scale, out=np.zeros_like(slope), where=stiff > 0)
            level = np.clip(np.rint(wish), LEAST, MOST)
            error[:, j] += (level - levels[:, j]) * scale
            levels[:, j] = level
    return levels.astype(np.int32)
