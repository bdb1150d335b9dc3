"""Sparsify: the share of zeros, N:M patterns, and the law that a zero stays a zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import ZOO

from onnxcompress.errors import SettingError
from onnxcompress.operators.layer import layers
from onnxcompress.passes import Sparsify
from onnxcompress.passes.prune.walked import RIDGE, repaired
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


def test_sparsegpt_fits_wide_kernels_to_the_patches_that_they_meet() -> None:
    found = {
        criterion: run(DIGITS, [Sparsify(criterion=criterion, amount=0.5)], DATA)  # type: ignore[arg-type]
        for criterion in ("magnitude", "wanda", "sparsegpt")
    }
    sqnr = {name: result.comparison.outputs[0].sqnr_db for name, result in found.items() if result.comparison}
    assert sqnr["sparsegpt"] > max(sqnr["magnitude"], sqnr["wanda"]) + 5
    assert not found["sparsegpt"].plan.refusals
    assert all("held_out_db" in decision for decision in found["sparsegpt"].plan.decisions)


@pytest.mark.parametrize("name", ["depthwise", "transpose_depthwise", "lstm", "embedding_tied"])
def test_what_cannot_be_walked_is_pruned_by_scores(name: str) -> None:
    model = ZOO[name]()
    result = run(model, [Sparsify(criterion="sparsegpt", amount=0.5)])
    walked = {decision["weight"] for decision in result.plan.decisions if "held_out_db" in decision}
    assert walked | {refusal.where for refusal in result.plan.refusals} == {d["weight"] for d in result.plan.decisions}
    assert all(
        decision["zeros"] >= decision["of"] // 2 - decision["of"] // 20 - 8 for decision in result.plan.decisions
    )


@given(st.integers(0, 1 << 30), st.floats(0.1, 0.9))
@settings(max_examples=25, deadline=None)
def test_what_stays_of_a_row_is_the_least_squares_solution(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    fed, rows = rng.normal(size=(40, 9)), rng.normal(size=(4, 9))
    mask, gram = rng.random(rows.shape) >= share, fed.T @ fed
    found = repaired(rows, mask, gram)
    damped = gram + RIDGE * np.diagonal(gram).mean() * np.eye(9)
    assert (found[~mask] == 0).all()
    for row, kept, values in zip(rows, mask, found, strict=True):
        best = np.linalg.lstsq(damped[np.ix_(kept, kept)], (damped @ row)[kept])[0]
        assert np.allclose(values[kept], best, atol=0.02 * np.abs(row).max())
