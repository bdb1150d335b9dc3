"""SparseGPT on the paired walk: each layer loses weights on the Gram matrix of the patches that the pruned layers before it feed it.

The walk of cluster/walk.py with masks in place of codebooks: fitting.py gathers rows and judges. What stays of each row is fitted once
more, to all that the mask left out (Frantar, Alistarh move an error to the columns behind it only), and the bias with it. Rows that are
kept back choose between this and weights scored by what they meet (Wanda), from the original's weights and from those that are aimed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcompress.evidence.paired import Paired
from onnxcompress.model import Model
from onnxcompress.model.edit import set_constant, walk
from onnxcompress.operators.layer import Layer
from onnxcompress.passes.prune.weights import keep_pattern, keep_per_row, sparsegpt, wanda
from onnxcompress.passes.quantize.fitting import Fitting, Tried, fits, fitting
from onnxcompress.passes.refit.conjugate import conjugate

STEPS = 30
"""Of conjugate gradients at most, in which a row's weights that stay make up for those that went."""

CLOSE = 1e-3
"""Share of the first residual at which they stop."""

RIDGE = 0.01
"""Of the Gram's mean diagonal: what a few samples never moved keeps its weights."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """A layer's weights and bias as they are stored, by the names of these, and SQNR of its output on held-out rows."""

    stored: Mapping[str, np.ndarray]
    held_out_db: float


@dataclass(frozen=True)
class _Plain:
    """Levels are the weights themselves."""

    @staticmethod
    def values(levels: np.ndarray) -> np.ndarray:
        """As they are."""
        return levels


def walkable(model: Model, chosen: Sequence[Layer]) -> list[Layer]:
    """The layers that a walk can prune."""
    nodes = {node.name or "": node for node in walk(model.ir)}
    return [layer for layer in chosen if fits(model, layer, nodes[layer.name])]


def walked(
    model: Model,
    paired: Paired,
    chosen: Sequence[Layer],
    share: float | tuple[int, int],
    others: Mapping[str, np.ndarray],
    *,
    rows: int = 4096,
    seed: int = 0,
) -> Iterator[tuple[Layer, Sparse]]:
    """Layer after layer what it becomes, in order of the graph; a layer with too few rows is left out.

    chosen  layers that are `walkable`      share   of the weights that goes, or (N, M)
    others  constants that are pruned in another way, which these layers are to make up for too
    rows    positions of samples that a layer is fitted on, at most
    """
    model = model.as_original()
    nodes = {node.name or "": node for node in walk(model.ir)}
    by_name = {layer.name: layer for layer in chosen}
    graph = model.ir.clone()
    for name, values in others.items():
        set_constant(graph, name, values)
    for pair in replace(paired, original=model, current=model.edited(graph)).walk(list(by_name)):
        layer = by_name[pair.node]
        at = fitting(model, layer, nodes[pair.node], pair, rows, seed)
        if at is None:
            continue
        best = min((at.tried(one, _Plain()) for one in _tried(at, share)), key=lambda tried: tried.error)
        found = _stored(model, layer, at, best)
        for name, values in found.items():
            pair.replace(name, values)
        yield layer, Sparse(found, at.decibel(best.error))


def _tried(at: Fitting, share: float | tuple[int, int]) -> Iterator[np.ndarray]:
    """Weights [out, row], so many of which are zero."""
    gram, aim = at.gram(), at.aim()
    for wanted in (at.weight, aim) if aim is not at.weight else (aim,):
        for cut in (_by_wanda, _by_sparsegpt):
            masks = np.stack([cut(rows, one, share) for rows, one in zip(wanted, gram, strict=True)])
            kept = [repaired(rows, mask, one) for rows, mask, one in zip(aim, masks, gram, strict=True)]
            yield np.concatenate(kept)


def _by_wanda(rows: np.ndarray, gram: np.ndarray, share: float | tuple[int, int]) -> np.ndarray:
    scores = wanda(rows, np.diagonal(gram))
    return keep_pattern(scores, *share) if isinstance(share, tuple) else keep_per_row(scores, share)


def _by_sparsegpt(rows: np.ndarray, gram: np.ndarray, share: float | tuple[int, int]) -> np.ndarray:
    return sparsegpt(rows, gram, share)[0]


def repaired(rows: np.ndarray, mask: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """The weights [out, row] that come nearest to `rows` on the Gram, zero where the mask is False.

    min over V of tr((V − W) (G + λ) (V − W)ᵀ), a system a row of the columns that stay, by conjugate gradients from W as it is there.
    """
    ridge = RIDGE * float(np.diagonal(gram).mean())
    damped = gram.astype(np.float64)
    damped.flat[:: len(damped) + 1] += ridge or 1.0
    stiff = np.broadcast_to(np.diagonal(damped), rows.shape)
    start = np.where(mask, rows, 0.0)
    moved = conjugate(lambda each: each @ damped, (rows - start) @ damped, stiff, mask, steps=STEPS, close=CLOSE)
    return start + moved


def _stored(model: Model, layer: Layer, at: Fitting, best: Tried) -> dict[str, np.ndarray]:
    """The weight and, where it was fitted, the bias as the model stores them."""
    like = model.array(layer.weight)
    shape = layer.matrix(like).shape
    found = {layer.weight: np.asarray(layer.stored(best.levels.reshape(shape), like), dtype=like.dtype)}
    bias = at.bias_like(model, best)
    return found if at.bias is None or bias is None else found | {at.bias: bias}
