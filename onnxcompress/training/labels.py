"""Labels: which output they are about, whether they are in its range, and what they are as numbers to learn.

Whole numbers beside an output of class scores are classes (of a row, or of each of its positions); zeros, ones and shares beside one
that ends in Sigmoid are probabilities; other numbers of an output's own shape are what it shall be. Text beside frames of class scores
is what they spell (ctc.py, texts.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.data import Data
from onnxcompress.errors import DataError
from onnxcompress.evidence.expose import exposed
from onnxcompress.model import Model
from onnxcompress.runtime.session import open_session
from onnxcompress.task import read_labels
from onnxcompress.training.ctc import NONE, collapsed, log_likelihood
from onnxcompress.training.pen import is_float
from onnxcompress.training.targets import LABELS, Target, end_of
from onnxcompress.training.texts import Alphabet, frames_needed

LOSSES = {"classes": "cross-entropy", "odds": "binary-labels", "numbers": "mse", "text": "ctc"}
"""What labels are -> the loss by which they are learned."""

NEAR = 0.05
"""A number counts as right within this share of its label, where labels are whole within a half."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels as the loss takes them.

    samples    index of a sample -> the labels of its rows     kind      a key of LOSSES
    classes    how many, of classes                            shape     of a row, as the output has it
    smoothing  share of each label that all classes have alike: Szegedy et al., CVPR 2016, arXiv:1512.00567
    frames     of text: the axis of frames, and the class that is the blank
    """

    samples: Mapping[int, np.ndarray]
    kind: str
    classes: int
    shape: tuple[int, ...]
    smoothing: float = 0.0
    frames: tuple[int, int] = (0, 0)

    def values(self, indices: np.ndarray) -> np.ndarray:
        """[rows, *positions, classes], [rows, *shape] of probabilities and numbers, [rows, longest] classes of text; float32."""
        given = np.concatenate([self.samples[int(index)] for index in indices])
        if self.kind == "text":
            return given.astype(np.float32)
        if self.kind == "numbers":
            return given.astype(np.float32).reshape(len(given), *self.shape)
        keep = np.float32(1 - self.smoothing)
        if self.kind == "odds":
            return keep * given.astype(np.float32).reshape(len(given), *self.shape) + np.float32(self.smoothing / 2)
        flat = given.reshape(-1).astype(np.int64)
        made = np.full((len(flat), self.classes), self.smoothing / self.classes, np.float32)
        made[np.arange(len(flat)), flat] += keep
        return made.reshape(*given.shape, self.classes)

    def judged(self, value: np.ndarray, labels: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Of each row and position: the logarithm of what its label gets (numbers: less the square error), and whether it is decided so.

        value   of the student, logits or log odds, float64     labels  what `values` gave     axis  of the classes
        """
        if self.kind == "numbers":
            whole = bool((labels == labels.round()).all())
            return -((value - labels) ** 2), np.abs(value - labels) <= (0.5 if whole else NEAR * np.abs(labels))
        if self.kind == "odds":
            return labels * value - np.logaddexp(0, value), (value > 0) == (labels > 0.5)
        classes = -1 if axis is None else axis
        if self.kind == "text":
            time = self.frames[0]
            if value.ndim == 2:
                value = value.reshape(*((len(labels), -1) if time else (-1, len(labels))), value.shape[1])
            return self._read(np.moveaxis(value, (time, classes), (1, 2)), labels)
        log_q = _log_softmax(np.moveaxis(value, classes, -1).reshape(labels.shape))
        return (labels * log_q).sum(-1), log_q.argmax(-1) == labels.argmax(-1)

    def _read(self, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of lines, scores [lines, frames, classes]; one that has too few frames counts as wrong, its logarithm as 0."""
        blank, worth, right = self.frames[1], [], []
        for log_q, codes in zip(_log_softmax(scores), labels.astype(int), strict=True):
            label = [int(code) for code in codes if code != NONE]
            worth.append(log_likelihood(log_q, label, blank))
            right.append(collapsed(log_q.argmax(-1), blank) == label)
        return np.where(np.isfinite(worth), worth, 0.0), np.array(right)

    @property
    def key(self) -> str:
        """Names them, for a checkpoint."""
        digest = hashlib.sha256(f"{self.kind} {self.classes} {self.smoothing} {self.frames}".encode())
        for index in sorted(self.samples):
            digest.update(np.ascontiguousarray(self.samples[index]).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Place:
    """What an output shows: its value to learn, its shape in the first feed, the axis of its classes, what kind its end makes it.

    given  the output's own shape: a reader's frames often lie in one row, [lines * frames, classes], before their last Reshape
    """

    output: str
    value: str
    shape: tuple[int, ...]
    axis: int | None
    end: str | None
    given: tuple[int, ...] = ()


def labelled(
    student: Model, given: Any, data: Data, *, smoothing: float, weight: float, alphabet: str | None = None
) -> tuple[Target, Labels] | str:
    """The term of labels in the loss, and the labels of the samples in `data`; a sentence where they fit no output.

    given     what `task.read_labels` takes, an entry for each row of the whole data
    alphabet  of text: a file that `texts.Alphabet` reads
    DataError for a label that is out of range: the row, the label and what there is.
    """
    array = read_labels(given, text=alphabet is not None)
    if array.ndim == 0 or len(array) != data.total_rows:
        count = len(array) if array.ndim else 1
        return f"there are {count} for {data.total_rows} rows of {data.what}; give one for each row"
    if array.ndim == 1 and (array.dtype.kind in "UO" or alphabet is not None):
        return _spelled(student, [str(each) for each in array], data, weight, alphabet)
    if array.dtype.kind not in "biuf":
        return f"they are {array.dtype}, not numbers"
    rows = {int(index): array[list(data.store.rows_of(int(index)))] for index in data.indices}
    first, feed = next(data.indexed(1))
    places = _places(student, feed)
    for place in places:
        kind, axis = _kind(place, rows[int(first[0])])
        if kind:
            classes = 1 if axis is None else place.shape[axis]
            _check_range(array, kind, classes, place.output)
            made = Labels(rows, kind, classes, place.shape[1:], 0.0 if kind == "numbers" else smoothing)
            why = {"classes": f"{classes} classes", "odds": "probabilities", "numbers": "numbers"}[kind]
            return Target("labels", place.value, LABELS, LOSSES[kind], axis, weight, why), made
    shown = ", ".join(f"{place.output!r} is {_shown(place.shape)}" for place in places)
    return f"{_shown(array.shape)} of {array.dtype} are no classes and no values of an output ({shown or 'none of floats'})"


def _spelled(
    student: Model, texts: list[str], data: Data, weight: float, alphabet: str | None
) -> tuple[Target, Labels] | str:
    """Text for the first output that holds frames of class scores: [lines, frames, classes], or with frames first, or in one row."""
    first, feed = next(data.indexed(1))
    place = next((each for each in _places(student, feed) if len(each.given) == 3 and len(each.shape) > 1), None)
    if place is None:
        return "they are text, and no output holds frames of class scores [lines, frames, classes]"
    shape = place.shape if len(place.shape) == 3 else place.given
    axis = (-1 if place.axis is None else place.axis) % 3 if len(place.shape) == 3 else 2
    signs = Alphabet.of(alphabet, student, shape[axis])
    if signs is None:
        return "they are text; give --alphabet, a file with the character of each class, to learn them"
    lines, others = len(data.store.rows_of(int(first[0]))), [a for a in range(3) if a != axis]
    time = others[0] if shape[others[0]] != lines == shape[others[1]] else others[1]
    codes, frames = signs.codes(texts), shape[time]
    needed = frames_needed(codes)
    if len(data.store.pieces) == 1 and needed.max() > frames:
        row = int(needed.argmax())
        raise DataError(
            f"labels: sample {row} is {texts[row]!r}, which takes {needed[row]} frames (a repeated character two), and output "
            f"{place.output!r} has {frames}; give wider inputs, or leave it out"
        )
    rows = {int(index): codes[list(data.store.rows_of(int(index)))] for index in data.indices}
    made = Labels(rows, "text", shape[axis], (), frames=(time, signs.blank))
    why = f"text of {len(signs.classes)} characters, from {signs.where}, in {frames} frames"
    return Target("labels", place.value, LABELS, LOSSES["text"], axis, weight, why, made.frames), made


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def _places(student: Model, feed: Mapping[str, np.ndarray]) -> list[Place]:
    """Each float output with what it shows for this feed."""
    ends = {value.name or "": (value, end_of(value)) for value in student.ir.graph.outputs if is_float(value)}
    names = {output: (end[1] if end else value).name or "" for output, (value, end) in ends.items()}
    shown = exposed(student, list(dict.fromkeys([*names.values(), *names])))
    answers = open_session(shown.model, optimise=False, name=student.source.name).run(feed)
    found = []
    for output, (_, end) in ends.items():
        if names[output] in answers:
            kind, axis = (None, None) if end is None else (end[0], end[2])
            shapes = [answers[name].shape for name in (names[output], output)]
            found.append(Place(output, names[output], shapes[0], axis, kind, shapes[1]))
    return found


def _kind(place: Place, labels: np.ndarray) -> tuple[str | None, int | None]:
    """What labels of this shape and type are for an output, and the axis of classes; None where they do not fit."""
    rank, shape = len(place.shape), _bare(labels.shape)
    if not rank:
        return None, None
    whole = labels.dtype.kind in "biu"
    if place.end == "Sigmoid":
        return ("odds", None) if shape == _bare(place.shape) else (None, None)
    axes = range(rank - 1, 0, -1) if place.axis is None else [place.axis % rank]
    for axis in axes:
        if whole and place.shape[axis] > 1 and shape == _bare(place.shape[:axis] + place.shape[axis + 1 :]):
            return "classes", axis
    if place.end is None and shape == _bare(place.shape):
        return "numbers", None
    return None, None


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of one, but for the first."""
    return (*shape[:1], *(size for size in shape[1:] if size != 1))


def _check_range(array: np.ndarray, kind: str, classes: int, output: str) -> None:
    wrong = ~np.isfinite(array)
    if kind != "numbers":
        wrong = wrong | (array < 0) | (array > (classes - 1 if kind == "classes" else 1))
    if not wrong.any():
        return
    row = int(np.argmax(wrong.reshape(len(array), -1).any(1)))
    value = array[row][wrong[row]].flat[0] if array.ndim > 1 else array[row]
    told = {
        "classes": f"output {output!r} has the classes 0 to {classes - 1}",
        "odds": f"output {output!r} is a probability, 0 to 1",
        "numbers": "it is not finite",
    }
    raise DataError(
        f"labels: sample {row} has {value}, {told[kind]}; correct it, or give --hard 0 to learn without labels"
    )


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


__all__ = ["Labels", "labelled"]
