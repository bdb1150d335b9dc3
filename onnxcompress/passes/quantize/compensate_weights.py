"""Integer weights of a model whose activations stay float, each layer to make up for what those before it have lost.

float model ─── y ─────────────────────────┐
its weights as integers say ── x ─▶ Gram matrix ─▶ aim ─▶ levels on the same scales ─▶ bias ─▶ the next layer is fed by these

The walk of compensate.py without grids of activations: fitting.py and rounding.py are the same. Scales stay what integers.py
found, by channel or by block. A weight whose rows cannot be gathered (embeddings, bodies, recurrent layers) stays as it was,
and so does one that is tied to an embedding, so that both are stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxcompress.evidence.paired import Paired
from onnxcompress.model import Model
from onnxcompress.model.edit import walk
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.passes.quantize.blocks import Blocks, tied
from onnxcompress.passes.quantize.compensate import Compensation
from onnxcompress.passes.quantize.fitting import Fitting, Tried, fits, fitting
from onnxcompress.passes.quantize.found import Form, Stored, Weight
from onnxcompress.passes.quantize.grid import LEAST, MOST
from onnxcompress.passes.quantize.integers import by_block, decoded, like_initializer
from onnxcompress.passes.quantize.levels import pairs_of
from onnxcompress.passes.quantize.rounding import ROUNDINGS, Lattice

Forms = Mapping[str, tuple[Form, Stored]]
"""Weight -> its form and integers."""


@dataclass(frozen=True, eq=False)
class Compensated:
    """The integers with other levels, biases to go with them, and SQNR on held-out rows before and after, by weight."""

    forms: dict[str, tuple[Form, Stored]]
    biases: dict[str, np.ndarray]
    held_out_db: dict[str, tuple[float, float]]


def compensated_weights(
    how: Compensation, model: Model, paired: Paired, found: Mapping[str, Weight], forms: Forms
) -> Compensated:
    """Walk the model and round again what is a layer of the main graph; never worse on held-out rows, layer by layer.

    paired  the walk over calibration samples; what it is told to be the original and the current model is set here
    found   weight -> what reads it           forms  weight -> its form, and integers with the nearest levels
    """
    model = model.as_original()
    places = {node.name or "": node for node in walk(model.ir)}
    now = {name: decoded(each, model.array(name).shape, found[name], form) for name, (form, each) in forms.items()}
    tables = [stored.levels for name, (_, stored) in forms.items() if found[name].op == "Gather"]
    todo = {
        layer.name: layer
        for layer in layers(model)
        if layer.weight in forms and layer.op != "Gather" and fits(model, layer, places[layer.name])
        if not any(tied(forms[layer.weight][1].levels, table) for table in tables)
    }
    result = Compensated(dict(forms), {}, {})
    for pair in replace(paired, original=model, current=model.with_constants(now)).walk(list(todo)):
        layer = todo[pair.node]
        at = fitting(model, layer, places[pair.node], pair, how.rows, how.seed)
        if at is None:
            continue
        weight, (form, stored) = found[layer.weight], forms[layer.weight]
        like = model.array(layer.weight)
        before, best = _rounded(how, at, *_on_lattice(how, layer, like.shape, weight, form, stored))
        again = _stored(layer, like, weight, form, stored, best.levels)
        result.forms[layer.weight] = form, again
        result.held_out_db[layer.weight] = at.decibel(before.error), at.decibel(best.error)
        pair.replace(layer.weight, decoded(again, like.shape, weight, form))
        bias = at.bias_like(model, best)
        if at.bias and bias is not None:
            result.biases[at.bias] = bias
            pair.replace(at.bias, bias)
    return result


def _rounded(how: Compensation, at: Fitting, levels: np.ndarray, lattice: Lattice) -> tuple[Tried, Tried]:
    """The layer as it was, and the best of: that with a bias for it, the aim rounded on the Gram matrix."""
    before, gram, aim = at.present(levels, lattice), at.gram(), at.aim()
    rows = aim.reshape(-1, aim.shape[-1])
    again = ROUNDINGS[how.rounding](rows, lattice, gram if len(gram) > 1 else gram[0])
    return before, min(before, at.tried(levels, lattice), at.tried(again, lattice), key=lambda each: each.error)


def _on_lattice(
    how: Compensation, layer: Layer, shape: tuple[int, ...], weight: Weight, form: Form, stored: Stored
) -> tuple[np.ndarray, Lattice]:
    """Levels [out, row] of the Layer view, and a lattice with a scale for each of them, whatever the layout of the blocks.

    Integer products (the form "dynamic") have one for each row, and pairs that must not saturate.
    """
    if isinstance(stored, Blocks):
        levels, scale = (like_initializer(part, shape, weight, form) for part in (stored.levels, by_block(stored)))
        low, high, zero = 0, 2**stored.bits - 1, 2.0 ** (stored.bits - 1)
    else:
        axis = [-1 if number == stored.grid.axis else 1 for number in range(len(shape))]
        levels, scale = stored.levels, np.broadcast_to(np.asarray(stored.grid.scale).reshape(axis), shape)
        low, high, zero = LEAST, MOST, 0.0
    matrix = layer.matrix(scale)
    rows, scales = (layer.matrix(each).reshape(len(matrix), -1) for each in (levels, scale))
    if form == "dynamic":
        pairs = pairs_of(layer, matrix, how.portable)
        return rows, Lattice(scales[:, :1], np.zeros((len(rows), 1)), low, high, pairs=pairs)
    return rows.astype(np.int32), Lattice(scales, np.full(scales.shape, zero), low, high, block=1)


def _stored(layer: Layer, like: np.ndarray, weight: Weight, form: Form, stored: Stored, levels: np.ndarray) -> Stored:
    """The integers with other levels [out, row]."""
    whole = layer.stored(levels.reshape(layer.matrix(like).shape), like)
    if not isinstance(stored, Blocks):
        return replace(stored, levels=whole.astype(np.int32))
    turned = like_initializer(whole, stored.levels.shape, weight, form)
    return replace(stored, levels=np.ascontiguousarray(turned).astype(np.uint8))
