"""distill with several teachers, with itself, and with answers kept in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

import onnxcompress
from benchmarks.networks import Net
from onnxcompress.errors import ModelError, SettingError
from onnxcompress.model import Model, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.result import Result
from onnxcompress.runtime.session import open_session
from tests.cli.conftest import DATA, LABELS, Run, cli

__all__ = ["cli"]


def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.load(DATA), np.load(LABELS)
    return images[images.files[0]], labels[labels.files[0]].astype(np.int64)


X, Y = digits()
OTHERS = 500
"""Samples from here on judge."""


def network(width: int, seed: int) -> Model:
    """A dense network from random weights."""
    net = Net(seed)
    hidden = net.node("Relu", net.dense(net.node("Flatten", "x"), "hidden", 64, width))
    net.dense(hidden, "head", width, 10, gain=1.0)
    return load(net.built((1, 8, 8), 10))


def learned(student: Any, rows: slice = slice(0, OTHERS), labels: bool = True, **settings: Any) -> Result:
    given = {"epochs": 12, "rate": 1e-2, "temperature": 2.0, **settings}
    if labels:
        given["labels"] = Y[rows]
    return onnxcompress.distill(student, data={"x": X[rows]}, **given)


def answers(model: Model) -> np.ndarray:
    found: np.ndarray = open_session(to_bytes(finished(model))).run({"x": X[OTHERS:]})["logits"]
    return found


def accuracy(model: Model) -> float:
    return float((answers(model).argmax(1) == Y[OTHERS:]).mean())


@pytest.fixture(scope="module")
def teachers() -> list[Model]:
    """Two networks, each of which has learned half of the digits."""
    return [learned(network(32, seed), slice(250 * seed, 250 * seed + 250), epochs=20).model for seed in (0, 1)]


@pytest.mark.parametrize("ensemble", ["probabilities", "numbers"])
def test_a_student_of_two_teachers_learns_what_neither_knows_alone(teachers: list[Model], ensemble: str) -> None:
    """You et al., KDD 2017: better than the worse of its teachers, without any label, and nearer to their mean than each of them."""
    made = learned(
        network(24, 7), labels=False, teacher=teachers, loss="soft-cross-entropy", ensemble=ensemble, epochs=20
    )
    assert accuracy(made.model) > min(map(accuracy, teachers)) - 0.02
    mean = np.mean([softmax(answers(each)) for each in teachers], 0)
    apart = [float(np.abs(softmax(answers(each)) - mean).mean()) for each in (made.model, *teachers)]
    assert apart[0] < max(apart[1:])
    assert any("2 teachers answer as one, by the mean of" in note for note in made.report.notes)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_weights_lean_to_a_teacher(teachers: list[Model]) -> None:
    made = [
        learned(network(24, 7), labels=False, teacher=teachers, loss="soft-cross-entropy", teacher_weights=each).model
        for each in ((9.0, 1.0), (1.0, 9.0))
    ]
    apart = [[float(np.abs(softmax(answers(m)) - softmax(answers(t))).mean()) for t in teachers] for m in made]
    assert apart[0][0] < apart[0][1] and apart[1][1] < apart[1][0]


def test_self_distillation(teachers: list[Model]) -> None:
    """A network that is its own teacher while labels that it never saw correct it: it gets better, and the report says who taught.
    Zhang and Sabuncu, NeurIPS 2020, arXiv:2006.05065: the soft part acts as a smoothing of labels by sample."""
    before = accuracy(teachers[0])
    made = learned(teachers[0], teacher=teachers[0], hard=0.3)
    assert accuracy(made.model) > before
    assert [each for each in made.report.notes if each.startswith("logits: 0.7 of soft-cross-entropy")]


def test_answers_are_kept_and_found(teachers: list[Model], tmp_path: Path) -> None:
    """A second run reads them, and trains to the same bits as one without a folder."""
    ways: dict[str, Any] = {"labels": False, "teacher": teachers, "loss": "soft-cross-entropy", "epochs": 1}
    runs = [learned(network(8, 3), cache=folder, **ways) for folder in (None, str(tmp_path), str(tmp_path))]
    told = [next(note for note in each.report.notes if "teacher's answers" in note) for each in runs]
    assert ["in memory" in told[0], "kept for later runs" in told[1], "were computed before" in told[2]] == [True] * 3
    for name in runs[0].model.initializers:
        for other in runs[1:]:
            np.testing.assert_array_equal(runs[0].model.array(name), other.model.array(name))
    changing = learned(network(8, 3), cache=str(tmp_path), augment=("noise",), **ways)
    assert not any("teacher's answers" in note for note in changing.report.notes)
    assert len(list(tmp_path.iterdir())) == 1


def softened() -> bytes:
    """A teacher whose output is probabilities."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["z"]),
            helper.make_node("Softmax", ["z"], ["logits"]),
        ],
        "soft", [helper.make_tensor_value_info("x", 1, ["batch", 1, 8, 8])], [helper.make_tensor_value_info("logits", 1, ["batch", 10])],
        [numpy_helper.from_array(np.ones((64, 10), np.float32), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_teachers_that_do_not_fit(teachers: list[Model]) -> None:
    with pytest.raises(ModelError, match="give teachers whose outputs are of one kind"):
        learned(network(8, 3), labels=False, teacher=[teachers[0], softened()])
    with pytest.raises(SettingError, match="1 weights are given for 2 teachers"):
        learned(network(8, 3), labels=False, teacher=teachers, teacher_weights=(1.0,))


def test_probabilities_and_plain_numbers_are_not_compared_without_a_word(teachers: list[Model]) -> None:
    plain, soft = network(8, 3), load(softened())
    for student, teacher, said in (
        (plain, soft, "no Softmax or Sigmoid in the student and in Softmax in"),
        (soft, plain, None),
    ):
        notes = learned(student, labels=False, teacher=teacher, dry=True).plan.notes
        (warned,) = [note for note in notes if note.startswith("warning: output 'logits' ends in ")]
        assert (said or "in Softmax in the student and in no Softmax or Sigmoid in") in warned and "\n" not in warned
    assert not any("warning" in note for note in learned(soft, labels=False, teacher=soft, dry=True).plan.notes)


def test_command_line(teachers: list[Model], tmp_path: Path, cli: Run) -> None:
    files = [tmp_path / f"{name}.onnx" for name in ("one", "two", "student", "out")]
    for place, each in zip(files, (*teachers, network(8, 3)), strict=False):
        place.write_bytes(to_bytes(finished(each)))
    np.savez(tmp_path / "x.npz", x=X[:64])
    named = ["--teacher", str(files[0]), "--teacher", str(files[1]), "--teacher-weights", "2,1"]
    done = cli(
        "distill", str(files[2]), *named, "--data", str(tmp_path / "x.npz"), "--epochs", "1", "-o", str(files[3])
    )
    assert done.code == 0, done.err
    assert "0.67 of" in done.out and files[3].exists()
    done = cli("distill", str(files[2]), *named, "--data", str(tmp_path / "x.npz"), "-o", str(files[1]))
    assert done.code == 2 and "also an input" in done.err
