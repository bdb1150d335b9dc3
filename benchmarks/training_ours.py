"""Our side of benchmarks/training.py: the loop of `distill` itself, step by step.

    python -m benchmarks.training_ours NET FOLDER THREADS

FOLDER holds student.onnx, teacher.onnx and data.npz.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.training_meter import Meter, peak
from onnxcompress.data import open_data
from onnxcompress.model import load
from onnxcompress.training.lesson import Lesson
from onnxcompress.training.loop import train
from onnxcompress.training.recipe import Recipe
from onnxcompress.training.targets import targets_of
from onnxcompress.training.teacher import Teacher

ENDLESS = 1 << 30


def main() -> None:
    """An epoch whose mean loss is told, then steps as they are asked for."""
    folder, threads = Path(sys.argv[2]), int(sys.argv[3])
    imports = peak()
    student, teacher = load(folder / "student.onnx"), load(folder / "teacher.onnx")
    answers = Teacher.of(teacher, ["logits"], threads=threads)
    given = np.load(folder / "data.npz")
    x, batch = given["x"], int(given["batch"])
    data = open_data({"x": x}, answers.session.inputs)
    answers.remember(data, batch, 1 << 30)
    targets = targets_of(student, teacher, loss="soft-cross-entropy")
    recipe = Recipe(
        epochs=1, minibatch=batch, optimizer="sgd", momentum=0.9, rate=1e-3, schedule="constant", warmup=0.0, clip=None,
        norms="training",
    )  # fmt: skip
    lesson = Lesson(student, answers, targets, data, recipe, temperature=1.0, threads=threads)
    meter = Meter({"imports": imports, "loss": train(lesson).curve[0]["loss"]})
    train(replace(lesson, recipe=replace(recipe, epochs=ENDLESS), progress=meter))


if __name__ == "__main__":
    main()
