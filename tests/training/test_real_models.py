"""Gradients of real models, unmodified: the loss changes along them as they say, ten steps of self-distillation lower it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.model import Model, load
from onnxcompress.training.graph import Criterion, settings_in, step_graph
from onnxcompress.training.optimizers import OPTIMIZERS, Settings, State
from onnxcompress.training.parameters import Layout, parameters_of
from onnxcompress.training.pen import Pen, shape_of
from onnxcompress.training.targets import TEACHER, criterion, targets_of
from onnxcompress.training.teacher import Teacher
from sample_models.fetch import fetch
from sample_models.inputs import feeds, inputs

SHAKEN = 0.1
"""Noise on the weights: at the teacher's own, all gradients are rounding."""

RATES = {"open-nsfw": 1e-5, "ddddocr-det": 1e-5}
"""Of Adam, whose step in each weight is the rate however small the gradient; 1e-4 elsewhere. Far off for networks this sensitive."""

ROUNDING = 1e-6
"""A gradient below this share of the largest, both times the weights' length, is rounding: what a bias of attention's keys has is 0."""

QUICK = ("ppocr-cls", "ppocr-rec", "minilm", "ddddocr", "silero-vad", "silero-vad-half", "silero-vad-sequence")
WHOLE = (*QUICK, "ppocr-det", "open-nsfw", "magika", "efficientnet-lite0", "ddddocr-det", "silero-vad-op15",
         "silero-vad-ifless", "silero-vad-openvino")  # fmt: skip
"""Every real model with weights of floats."""


def slow_but(quick: tuple[str, ...]) -> list[object]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in WHOLE]


@functools.lru_cache(maxsize=2)
def opened(name: str) -> tuple[Model, dict[str, np.ndarray]]:
    """The model, and what one run of it is fed."""
    return load(fetch(name)), dict(next(iter(feeds(name, inputs(name, 1)))))


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


@pytest.mark.fetch
@pytest.mark.parametrize("name", slow_but(QUICK))
def test_the_loss_changes_as_the_gradient_says(name: str) -> None:
    model, fed = opened(name)
    assert_right(Step(model, fed, sums(model, 0), {}))


@pytest.mark.fetch
@pytest.mark.parametrize("name", slow_but(QUICK))
def test_ten_steps_of_self_distillation_lower_the_loss(name: str) -> None:
    model, fed = opened(name)
    targets = targets_of(model, model)
    taught = Teacher.of(model, [target.teacher for target in targets]).session.run(fed)
    terms = criterion(targets, {n: x.shape for n, x in taught.items()}, temperature=None)
    step = Step(model, fed, terms, {f"{TEACHER}{n}": x for n, x in taught.items()})
    weights = step.weights * (
        1 + np.float32(SHAKEN) * np.random.default_rng(0).standard_normal(step.layout.size, np.float32)
    )
    first, state = step.run(weights)[0], State()
    for number in range(1, 11):
        OPTIMIZERS["adamw"](weights, step.run(weights)[1], state, RATES.get(name, 1e-4), number, Settings())
    assert step.run(weights)[0] < first


CLASSIC = (
    "squeezenet",
    "shufflenet",
    "inception_v1",
    "inception_v2",
    "densenet121",
    "resnet50",
    "bvlc_alexnet",
    "zfnet512",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIC)
def test_classic_networks_with_random_weights(name: str) -> None:
    """The graphs that the onnx package ships: shuffles, LRN, dense joins."""
    from benchmarks.classic import classic
    from benchmarks.classic import inputs as images

    path: Path = classic(name)
    model = load(path)
    assert_right(Step(model, images(name, 1), sums(model, 0), {}))
