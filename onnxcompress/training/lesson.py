"""All that a training is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.data import Data
from onnxcompress.model import Model
from onnxcompress.runtime.session import Session
from onnxcompress.training.augment import Changes, words
from onnxcompress.training.checkpoint import FORMAT
from onnxcompress.training.footprint import Room
from onnxcompress.training.graph import StepGraph
from onnxcompress.training.integers import Limit
from onnxcompress.training.judge import Judge, LabelJudge
from onnxcompress.training.labels import Labels
from onnxcompress.training.parameters import Parameters
from onnxcompress.training.recipe import Recipe
from onnxcompress.training.targets import Target
from onnxcompress.training.teacher import Teacher

Progress = Callable[[int, int, str], None]
Bend = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]

AVERAGE = 0.99
"""How much of the average of weights stays at each update, where a judge may choose it."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """All that a training is made of.

    student      whose weights are the start            teacher, targets  what is learned from whom; None: from labels alone
    data         the samples that are trained on        temperature       of the losses; None: each loss's own
    checkpoint   a file that is written after each epoch, and continued from where it is there
    identity     what else makes two trainings different ones, for the checkpoint
    guesses      the weights that coded ones may stand for, where symbols move
    limits       of integers, see integers.py
    judge        on samples that do not train: the best epoch, or the student as it was, is the result; None: the last one
    labels       of the samples, where a target learns them
    bend         what is done before each update to what trains and its gradients, by name, in place: penalties, masks
    """

    student: Model
    teacher: Teacher | None
    targets: Sequence[Target]
    data: Data
    recipe: Recipe
    temperature: float | None = None
    threads: int = 1
    checkpoint: Path | None = None
    identity: str = ""
    progress: Progress | None = None
    guesses: Mapping[str, np.ndarray] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    judge: Judge | LabelJudge | None = None
    labels: Labels | None = None
    bend: Bend | None = None
    graphs: dict[Any, tuple[StepGraph, Session]] = field(default_factory=dict)
    rooms: dict[Any, Room] = field(default_factory=dict)

    @cached_property
    def changes(self) -> Changes | None:
        """Of inputs, that the recipe asks for."""
        return Changes.of(self.recipe.augment, self.recipe.mixup, self.data)

    @property
    def key(self) -> str:
        """Names models, targets, labels, data, recipe and seed."""
        facts = [
            FORMAT,
            self.student.fingerprint,
            self.identity,
            [vars(each) for each in self.targets],
            self.temperature,
            None if self.labels is None else self.labels.key,
        ]
        recipe = {**vars(self.recipe), "memory": None, "augment": [words(each) for each in self.recipe.augment]}
        whole = [*facts, recipe, self.data.describe(), self.data.seed, self.threads]
        whole += [] if self.judge is None else [self.judge.data.describe()]
        return hashlib.sha256(json.dumps(whole, default=str, sort_keys=True).encode()).hexdigest()

    @property
    def keep(self) -> float:
        """Of the average of weights; 0 where none is kept."""
        asked = self.recipe.average
        return (0.0 if self.judge is None else AVERAGE) if asked is None else asked


def held_of(
    student: Model,
    recipe: Recipe,
    guesses: Mapping[str, np.ndarray] | None = None,
    limits: Mapping[str, Limit] | None = None,
) -> Parameters:
    """What trains of the student, in the forms that its recipe asks for."""
    keep = recipe.keep_encoding or recipe.move_symbols
    return Parameters.of(student, recipe.freeze, keep=keep, move=recipe.move_symbols, guesses=guesses, limits=limits)
