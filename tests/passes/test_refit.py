"""Refit: the solver against direct least squares, and the law that held-out error does not rise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from generate import feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import ZOO

from onnxcompress.data import open_data
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import load
from onnxcompress.model.save import to_bytes
from onnxcompress.passes import Prune, Refit
from onnxcompress.passes.refit import Sums, solve
from onnxcompress.run import run
from onnxcompress.runtime.session import open_session

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), inputs=st.integers(1, 12), outputs=st.integers(1, 5))
def test_the_solver_finds_the_weights_that_made_the_data(seed: int, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((outputs, inputs)), rng.standard_normal(outputs)
    fit, judge = Sums(), Sums()
    for sums in (fit, judge):
        x = rng.standard_normal((200, inputs))
        sums.add(x, x @ weight.T + bias)
    found = solve(fit, judge, np.zeros((outputs, inputs)), np.zeros(outputs))
    assert found is not None and found.ridge == 1e-6
    np.testing.assert_allclose(found.weight, weight, atol=1e-4)
    np.testing.assert_allclose(found.bias, bias, atol=1e-4)


def test_depthwise_rows_are_fitted_output_by_output() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((4, 9)), rng.standard_normal(4)
    fit, judge = Sums(), Sums()
    for sums in (fit, judge):
        x = rng.standard_normal((300, 4, 9))
        sums.add(x, np.einsum("nok,ok->no", x, weight) + bias)
    found = solve(fit, judge, np.zeros((4, 1, 3, 3)), np.zeros(4))
    assert found is not None
    np.testing.assert_allclose(found.weight.reshape(4, 9), weight, atol=1e-4)


def test_perfect_weights_are_left_alone() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((3, 6))
    sums = Sums()
    x = rng.standard_normal((50, 6))
    sums.add(x, x @ weight.T)
    assert solve(sums, sums, weight, np.zeros(3)) is None


def test_error_is_the_sum_of_squares() -> None:
    rng = np.random.default_rng(2)
    x, y, w, b = (
        rng.standard_normal((40, 5)),
        rng.standard_normal((40, 3)),
        rng.standard_normal((3, 5)),
        rng.standard_normal(3),
    )
    sums = Sums()
    sums.add(x[:10], y[:10])
    sums.add(x[10:], y[10:])
    assert sums.error(w, b) == pytest.approx(np.sum((y - x @ w.T - b) ** 2))


def test_repair_brings_a_pruned_model_back() -> None:
    bare = run(DIGITS, [Prune(amount=0.5)], DATA).comparison
    repaired = run(DIGITS, [Prune(amount=0.5), Refit(rows=2048)], DATA).comparison
    assert bare is not None and repaired is not None
    assert repaired.sqnr_db > bare.sqnr_db + 6  # type: ignore[operator]


@pytest.mark.parametrize(
    "name",
    [
        "conv_bn",
        "residual_identity",
        "residual_downsample",
        "depthwise",
        "conv1d",
        "conv3d",
        "mlp_gemm",
        "mlp_matmul",
        "unet",
        "squeeze_excite",
        "inception",
        "attention_static",
        "layer_norm",
        "lstm",
    ],
)
def test_every_layer_only_gets_better_on_held_out_rows(name: str) -> None:
    proto = ZOO[name]()
    model = load(proto)
    prune = Prune(amount=0.4, round_to=1)
    cut = prune.apply(model, prune.plan(model, {}))
    session = open_session(proto.SerializeToString())
    batches = [feeds(proto, seed) for seed in range(12)]
    data = open_data(batches, session.inputs)
    plan = Refit().plan(cut, {Paired.NEED: Paired(model, cut, data, batch=4)})
    assert all(decision["after_db"] > decision["before_db"] for decision in plan.decisions)
    refitted = Refit().apply(cut, plan)
    after = open_session(to_bytes(refitted.ir)).run(batches[0])
    assert all(np.isfinite(values).all() for values in after.values())


def test_an_unpruned_model_is_left_as_it_is() -> None:
    result = run(DIGITS, [Refit(rows=512)], DATA)
    assert result.comparison is not None and result.comparison.sqnr_db > 60  # type: ignore[operator]
