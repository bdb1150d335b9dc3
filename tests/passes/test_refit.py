"""Refit: the solver against direct least squares, and the law that held-out error does not rise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from generate import feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import ZOO

import onnxcompress
from onnxcompress.data import open_data
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import load
from onnxcompress.model.edit import set_constant
from onnxcompress.model.save import to_bytes
from onnxcompress.passes import Prune, Refit
from onnxcompress.passes.refit.solver import Held, Sums
from onnxcompress.passes.refit.validated import RIDGES, largest_of_best, solve
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
        x = rng.standard_normal((1, 200, inputs))
        sums.add(x, x @ weight.T + bias)
    found = solve(fit, [judge], np.zeros((1, outputs, inputs)), np.zeros((1, outputs)))
    assert found is not None and found.ridge == 1e-6
    np.testing.assert_allclose(found.weight[0], weight, atol=1e-4)
    np.testing.assert_allclose(found.bias[0], bias, atol=1e-4)


def test_each_group_is_fitted_by_itself() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((4, 2, 9)), rng.standard_normal((4, 2))
    fit, judge = Sums(), Sums()
    for sums in (fit, judge):
        x = rng.standard_normal((4, 300, 9))
        sums.add(x, x @ weight.transpose(0, 2, 1) + bias[:, None])
    found = solve(fit, [judge], np.zeros((4, 2, 9)), np.zeros((4, 2)))
    assert found is not None
    np.testing.assert_allclose(found.weight, weight, atol=1e-4)
    np.testing.assert_allclose(found.bias, bias, atol=1e-4)


def test_perfect_weights_are_left_alone() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((1, 3, 6))
    sums = Sums()
    x = rng.standard_normal((1, 50, 6))
    sums.add(x, x @ weight[0].T)
    assert solve(Sums(), [sums, sums], weight, np.zeros((1, 3))) is None


@pytest.mark.parametrize("fixed_bias", [False, True])
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_few_rows_are_fitted_as_their_sums_are(noise: float, fixed_bias: bool) -> None:
    """On the rows' side the same ridge, weights and errors come out, group by group."""
    rng = np.random.default_rng(5)
    weight, start, bias = (rng.standard_normal(shape) for shape in ((2, 3, 60), (2, 3, 60), (2, 3)))
    found = []
    rows = [rng.standard_normal((2, 9, 60)).astype(np.float32).astype(float) for _ in range(5)]
    goals = [(x @ weight.transpose(0, 2, 1) + bias[:, None] + noise * rng.standard_normal((2, 9, 3))) for x in rows]
    for kind in (Sums, Held):
        rest, *judges = (kind() for _ in range(5))
        for part, x, y in zip((rest, *judges), rows, goals, strict=True):
            part.add(x, y.astype(np.float32).astype(float))
        found.append(solve(rest, judges, start, bias, fixed_bias=fixed_bias))
    sums, few = found
    assert sums is not None and few is not None and few.ridge == sums.ridge
    np.testing.assert_allclose(few.weight, sums.weight, atol=1e-6)
    np.testing.assert_allclose(few.bias, sums.bias, atol=1e-6)
    assert (few.before_db, few.after_db) == pytest.approx((sums.before_db, sums.after_db), abs=1e-3)


def test_the_ridge_is_the_one_that_cross_validation_by_hand_chooses() -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((2, 12))
    parts, arrays = [Sums() for _ in range(4)], []
    for part in parts:
        x = rng.standard_normal((8, 12))
        y = x @ weight.T + 2 * rng.standard_normal((8, 2))
        arrays.append((x, y))
        part.add(x[None], y[None])
    errors = np.zeros((4, len(RIDGES)))
    for left_out, (x, y) in enumerate(arrays):
        seen = [pair for number, pair in enumerate(arrays) if number != left_out]
        xs, ys = (np.concatenate(each) for each in zip(*seen, strict=True))
        about = xs - xs.mean(0)
        gram = about.T @ about
        for at, share in enumerate(RIDGES):
            ridge = share * np.trace(gram) / 12 * np.eye(12)
            found = np.linalg.solve(gram + ridge, about.T @ ys).T
            errors[left_out, at] = ((y - ys.mean(0) - (x - xs.mean(0)) @ found.T) ** 2).sum()
    chosen = solve(Sums(), parts, np.zeros((1, 2, 12)), np.zeros((1, 2)))
    at = largest_of_best(errors)
    assert chosen is not None and chosen.ridge == RIDGES[at]
    signal = sum(float((y**2).sum()) for _, y in arrays)
    assert chosen.after_db == pytest.approx(10 * np.log10(signal / errors[:, at].sum()), abs=1e-6)


def test_a_larger_ridge_is_taken_where_the_parts_do_not_agree_that_it_is_worse() -> None:
    assert (
        largest_of_best(np.array([[1.0, 1.2, 9], [1, 0.9, 8], [1, 1.1, 9]])) == 1
    )  # 0.2 more in all, one deviates by 0.26
    assert largest_of_best(np.array([[1.0, 1.2, 9], [1, 1.2, 8], [1, 1.3, 9]])) == 0
    assert largest_of_best(np.array([[1.0, 1.01, np.inf]])) == 0
    assert largest_of_best(np.array([[np.inf, 2.0, 2.1], [np.inf, 2, np.inf]])) == 1


