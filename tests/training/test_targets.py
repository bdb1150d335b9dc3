"""What is learned is chosen by what an output is; wishes that do not fit are refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxcompress.errors import ModelError, SettingError
from onnxcompress.model import Model, load
from onnxcompress.model.edit import walk
from onnxcompress.training.graph import StepGraph, step_graph
from onnxcompress.training.losses import LOSSES
from onnxcompress.training.parameters import parameters_of
from onnxcompress.training.targets import criterion, losses_in_words, targets_of
from tests.zoo import ZOO

RNG = np.random.default_rng(1)


def net(*tail: str, width: int = 6, output: str = "y", **attributes: int) -> Model:
    """Conv (named features "f"), Relu, pooled, Gemm to 3 classes ("z"), and what comes after."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["f"]),
        helper.make_node("GlobalAveragePool", ["f"], ["p"]), helper.make_node("Flatten", ["p"], ["q"]),
        helper.make_node("Gemm", ["q", "g"], ["z" if tail else output]),
    ]  # fmt: skip
    values = ["z", *(f"t{n}" for n in range(len(tail) - 1)), output]
    for number, op_type in enumerate(tail):
        given = attributes if op_type in ("Softmax", "LogSoftmax") else {}
        nodes.append(helper.make_node(op_type, [values[number]], [values[number + 1]], **given))
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", 1, ["N", 2, 5, 5])], [helper.make_tensor_value_info(output, 1, None)],
        [numpy_helper.from_array(RNG.normal(size=s).astype(np.float32), n) for n, s in (("w", (width, 2, 3, 3)), ("g", (width, 3)))],
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize(
    ("tail", "value", "loss"),
    [
        (("Softmax",), "z", "soft-cross-entropy"),
        (("LogSoftmax",), "z", "soft-cross-entropy"),
        (("Sigmoid",), "z", "binary"),
        ((), "y", "mse"),
        (("Tanh",), "y", "mse"),
    ],
)
def test_the_loss_follows_from_the_output(tail: tuple[str, ...], value: str, loss: str) -> None:
    (target,) = targets_of(net(*tail), net(*tail))
    assert (target.student, target.teacher, target.loss) == (value, value, loss)
    assert loss in losses_in_words([target])[0]


def test_a_chosen_loss_and_one_that_does_not_fit() -> None:
    model = net("Softmax")
    assert targets_of(model, model, loss="js")[0].loss == "js"
    assert targets_of(model, model, loss="mse")[0].student == "z"
    with pytest.raises(
        SettingError, match="'binary' is a loss of log odds, output 'y' has logits; give one of soft-cross"
    ):
        targets_of(model, model, loss="binary")
    with pytest.raises(SettingError, match="no loss is called 'jss'; the nearest name is 'js'"):
        targets_of(model, model, loss="jss")


def test_features_by_name() -> None:
    student, teacher = net("Softmax", width=4), net("Softmax")
    targets = targets_of(student, teacher, features=["f", "p=p"], feature_loss="similarity")
    assert [(each.student, each.teacher, each.loss) for each in targets[1:]] == [
        ("f", "f", "similarity"),
        ("p", "p", "similarity"),
    ]
    with pytest.raises(ModelError, match="no value is called 'ff'"):
        targets_of(student, teacher, features=["f=ff"])
    with pytest.raises(
        SettingError, match="'js' is a loss of logits; for features give one of mse, hint, relative-mse"
    ):
        targets_of(student, teacher, features=["f"], feature_loss="js")


def test_a_feature_inside_a_body_is_refused() -> None:
    model = load(ZOO["scan_outer_weight"]())
    outside = {value.name for node in model.ir.graph for value in node.outputs}
    inner = next(str(v.name) for node in walk(model.ir) for v in node.outputs if v.name not in outside)
    with pytest.raises(ModelError, match="a value inside an If, Loop or Scan is not shown outside"):
        targets_of(model, model, features=[inner])


def test_an_output_that_the_teacher_lacks() -> None:
    with pytest.raises(ModelError, match="has no output 'other', the student has"):
        targets_of(net(output="other"), net())


@pytest.mark.parametrize("loss", [name for name, each in LOSSES.items() if each.of == "features"])
def test_features_of_other_widths(loss: str) -> None:
    """Losses within each model take a narrower student; mse says which do."""
    student, teacher = net("Softmax", width=4), net("Softmax")
    targets = targets_of(student, teacher, features=["f"], feature_loss=loss)
    shapes = {"z": (3, 3), "f": (3, 6, 5, 5)}

    def ask() -> StepGraph:
        terms = criterion(targets, shapes, temperature=None)
        return step_graph(student, {"x": (3, 2, 5, 5)}, parameters_of(student), terms)

    if LOSSES[loss].widths:
        assert ask().terms == ("y", "f")
    else:
        with pytest.raises(
            ModelError, match=r"'f' is \[3, 4, 5, 5\] in the student, .* \[3, 6, 5, 5\] .* attention, similarity"
        ):
            ask()


def test_classes_on_another_axis() -> None:
    """Softmax over channels of [N, C, H]: each place is a row."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=1)]
    w = RNG.normal(size=(3, 2, 1)).astype(np.float32)
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", 1, ["N", 2, 5])], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    targets = targets_of(model, model)
    session = step_graph(model, {"x": (2, 2, 5)}, ["w"], criterion(targets, {"z": (2, 3, 5)}, temperature=1.0)).open()
    x, taught = RNG.normal(size=(2, 2, 5)).astype(np.float32), RNG.normal(size=(2, 3, 5)).astype(np.float32)
    z = np.einsum("oi,nip->nop", w[:, :, 0], x)
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (taught, z))
    found = session.run({"x": x, "w": w, "teacher/z": taught})
    assert found["loss"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)


@pytest.mark.parametrize("whole", [True, False])
def test_a_softmax_of_single_operators(whole: bool) -> None:
    """As jax writes it; exp(x) over the sum of something else is none."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["z"]), helper.make_node("ReduceMax", ["z"], ["top"], axes=[1]),
        helper.make_node("Sub", ["z", "top"], ["low"]), helper.make_node("Exp", ["low"], ["e"]),
        helper.make_node("ReduceSum", ["e" if whole else "x", "one"], ["flat"], keepdims=0),
        helper.make_node("Unsqueeze", ["flat", "one"], ["sum"]), helper.make_node("Div", ["e", "sum"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", 1, ["N", 3])], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.array([1.0, 2.0, 3.0], np.float32), "w"), numpy_helper.from_array(np.array([1]), "one")],
    )  # fmt: skip
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    (target,) = targets_of(model, model)
    assert (target.student, target.loss, target.axis) == (
        ("low", "soft-cross-entropy", 1) if whole else ("y", "mse", -1)
    )
