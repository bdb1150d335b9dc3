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
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.evidence.paired import Pair, Paired
from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, set_constant, walk
from onnxcompress.operators.layer import Layer, by_node, layers
from onnxcompress.passes.quantize.grid import LEAST, MOST, Grid
from onnxcompress.passes.quantize.levels import Leveled, made, pairs_of
from onnxcompress.passes.quantize.portable import Pairing, restrict
from onnxcompress.passes.quantize.rounding import DAMPING, ROUNDINGS, Lattice
from onnxcompress.passes.quantize.rows import bias_adds, data_of, result_of, weight_axis
from onnxcompress.passes.quantize.shares import follows
from onnxcompress.passes.quantize.write import Pairs
from onnxcompress.passes.refit.goals import goals
from onnxcompress.passes.refit.refit import bias_of, unsuited
from onnxcompress.passes.refit.rows import gathered
from onnxcompress.passes.refit.solver import Sums, in_db, regressed

RIDGES = (1e-2, 1e-1, 1.0)
"""Tried for the aim, as shares of the Gram's mean diagonal. Rounding errors are small and much like noise: of 54 layers of a
classifier (24 samples) the original's weights won 26, the shares 1, 0.1 and 0.01 won 19, 4 and 3, smaller ones 2 in all."""

WIDEST = 4608
"""Columns of a row above which a weight stays nearest: the Gram of 9,216 (AlexNet's first matrix) takes 0.7 GB and minutes."""

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
    Weights that several nodes read, that have batch axes, lie in bodies or are wider than WIDEST stay as in `start`.
    """
    todo = {layer.name: layer for layer in layers(model) if layer.name in nodes and layer.weight in start}
    places = {node.name or "": node for node in walk(model.ir)}
    todo = {name: layer for name, layer in todo.items() if not unsuited(layer, places[name], model)}
    todo = {name: layer for name, layer in todo.items() if _width(model, layer) <= WIDEST}
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
            set_constant(pen.graph, layer.weight, each.grid.values(each.levels))
            if each.bias is not None and layer.bias is not None:
                set_constant(pen.graph, layer.bias, each.bias)
    chosen = [node for node in pen.graph.graph if node.name in nodes]
    absorbed = bias_adds(chosen, pen.layers)
    for node in chosen:
        if node in absorbed:
            continue
        reads = [value for value in data_of(node) if value.name in grids and constant_of(value) is None]
        for index, value in enumerate(node.inputs):
            if value is not None and value in reads and value not in pen.floats:
                pen.float_of(value, node)
            if value is not None and value in reads:
                node.replace_input_with(index, pen.floats[value])
        result = result_of(node, pen.layers.get(node.name or ""))
        if not follows(node, grids) and result.name in grids:
            pen.put(result, grids[result.name or ""])
        elif result.name in grids:
            pen.floats[result] = result  # its entries are on the grid already
    return model.edited(pen.graph)


def _width(model: Model, layer: Layer) -> int:
    return prod(layer.matrix(model.array(layer.weight)).shape[1:])


# -- one layer -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Choice:
    """The best of what was tried, by its error on held-out rows: levels [out, row], scale [out], bias [groups, out/groups]."""

    levels: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    error: float


def _rounded(how: Compensation, model: Model, layer: Layer, node: ir.Node, pair: Pair, start: Leveled) -> Leveled:
    stored = model.array(layer.weight)
    matrix = layer.matrix(stored).astype(np.float64)
    weight = matrix.reshape(layer.groups, len(matrix) // layer.groups, -1)
    told = bias_of(model, layer, node, len(matrix))
    free = told.free and told.name is not None
    offset = np.zeros(weight.shape[:2])
    if told.name is not None:
        offset = pair.constant(told.name).astype(np.float64).reshape(-1) + offset.reshape(-1)
        offset = offset.reshape(weight.shape[:2])
    fit, judge = gathered(
        node, layer, pair.read(_fed(layer, node, pair)), goals(model, node, told.value, pair), how.rows, how.seed
    )
    if not fit.count or not judge.count:
        return start
    pairs = pairs_of(layer, matrix, how.portable)
    levels = layer.matrix(start.levels).reshape(len(matrix), -1)
    scale = np.broadcast_to(start.grid.scale.astype(np.float64).reshape(-1), (len(matrix),))
    before = judge.error((levels * scale[:, None]).reshape(weight.shape), offset)
    best = _Choice(levels, scale, offset, before)
    for each in _tried(how, layer, fit, judge, weight, offset, (levels, scale), pairs, free):
        if each.error < best.error:
            best = each
    bias = None
    if free and layer.bias is not None:
        held = model.array(layer.bias)
        bias = best.bias.reshape(held.shape).astype(held.dtype)
    power = float(judge.power.sum())
    found = made(layer, stored, best.levels, best.scale, weight_axis(layer), bias, start.cost_db)
    return replace(found, held_out_db=(in_db(power, before), in_db(power, best.error)))


def _fed(layer: Layer, node: ir.Node, pair: Pair) -> str:
    """What the layer reads in the rounded graph, where inputs of the model have another name behind their rounding."""
    index = next(i for i, value in enumerate(node.inputs) if value is not None and value.name == layer.reads)
    return str(pair.current.proto.graph.node[pair.current.place[pair.node]].input[index])


def _tried(
    how: Compensation,
    layer: Layer,
    fit: Sums,
    judge: Sums,
    weight: np.ndarray,
    offset: np.ndarray,
    nearest: tuple[np.ndarray, np.ndarray],
    pairs: Pairing | None,
    free: bool,
) -> Iterator[_Choice]:
    """Nearest levels with a bias for these rows; then the aim, rounded on the Gram matrix."""

    def choice(levels: np.ndarray, scale: np.ndarray) -> _Choice:
        values = (levels * scale[:, None]).reshape(weight.shape)
        bias = (fit.y - (values @ fit.x[:, :, None])[:, :, 0]) / fit.count if free else offset
        return _Choice(levels, scale, bias, judge.error(values, bias))

    if free:
        yield choice(*nearest)
    if how.rounding == "nearest":
        return
    gram = (fit.centred() if free else fit.about(offset))[0]
    aim = _aim(fit, judge, weight, offset, free)
    for found in _on_gram(how, layer, aim, gram, nearest[1], pairs):
        yield choice(*found)


def _on_gram(
    how: Compensation, layer: Layer, aim: np.ndarray, gram: np.ndarray, scale: np.ndarray, pairs: Pairing | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Levels and scales of the aim [groups, out, k]: with each error weighed by what it meets, then on the whole Gram matrix."""
    groups, outs, k = aim.shape
    rows = aim.reshape(-1, k)
    if weight_axis(layer) is not None:
        power = np.einsum("gkk->gk", gram) + DAMPING * np.einsum("gkk->g", gram)[:, None] / k
        restricted = restrict(rows, LEAST, MOST, pairs, np.repeat(power, outs, axis=0))
        scale = restricted.scale
        yield restricted.levels, scale
    if outs == 1 and groups > 1 and pairs is None:
        yield _each_alone(rows, scale, gram), scale
        return
    lattice = Lattice(scale[:, None], np.zeros((len(rows), 1)), LEAST, MOST, pairs=pairs)
    yield ROUNDINGS[how.rounding](rows, lattice, gram if groups > 1 else gram[0]), scale


def _aim(fit: Sums, judge: Sums, weight: np.ndarray, offset: np.ndarray, free: bool) -> np.ndarray:
    """The weights to round: those of the ridge that does best on held-out rows, or the original's where none does better."""
    bias = (fit.y - (weight @ fit.x[:, :, None])[:, :, 0]) / fit.count if free else offset
    best, error = weight, judge.error(weight, bias)
    for share in RIDGES:
        found = regressed(fit, weight, offset, share, fixed_bias=not free)
        now = np.inf if found is None else judge.error(*found)
        if found is not None and now < error:
            best, error = found[0], now
    return best


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
