"""From a target to counts: the error that may be spent is not exceeded, and goes where it takes most away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcompress.channels.footprint import footprint
from onnxcompress.model import load
from onnxcompress.passes import Prune
from onnxcompress.passes.prune.amounts import Budgeted, within_error

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits.onnx"


@pytest.fixture(scope="module")
def budget() -> Budgeted:
    """Of the digits network, without multiply-adds."""
    model, prune = load(DIGITS), Prune()
    return Budgeted(prune.groups(model), footprint(model, prune.channels(model), {}), None, None, None)


def _curves(budget: Budgeted, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {group.name: np.cumsum(rng.exponential(0.01, group.size - 1)) for group in budget.groups}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most", [0.001, 0.05, 1.0])
def test_the_summed_error_stays_within_and_more_error_takes_more(budget: Budgeted, seed: int, most: float) -> None:
    curves, sizes = _curves(budget, seed), {group.name: group.size for group in budget.groups}

    def cut(error: float) -> tuple[float, float]:
        counts = within_error(budget, curves, 1, error)
        spent = sum(curves[name][sizes[name] - count - 1] for name, count in counts.items() if count < sizes[name])
        return spent, budget.weight({name: np.arange(sizes[name]) < count for name, count in counts.items()})

    spent, left = cut(most)
    assert spent <= most * (1 + 1e-9)
    assert cut(most * 3)[1] <= left


def test_a_group_whose_error_is_nothing_goes_first(budget: Budgeted) -> None:
    first, *others = [group.name for group in budget.groups]
    curves = {group.name: np.full(group.size - 1, 0.0 if group.name == first else 1.0) for group in budget.groups}
    counts = within_error(budget, curves, 1, 0.5)
    sizes = {group.name: group.size for group in budget.groups}
    assert counts[first] < sizes[first] / 8
    assert all(counts[name] == sizes[name] for name in others)


def test_a_group_without_a_curve_stays_whole(budget: Budgeted) -> None:
    counts = within_error(budget, {}, 1, 1.0)
    assert counts == {group.name: group.size for group in budget.groups}
