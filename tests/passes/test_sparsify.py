"""Sparsify: the share of zeros, N:M patterns, and the law that a zero stays a zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcompress.errors import SettingError
from onnxcompress.operators.layer import layers
from onnxcompress.passes import Sparsify
from onnxcompress.run import run

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
def test_half_of_the_weights_become_zero(criterion: str) -> None:
    result = run(DIGITS, [Sparsify(criterion=criterion, amount=0.5)], DATA)
    zeros, of = (sum(decision[key] for decision in result.plan.decisions) for key in ("zeros", "of"))
    assert 0.49 <= zeros / of <= 0.51
    assert result.after.parameters == result.before.parameters


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
def test_at_most_n_of_every_m_neighbours_stay(criterion: str) -> None:
    model = run(DIGITS, [Sparsify(criterion=criterion, pattern="2:4")], DATA).model
    for layer in layers(model):
        rows = layer.matrix(model.array(layer.weight))
        rows = rows.reshape(len(rows), -1)
        whole = rows[:, : rows.shape[1] // 4 * 4].reshape(len(rows), -1, 4)
        assert (np.count_nonzero(whole, axis=2) <= 2).all()


def test_one_threshold_over_the_model() -> None:
    result = run(DIGITS, [Sparsify(per="model", amount=0.8)], DATA)
    shares = [decision["zeros"] / decision["of"] for decision in result.plan.decisions]
    assert max(shares) - min(shares) > 0.1  # layers differ, the whole does not
    assert sum(d["zeros"] for d in result.plan.decisions) / sum(
        d["of"] for d in result.plan.decisions
    ) == pytest.approx(0.8, abs=0.01)


def test_contradicting_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="per 'model'"):
        Sparsify(per="model", pattern="2:4")


def test_keep_must_match() -> None:
    with pytest.raises(SettingError, match="matches no weight"):
        run(DIGITS, [Sparsify(keep=("nothing*",))], DATA)
