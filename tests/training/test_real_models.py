"""Gradients of real models, unmodified: a step along the gradient changes the loss as the gradient says, ten steps lower it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.model import load
from onnxcompress.training.graph import step_graph
from onnxcompress.training.optimizers import OPTIMIZERS, Settings, State
from onnxcompress.training.parameters import Layout, parameters_of
from onnxcompress.training.targets import TEACHER, criterion, targets_of
from onnxcompress.training.teacher import Teacher
from sample_models.fetch import fetch
from sample_models.inputs import inputs

SHAKEN = 0.1
"""Noise on the weights: at the teacher's own, all gradients are rounding."""


@pytest.mark.fetch
@pytest.mark.parametrize("name", ["ppocr-cls", "minilm", "ppocr-rec"])
def test_ten_steps_of_self_distillation_lower_the_loss(name: str) -> None:
    model, rng = load(fetch(name)), np.random.default_rng(0)
    feeds = inputs(name, 2)
    targets, names = targets_of(model, model), parameters_of(model)
    taught = Teacher.of(model, [target.teacher for target in targets]).session.run(feeds)
    terms = criterion(targets, {n: x.shape for n, x in taught.items()}, temperature=None)
    session = step_graph(model, {n: x.shape for n, x in feeds.items()}, names, terms).open()
    layout = Layout.of(model, names)
    weights = layout.gathered({n: model.array(n) for n in names})
    weights *= 1 + np.float32(SHAKEN) * rng.standard_normal(layout.size, np.float32)
    fed = {**feeds, **{f"{TEACHER}{n}": x for n, x in taught.items()}}

    def run(at: np.ndarray) -> tuple[float, np.ndarray]:
        found = session.run({**fed, **layout.views(at)})
        return float(found["loss"]), layout.gathered({n: found[f"gradient/{n}"] for n in names})

    first, gradient = run(weights)
    length = float(np.linalg.norm(gradient))
    ratios = []
    for reach in (1e-4, 1e-5):  # of the weights: kinks want a short way, float32 a long one
        move = np.float32(reach * np.linalg.norm(weights) / length) * gradient
        ends = [run(weights + sign * move)[0] for sign in (1, -1)]
        ratios.append((ends[0] - ends[1]) / (2 * float(np.linalg.norm(move)) * length))
    assert min(abs(ratio - 1) for ratio in ratios) < 0.05, ratios
    state = State()
    for step in range(1, 11):
        OPTIMIZERS["adamw"](weights, run(weights)[1], state, 2e-4, step, Settings())
    assert run(weights)[0] < first
