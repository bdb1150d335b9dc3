"""The benchmarks of training, on the sample digits: a teacher, each row of losses, the stages of Deep Compression."""

from __future__ import annotations

import dataclasses
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import distill, idx, lenet, training
from benchmarks.networks import LENETS
from onnxcompress.model import load

SAMPLE = Path(__file__).parents[2] / "sample_models" / "digits"


def test_every_row_of_losses_is_taught_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = np.load(SAMPLE.with_suffix(".npz")), np.load(SAMPLE.with_name("digits_labels.npz"))
    x, y = images[images.files[0]], labels[labels.files[0]].astype(np.int64)
    plan, written = dataclasses.replace(distill.SMOKE, seen=128, teacher_epochs=1, epochs=1), {}
    monkeypatch.setitem(distill.PLANS, "digits", plan)
    (told,) = distill.measured("digits", plan, (x[:448], y[:448]), (x[448:], y[448:]), tmp_path)
    assert told["macs"][1] <= 0.25 * told["macs"][0]
    assert [len(each) for each in told["rows"].values()] == [1] * len(distill.ROWS)
    monkeypatch.setattr(distill, "write", lambda name, title, parts, facts: written.update({name: parts}))
    distill.report([told])
    assert all(row.name in written["distill"][-1] for row in distill.ROWS)


def test_labels_are_learned(tmp_path: Path) -> None:
    images, labels = np.load(SAMPLE.with_suffix(".npz")), np.load(SAMPLE.with_name("digits_labels.npz"))
    x, y = images[images.files[0]], labels[labels.files[0]].astype(np.int64)
    teacher = distill.trained_teacher("digits", distill.SMOKE, (x[:448], y[:448]), tmp_path)
    assert distill.accuracy(teacher, (x[448:], y[448:])) > 0.6
    assert [each.name for each in tmp_path.iterdir()] == ["digits-8-448-6.onnx"]
    again = distill.trained_teacher("digits", distill.SMOKE, (x[:448], y[:448]), tmp_path)
    assert again.fingerprint == teacher.fingerprint


@pytest.mark.parametrize(("name", "weights"), [("LeNet-300-100", 266610), ("LeNet-5", 431080)])
def test_the_lenets_are_the_papers(name: str, weights: int) -> None:
    model = load(LENETS[name](0))
    assert sum(model.array(each).size for each in model.initializers if model.array(each).dtype.kind == "f") == weights


@pytest.mark.slow
def test_stages_of_deep_compression(tmp_path: Path) -> None:
    """On noise with a mean by class: zeros stay through training, books too, and each stage is smaller."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(10, 1, 28, 28))
    y = rng.integers(0, 10, 640)
    x = (means[y] + rng.normal(size=(640, 1, 28, 28))).astype(np.float32)
    plan = lenet.Plan(4, ((0.8, 4),), 3, 2, 0.0, (1070, 27, 1.64, 1.58))
    parts = lenet.Parts((x[:512], y[:512]), (x[512:576], y[512:576]), (x[576:], y[576:]))
    found = lenet.compressed("LeNet-300-100", plan, parts, tmp_path, 0)
    dense, pruned, shared, trained = found.values()
    assert pruned["ans"] < 0.5 * dense["ans"] and shared["ans"] < 0.5 * pruned["ans"]
    assert abs(trained["ans"] - shared["ans"]) < 0.01 * shared["ans"]  # zeros and symbols stay
    assert trained["errors"] < 0.3


def test_idx_files(tmp_path: Path) -> None:
    pixels = np.arange(3 * 784, dtype=np.int64).reshape(3, 28, 28).astype(np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 3, 28, 28) + pixels.tobytes())
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 3) + bytes([4, 5, 6]))
    images, labels = idx.pictures(tmp_path, "test")
    assert images.shape == (3, 1, 28, 28) and images.max() <= 1
    for image, label in zip(images, labels, strict=True):
        np.testing.assert_array_equal(np.rint(image[0] * 255), pixels[label - 4])


def test_steps_are_made_on_command_and_the_page_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our side beside itself: as many steps as were asked for, the same losses."""
    name, written = "MLP 784-300-100", dict[str, list[str]]()
    training.prepared(name, 4, tmp_path)
    monkeypatch.setattr(training, "write", lambda file, title, parts, facts: written.update({file: parts}))
    command = [sys.executable, "-m", "benchmarks.training_ours", name, str(tmp_path), "1"]
    monkeypatch.setattr(training, "commands_of", lambda *_: {kind: command for kind in (training.TORCH, training.OURS)})
    row = training.compared(name, tmp_path, 1, 1, "")
    assert row["losses"][0] == row["losses"][1] and row["steps"] >= 3 and row["wall"]["ours_ms"] > 0
    assert 0 < row["ours_mb"][1] < row["ours_mb"][0]
    training.report([row], 4)
    assert name in written["training"][-1]
