"""Metrics of the sample models' tasks: metric(outputs by name, labels) -> float in 0..1, larger is better.

Each finds the output that it needs by its shape; labels have samples on their first axis, and outputs whose first axis
also holds time (ddddocr) are split by the number of labels.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable

import numpy as np
import onnx

from sample_models.fetch import fetch

Outputs = dict[str, np.ndarray]


def first_answer(outputs: Outputs, labels: np.ndarray) -> float:
    """Share of samples whose largest score [n, classes] is the label's; a label below 0 is left out."""
    (scores,) = outputs.values()
    known = labels >= 0
    return float((scores.argmax(1) == labels)[known].mean())


def overlap(outputs: Outputs, labels: np.ndarray) -> float:
    """Intersection over union of text found (probability > 0.3, as the detector's own package) [n,1,h,w] and drawn."""
    (probability,) = outputs.values()
    found, drawn = probability.reshape(labels.shape) > 0.3, labels.astype(bool)
    return float((found & drawn).sum() / (found | drawn).sum())


def speech_found(outputs: Outputs, labels: np.ndarray) -> float:
    """Share of frames whose probability of speech is on the right side of 0.5; unclear ones (-1) are left out.

    The probability is the output with a value for each label.
    """
    probability = next(array for array in outputs.values() if array.size == labels.size).reshape(labels.shape)
    known = labels >= 0
    return float(((probability > 0.5) == labels)[known].mean())


def nearest_intent(outputs: Outputs, labels: np.ndarray) -> float:
    """Share of sentences whose nearest other one by cosine, not counting the same wording, has the same intent.

    labels [n, 2]: intent, wording. The embedding is the float output of two axes.
    """
    vectors = next(a for a in outputs.values() if a.ndim == 2 and np.issubdtype(a.dtype, np.floating))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    cosine[(labels[:, None] == labels).all(2)] = -np.inf
    return float((labels[cosine.argmax(1), 0] == labels[:, 0]).mean())


def exact_lines(outputs: Outputs, labels: np.ndarray, characters: Callable[[], tuple[str, ...]]) -> float:
    """Share of lines read exactly, spaces ignored; scores [n, time, classes], or [n * time, 1, classes]."""
    (scores,) = outputs.values()
    best = scores.argmax(-1).reshape(len(labels), -1)
    read = [ctc_text(row, characters()) for row in best]
    return float(np.mean([a.replace(" ", "") == str(b).replace(" ", "") for a, b in zip(read, labels, strict=True)]))


def ctc_text(best: np.ndarray, characters: tuple[str, ...]) -> str:
    """The text of the best class at each time: repeats count once, class 0 is blank (Graves et al., ICML 2006)."""
    changed = np.concatenate([[True], best[1:] != best[:-1]])
    return "".join(characters[c] for c in best[changed & (best != 0)])


@functools.cache
def ppocr_characters() -> tuple[str, ...]:
    """The recogniser's classes: blank, the characters of the model's metadata, space."""
    model = onnx.load(fetch("ppocr-rec"), load_external_data=False)
    (listed,) = (row.value for row in model.metadata_props if row.key == "character")
    return ("", *listed.splitlines(), " ")


@functools.cache
def ddddocr_characters() -> tuple[str, ...]:
    """ddddocr's classes, blank first: a list literal in the package's source, read and not run."""
    tree = ast.parse(fetch("ddddocr-characters").read_text(encoding="utf-8"))
    (value,) = (
        row.value
        for row in tree.body
        if isinstance(row, ast.Assign) and [getattr(t, "id", "") for t in row.targets] == ["CHARSET_BETA"]
    )
    return tuple(ast.literal_eval(value))
