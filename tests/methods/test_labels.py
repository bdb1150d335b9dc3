"""distill with labels: alone, beside a teacher, smoothed and mixed; which output they are about; bad labels in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcompress
from onnxcompress.errors import DataError, SettingError
from onnxcompress.result import Result
from tests.cli.conftest import DATA, LABELS, MODEL, Run, cli

__all__ = ["cli"]


def learned(cut: Path, **settings: Any) -> Result:
    return onnxcompress.distill(cut, data=DATA, rate=3e-3, **{"labels": LABELS, "epochs": 4, **settings})


def accuracy(result: Result) -> float:
    assert result.comparison is not None and result.comparison.score is not None
    return result.comparison.score.result


def test_labels_alone_teach(cut: Path, tmp_path: Path) -> None:
    """Smoothed and mixed, inputs moved: from guessing to most of the digits; the original is the student as it was."""
    made = learned(cut, epochs=8, smoothing=0.1, mixup=0.2, augment=("shift", "noise=0.1"))
    assert accuracy(made) > 0.8
    assert made.comparison is not None and made.comparison.score is not None and made.comparison.score.original < 0.3
    notes = made.report.notes
    assert "labels alone taught; the original is the student as it was" in notes
    assert "labels: cross-entropy on 'logits' (10 classes)" in notes
    assert any("inputs change in each epoch: shift, noise=0.1, mixup=0.2" in note for note in notes)
    made.save(tmp_path / "taught.onnx")
    assert onnxcompress.compare(cut, tmp_path / "taught.onnx", data=DATA, labels=LABELS).score is not None


def test_changed_inputs_repeat_and_resume(cut: Path, tmp_path: Path) -> None:
    ways: dict[str, Any] = {"teacher": MODEL, "augment": ("shift", "flip"), "mixup": 0.2, "limit": 128, "epochs": 2}
    one, two = (learned(cut, **ways) for _ in range(2))
    for name in one.model.initializers:
        np.testing.assert_array_equal(one.model.array(name), two.model.array(name))
    losses = [[row["loss"] for row in learned(cut, **{**ways, **more}).plan.decisions] for more in ({}, {"seed": 1})]
    assert losses[0] == [row["loss"] for row in one.plan.decisions] != losses[1]


def test_a_share_of_one_is_labels_and_none_is_the_teacher(cut: Path) -> None:
    def terms(**more: Any) -> list[tuple[str, str, float]]:
        plan = learned(cut, teacher=MODEL, dry=True, **more).plan
        return [(each["name"], each["loss"], round(each["weight"], 3)) for each in plan.decisions]

    assert terms() == [("logits", "soft-cross-entropy", 0.9), ("labels", "cross-entropy", 0.1)]
    assert terms(hard=1) == [("labels", "cross-entropy", 1.0)]
    assert terms(hard=0) == [("logits", "mse", 1.0)]
    assert terms(hard=0.25, loss="mse") == [("logits", "mse", 0.75), ("labels", "cross-entropy", 0.25)]


def test_labels_that_cannot_be_learned_only_judge(cut: Path) -> None:
    """Text, or what a metric of the user reads, is left alone beside a teacher and said."""
    words = np.load(LABELS)
    words = words[words.files[0]].astype(str)
    made = learned(cut, teacher=MODEL, labels=words, epochs=1, metric=f"{__file__}:lengths")
    assert "labels are the metric's, and not learned" in made.report.notes
    made = learned(cut, teacher=MODEL, dry=True, metric=f"{__file__}:lengths")
    assert "labels are the metric's, and not learned; --hard 0.1 lets the student learn them too" in made.plan.notes
    made = learned(cut, teacher=MODEL, labels=np.zeros((len(words), 3), int), dry=True)
    assert any(note.startswith("labels only judge: ") for note in made.plan.notes)


def lengths(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    return float(len(labels) == len(outputs["logits"]))


def bad(labels: Any) -> Any:
    array = np.load(LABELS)
    array = array[array.files[0]].astype(np.int64)
    array[17] = labels
    return array


@pytest.mark.parametrize(
    ("ways", "error", "said"),
    [
        ({"labels": None}, SettingError, "no teacher is named"),
        ({"hard": 0}, SettingError, "no teacher is named"),
        ({"teacher": MODEL, "labels": None, "hard": 0.5}, SettingError, "give --labels"),
        ({"features": ("hidden_relu",)}, SettingError, "features are learned from a teacher"),
        ({"labels": bad(10)}, DataError, "labels: sample 17 has 10, output 'logits' has the classes 0 to 9"),
        ({"labels": bad(-1), "teacher": MODEL}, DataError, "labels: sample 17 has -1"),
        ({"labels": np.arange(5)}, DataError, "labels: there are 5 for 700 rows"),
        ({"augment": ("flop",)}, SettingError, "no augmentation is called 'flop'; the nearest name is 'flip'"),
        ({"smoothing": 1}, SettingError, "smoothing is 1; give a number that is at least 0 and less than 1"),
        ({"mixup": -1}, SettingError, "mixup is -1; give a number that is at least 0"),
    ],
)
def test_bad_wishes_are_one_line(cut: Path, ways: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        learned(cut, **ways)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_command_line(cut: Path, tmp_path: Path, cli: Run) -> None:
    out = tmp_path / "out.onnx"
    ways = ["--labels", LABELS, "--augment", "shift=0.1", "--augment", "noise", "--mixup", "0.2", "--smoothing", "0.1"]
    done = cli("distill", str(cut), "--data", DATA, *ways, "--epochs", "1", "--limit", "64", "-o", str(out))
    assert done.code == 0 and out.exists() and "shift=0.1, noise, mixup=0.2" in done.out
    done = cli("distill", str(cut), "--data", DATA, "--labels", LABELS, "--teacher", MODEL, "--dry-run")
    assert done.code == 0 and "what would be learned" in done.out and "class scores" in done.out
