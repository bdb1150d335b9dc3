"""Gradients as evidence: what the outputs lose to first order where a value is gated, and how strongly they bend in each weight.

At the weights as they are a model answers like itself, so the gradient of any loss of self-distillation is zero and only its second
order tells anything. That is the Fisher (Gauss-Newton) matrix F = E Jᵀ H J with J the outputs' Jacobian and H the curvature of the
output's loss in them. Random v with E v vᵀ = H make it a mean of squares of gradients:

    g = ∂ ⟨v, outputs⟩ / ∂θ          E g gᵀ = F          one backward pass a draw, labels play no part

Martens, JMLR 2020, arXiv:1412.1193, for the matrix; Theis et al. 2018, arXiv:1801.05787, for gates that see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import OnnxCompressError
from onnxcompress.evidence.gather import Provider, Sources, first_shapes
from onnxcompress.evidence.need import IF_ANY, NO_GRADIENT, Need
from onnxcompress.operators.cost import cost
from onnxcompress.runtime.session import Session
from onnxcompress.training.graph import GATE, GRADIENT, Criterion, settings_in, step_graph, told_apart
from onnxcompress.training.losses import LOSSES, Of
from onnxcompress.training.pen import Pen, element_of, is_float, shape_of
from onnxcompress.training.targets import Target, targets_of
from onnxcompress.training.teacher import Teacher

PROBE = "probe/"
"""Before the name of each value that a draw weighs."""

DRAWS = 96
"""Backward passes: each sample has as many draws as make this many, and no more samples than this are read."""

LEAST_DRAWS = 16
"""Backward passes where they are cut short: the mean square of a gradient is then off by a third."""

WORK = 1 << 35
"""Multiply-adds of all forward passes together, beyond which draws are cut short where nobody asked for gradients by name."""

GRAPHS = 4
"""Step graphs that are kept, one for each set of input shapes."""

TINY = 1e-12


def _of_logits(y: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
    """diag(p) - p pᵀ for each row: √p r - p ⟨√p, r⟩ with r = ±1, over the root of the number of rows. A label drawn from p has the
    same mean square, and tells next to nothing where the model is nearly sure."""
    e = np.exp(y - y.max(axis, keepdims=True))
    p = e / e.sum(axis, keepdims=True)
    drawn = np.sqrt(p) * _signs(y.shape, rng)
    v: np.ndarray = drawn - p * drawn.sum(axis, keepdims=True)
    return v / np.sqrt(y.size / y.shape[axis])


def _of_log_odds(y: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
    """p (1 - p) on the diagonal, mean over all numbers."""
    p = 1 / (1 + np.exp(-np.clip(y, -60, 60)))
    v: np.ndarray = np.sqrt(p * (1 - p)) * _signs(y.shape, rng)
    return v / np.sqrt(y.size)


def _of_numbers(y: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
    """The error of an output beside its power: outputs of any scale count alike."""
    v: np.ndarray = _signs(y.shape, rng) / np.sqrt(np.square(y).sum() + TINY)
    return v


PROBES: dict[Of, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "logits": _of_logits,
    "log odds": _of_log_odds,
    "features": _of_numbers,
}
"""What an output is -> (its values float64, the axis of classes, rng) -> one v with E v vᵀ = H."""


def _signs(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    return 2.0 * rng.integers(0, 2, shape) - 1.0


def gradients_of_gates(sources: Sources, needs: Sequence[Need], draws: int | None = None) -> Mapping[Need, Any]:
    """[draws, channels] float64 for each need: the gradient by a factor 1 on each channel of its value.

    draws  backward passes, by default DRAWS
    Values that are not in the main graph, or not floats, are missing. ModelError for an operator without a derivative.
    """
    known = {value.name for node in sources.current.ir.graph for value in node.outputs if is_float(value)}
    known |= {value.name for value in sources.current.ir.graph.inputs if is_float(value)}
    axes = {need.value: need.axis for need in needs if need.value in known}
    if not axes:
        return {}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in axes}
    for given in _draws(_Steps(sources, gates=axes), draws):
        for name in axes:
            rows[name].append(given[f"{GRADIENT}{GATE}{name}"].astype(np.float64))
    return {need: np.stack(rows[need.value]) for need in needs if need.value in axes}


def gradients_if_any(sources: Sources, needs: Sequence[Need]) -> Mapping[Need, Any]:
    """As `gradients_of_gates`, with fewer draws of a large model; NO_GRADIENT says why where there are none."""
    if sources.data.synthetic:
        return {NO_GRADIENT: "the inputs are made up"}
    macs = cost(sources.current, first_shapes(sources.current, sources.data, sources.original)).macs or 0
    draws = max(LEAST_DRAWS, min(DRAWS, WORK // max(macs, 1)))
    try:
        found = gradients_of_gates(sources, [replace(need, kind="gradient") for need in needs], draws)
    except OnnxCompressError as error:
        return {NO_GRADIENT: str(error)}
    return found or {NO_GRADIENT: "no value that its weights read holds floats in the main graph"}


def curvature_of_weights(sources: Sources, needs: Sequence[Need]) -> Mapping[Need, Any]:
    """The diagonal of F for each need, float32 in the shape of the constant that it names.

    Constants in other types than float32 are missing. ModelError for an operator without a derivative.
    """
    held = sources.current.initializers
    names = sorted({need.value for need in needs if need.value in held and held[need.value].dtype == ir.DataType.FLOAT})
    if not names:
        return {}
    total = {name: np.zeros(sources.current.array(name).shape, np.float32) for name in names}
    draws = 0
    for given in _draws(_Steps(sources, parameters=names)):
        draws += 1
        for name, squares in total.items():
            squares += np.square(given[f"{GRADIENT}{name}"])
    return {need: total[need.value] / np.float32(draws) for need in needs if need.value in total}


GRADIENTS: dict[str, Provider] = {
    "gradient": gradients_of_gates,
    IF_ANY: gradients_if_any,
    "hessian": curvature_of_weights,
}
"""Kinds of evidence that take a backward pass, for `gather`."""


@dataclass(eq=False)
class _Steps:
    """Sessions that give the gradients of ⟨v, outputs⟩, one for each set of input shapes."""

    sources: Sources
    parameters: Sequence[str] = ()
    gates: Mapping[str, int] = field(default_factory=dict)
    kept: dict[Any, Session] = field(default_factory=dict)

    def session(self, feed: Mapping[str, np.ndarray], targets: Sequence[Target]) -> Session:
        """For inputs of these shapes and settings."""
        shapes = {name: array.shape for name, array in feed.items()}
        key = told_apart(feed)
        if key not in self.kept:
            if len(self.kept) >= GRAPHS:
                self.kept.pop(next(iter(self.kept)))
            made = step_graph(
                self.sources.current,
                shapes,
                self.parameters,
                weighed(targets),
                gates=self.gates,
                known=settings_in(feed),
            )
            self.kept[key] = made.open(threads=self.sources.threads)
        return self.kept[key]


def weighed(targets: Sequence[Target]) -> Criterion:
    """Σ v · y of each target's value y, with v an input `probe/NAME`."""

    def terms(op: Pen, values: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        found = {}
        for target in targets:
            value = values[target.student]
            v = op.input(f"{PROBE}{target.student}", shape_of(value), element_of(value))
            found[target.name] = op.ReduceSum(op.Mul(v, value), keepdims=0)
        return found

    return terms


def _draws(steps: _Steps, most: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The outputs of each backward pass."""
    sources, draws = steps.sources, most or DRAWS
    model = sources.current
    targets = list({target.student: target for target in targets_of(model, model)}.values())
    answers = Teacher.of(model, [target.student for target in targets], threads=sources.threads)
    held = {name: model.array(name) for name in steps.parameters}
    chosen = sources.data.shuffled(0)
    chosen = replace(chosen, indices=chosen.indices[:draws])
    each, rng = ceil(draws / chosen.samples), np.random.default_rng(sources.seed)
    for done, feed in enumerate(chosen.batches(1)):
        values = answers.session.run(feed)
        session = steps.session(feed, targets)
        ports = [port for port in session.inputs if port.name.startswith(GATE)]
        gates = {port.name: np.ones(port.shape, np.float32) for port in ports}  # type: ignore[type-var]
        for _ in range(each):
            yield session.run({**feed, **held, **gates, **_probes(targets, values, rng)})
        if sources.progress is not None:
            sources.progress(done + 1, chosen.samples, "gradients")


def _probes(
    targets: Sequence[Target], values: Mapping[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    found = {}
    for target in targets:
        y = values[target.student]
        axis = -1 if target.axis is None else target.axis
        v = PROBES[LOSSES[target.loss].of](y.astype(np.float64), axis, rng)
        found[f"{PROBE}{target.student}"] = v.astype(y.dtype)
    return found
