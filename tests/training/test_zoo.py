"""Every hand-made model is differentiated, or refused in a line that names what is in the way."""

from __future__ import annotations

import pytest

from onnxcompress.errors import ModelError
from onnxcompress.model import load
from tests.generate.feeds import feeds
from tests.training.steps import Step, assert_right, sums
from tests.zoo import ZOO

REFUSED = {
    "double": "parameter 'w1' is DOUBLE, and only float32 trains",
    "float16": "parameter 'w1' is FLOAT16, and only float32 trains",
    "no_weights": "nothing in it can be trained",
}


@pytest.mark.parametrize("name", sorted(ZOO.keys() - REFUSED.keys()))
def test_the_loss_changes_as_the_gradient_says(name: str) -> None:
    proto = ZOO[name]()
    model = load(proto)
    assert_right(Step(model, feeds(proto, 0), sums(model, 0), {}))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_trained_is_told_in_one_line(name: str) -> None:
    proto = ZOO[name]()
    model = load(proto)
    with pytest.raises(ModelError, match=REFUSED[name]) as told:
        Step(model, feeds(proto, 0), sums(model, 0), {})
    assert "\n" not in str(told.value)
