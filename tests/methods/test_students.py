"""Students of all kinds: with Dropout, in half precision, answering with one probability, with numbers, from inside an If."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcompress
from onnxcompress.runtime.session import open_session

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 6)).astype(np.float32)
TRUE = (X[:, 0] + X[:, 1] > 0).astype(np.int64)


def net(
    *tail: onnx.NodeProto, middle: tuple[onnx.NodeProto, ...] = (), classes: int = 3, kind: type = np.float32
) -> onnx.ModelProto:
    """Two dense layers from random weights, value "z"; what stands between them reads "h" and gives "m"."""
    sizes = {"w": (6, 8), "b": (8,), "v": (8, classes), "c": (classes,)}
    constants = [
        numpy_helper.from_array((RNG.normal(size=size) / 2).astype(kind), name) for name, size in sizes.items()
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"]), helper.make_node("Relu", ["a"], ["h"]), *middle,
        helper.make_node("Gemm", ["m" if middle else "h", "v", "c"], ["z"]), *tail,
    ]  # fmt: skip
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", element, ["N", 6])],
        [helper.make_tensor_value_info("y" if tail else "z", element, ["N", None])], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def learned(
    student: onnx.ModelProto, teacher: onnx.ModelProto | None = None, x: np.ndarray = X, **settings: Any
) -> Any:
    return onnxcompress.distill(
        student, teacher=teacher, data={"x": x}, **{"epochs": 6, "rate": 1e-2, "minibatch": 8, **settings}
    )


def falls(made: Any) -> bool:
    rows = made.plan.decisions
    return bool(rows[-1]["loss"] < 0.7 * rows[0]["loss"])


DROPOUTS = {
    "inference": helper.make_node("Dropout", ["h"], ["m"]),
    "with a ratio": helper.make_node("Dropout", ["h", "ratio"], ["m"]),
    "with its mask": helper.make_node("Dropout", ["h"], ["m", "mask"]),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_of_an_exported_model_passes_values_on(name: str) -> None:
    student = net(middle=(DROPOUTS[name],))
    student.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "ratio"))
    assert falls(learned(student, net()))


def test_half_precision_trains_in_single_and_is_written_in_half(tmp_path: Path) -> None:
    """A step of 1e-4 of a weight near 1 would be lost in float16."""
    student, teacher = net(kind=np.float16), net(kind=np.float16)
    made = learned(student, teacher, X.astype(np.float16), rate=3e-3, epochs=12)
    assert falls(made)
    made.save(tmp_path / "half.onnx")
    written = onnx.load(tmp_path / "half.onnx")
    assert {each.data_type for each in written.graph.initializer if len(each.dims)} == {onnx.TensorProto.FLOAT16}
    assert str(open_session(tmp_path / "half.onnx").outputs[0]).startswith("z float16")
    slow = learned(
        student, teacher, X.astype(np.float16), rate=2e-6, schedule="constant", warmup=0, epochs=60, average=0
    )
    assert slow.plan.decisions[-1]["loss"] < slow.plan.decisions[0]["loss"]


def test_one_probability_learns_zeros_and_ones() -> None:
    made = learned(net(helper.make_node("Sigmoid", ["z"], ["y"]), classes=1), labels=TRUE, epochs=60)
    (note,) = (each for each in made.report.notes if each.startswith("held-out labels: "))
    before, after = (float(each) for each in re.findall(r"loss of labels ([\d.]+), [\d.]+% right", note))
    assert after < before / 2, note


def test_numbers_are_learned_by_their_distance() -> None:
    wanted = np.stack([X[:, 0], -X[:, 1]], 1)
    made = learned(net(classes=2), labels=wanted, epochs=12)
    assert falls(made) and "labels: mse on 'z' (numbers)" in made.report.notes
    assert any(each.startswith("held-out labels: loss of labels") for each in made.report.notes)


def chosen() -> onnx.ModelProto:
    """The output comes out of an If, whose branches end in a Sigmoid."""
    bodies = [
        helper.make_graph(
            [helper.make_node("Mul", ["z", f"k{n}"], [f"s{n}"]), helper.make_node("Sigmoid", [f"s{n}"], [f"o{n}"])], f"b{n}", [],
            [helper.make_tensor_value_info(f"o{n}", 1, None)], [numpy_helper.from_array(np.float32(n + 1), f"k{n}")],
        )
        for n in range(2)
    ]  # fmt: skip
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["t"], keepdims=0), helper.make_node("Less", ["t", "zero"], ["q"]),
        helper.make_node("If", ["q"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
    ]  # fmt: skip
    model = net(*nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    return model


def test_an_output_of_an_if_is_learned_as_numbers() -> None:
    """What its branches end in is not looked into: mean square error, and no refusal."""
    made = learned(chosen(), chosen(), epochs=8)
    assert made.plan.notes[1].startswith("y: mse on 'y'") and falls(made)
