"""Step graphs of whole models, and whether a loss changes along the gradient as the gradient says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.training.graph import Criterion, settings_in, step_graph
from onnxcompress.training.parameters import Layout, parameters_of
from onnxcompress.training.pen import Pen, shape_of
from onnxcompress.training.targets import targets_of

ROUNDING = 1e-6
"""A gradient below this share of the largest, both times the weights' length, is rounding: what a bias of attention's keys has is 0."""


class Step:
    """A step graph of a model and a loss, all weights trained, fed with one batch."""

    def __init__(
        self, model: Model, fed: Mapping[str, np.ndarray], terms: Criterion, more: Mapping[str, np.ndarray]
    ) -> None:
        names = parameters_of(model)
        shapes = {name: x.shape for name, x in fed.items()}
        self.session = step_graph(model, shapes, names, terms, known=settings_in(fed)).open()
        self.layout, self.fed = Layout.of(model, names), {**fed, **more}
        self.weights = self.layout.gathered({name: model.array(name) for name in names})

    def run(self, at: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and gradient."""
        found = self.session.run({**self.fed, **self.layout.views(at)})
        return float(found["loss"]), self.layout.gathered({n: found[f"gradient/{n}"] for n in self.layout.shapes})


def sums(model: Model, seed: int) -> Criterion:
    """Each output times fixed random numbers, added up; outputs of Softmax and Sigmoid before these."""

    def terms(op: Pen, values: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        rng = np.random.default_rng(seed)
        found = {}
        for target in targets_of(model, model):
            value = values[target.student]
            found[target.name] = op.ReduceSum(op.Mul(value, rng.standard_normal(shape_of(value))), keepdims=0)
        return found

    return terms


def agreement(step: Step) -> list[float]:
    """Change of the loss over what the gradient promises, along a direction in which each tensor has an equal share of it.

    Along the gradient itself one sensitive tensor would be all that is tested. Over several lengths: kinks want a short way, float32 a
    long one.
    """
    first, gradient = step.run(step.weights)
    direction, weights = np.zeros_like(gradient), step.layout.views(step.weights)
    squares = {n: float(np.square(g.astype(np.float64)).sum()) for n, g in step.layout.views(gradient).items()}
    worth = {n: square * float(np.square(weights[n].astype(np.float64)).sum() + 1e-6) for n, square in squares.items()}
    for name, view in step.layout.views(gradient).items():
        if worth[name] > ROUNDING**2 * max(worth.values()):
            step.layout.views(direction)[name][...] = view / squares[name]
    slope = float(direction.astype(np.float64) @ gradient)
    found = []
    for change in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        move = np.float32(change * max(abs(first), 1.0) / slope) * direction
        ends = [step.run(step.weights + sign * move)[0] for sign in (1, -1)]
        found.append((ends[0] - ends[1]) / (2 * float(move.astype(np.float64) @ gradient)))
    return found


def assert_right(step: Step) -> None:
    ratios = agreement(step)
    assert min(abs(ratio - 1) for ratio in ratios) < 0.02, ratios
