"""Graphs in half precision: they train in float32 and stay what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import onnxcompress
from onnxcompress.model import load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.runtime.session import open_session
from onnxcompress.training.halves import widened

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every float32 as float16, inputs and outputs too."""
    for each in list(model.graph.initializer):
        if each.data_type == TensorProto.FLOAT:
            each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each).astype(np.float16), each.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Teacher, and a student with a fifth of its multiply-adds, both in half precision."""
    folder = tmp_path_factory.mktemp("half")
    onnxcompress.prune(DIGITS, target_macs=0.2, refit=False).save(folder / "cut.onnx")
    for name, source in (("teacher", DIGITS), ("student", folder / "cut.onnx")):
        onnx.save(halved(onnx.load(source)), folder / f"{name}.onnx")
    return folder / "teacher.onnx", folder / "student.onnx"


def test_the_widened_graph_answers_alike(files: tuple[Path, Path]) -> None:
    model = load(files[0])
    images = np.load(DATA)["image"][:16].astype(np.float16)
    one = open_session(files[0]).run({"image": images})["logits"]
    two = open_session(to_bytes(finished(widened(model)))).run({"image": images})["logits"]
    assert one.dtype == np.float16 and two.dtype == np.float32
    assert 0 < np.abs(one - two).max() < 0.01 * np.abs(two).max()
    assert widened(load(DIGITS)).ir is not model.ir and widened(whole := load(DIGITS)) is whole


def test_a_student_in_half_precision_learns_and_stays_in_it(files: tuple[Path, Path], tmp_path: Path) -> None:
    teacher, student = files
    images = np.load(DATA)["image"][:320].astype(np.float16)
    made = onnxcompress.distill(student, teacher=teacher, data={"image": images}, epochs=6, rate=0.02)
    curve = made.plan.decisions
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"] and any("are kept: loss" in note for note in made.report.notes)
    made.save(tmp_path / "better.onnx")
    kinds = [
        {each.data_type for each in onnx.load(path).graph.initializer} for path in (student, tmp_path / "better.onnx")
    ]
    assert kinds[0] == kinds[1] and TensorProto.FLOAT16 in kinds[0] and TensorProto.FLOAT not in kinds[0]
    answers = open_session(tmp_path / "better.onnx").run({"image": images})["logits"]
    assert answers.dtype == np.float16 and np.isfinite(answers).all()
