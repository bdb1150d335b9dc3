"""What an allocation expects: the error that arrives, from what layers are fed; a limit on coarse entries; the average."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.data import open_data
from onnxcompress.errors import SettingError
from onnxcompress.evidence.gates import noise_share, noise_share_of_logits
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import load
from onnxcompress.passes import Cluster
from onnxcompress.passes.cluster.allocation import COARSE, REFERENCE, allocated
from onnxcompress.passes.cluster.expected import alike, arriving, expected, with_brought
from onnxcompress.passes.cluster.layout import read
from onnxcompress.passes.cluster.sharing import SHARINGS
from onnxcompress.run import How, evidence_for, opened
from onnxcompress.runtime.session import open_session

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")


@pytest.fixture(scope="module")
def measured():  # type: ignore[no-untyped-def]
    model, cluster, how = load(DIGITS), Cluster(assign="compensated"), How(limit=64)
    data = opened(load(DIGITS), DATA, how)
    found = cluster.tensors(model)[0]
    return model, found, evidence_for(cluster, model, model, data, how)


def test_every_tensor_has_choices_and_coarse_ones_only_where_little_is_lost(measured) -> None:  # type: ignore[no-untyped-def]
    model, found, evidence = measured
    tried = expected(model, found, evidence, SHARINGS)
    assert {each.layer for each in tried} == {each.name for each in found}
    plain = expected(model, found, {}, SHARINGS)
    assert all(each.error <= COARSE for each in plain if each.setting.entries < REFERENCE)


def test_data_change_what_tensors_get(measured) -> None:  # type: ignore[no-untyped-def]
    model, found, evidence = measured
    budget = sum(each.size for each in found) / 2
    one = allocated(expected(model, found, evidence, SHARINGS), budget)
    other = allocated(expected(model, found, {}, SHARINGS), budget)
    assert one != other


def test_rows_that_are_read_often_are_coded_finer() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(200, 16)).astype(np.float32)
    table[:4] *= 3
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Gather", ["table", "n"], ["v"], "look")],
            "words",
            [helper.make_tensor_value_info("n", TensorProto.INT64, ["b", 5])],
            [helper.make_tensor_value_info("v", TensorProto.FLOAT, ["b", 5, 16])],
            [numpy_helper.from_array(table, "table")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    model = load(proto)
    numbers = rng.integers(0, 4, (40, 5))
    numbers[:, 0] = -200 + rng.integers(0, 4, 40)  # the same rows, from behind
    data = open_data({"n": numbers}, open_session(proto.SerializeToString()).inputs)
    cluster = Cluster(assign="compensated", same=True, bits=3, smallest=0)
    plans = (
        replace(cluster, assign="nearest").plan(model, {}),
        cluster.plan(model, {Paired.NEED: Paired(model, model, data)}),
    )
    errors = [np.square(read(plan.decisions[0], plan.arrays).decode() - table).sum(axis=1) for plan in plans]
    assert errors[1][:4].sum() < errors[0][:4].sum() / 2


def test_without_data_channels_count_alike_however_large_they_are() -> None:
    rows = np.random.default_rng(1).normal(size=(5, 40)) * np.array([[0.7], [1], [2], [3], [0]])
    shares = (alike(rows) * rows**2).sum(axis=1)
    assert shares[:4] == pytest.approx(shares[0]) and shares[4] == 0 and np.isfinite(alike(rows)).all()
    assert (alike(np.zeros((2, 3))) == 1).all()


def test_more_bytes_bring_less_error(measured) -> None:  # type: ignore[no-untyped-def]
    model, found, evidence = measured
    tried = expected(model, found, evidence, SHARINGS)
    cost = {(each.layer, each.setting): each.error for each in tried}
    size = sum(each.size for each in found)
    totals = [sum(cost[item] for item in allocated(tried, size * bits / 8).items()) for bits in (3, 4, 6)]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]


def test_too_few_bytes_are_one_line(measured) -> None:  # type: ignore[no-untyped-def]
    model, found, evidence = measured
    with pytest.raises(SettingError, match="cannot be met"):
        allocated(expected(model, found, evidence, SHARINGS), 100.0)


def test_logits_show_what_probabilities_hide() -> None:
    scores = np.array([[9.0, 0.0, 1.0], [8.0, -1.0, 0.0]])
    moved = scores + np.array([[0.0, 2.0, -1.0], [0.0, -1.0, 1.0]])

    def softmax(x: np.ndarray) -> np.ndarray:
        each = np.exp(x - x.max(axis=1, keepdims=True))
        return each / each.sum(axis=1, keepdims=True)

    plain, after = [{"y": softmax(scores)}], [{"y": softmax(moved)}]
    assert noise_share(plain, after) < 1e-3
    assert noise_share_of_logits(plain, after) > 1e-2
    assert noise_share_of_logits([{"y": scores}], [{"y": moved}]) == noise_share([{"y": scores}], [{"y": moved}])


def test_what_a_tensor_brings_is_measured_where_single_channels_hold_the_power() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(32, 32)).astype(np.float32) for _ in range(2))
    first[:, 0] *= 100  # a channel that the layer behind does not read
    second[0] = 0
    proto = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "first"], ["h"], "one"),
                helper.make_node("MatMul", ["h", "second"], ["y"], "two"),
            ],
            "loud",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 32])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 32])],
            [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    model, cluster = load(proto), Cluster(assign="compensated", smallest=0)
    data = opened(model, {"x": rng.normal(size=(40, 32)).astype(np.float32)}, How())
    evidence = evidence_for(cluster, model, model, data, How())
    found = cluster.tensors(model)[0]
    blind, told = (arriving(found, each)["first"] for each in (evidence, with_brought(model, found, evidence)))
    # one book takes the loud channel's errors and others' alike, and only others' arrive
    assert told > 10 * blind
