"""How far an error of a layer arrives: by running what lies behind it."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.evidence.gates import usual_share_of_logits


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


def answers(margins: np.ndarray) -> dict[str, np.ndarray]:
    """Probabilities of two classes, samples by samples."""
    both = np.exp(np.stack([margins, np.zeros_like(margins)], 1) - np.maximum(margins, 0)[:, None])
    return {"y": (both / both.sum(1, keepdims=True)).astype(np.float32)}


def test_certain_answers_tell_as_much_as_others() -> None:
    """A tenth more margin is the same share of noise where probabilities are 0.9 and where they are 1e-20 from certain."""
    margins = np.array([2.0, -3.0, 40.0, -45.0, 50.0])
    told = usual_share_of_logits([answers(margins)], [answers(1.1 * margins)], [5])
    assert abs(told - 0.01) < 1e-4


def test_one_sample_far_off_decides_nothing() -> None:
    y = np.full((5, 3), 3, np.float32)
    after = y * 1.1
    after[0] = 1e6
    assert abs(usual_share_of_logits([{"y": y}], [{"y": after}], [5]) - 0.01) < 1e-6
    assert usual_share_of_logits([{"y": y}], [{"y": after}], [1]) > 1e6  # its first axis is not that of samples
