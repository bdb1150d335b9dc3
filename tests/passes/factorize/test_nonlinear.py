"""The fit behind a Relu or Clip: its z is the best there is, and it never does worse where rows judge."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.passes.factorize.forms import FORMS, Shape
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.factorize.nonlinear import Behind, Function

RELU = Function(0.0, np.inf)


@pytest.mark.parametrize("function", [RELU, Function(0.0, 6.0), Function(-1.0, 1.0)])
def test_z_is_the_best_of_all(function: Function) -> None:
    rng = np.random.default_rng(1)
    wanted, present = function(4 * rng.normal(size=200)), 4 * rng.normal(size=200)
    tried = np.linspace(-20, 20, 8001)[:, None]
    for weight in (0.01, 1.0):
        cost = (wanted - function(tried)) ** 2 + weight * (tried - present) ** 2
        z = function.nearest(wanted, present, weight)
        mine = (wanted - function(z)) ** 2 + weight * (z - present) ** 2
        assert (mine <= cost.min(axis=0) + 1e-9).all() and (mine >= cost.min(axis=0) - 1e-2).all()


@pytest.mark.parametrize("name", ["lowrank", "spatial"])
def test_what_the_function_swallows_makes_room_for_the_rest(name: str) -> None:
    rng = np.random.default_rng(2)
    shape, form = Shape(1, 12, 4, (3, 3)), FORMS[name]
    weight, bias = rng.normal(size=(1, 12, 4, 9)), np.full((1, 12), -3.0)  # mostly below zero
    x = rng.normal(size=(1, 900, 36))
    y = x @ weight.reshape(1, 12, 36).transpose(0, 2, 1) + bias
    ranks = (4,)
    fit = Behind(RELU, form, shape, ranks, x[:, :600], y[:, :600], x[:, 600:], y[:, 600:])
    before = form.start(shape, weight, ranks, Metric())
    after = fit.improved(before, bias)
    assert fit.error(*after) < 0.96 * fit.error(before, bias)
    assert fit.error(*fit.improved(*after)) <= fit.error(*after)
