"""Several teachers as one: means of probabilities and of numbers against their formulas, weights, and one teacher twice is that teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import SettingError
from onnxcompress.training.ensemble import COMBINE, Ensemble, Mean, Part, weights_of

RNG = np.random.default_rng(0)
VALUES = [RNG.normal(size=(3, 4, 5)) * scale for scale in (1, 6, 30)]
WEIGHTS = weights_of([2, 1, 1], 3)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("axis", [1, -1])
def test_logits_stand_for_the_mean_distribution(axis: int) -> None:
    mean = sum(w * softmax(v, axis) for w, v in zip(WEIGHTS, VALUES, strict=True))
    np.testing.assert_allclose(softmax(COMBINE["logits"](VALUES, WEIGHTS, axis), axis), mean, rtol=1e-9)


def test_log_odds_stand_for_the_mean_probability() -> None:
    mean = sum(w * sigmoid(v) for w, v in zip(WEIGHTS, VALUES, strict=True))
    np.testing.assert_allclose(sigmoid(COMBINE["log odds"](VALUES, WEIGHTS, -1)), mean, rtol=1e-9)
    sure = COMBINE["log odds"]([np.array([800.0]), np.array([700.0])], weights_of(None, 2), -1)
    assert 700 <= sure[0] <= 701  # where probabilities are 1 in float64, their log odds are not infinite


class Says:
    def __init__(self, **values: np.ndarray) -> None:
        self.values = values

    def run(self, feed: Any) -> dict[str, np.ndarray]:
        return self.values


@pytest.mark.parametrize("mean", ["probabilities", "numbers"])
@given(scale=st.floats(0.1, 50), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_teacher_twice_is_that_teacher(mean: Mean, scale: float, seed: int) -> None:
    """Up to a constant in each row, which no Softmax sees."""
    z = (np.random.default_rng(seed).normal(size=(4, 6)) * scale).astype(np.float32)
    parts = (Part(("z", "other"), "logits", -1), Part(("f",), "features", -1))
    twice = Ensemble([Says(z=z, f=z), Says(other=z)], weights_of([3, 1], 2), parts, mean)  # type: ignore[list-item]
    said = twice.run({})
    np.testing.assert_allclose(softmax(said["z"].astype(np.float64), -1), softmax(z.astype(np.float64), -1), atol=1e-5)
    assert said["f"] is z and said["z"].dtype == np.float32


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((1.0,), "1 weights are given for 2 teachers"),
        ((1.0, 0.0), "give numbers above 0"),
        ((1.0, float("nan")), "give numbers above 0"),
    ],
)
def test_weights_that_cannot_be(given: tuple[float, ...], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        weights_of(given, 2)
