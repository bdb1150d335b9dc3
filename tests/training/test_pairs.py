"""Pairs of inner values: by name and origin, by resolution and depth, at thirds where there is one resolution; learned connectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcompress
from onnxcompress.errors import ModelError
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model import Model, load
from onnxcompress.model.model import Origin
from onnxcompress.training.connectors import connected, connector_size, disconnected
from onnxcompress.training.pairs import MOST, Pair, channel_axis, found_pairs
from onnxcompress.training.targets import Target
from tests.cli.conftest import DATA, MODEL

RNG = np.random.default_rng(0)


def cnn(widths: tuple[int, ...] = (4, 6, 8), prefix: str = "", blocks: int = 1) -> Model:
    """Stages of 3x3 convolutions with Relu at 16x16, 8x8, 4x4, ..., then a pooled head."""
    nodes, constants, before, last = [], [], "x", 2
    for stage, width in enumerate(widths):
        for block in range(blocks):
            name = f"{prefix}{stage}.{block}"
            constants.append(
                numpy_helper.from_array(RNG.normal(size=(width, last, 3, 3)).astype(np.float32) / 5, f"{name}.w")
            )
            stride = 2 if stage and not block else 1
            nodes.append(
                helper.make_node("Conv", [before, f"{name}.w"], [f"{name}.c"], pads=[1] * 4, strides=[stride] * 2)
            )
            nodes.append(helper.make_node("Relu", [f"{name}.c"], [f"{name}.r"]))
            before, last = f"{name}.r", width
    constants.append(numpy_helper.from_array(RNG.normal(size=(last, 3)).astype(np.float32), f"{prefix}head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [before], [f"{prefix}p"]), helper.make_node("Flatten", [f"{prefix}p"], [f"{prefix}f"]),
        helper.make_node("MatMul", [f"{prefix}f", f"{prefix}head"], ["y"]),
    ]  # fmt: skip
    return built(nodes, constants, ["N", 2, 16, 16])


def tokens(width: int, blocks: int) -> Model:
    """[N, 5, 8] -> residual blocks of MatMul and Relu over the last axis -> [N, 5, 8]."""
    nodes, constants, before = [], [], "x"
    for block in range(blocks):
        for name, size in (("up", (8, width)), ("down", (width, 8))):
            constants.append(numpy_helper.from_array(RNG.normal(size=size).astype(np.float32) / 4, f"{block}.{name}"))
        nodes += [
            helper.make_node("MatMul", [before, f"{block}.up"], [f"{block}.u"]),
            helper.make_node("Relu", [f"{block}.u"], [f"{block}.r"]),
            helper.make_node("Add", [f"{block}.r", "bias"], [f"{block}.b"]),
            helper.make_node("MatMul", [f"{block}.b", f"{block}.down"], [f"{block}.d"]),
            helper.make_node("Add", [before, f"{block}.d"], [f"{block}.a"]),
        ]
        before = f"{block}.a"
    constants.append(numpy_helper.from_array(np.float32(0.1), "bias"))
    return built([*nodes, helper.make_node("Tanh", [before], ["y"])], constants, ["N", 5, 8])


def built(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], shape: list[int | str]) -> Model:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        constants,
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def pairs(student: Model, teacher: Model) -> list[Pair]:
    shape = [2 if not isinstance(size, int) else size for size in student.ir.graph.inputs[0].shape or ()]
    feed = {"x": RNG.normal(size=shape).astype(np.float32)}
    return found_pairs(student, teacher, (run_shapes(student, feed), run_shapes(teacher, feed)), ["y"])


def test_the_last_value_of_each_resolution_by_name() -> None:
    found = pairs(cnn((2, 3, 4), blocks=2), cnn(blocks=2))
    assert [(each.student, each.teacher, each.axis) for each in found] == [
        (f"{n}.1.r", f"{n}.1.r", 1) for n in range(3)
    ]
    assert found[0].why == "the last of 16x16; of the same name"


def test_without_names_by_resolution_and_depth() -> None:
    found = pairs(cnn((2, 3, 4), "other", blocks=1), cnn(blocks=3))
    assert [(each.student, each.teacher) for each in found] == [
        ("other0.0.r", "0.2.r"), ("other1.0.r", "1.2.r"), ("other2.0.r", "2.2.r")
    ]  # fmt: skip
    assert "about the same depth" in found[0].why


def test_a_value_knows_what_it_was_cut_from() -> None:
    student = cnn((2, 3, 4), "other")
    told = student.edited(student.ir, {"other1.0.r": Origin("1.0.r")})
    assert [each.why for each in pairs(told, cnn()) if each.teacher == "1.0.r"] == ["the last of 8x8; cut from it"]


def test_no_more_than_the_papers_compare() -> None:
    found = pairs(cnn((2,) * 6), cnn((3,) * 6))
    assert [each.student for each in found] == ["0.0.r", "1.0.r", "2.0.r", "3.0.r"]  # then there is one place
    assert len(found) == MOST


def test_one_resolution_is_compared_at_thirds() -> None:
    """Ends of blocks, along the last axis; a shallower student by depth."""
    found = pairs(tokens(4, 6), tokens(16, 6))
    assert [(each.student, each.axis) for each in found] == [("1.a", 2), ("3.a", 2), ("5.a", 2)]
    shallow = tokens(4, 3)
    renamed = shallow.edited(
        shallow.ir, {v.name or "": Origin("gone") for node in shallow.ir.graph for v in node.outputs}
    )
    assert [(each.student, each.teacher) for each in pairs(renamed, tokens(16, 6))] == [
        ("0.a", "1.a"), ("1.a", "3.a"), ("2.a", "5.a")
    ]  # fmt: skip


def test_channel_axes() -> None:
    values = {v.name: v for node in tokens(4, 1).ir.graph for v in node.outputs}
    assert channel_axis(values["0.u"]) == -1 == channel_axis(values["0.a"])
    values = {v.name: v for node in cnn().ir.graph for v in node.outputs}
    assert channel_axis(values["0.0.r"]) == 1 and channel_axis(values["f"]) is None


@pytest.mark.parametrize(
    ("student", "teacher", "name", "axis"),
    [(cnn((2, 3, 4)), cnn(), "1.0.r", 1), (tokens(4, 2), tokens(16, 2), "0.r", 2)],
)
def test_a_connector_comes_and_goes(student: Model, teacher: Model, name: str, axis: int) -> None:
    target = Target(name, name, name, "hint", axis, 1.0, "why")
    feed = {"x": RNG.normal(size=[2, *(student.ir.graph.inputs[0].shape or ())[1:]]).astype(np.float32)}  # type: ignore[misc]
    shapes = run_shapes(student, feed), run_shapes(teacher, feed)
    wider, (read,) = connected(student, [target], shapes)
    assert run_shapes(wider, feed)[read.student] == shapes[1][name]
    width, wanted = shapes[0][name][axis], shapes[1][name][axis]
    assert connector_size(wider) == width * wanted + wanted
    assert disconnected(wider).fingerprint == student.fingerprint
    same, targets = connected(student, [target], (shapes[0], shapes[0]))
    assert same is student and targets == [target]
    wrong = {**shapes[1], name: (2, 7, 7, 7, 7)}
    with pytest.raises(ModelError, match="a connector changes channels alone"):
        connected(student, [target], (shapes[0], wrong))


@pytest.mark.parametrize("loss", ["hint", "attention"])
def test_distill_with_features_auto(tmp_path: Path, loss: str) -> None:
    """Terms of inner values fall while they train; nothing of a connector is in the file."""
    cut = onnxcompress.prune(MODEL, target_macs=0.2, refit=False).model
    made = onnxcompress.distill(
        cut, teacher=MODEL, data=DATA, limit=256, epochs=3, rate=3e-3, features=("auto",), feature_loss=loss
    )
    rows = made.plan.decisions
    terms = [name for name in rows[0] if name.startswith("term/") and "logits" not in name]
    assert len(terms) == 2 and all(rows[-1][name] < rows[0][name] for name in terms)
    assert any("connectors, which were thrown away" in note for note in made.report.notes) == (loss == "hint")
    made.save(tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert [each.name for each in written.graph.output] == ["logits"]
    assert not [each.name for each in written.graph.initializer if "connector" in each.name]
    assert {name for name in made.model.initializers} == {name for name in cut.initializers}


def test_nothing_alike_is_one_line() -> None:
    x = {"x": RNG.normal(size=(8, 2, 16, 16)).astype(np.float32)}
    teacher = cnn((3, 3))
    small = built([helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
                  [numpy_helper.from_array(RNG.normal(size=(512, 3)).astype(np.float32), "w")], ["N", 2, 16, 16])  # fmt: skip
    with pytest.raises(
        ModelError, match=r"no inner values have the same resolution .* name pairs, --features STUDENT=TEACHER"
    ):
        onnxcompress.distill(small, teacher=teacher, data=x, features=("auto",), epochs=1)


def test_products_of_computed_values_are_no_pairs() -> None:
    """Queries by keys, [N, 5, 5]: their last axis is that of tokens."""
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["a"]), helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "t"], ["s"]), helper.make_node("Relu", ["s"], ["r"]), helper.make_node("Tanh", ["r"], ["y"]),
    ]  # fmt: skip
    model = built(nodes, [numpy_helper.from_array(RNG.normal(size=(8, 4)).astype(np.float32), "q")], ["N", 5, 8])
    values = {v.name: v for node in model.ir.graph for v in node.outputs}
    assert channel_axis(values["r"]) is None and channel_axis(values["t"]) == 1
