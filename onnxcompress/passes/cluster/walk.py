"""Books and symbols found layer by layer, each to make up for what the layers before it have lost.

float model ─── y ──────────────────────────┐
clustered model, walked beside it ── x ─▶ Gram matrix ─▶ aim ─▶ books, symbols ─▶ bias ─▶ the next layer is fed by these

The walk of quantize/compensate.py, with codebooks in place of grids: fitting.py gathers rows and judges, assign.py assigns. A
layer gets the books that rows weighed by the Gram's diagonal ask for, then symbols with error compensation and books refitted
for these in turns. Held-out rows choose between that, the books alone, and what the layer had: never worse, layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxcompress.evidence.branches import paths
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import Model
from onnxcompress.model.edit import branches, walk
from onnxcompress.operators.layer import RECURRENT, Layer, layers
from onnxcompress.passes.cluster import recurrent
from onnxcompress.passes.cluster.books import Books
from onnxcompress.passes.cluster.choices import Coder, Coding, Stop
from onnxcompress.passes.cluster.layout import along
from onnxcompress.passes.cluster.sharing import pruned
from onnxcompress.passes.cluster.tensors import Clustered
from onnxcompress.passes.cluster.vectors import Vectors
from onnxcompress.passes.quantize.fitting import Fitting, Tried, fits, fitting
from onnxcompress.weights.coded import Coded

NOISE = 1e-6
"""Of the power of the mean that a layer is fed: below this its variance is rounding, as sums may be in float32."""


@dataclass(frozen=True)
class Walk:
    """rows  positions of samples at most, a layer      seed  of these positions, and of what else is drawn"""

    rows: int = 4096
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Found:
    """What a walk gives back: a tensor's codes, and its layer's bias by the bias' name; SQNR on held-out rows before and after.

    left  tensors whose codes are those that the walk began with, since it cannot look at them, and why
    """

    coded: dict[str, Coded]
    biases: dict[str, np.ndarray]
    layer_bias: dict[str, str]
    held_out_db: dict[str, tuple[float, float]]
    left: dict[str, str]


Begun = tuple[Clustered, Coder, np.ndarray, Books | Vectors]
"""What a weight is, how it is coded, symbols [channels, n] and books."""

Start = Mapping[str, Begun]
"""Weight -> what it begins with."""


def walked(how: Walk, model: Model, paired: Paired, start: Start) -> Found:
    """Walk the model and code again what is a layer of the main graph with rows along one axis.

    paired  the walk over calibration samples; what it is told to be the original and the current model is set here

    What branches of an If hold is walked on the samples that take them (`paths`), those of most samples first: what lies in front of an
    If is fitted to these.
    """
    found = begun(model, start)
    names = {layer.name for layer in layers(model) if layer.weight in start}
    for made, data in paths(model.as_original(), names, paired.data):
        _walk_one(how, made, replace(paired, data=data), start, found)
    seen = {layer.weight for layer in layers(model)}
    for name in start.keys() - found.held_out_db.keys() - found.left.keys():
        found.left[name] = (
            "in branches that no sample takes" if name in seen else "that are computed with before a layer reads them"
        )
    return found


def _walk_one(how: Walk, model: Model, paired: Paired, start: Start, found: Found) -> None:
    """Walk a model without Ifs; what has been walked already stays."""
    places = {node.name or "": node for node in walk(model.ir)}
    todo: dict[str, list[Layer]] = {}
    for layer in layers(model):
        if layer.weight not in start or layer.weight in found.held_out_db:
            continue
        why = _why_not(model, layer, places[layer.name], start[layer.weight][0])
        if not why:
            found.left.pop(layer.weight, None)
            todo.setdefault(layer.name, []).append(layer)
        elif why != UNTAKEN:
            found.left[layer.weight] = why
    dtypes = {name: model.array(name).dtype for name in start}
    for pair in replace(paired, original=model, current=_with(model, found)).walk(list(todo)):
        for layer in todo[pair.node]:
            gathered = recurrent.fitting if layer.op in RECURRENT else fitting
            at = gathered(model, layer, places[pair.node], pair, how.rows, how.seed)
            if at is None:
                found.left[layer.weight] = "that too few samples reach"
                continue
            each, coder, symbols, books = start[layer.weight]
            before = at.present(symbols, books)
            best = min(
                (before, *(at.tried(*tried) for tried in _tried(how, at, coder, (symbols, books)))),
                key=partial(_cost, coder, at),
            )
            found.coded[layer.weight] = each.coded(best.levels, best.lattice, dtypes[layer.weight])
            found.held_out_db[layer.weight] = at.decibel(before.error), at.decibel(best.error)
            pair.replace(layer.weight, found.coded[layer.weight].decode())
            bias = at.bias_like(model, best)
            if at.bias and bias is not None:
                found.biases[at.bias], found.layer_bias[layer.weight] = bias, at.bias
                pair.replace(at.bias, bias)


UNTAKEN = "untaken"


def _why_not(model: Model, layer: Layer, node: ir.Node, each: Clustered) -> str:
    """Why no rows can be gathered of it that are those of its tensor's code; empty where they can. The tensors are those ..."""
    if node.graph is not model.ir.graph:
        return UNTAKEN if node.graph in branches(model.ir) else "in the bodies of loops"
    if each.tied:
        return "that another tensor is tied to"
    if layer.op in RECURRENT:
        suited = recurrent.can_be_fitted(model, layer, node)
    else:
        suited = along(layer) is not None and fits(model, layer, node)
    return "" if suited else "that are shared, of other operators or too wide"


def begun(model: Model, start: Start) -> Found:
    """What the tensors are before the walk, or without one."""
    coded = {
        name: each.coded(symbols, books, model.array(name).dtype) for name, (each, _, symbols, books) in start.items()
    }
    return Found(coded, {}, {}, {}, {})


def _cost(coder: Coder, at: Fitting, tried: Tried) -> float:
    """The error on held-out rows, and what bits cost where they have a price."""
    return tried.error + coder.paid(tried.levels) * at.judge.count


def _with(model: Model, found: Found) -> Model:
    """The model with the decoded weights and their biases."""
    return model.with_constants({**{name: each.decode() for name, each in found.coded.items()}, **found.biases})


def _heard(at: Fitting) -> np.ndarray:
    """The Gram matrices, zero where all that varies is the rounding of what a group is fed: coarse layers before it may leave that."""
    gram = at.gram()
    silent = np.einsum("gkk->g", gram) <= NOISE * np.square(at.fit.x).sum(axis=1) / at.fit.count
    return np.where(silent[:, None, None], 0.0, gram) if silent.any() else gram


def _tried(how: Walk, at: Fitting, coder: Coder, before: Coding) -> Iterator[Coding]:
    """What it was, with another bias; then what the coder knows to try."""
    yield before
    gram, aim = _heard(at), at.aim()
    k = aim.shape[-1]
    rows, original = aim.reshape(-1, k), at.weight.reshape(-1, k)
    zeros = original == 0 if pruned(original) else None
    if zeros is not None:
        rows = np.where(zeros, 0.0, rows)
    yield from coder.tried(Stop(rows, gram if len(gram) > 1 else gram[0], at.fit.count, zeros, how.seed))
