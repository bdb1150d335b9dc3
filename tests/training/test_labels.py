"""Labels: what they are beside each output, as numbers to learn, and in one line where they cannot be."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxcompress.data import Data, open_data
from onnxcompress.errors import DataError
from onnxcompress.model import Model, load
from onnxcompress.model.save import to_bytes
from onnxcompress.runtime.session import open_session
from onnxcompress.training.judge import LabelJudge
from onnxcompress.training.labels import Labels, labelled
from onnxcompress.training.targets import Target

X = np.random.default_rng(0).normal(size=(8, 2, 5)).astype(np.float32)


def net(tail: str = "", classes: int = 3, axis: int = -1) -> Model:
    """[N, 2, 5] -> [N, classes] from all, or with axis 1 [N, classes, 5] at each position."""
    given = {"axis": axis} if tail == "Softmax" else {}
    rng = np.random.default_rng(1)
    if axis == 1:
        nodes, size = [helper.make_node("Conv", ["x", "w"], ["z"])], (classes, 2, 1)
    else:
        nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["z"])]
        size = (10, classes)  # type: ignore[assignment]
    nodes.append(helper.make_node(tail or "Neg", ["z"], ["y"], **given))
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", 1, ["N", 2, 5])], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(rng.normal(size=size).astype(np.float32), "w")],
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def opened(model: Model) -> Data:
    return open_data({"x": X}, open_session(to_bytes(model.ir)).inputs)


def found(model: Model, labels: Any, smoothing: float = 0.0) -> tuple[Target, Labels]:
    made = labelled(model, labels, opened(model).calibration, smoothing=smoothing, weight=0.3)
    assert not isinstance(made, str), made
    return made


CLASSES = np.array([0, 1, 2, 2, 1, 0, 1, 2])


@pytest.mark.parametrize("labels", [CLASSES, CLASSES[:, None], CLASSES.astype(np.uint8), CLASSES.tolist()])
def test_classes_of_rows(labels: Any) -> None:
    target, made = found(net("Softmax"), labels)
    assert (target.student, target.loss, target.axis, target.weight) == ("z", "cross-entropy", -1 % 2, 0.3)
    indices = np.array(sorted(made.samples))
    np.testing.assert_array_equal(made.values(indices).reshape(len(indices), 3), np.eye(3)[CLASSES[indices]])


def test_smoothing() -> None:
    _, made = found(net("Softmax"), CLASSES, 0.3)
    indices = np.array(sorted(made.samples))
    np.testing.assert_allclose(made.values(indices), 0.7 * np.eye(3)[CLASSES[indices]] + 0.1, rtol=1e-6)


@pytest.mark.parametrize("tail", ["Softmax", ""])
def test_classes_of_positions(tail: str) -> None:
    """[N, classes, 5] beside [N, 5]: the axis of classes is found where no Softmax tells it."""
    labels = np.random.default_rng(2).integers(0, 4, (8, 5))
    target, made = found(net(tail, 4, 1), labels)
    assert (target.loss, target.axis, target.student) == ("cross-entropy", 1, "z" if tail else "y")
    indices = np.array(sorted(made.samples))
    np.testing.assert_array_equal(made.values(indices), np.eye(4)[labels[indices]])


def test_probabilities_and_numbers() -> None:
    target, made = found(net("Sigmoid", 1), CLASSES % 2, 0.2)
    assert target.loss == "binary-labels"
    indices = np.array(sorted(made.samples))
    np.testing.assert_allclose(made.values(indices)[:, 0], 0.8 * (CLASSES[indices] % 2) + 0.1, rtol=1e-6)
    target, made = found(net("", 3), X[:, 0, :3], 0.2)
    assert target.loss == "mse"
    np.testing.assert_array_equal(made.values(indices), X[indices, 0, :3])


@pytest.mark.parametrize(
    ("model", "labels", "said"),
    [
        (net("Softmax"), np.where(np.arange(8) == 5, 3, CLASSES), "sample 5 has 3, output 'y' has the classes 0 to 2"),
        (
            net("Softmax"),
            np.where(np.arange(8) == 2, -1, CLASSES),
            "sample 2 has -1, output 'y' has the classes 0 to 2",
        ),
        (net("Sigmoid", 1), CLASSES, "sample 2 has 2, output 'y' is a probability"),
        (net("", 3), np.where(np.arange(8)[:, None] == 4, np.nan, X[:, 0, :3]), "sample 4 has nan, it is not finite"),
    ],
)
def test_labels_out_of_range_name_the_sample(model: Model, labels: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        labelled(model, labels, opened(model), smoothing=0.0, weight=1.0)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(7), "there are 7 for 8 rows of arrays"),
        (np.array(list("abcdefgh")), "they are text, and no output holds frames"),
        (np.zeros((8, 4), int), r"\[8, 4\] of int64 are no classes and no values of an output \('y' is \[1, 3\]\)"),
        (CLASSES + 0.5, "of float64 are no classes"),
    ],
)
def test_labels_that_fit_no_output(labels: np.ndarray, said: str) -> None:
    model = net("Softmax")
    told = labelled(model, labels, opened(model), smoothing=0.0, weight=1.0)
    assert isinstance(told, str) and re.search(said, told), told


def test_other_labels_are_another_training() -> None:
    keys = {found(net("Softmax"), each, s)[1].key for each, s in ((CLASSES, 0.0), (CLASSES[::-1], 0.0), (CLASSES, 0.1))}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("model", "given"), [(net("Softmax"), CLASSES), (net("Softmax", 4, 1), None), (net("Sigmoid", 1), CLASSES % 2)]
)
def test_a_judge_by_labels_reads_what_the_loss_reads(model: Model, given: Any) -> None:
    """The mean logarithm of what each label gets, and the share of right decisions, as the answers tell."""
    given = np.random.default_rng(3).integers(0, 4, (8, 5)) if given is None else given
    target, made = found(model, given)
    data = opened(model)
    labels = {int(i): given[int(i)][None] for i in data.indices}
    right = LabelJudge(target, replace(made, samples=labels), data, 3, 1)(model, float)
    y = open_session(to_bytes(model.ir)).run({"x": X})["y"].astype(np.float64)
    if made.kind == "odds":
        p, hits = np.where(given == 1, y[:, 0], 1 - y[:, 0]), (y[:, 0] > 0.5) == given
    else:
        y = np.moveaxis(y, target.axis or 0, -1)
        p, hits = np.take_along_axis(y, given[..., None], -1), y.argmax(-1) == given
    assert right.likelihood == pytest.approx(np.log(p).mean(), rel=1e-4) and right.accuracy == hits.mean()
