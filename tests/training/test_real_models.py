"""Gradients of real models, unmodified: the loss changes along them as they say, ten steps of self-distillation lower it."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from onnxcompress.model import Model, load
from onnxcompress.training.optimizers import OPTIMIZERS, Settings, State
from onnxcompress.training.targets import TEACHER, criterion, targets_of
from onnxcompress.training.teacher import Teacher
from sample_models.fetch import fetch
from sample_models.inputs import feeds, inputs
from tests.training.steps import Step, assert_right, sums

SHAKEN = 0.1
"""Noise on the weights: at the teacher's own, all gradients are rounding."""

RATES = {"open-nsfw": 1e-5, "ddddocr-det": 1e-5}
"""Of Adam, whose step in each weight is the rate however small the gradient; 1e-4 elsewhere. Far off for networks this sensitive."""

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
