"""Everything that a pass may want to know, by kind: who provides it. All other kinds are sums over activations (kinds.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from onnxcompress.data import Data
from onnxcompress.evidence.collect import collect
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.evidence.gates import Share, noise_share_of_logits
from onnxcompress.evidence.kinds import KINDS
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.evidence.sensitivity import sensitivities
from onnxcompress.evidence.trial import Trial
from onnxcompress.model import Model


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


def first_shapes(model: Model, data: Data, original: Model | None = None) -> Mapping[str, tuple[int, ...]]:
    """Shapes of all values on the first sample: run once for a model and a shape of samples, then remembered.

    original  a model that this one was made from: where no node gives a new value, shapes follow from the original's and
              the channels that are left of each value, and nothing is run
    """
    feed = next(iter(data.batches(1)))
    key = f"shapes {sorted((name, array.shape) for name, array in feed.items())}"

    def compute(_: Model) -> Mapping[str, tuple[int, ...]]:
        if original is None or original is model or _computed(model) - _computed(original):
            return run_shapes(model, feed)
        return _narrowed(model, first_shapes(original, data))

    return model.remember(key, compute)


def _computed(model: Model) -> set[str]:
    return {value.name or "" for node in model.ir.graph for value in node.outputs}


def _narrowed(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the original -> of the model that was cut from it."""
    gone = set(shapes) - _computed(model) - {value.name for value in model.ir.graph.inputs}
    found = {name: shape for name, shape in shapes.items() if name not in gone}
    for name, origin in model.origin.items():
        if name in found:
            found[name] = tuple(
                len(origin.kept[axis]) if axis in origin.kept else size for axis, size in enumerate(shapes[name])
            )
    constants = {name: value.const_value for name, value in model.initializers.items()}
    return found | {name: tuple(tensor.shape.numpy()) for name, tensor in constants.items() if tensor is not None}


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
            threads=sources.threads, seed=sources.seed, progress=sources.progress,
            shapes=first_shapes(sources.current, sources.data, sources.original),
        )  # fmt: skip
        known.update({need: found[need] for need in rest if need in found})
    return known
