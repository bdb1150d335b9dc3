"""A recurrent layer at a stop of the walk: what its gates are to add up is the original's product, whatever comes of it behind them.

W meets the sequence that the node reads; R meets the states of the step before, which the node is run for: the original's with its own
weights, the current one's with the weights that it has by now. Both directions read one sequence and share books, so that a gate's row
is the rows of all directions end to end, and its Gram matrix has theirs on the diagonal.

What R meets in a GRU that resets before its product (linear_before_reset = 0) is the state times the reset gate; the state stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from scipy.linalg import block_diag

from onnxcompress.evidence.paired import Pair, Track
from onnxcompress.model import Model
from onnxcompress.operators.layer import RECURRENT, Layer
from onnxcompress.passes.quantize.fitting import WIDEST, Fitting
from onnxcompress.passes.refit.rows import FOLDS
from onnxcompress.passes.refit.solver import Sums

INITIAL = 5
"""Input of LSTM, GRU and RNN: the state before the first step."""


def can_be_fitted(model: Model, layer: Layer, node: ir.Node) -> bool:
    """Is it a node of the main graph that alone reads its weight [directions, gates, k], no wider than WIDEST? Steps come first."""
    later = node.attributes.get_int("layout", 0)  # which onnxruntime does not run
    if layer.op not in RECURRENT or layer.bits is not None or node.graph is not model.ir.graph or later:
        return False
    directions, gates, width = model.array(layer.weight).shape
    alone = len(list(model.initializers[layer.weight].uses())) == 1
    return alone and gates > directions and directions * width <= WIDEST


def fitting(model: Model, layer: Layer, node: ir.Node, pair: Pair, rows: int, seed: int) -> Fitting | None:
    """What the stop `pair` before `node` knows of one of its weights, as quantize/fitting.py tells it of other layers.

    rows  at most so many steps of samples      seed  which are drawn
    The weight is [1, gates, directions · k], the order of `Clustered.rows` along the axis of gates; it has no bias of its own.
    """
    weight = model.array(layer.weight).astype(np.float64)
    states = node.inputs[2] is not None and node.inputs[2].name == layer.weight
    met = _states if states else _sequence
    parts = [[Sums() for _ in weight] for _ in range(FOLDS)]
    rng, batches = (
        np.random.default_rng(seed),
        list(zip(met(node, pair.original, pair), met(node, pair.current, pair), strict=True)),
    )
    share = max(1, rows // max(len(batches), 1))
    for number, (before, now) in enumerate(batches):
        count = before.shape[1]
        drawn = np.arange(count) if count <= share else np.sort(rng.choice(count, share, replace=False))
        for fold in range(FOLDS) if len(batches) == 1 else [number % FOLDS]:
            mine = drawn[fold::FOLDS] if len(batches) == 1 else drawn
            for sums, own, wanted, fed in zip(parts[fold], weight, before, now, strict=False):
                if len(mine):
                    sums.add(fed[None, mine], (wanted[mine] @ own.T)[None])
    judge, fit = _end_to_end(parts[:1]), _end_to_end(parts[1:])
    if not fit.count or not judge.count:
        return None
    whole = np.moveaxis(weight, 0, 1).reshape(1, weight.shape[1], -1)
    return Fitting(whole, np.zeros(whole.shape[:2]), None, fit, judge)


def _end_to_end(parts: list[list[Sums]]) -> Sums:
    """Sums over rows of all directions end to end: none of them meets another's."""
    each = [Sums() for _ in parts[0]]
    for part in parts:
        for sums, more in zip(each, part, strict=True):
            if more.count:
                sums.absorb(more)
    if not all(sums.count for sums in each):
        return Sums()
    return Sums(
        each[0].count,
        x=np.concatenate([sums.x for sums in each], axis=1),
        y=sum(sums.y for sums in each),
        power=sum(sums.power for sums in each),
        gram=block_diag(*(sums.gram[0] for sums in each))[None],
        cross=np.concatenate([sums.cross for sums in each], axis=2),
    )


def _sequence(node: ir.Node, track: Track, pair: Pair) -> Iterator[np.ndarray]:
    """Batch by batch what all directions read, [directions, steps · samples, in]."""
    directions = _directions(node)
    for array in track.store[track.proto.graph.node[track.place[pair.node]].input[0]]:
        flat = array.reshape(-1, array.shape[-1]).astype(np.float64)
        yield np.broadcast_to(flat, (directions, *flat.shape))


def _states(node: ir.Node, track: Track, pair: Pair) -> Iterator[np.ndarray]:
    """Batch by batch the states that each step begins with, [directions, steps · samples, hidden]; the first is told, or zero."""
    proto = onnx.NodeProto()
    proto.CopyFrom(track.proto.graph.node[track.place[pair.node]])
    if not proto.output[0]:
        proto.output[0] = f"{proto.name}.states"
    backwards = [node.attributes.get_string("direction", "forward") == "reverse", True]
    told = proto.input[INITIAL] if len(proto.input) > INITIAL else ""
    for batch, values in enumerate(track.run([proto], [proto.output[0]])):
        made = values[proto.output[0]].astype(np.float64).transpose(1, 0, 2, 3)  # [directions, steps, samples, hidden]
        begun = np.zeros_like(made)
        if told:
            first = track.store[told][batch] if told in track.store else track.constants[told]
            begun[:, 0], begun[:, -1] = first, first
        for direction, back in enumerate(backwards[: len(made)]):
            to, of = (slice(None, -1), slice(1, None)) if back else (slice(1, None), slice(None, -1))
            begun[direction, to] = made[direction, of]
        yield begun.reshape(len(made), -1, made.shape[-1])


def _directions(node: ir.Node) -> int:
    return 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1
