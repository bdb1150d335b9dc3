"""A score of the user's own task: a metric function, or accuracy against labels."""

from __future__ import annotations

import csv
import inspect
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.data.arrays import DAMAGE, read_arrays
from onnxcompress.data.functions import called, named_function
from onnxcompress.data.store import Data
from onnxcompress.errors import DataError

Metric = Callable[..., float]


class Task:
    """Keeps what the score needs of both models' outputs, batch by batch. Made by `Task.of`.

    With a metric all outputs are kept; with labels alone only the decisions of one output.
    """

    def __init__(self, name: str, metric: Metric | None, labels: np.ndarray | None) -> None:
        self.name, self.metric, self.labels = name, metric, labels
        self.kept: tuple[dict[str, list[Any]], dict[str, list[Any]]] = ({}, {})

    @classmethod
    def of(cls, metric: str | Metric | None, labels: Any, data: Data) -> Task | None:
        """None where there is neither a metric nor labels; DataError where either cannot be used."""
        if metric is None and labels is None:
            return None
        chosen = None if labels is None else of_rows(read_labels(labels), data)
        if metric is None:
            return cls("accuracy", None, chosen)
        function = named_function(metric) if isinstance(metric, str) else metric
        return cls(metric if isinstance(metric, str) else getattr(metric, "__name__", "metric"), function, chosen)

    def keep(self, one: Mapping[str, Any], two: Mapping[str, Any], axes: Mapping[str, int | None]) -> None:
        """One batch of both models; `axes` are those of decisions, by output (see compare.decision_axis)."""
        for kept, outputs in zip(self.kept, (one, two), strict=True):
            wanted = outputs if self.metric is not None else _decisions(outputs, axes)
            for name, value in wanted.items():
                kept.setdefault(name, []).append(value)

    def scores(self) -> tuple[float, float]:
        """Of the original and of the result."""
        one, two = (self._score({name: _whole(parts) for name, parts in kept.items()}) for kept in self.kept)
        return one, two

    def _score(self, outputs: dict[str, Any]) -> float:
        if self.metric is None:
            return self._accuracy(outputs)
        metric, labels = self.metric, self.labels
        arguments = (outputs, labels) if _takes(metric, 2) else (outputs,)
        score = called(self.name, lambda: metric(*arguments))
        if not isinstance(score, int | float | np.number | np.bool_) or math.isnan(score):
            raise DataError(f"{self.name}: returned {score!r}; return one number, higher is better")
        return float(score)

    def _accuracy(self, outputs: dict[str, Any]) -> float:
        if not outputs or self.labels is None:
            raise DataError("labels: no output looks like class scores; give a metric, module:function, that reads it")
        name, answers = next(iter(outputs.items()))
        if np.shape(answers) != self.labels.shape:
            raise DataError(
                f"labels: {list(self.labels.shape)} of them, output {name!r} gives {list(np.shape(answers))} answers; "
                "give one for each row"
            )
        return float((answers == self.labels).mean())


def read_labels(source: Any, *, text: bool = False) -> np.ndarray:
    """Labels as an array, one entry a row of the data: integers where all are, else strings or what an array holds.

    text  strings stay strings
    From an array or list; an .npy; an .npz with one array; lines of a .txt; the last column of a .csv (a first line
    that is no number where the others are is a heading).
    """
    if not isinstance(source, str | os.PathLike):
        return np.asarray(source)
    path = Path(source)
    if path.suffix in (".npz", ".npy"):
        arrays = read_arrays(path)
        if len(arrays) != 1:
            raise DataError(f"{path}: holds {len(arrays)} arrays ({', '.join(arrays)}); labels are one array")
        return np.asarray(next(iter(arrays.values())))
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            if path.suffix == ".csv":
                words = [row[-1].strip() for row in csv.reader(file) if row]
            else:
                words = [line.strip("\r\n") for line in file]
    except (*DAMAGE, csv.Error) as error:
        raise DataError(f"{path}: labels cannot be read ({error}); give an .npy, .npz, .csv or .txt") from error
    if path.suffix == ".csv" and _integers(words[1:]) is not None and _integers(words) is None:
        words = words[1:]
    numbers = None if text else _integers(words)
    return np.array(words) if numbers is None else numbers


def of_rows(labels: np.ndarray, data: Data) -> np.ndarray:
    """The labels of this view's rows: given for the whole data, or for exactly these rows."""
    if labels.ndim and len(labels) == data.total_rows:
        return np.asarray(labels[data.rows])
    if labels.ndim and len(labels) == len(data.rows):
        return labels
    count = len(labels) if labels.ndim else 1
    raise DataError(f"labels: {count} for {data.total_rows} rows of {data.what}; give one for each row, in their order")


def _decisions(outputs: Mapping[str, Any], axes: Mapping[str, int | None]) -> dict[str, np.ndarray]:
    """The answers of the first output with class scores; else of the first with integers."""
    for name, axis in axes.items():
        if axis is not None:
            return {name: outputs[name].argmax(axis)}
    for name, value in outputs.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuOU":
            return {name: value}
    return {}


def _whole(parts: list[Any]) -> Any:
    """All batches end to end along the first axis; the list of them where their shapes do not allow it."""
    try:
        return np.concatenate(parts)
    except ValueError:
        return parts


def _integers(words: list[str]) -> np.ndarray | None:
    try:
        return np.array([int(word) for word in words]) if words else None
    except (ValueError, OverflowError):
        return None


def _takes(function: Metric, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True
