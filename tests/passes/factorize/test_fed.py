"""Embeddings and recurrent operators: fitted to what is looked up and fed, and what of them stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.passes.factorize.forms import FORMS, Shape
from onnxcompress.passes.factorize.metric import Metric

ROWS, WIDTH, HIDDEN = 96, 24, 10


def reader(op: str) -> onnx.ModelProto:
    """Word numbers to vectors, an LSTM or GRU over them whose last state alone is read, and a classifier."""
    rng, gates = np.random.default_rng(2), {"LSTM": 4, "GRU": 3}[op]
    held = {
        "table": rng.normal(size=(ROWS, WIDTH)),
        "w": rng.normal(size=(1, gates * HIDDEN, WIDTH)) / WIDTH**0.5,
        "r": rng.normal(size=(1, gates * HIDDEN, HIDDEN)) / HIDDEN**0.5,
        "out": rng.normal(size=(HIDDEN, 5)),
        "first": np.zeros(1, np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["vectors"], name="embedding"),
        helper.make_node("Transpose", ["vectors"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(op, ["steps", "w", "r"], ["", "state"], name="state", hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["state", "first"], ["last"]),
        helper.make_node("MatMul", ["last", "out"], ["y"], name="classes"),
    ]
    arrays = [numpy_helper.from_array(v if v.dtype == np.int64 else v.astype(np.float32), n) for n, v in held.items()]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])
    graph = helper.make_graph(nodes, "reader", [ids], [y], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_both_are_fitted_to_what_samples_show(op: str) -> None:
    ids = np.random.default_rng(1).zipf(1.5, size=(96, 6)) % ROWS
    result = onnxcompress.factorize(
        reader(op), data={"ids": ids}, target_params=0.4, pays=0, forms=["lowrank"], refit=False
    )
    assert result.after.parameters <= 0.4 * result.before.parameters
    plan = next(each for each in result.plans if each.method == "factorize")
    made = {each["op"]: each for each in plan.decisions}
    assert {"Gather", op} <= set(made)
    assert made["Gather"]["held_out_db"] > made["Gather"]["plain_db"] + 3
    assert made[op]["held_out_db"] >= made[op]["plain_db"]
    ops = [node.op_type for node in result.model.ir.graph]
    assert ops[:2] == ["Gather", "MatMul"] and ops[3:5] == ["MatMul", op]
    assert any(f"{op} multiplies its state" in each.why for each in plan.refusals)


def test_an_embedding_stays_where_its_bytes_do_not_count() -> None:
    plan = onnxcompress.factorize(reader("GRU"), target_macs=0.9, pays=0, dry=True).plans[-1]
    assert "Gather" not in {each["op"] for each in plan.decisions}
    assert any("with target_params its bytes count" in each.why for each in plan.refusals)


def test_how_often_a_row_is_looked_up_is_its_diagonal_of_the_gram_matrix() -> None:
    rng = np.random.default_rng(4)
    shape, weight, often = Shape(1, 8, 30, ()), rng.normal(size=(1, 8, 30, 1)), rng.random((1, 30))
    gram, counts = Metric(gram=np.diag(often[0])[None]), Metric(often=often)
    both = [FORMS["lowrank"].dense(shape, FORMS["lowrank"].start(shape, weight, (3,), m)) for m in (gram, counts)]
    np.testing.assert_allclose(*both, atol=1e-9)
    assert counts.error(weight - both[0]) == pytest.approx(gram.error(weight - both[0]))
