"""Optimizers against their formulas by hand, and on a bowl; schedules, clipping, averages."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.training.optimizers import OPTIMIZERS, SCHEDULES, Settings, State, average_into, clip_to, rate_at


def two_steps(name: str, settings: Settings, rate: float = 0.1) -> np.ndarray:
    weights, state = np.array([1.0, -2.0], np.float32), State()
    for step, gradient in enumerate(([0.5, 1.0], [0.25, -1.0]), start=1):
        OPTIMIZERS[name](weights, np.array(gradient, np.float32), state, rate, step, settings)
    return weights


def test_sgd() -> None:
    """v1 = g1, v2 = 0.9 g1 + g2."""
    found = two_steps("sgd", Settings())
    np.testing.assert_allclose(found, [1 - 0.1 * (0.5 + 0.45 + 0.25), -2 - 0.1 * (1.0 + 0.9 - 1.0)], rtol=1e-6)


def test_nesterov() -> None:
    """Steps g + 0.9 v."""
    found = two_steps("sgd", Settings(nesterov=True))
    first = np.array([0.5 + 0.45, 1.0 + 0.9])
    second = np.array([0.25 + 0.9 * 0.7, -1.0 + 0.9 * -0.1])
    np.testing.assert_allclose(found, [1, -2] - 0.1 * (first + second), rtol=1e-6)


def test_adamw_and_its_decay() -> None:
    """The first step is the sign of the gradient; decay shrinks by rate x decay, and only where it is asked for."""
    weights = np.array([1.0, -2.0], np.float32)
    settings = Settings(decay=0.5, decays=np.array([1, 0], np.float32))
    OPTIMIZERS["adamw"](weights, np.array([0.5, -3.0], np.float32), State(), 0.1, 1, settings)
    np.testing.assert_allclose(weights, [1 * (1 - 0.05) - 0.1, -2 + 0.1], rtol=1e-5)


def test_adamw_second_step() -> None:
    first, second = (
        (0.9 * 0.1 * 0.5 + 0.1 * 0.25) / (1 - 0.81),
        (0.999 * 0.001 * 0.25 + 0.001 * 0.0625) / (1 - 0.999**2),
    )
    assert two_steps("adamw", Settings())[0] == pytest.approx(1 - 0.1 - 0.1 * first / np.sqrt(second), rel=1e-5)


def test_lamb_steps_are_as_long_as_its_weights() -> None:
    """Array by array: ‖step‖ = rate ‖w‖, whatever the gradient's size."""
    weights = np.array([3.0, 4.0, 0.1, 0.0], np.float32)
    before, bounds = weights.copy(), [(0, 2), (2, 4)]
    OPTIMIZERS["lamb"](weights, np.array([1e-3, 2, 5e3, 1], np.float32), State(), 0.1, 1, Settings(bounds=bounds))
    for first, last in bounds:
        moved = np.linalg.norm(weights[first:last] - before[first:last])
        assert moved == pytest.approx(0.1 * np.linalg.norm(before[first:last]), rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_find_the_bottom_of_a_bowl(name: str) -> None:
    rng = np.random.default_rng(0)
    goal, steep = rng.normal(size=8).astype(np.float32), np.linspace(0.5, 2, 8, dtype=np.float32)
    weights, state = rng.normal(size=8).astype(np.float32), State()
    start = np.abs(weights - goal).max()
    for step in range(400):
        rate = rate_at(step, 400, rate=0.05, schedule="cosine", warmup=0.1)
        OPTIMIZERS[name](weights, steep * (weights - goal), state, rate, step + 1, Settings())
    assert np.abs(weights - goal).max() < 0.02 * start


def test_rates() -> None:
    rates = [rate_at(step, 100, rate=1.0, schedule="cosine", warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == 1.0 and rates[55] == pytest.approx(0.5)
    assert rates == [*sorted(rates[:11]), *sorted(rates[11:], reverse=True)]
    assert [rate_at(step, 100, rate=1.0, schedule="step") for step in (0, 50, 75)] == [1.0, 0.1, 0.01]
    assert SCHEDULES["constant"](0.9) == 1.0


def test_clipping_keeps_the_direction() -> None:
    gradient = np.array([3.0, 4.0], np.float32)
    assert clip_to(gradient, 10.0) == 5.0 and gradient.tolist() == [3.0, 4.0]
    assert clip_to(gradient, 1.0) == 5.0
    np.testing.assert_allclose(gradient, [0.6, 0.8], rtol=1e-6)
    assert clip_to(gradient, None) == pytest.approx(1.0)


def test_an_average_forgets_its_start() -> None:
    average, weights = np.array([100.0], np.float32), np.array([1.0], np.float32)
    for step in range(1, 200):
        average_into(average, weights, 0.99, step)
    assert average[0] == pytest.approx(1.0, abs=0.05)
