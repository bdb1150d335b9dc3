"""Sensitivity: a linear chain passes a relative error on as it is; what is added to a larger sum arrives smaller."""

from __future__ import annotations

import numpy as np
import pytest
from generate import feeds
from onnx import TensorProto, helper, numpy_helper
from zoo import ZOO

from onnxcompress.data import open_data
from onnxcompress.evidence.sensitivity import sensitivities
from onnxcompress.model import load
from onnxcompress.runtime.session import open_session


def test_a_branch_counts_by_its_share_of_the_sum() -> None:
    eye = np.eye(8, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["small"]),
        helper.make_node("MatMul", ["x", "v"], ["large"]),
        helper.make_node("Add", ["small", "large"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(eye, "w"), numpy_helper.from_array(3 * eye, "v")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = open_data(
        {"x": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)},
        open_session(proto.SerializeToString()).inputs,
    )
    found = sensitivities(load(proto), [("small", -1), ("large", -1)], data)
    assert found["small"] == pytest.approx(1 / 16, rel=1e-3)
    assert found["large"] == pytest.approx(9 / 16, rel=1e-3)


def test_gates_change_nothing_while_they_are_shut() -> None:
    proto = ZOO["residual_identity"]()
    model = load(proto)
    names = [(value.name or "", 1) for node in model.ir.graph for value in node.outputs if node.op_type == "Conv"]
    data = open_data([feeds(proto, seed) for seed in range(3)], open_session(proto.SerializeToString()).inputs)
    found = sensitivities(model, names, data)
    assert found and all(value > 0 and np.isfinite(value) for value in found.values())
