"""Everything that a pass may want to know, by kind: who provides it. All other kinds are sums over activations (kinds.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from operator import add
from typing import Any

import onnx_ir as ir

from onnxcompress.data import Data
from onnxcompress.evidence.collect import collect
from onnxcompress.evidence.expose import Watched, run_shapes
from onnxcompress.evidence.gates import Share, noise_share_of_logits
from onnxcompress.evidence.kinds import KINDS
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.evidence.sensitivity import sensitivities
from onnxcompress.evidence.trial import Trial
from onnxcompress.model import Model
from onnxcompress.model.edit import LIKE, input_of, ints_of
from onnxcompress.model.model import Origin
from onnxcompress.operators.layer import all_layers
from onnxcompress.runtime.memory import free_bytes

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sources:
    """What evidence is made from: the original, the model as it now is, the calibration samples, and limits."""

    original: Model
    current: Model
    data: Data
    batch: int = 8
    threads: int = 1
    memory_limit: int = 256 << 20
    seed: int = 0
    progress: Callable[[int, int, str], None] | None = None


def first_shapes(
    model: Model, data: Data, original: Model | None = None, watched: Watched | None = None
) -> Mapping[str, Shape]:
    """Shapes of all values on the first sample: run once for a model and a shape of samples, then remembered.

    original  a model that this one was made from: where shapes follow from the original's, from the channels that are left of each
              value and from nodes that keep a shape, nothing is run
    watched   a session of the model that tells them, where there is one
    """
    feed = next(iter(data.batches(1)))
    key = f"shapes {sorted((name, array.shape) for name, array in feed.items())}"

    def compute(_: Model) -> Mapping[str, Shape]:
        if original is None or original is model:
            return run_shapes(model, feed) if watched is None else watched.shapes(feed)
        found = _followed(model, first_shapes(original, data))
        # what layers read and write is what costs are counted from; whoever wants more runs the model for it
        read = {name for layer in all_layers(model) if "Gather" not in layer.op for name in (layer.reads, layer.writes)}
        ends = {value.name for value in _computed(model) if value.name in read and value.uses()}
        return found if ends <= found.keys() else run_shapes(model, feed)

    return model.remember(key, compute)


KEEPS_SHAPE = {"QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Relu", "Clip"}
"""Operators whose output has the shape of their first input."""


def _followed(model: Model, before: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of values of the original -> of the model that was made from it, as far as they follow."""
    every = {name: _left(shape, model.origin.get(name)) for name, shape in before.items()}
    constants = {name: value.const_value for name, value in model.initializers.items()}
    found = {name: tuple(tensor.shape.numpy()) for name, tensor in constants.items() if tensor is not None}
    found |= {name: every[name] for value in model.ir.graph.inputs if (name := value.name or "") in every}
    for value in _computed(model):
        name = value.name or ""
        if name not in every and value.meta.get(LIKE) in every:
            every[name] = every[value.meta[LIKE]]
        if name in every:
            found[name] = every[name]
    keeping = [(node, grown) for node in model.ir.graph if (grown := _grown(node)) is not None]
    for node, grown in (*keeping, *keeping[::-1]):
        one, other = node.inputs[0].name or "", node.outputs[0].name or ""  # type: ignore[union-attr]
        if one in found:
            found.setdefault(other, tuple(size + more for size, more in zip_longest(found[one], grown, fillvalue=0)))
        elif other in found:
            found[one] = tuple(size - more for size, more in zip_longest(found[other], grown, fillvalue=0))
    return found


def _grown(node: ir.Node) -> tuple[int, ...] | None:
    """What a node adds to each axis of its first input, () for nothing; None where that is not known."""
    if node.domain or node.op_type not in (*KEEPS_SHAPE, "Pad"):
        return None
    if node.op_type in KEEPS_SHAPE:
        return ()
    pads = ints_of(input_of(node, 1)) if input_of(node, 3) is None else None
    return None if pads is None else tuple(map(add, pads[: len(pads) // 2], pads[len(pads) // 2 :]))


def _left(shape: Shape, origin: Origin | None) -> Shape:
    """Of a value that some indices are left of."""
    if origin is None:
        return shape
    return tuple(len(origin.kept[axis]) if axis in origin.kept else size for axis, size in enumerate(shape))


def _computed(model: Model) -> list[ir.Value]:
    return [value for node in model.ir.graph for value in node.outputs]


def shapes(sources: Sources, needs: Sequence[Need]) -> Mapping[Need, Any]:
    """Shapes of all values in one run."""
    return dict.fromkeys(needs, first_shapes(sources.current, sources.data, sources.original))


def paired(sources: Sources, needs: Sequence[Need]) -> Mapping[Need, Any]:
    """The walk over both models."""
    walk = Paired(
        sources.original,
        sources.current,
        sources.data,
        batch=sources.batch,
        threads=sources.threads,
        progress=sources.progress,
        memory_limit=sources.memory_limit,
    )
    return dict.fromkeys(needs, walk)


def sensitivity(sources: Sources, needs: Sequence[Need], share: Share | None = None) -> Mapping[Need, Any]:
    """One number a value."""
    found = sensitivities(
        sources.current,
        [(n.value, n.axis) for n in needs],
        sources.data,
        batch=sources.batch,
        threads=sources.threads,
        seed=sources.seed,
        share=share,
    )
    return {need: found[need.value] for need in needs if need.value in found}


def trial(sources: Sources, needs: Sequence[Need]) -> Mapping[Need, Any]:
    """Runs of graphs that a pass might make."""
    return dict.fromkeys(needs, Trial(sources.original, sources.data, sources.batch, sources.threads))


def themselves(sources: Sources, needs: Sequence[Need]) -> Mapping[Need, Any]:
    """For a pass that trains on them."""
    return dict.fromkeys(needs, sources)


Provider = Callable[[Sources, Sequence[Need]], Mapping[Need, Any]]

PROVIDERS: dict[str, Provider] = {
    "sources": themselves,
    "shapes": shapes,
    "paired": paired,
    "sensitivity": sensitivity,
    "sensitivity of logits": partial(sensitivity, share=noise_share_of_logits),
    "trial": trial,
}


def gather(sources: Sources, needs: Sequence[Need], providers: Mapping[str, Provider] | None = None) -> Evidence:
    """Meet the needs; those about values that no run reaches are missing, as are kinds that nobody provides.

    providers  more of them, by kind: those of floors above this one (gradients)
    """
    known: dict[Need, Any] = {}
    for kind, provide in {**PROVIDERS, **(providers or {})}.items():
        mine = [need for need in needs if need.kind == kind]
        if mine:
            known.update(provide(sources, mine))
    rest = [need for need in needs if need.kind in KINDS]
    if rest:
        found = collect(
            sources.current, rest, sources.data, batch=sources.batch, memory_limit=sources.memory_limit,
            alone=(free_bytes() or 0) // 2, threads=sources.threads, seed=sources.seed, progress=sources.progress,
            shapes=first_shapes(sources.current, sources.data, sources.original),
        )  # fmt: skip
        known.update({need: found[need] for need in rest if need in found})
    return known