def test_error_is_the_sum_of_squares() -> None:
    rng = np.random.default_rng(2)
    x, y, w, b = (
        rng.standard_normal((40, 5)),
        rng.standard_normal((40, 3)),
        rng.standard_normal((3, 5)),
        rng.standard_normal(3),
    )
    sums = Sums()
    sums.add(x[None, :10], y[None, :10])
    sums.add(x[None, 10:], y[None, 10:])
    assert sums.error(w[None], b[None]) == pytest.approx(np.sum((y - x @ w.T - b) ** 2))


def test_repair_brings_a_pruned_model_back() -> None:
    bare = run(DIGITS, [Prune(criterion="l2", amount=0.5)], DATA).comparison
    repaired = run(DIGITS, [Prune(criterion="l2", amount=0.5), Refit(rows=2048)], DATA).comparison
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


def test_the_bias_that_an_add_brings_to_a_product_is_fitted_with_it() -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,16] x) => (float[N,8] y) '
        "{ m = MatMul(x, w) a = Add(m, b) r = Relu(a) n = MatMul(r, v) y = Add(n, c) }"
    )
    for name, shape, offset in (("w", (16, 32), 0), ("b", (32,), 2), ("v", (32, 8), 0), ("c", (8,), 5)):
        values = (rng.standard_normal(shape) + offset).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    data = {"x": rng.standard_normal((400, 16)).astype(np.float32)}
    result = run(proto, [Prune(criterion="l2", amount=0.5), Refit()], data)
    assert result.comparison is not None and result.comparison.sqnr_db > 8  # type: ignore[operator]
    assert {decision["bias"] for decision in result.plans[1].decisions} == {
        "c"
    }  # b needs none: what its layer is fed is the original


def test_statistics_of_a_normalisation_that_no_fitted_layer_feeds_match_the_original() -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,6,5,5] x) => (float[N,6,5,5] y) '
        "{ s = Mul(x, k) n = BatchNormalization(s, scale, shift, mean, var) y = Relu(n) }"
    )
    for name, values in {
        "k": np.full((6, 1, 1), 2.0), "scale": rng.standard_normal(6), "shift": rng.standard_normal(6),
        "mean": rng.standard_normal(6), "var": rng.uniform(0.5, 2, 6),
    }.items():  # fmt: skip
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    original = load(proto)
    graph = original.ir.clone()
    set_constant(graph, "k", np.linspace(0.3, 3, 6).reshape(6, 1, 1) * (2 + rng.uniform(-1, 1, (6, 1, 1))))
    spoilt = original.edited(graph)
    inputs = {"x": rng.standard_normal((40, 6, 5, 5)).astype(np.float32) + 1}
    data = open_data(inputs, open_session(proto.SerializeToString()).inputs)
    plan = Refit().plan(spoilt, {Paired.NEED: Paired(original, spoilt, data)})
    assert [(each["weight"], each["bias"]) for each in plan.decisions] == [("var", "mean")]
    again = open_session(to_bytes(Refit().apply(spoilt, plan).ir)).run(inputs)["y"]
    np.testing.assert_allclose(again, open_session(proto.SerializeToString()).run(inputs)["y"], atol=1e-4)


def test_the_ridge_pulls_towards_the_weights_that_are_asked_for() -> None:
    """Two columns that the data cannot tell apart: their difference is that of the weights which the fit starts from."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,2] x) => (float[N,3] y) { y = MatMul(x, w) }'
    )
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    original = load(proto)
    graph = original.ir.clone()
    spoilt = np.array([[1, 2, 3], [-1, 0, 4]], np.float32)
    set_constant(graph, "w", spoilt)
    current = original.edited(graph)
    one = rng.standard_normal((60, 1)).astype(np.float32)
    data = open_data({"x": np.hstack([one, one])}, open_session(proto.SerializeToString()).inputs)
    for towards, start in (("present", spoilt), ("original", weight)):
        plan = Refit(towards=towards).plan(current, {Paired.NEED: Paired(original, current, data)})
        found = plan.arrays["w"]
        np.testing.assert_allclose(found[0] + found[1], weight[0] + weight[1], atol=1e-3)
        np.testing.assert_allclose(found[0] - found[1], start[0] - start[1], atol=1e-3)


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) '
        "{ a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }"
    )
    values = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    model = load(proto)
    data = open_data({"x": np.ones((8, 4), np.float32)}, open_session(proto.SerializeToString()).inputs)
    plan = Refit().plan(model, {Paired.NEED: Paired(model, model, data)})
    assert not plan.decisions and {refusal.why for refusal in plan.refusals} == {"its weight is shared"}


def test_rounds_leave_as_many_channels_as_one_cut() -> None:
    one = onnxcompress.prune(DIGITS, amount=0.5, refit=False)
    for rounds in (2, 3):
        several = onnxcompress.prune(DIGITS, amount=0.5, refit=False, rounds=rounds)
        assert several.after.parameters == one.after.parameters and len(several.plans) == rounds


def test_in_several_rounds_the_ridge_pulls_towards_the_original() -> None:
    for rounds, towards in ((1, "present"), (2, "original")):
        result = onnxcompress.prune(DIGITS, data=DATA, criterion="l2", limit=40, rounds=rounds)
        assert {plan.settings["towards"] for plan in result.plans if plan.method == "refit"} == {towards}
