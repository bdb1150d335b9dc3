"""How far an error of a layer arrives: by running what lies behind it."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import onnxcompress


def branched(share: float) -> object:
    """Two products of the same input, of which one counts for `share` of what the other does."""
    rng = np.random.default_rng(0)
    held = {"w": rng.normal(size=(40, 40)), "v": rng.normal(size=(40, 40)), "s": np.array(share)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="heard"),
        helper.make_node("MatMul", ["x", "v"], ["b"], name="hardly"),
        helper.make_node("Relu", ["a"], ["d"]),
        helper.make_node("Relu", ["b"], ["e"]),
        helper.make_node("Mul", ["e", "s"], ["c"]),
        helper.make_node("Add", ["d", "c"], ["y"]),
    ]
    arrays = [numpy_helper.from_array(each.astype(np.float32), name) for name, each in held.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 40]) for name in "xy"]
    graph = helper.make_graph(nodes, "branched", ends[:1], ends[1:], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_ranks_go_where_errors_hardly_arrive() -> None:
    x = np.random.default_rng(1).normal(size=(96, 40)).astype(np.float32)
    plan = onnxcompress.factorize(branched(0.01), data={"x": x}, target_macs=0.6, pays=0, dry=True).plans[-1]
    assert [each["layer"] for each in plan.decisions] == ["hardly"]
