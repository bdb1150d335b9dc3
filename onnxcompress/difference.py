"""How far one output of the result is from the original's, summed batch by batch in float64.

Grades (VERDICTS) are by the worst output, with these limits:

    SQNR at least 20 dB (error power 1 %), and agreement of decisions at least 0.99   answers like the original
    SQNR at least 10 dB (error power 10 %), and agreement at least 0.9               differs slightly
    otherwise, or an output that is not finite where the original's is               no longer answers like the original

They come from a measurement of static int8 on three real models with a task: from 17 to 32 dB the score stayed within
0.05 of the best one of its model; from 11 to 15 dB it lost nothing on one model and 0.03 and 0.1 on the others.

Which outputs are decisions (`agreement`):

    floats [N, C], C fixed, >= 2    class scores: the largest along the last axis (embeddings cannot be told from them)
    floats [N, T, C], likewise      the same for each position, where N and T are free or rows are probabilities (or
                                    their logarithms), which boxes of detectors are not; `exact` is the share of
                                    sequences that are equal after merging repeats, as CTC reading does
    floats [N, C, H, W], C >= 2     a class for each pixel, where H and W are those of an input; no other feature map
    integers, booleans, strings     the share that is equal

Sequences and maps of floats (lists of boxes, probabilities by class) are compared as one row of numbers; other ones are equal or not.

Probabilities that are nearly 0 or 1 hide what happened before the last Softmax or Sigmoid, so that whoever chooses between two
results looks at `logits_db`: logarithms of rows that add up to one, less their mean; log odds of what else lies within 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcompress.runtime.session import Feeds, Port

# Sentence, least SQNR in dB, least agreement: the first row that holds is the grade.
VERDICTS = (
    ("answers like the original", 20.0, 0.99),
    ("differs slightly", 10.0, 0.9),
    ("no longer answers like the original", -math.inf, -math.inf),
)
BROKEN = len(VERDICTS) - 1

UNLIKELY = 1e-6
"""Probabilities below, and above one less this, are taken as this far from certain."""

View = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class OutputComparison:
    """One output, over all samples. None: does not apply to this output.

    shape         of the first batch                        values       how many numbers were compared
    max_abs       largest |y - z|                           relative     max_abs / largest |y|
    cosine        of all values as one vector               sqnr_db      10 log10(sum y^2 / sum (y - z)^2), inf if equal
    agreement     share of equal decisions (see above)      exact        share of sequences that are wholly equal
    logits_db     sqnr_db with probabilities as logits, for outputs that hold probabilities
    not_finite    values that are NaN or infinite in the result alone
    other_shapes  batches in which the result's shape was another one; they count in nothing else
    """

    name: str
    shape: tuple[int, ...]
    values: int
    max_abs: float | None = None
    relative: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    exact: float | None = None
    logits_db: float | None = None
    not_finite: int = 0
    other_shapes: int = 0

    @property
    def grade(self) -> int:
        """Row of VERDICTS."""
        if self.not_finite or (self.other_shapes and not self.values):
            return BROKEN
        sqnr, agreement = either(self.sqnr_db, math.inf), either(self.agreement, 1.0)
        numbers = next(i for i, (_, db, share) in enumerate(VERDICTS) if sqnr >= db and agreement >= share)
        comparable = self.values > 0 or 0 in self.shape  # nothing to compare: an empty output, or NaN in the original
        return max(numbers, 1 if self.other_shapes or not comparable else 0)


@dataclass
class Differences:
    """The sums of one output, batch by batch."""

    port: Port
    shape: tuple[int, ...] | None = None
    axis: int | None = None
    values: int = 0
    biggest: float = 0.0
    max_abs: float = 0.0
    yy: float = 0.0
    zz: float = 0.0
    yz: float = 0.0
    ee: float = 0.0
    logits: list[float] | None = field(default_factory=lambda: [0.0, 0.0])  # signal, noise; None: no probabilities
    decisions: list[int] = field(default_factory=lambda: [0, 0])
    sequences: list[int] = field(default_factory=lambda: [0, 0])
    not_finite: int = 0
    other_shapes: int = 0
    floats: bool = False

    def __post_init__(self) -> None:
        self.floats = self.port.dtype is not None and self.port.dtype.kind == "f"

    def add(self, one: Any, two: Any, feeds: Feeds) -> None:
        """One batch: `one` of the original, `two` of the result."""
        if not isinstance(one, np.ndarray) or one.dtype.kind not in "fbiuOUS":  # sequences and maps
            self._nested(one, two)
            return
        if self.shape is None:
            self.shape = one.shape
            self.axis = decision_axis(self.port, one, feeds)
        if one.shape != two.shape:
            self.other_shapes += 1
        elif one.dtype.kind != "f":
            self._equal(one, two)
        else:
            self._close(one, two)
            self._unsquashed(one.astype(np.float64), two.astype(np.float64))
            if self.axis is not None and one.size:
                self._decide(one.argmax(self.axis), two.argmax(self.axis), feeds)

    def _nested(self, one: Any, two: Any) -> None:
        """Sequences and maps: numbers where they are floats at the same places, else equal or not."""
        left, right = dict(_leaves(one)), dict(_leaves(two))
        if all(isinstance(leaf, float) or getattr(leaf, "dtype", np.dtype(bool)).kind == "f" for leaf in left.values()):
            self.floats = True
            if [(at, np.shape(leaf)) for at, leaf in left.items()] != [
                (at, np.shape(leaf)) for at, leaf in right.items()
            ]:
                self.other_shapes += 1
            elif left:
                self._close(*(np.concatenate([np.ravel(leaf) for leaf in each.values()]) for each in (left, right)))
        else:
            self._equal(np.array([True]), np.array([_plain(one) == _plain(two)]))

    def _equal(self, one: np.ndarray, two: np.ndarray) -> None:
        self.values += one.size
        self.decisions[0] += int((one == two).sum())
        self.decisions[1] += one.size

    def _close(self, one: np.ndarray, two: np.ndarray) -> None:
        y, z = one.astype(np.float64).ravel(), two.astype(np.float64).ravel()
        usable = np.isfinite(y)
        broken = usable & ~np.isfinite(z)
        self.not_finite += int(broken.sum())
        usable &= ~broken
        if not usable.all():
            y, z = y[usable], z[usable]
        self.values += len(y)
        if not len(y):
            return
        error = y - z
        self.biggest = max(self.biggest, float(np.abs(y).max()))
        self.max_abs = max(self.max_abs, float(np.abs(error).max()))
        self.yy, self.zz, self.yz = self.yy + float(y @ y), self.zz + float(z @ z), self.yz + float(y @ z)
        self.ee += float(error @ error)

    def _unsquashed(self, y: np.ndarray, z: np.ndarray) -> None:
        """The same as logits, as long as every batch of the original holds probabilities."""
        view = logits(y) if self.logits is not None else None
        if view is None or self.logits is None or not np.isfinite(z).all():
            self.logits = self.logits if not y.size else None
            return
        one, two = view(y).ravel(), view(z).ravel()
        self.logits[0] += float(one @ one)
        self.logits[1] += float((one - two) @ (one - two))

    def _decide(self, one: np.ndarray, two: np.ndarray, feeds: Feeds) -> None:
        self.decisions[0] += int((one == two).sum())
        self.decisions[1] += one.size
        if one.ndim != 2:
            return
        batch = max((len(value) for value in feeds.values() if np.ndim(value)), default=1)
        if len(one) != batch and one.shape[1] == batch:  # [T, N, C], as some recurrent models answer
            one, two = one.T, two.T
        for left, right in zip(one, two, strict=True):
            self.sequences[0] += np.array_equal(merged(left), merged(right))
            self.sequences[1] += 1

    def finished(self) -> OutputComparison:
        """The numbers of all batches."""
        lost = self.not_finite > 0  # the distance to what is not a number has no bound
        floats = self.floats and (self.values > 0 or lost)
        max_abs = math.inf if lost else self.max_abs
        return OutputComparison(
            name=self.port.name,
            shape=self.shape or (),
            values=self.values,
            max_abs=max_abs if floats else None,
            relative=_ratio(max_abs, self.biggest) if floats else None,
            cosine=None if not floats else 0.0 if lost else _cosine(self.yz, self.yy, self.zz),
            sqnr_db=sqnr_db(self.yy, math.inf if lost else self.ee) if floats else None,
            agreement=_share(self.decisions),
            exact=_share(self.sequences),
            logits_db=sqnr_db(*self.logits) if floats and not lost and self.logits is not None else None,
            not_finite=self.not_finite,
            other_shapes=self.other_shapes,
        )


def decision_axis(port: Port, value: np.ndarray, feeds: Feeds) -> int | None:
    """The axis along which the largest value of a float output is a decision (see above); None for other outputs."""
    shape = value.shape
    declared = port.shape
    if port.dtype is None or port.dtype.kind != "f":
        return None
    if len(declared) != len(shape):  # some exporters declare another rank than the model answers: C is what it gives
        declared = (*[None] * (len(shape) - 1), *shape[-1:])
    if len(shape) in (2, 3):
        fixed = isinstance(declared[-1], int) and shape[-1] >= 2
        rows = not isinstance(declared[0], int) or declared[0] == 1  # states [2, N, C] are no rows of positions
        free = len(shape) == 2 or (rows and not isinstance(declared[1], int))
        return -1 if fixed and (free or _probabilities(value)) else None
    pictures = [given.shape for given in feeds.values() if given.ndim == 4]
    pixels = any(tuple(shape[2:]) in (given[2:], given[1:3]) for given in pictures)
    return 1 if len(shape) == 4 and shape[1] >= 2 and pixels else None


def _probabilities(value: np.ndarray) -> bool:
    """Whether rows along the last axis add up to one, as they are or as logarithms."""
    if value.size == 0 or not np.isfinite(value).all():
        return False
    rows = value if value.min() >= 0 else np.exp(np.minimum(value, 1.0))
    return bool(np.allclose(rows.sum(-1, dtype=np.float64), 1.0, atol=1e-2))


def logits(y: np.ndarray, least: float = UNLIKELY) -> View | None:
    """What turns arrays like these probabilities into logits; None where they are none.

    y  float64; within 0 and 1. Rows along the last axis longer than one that add up to 1: their logarithms less the row's mean, of what is
    at least `least`. Otherwise log odds, of what is at least UNLIKELY, and as far from certain.
    """
    if y.size == 0 or not (y.min() >= 0 and y.max() <= 1 + UNLIKELY):
        return None
    axis = max((axis for axis in range(1, y.ndim) if y.shape[axis] > 1), default=None)
    if axis is not None and np.allclose(y.sum(axis), 1, atol=1e-3):
        return lambda z: _centred(np.log(np.maximum(z, least)), axis)
    return lambda z: _odds(np.clip(z, UNLIKELY, 1 - UNLIKELY))


def _centred(y: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(y - y.mean(axis, keepdims=True))


def _odds(share: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(share) - np.log1p(-share))


def merged(sequence: np.ndarray) -> np.ndarray:
    """[T] without repeats of the value before."""
    return sequence[np.concatenate([[True], sequence[1:] != sequence[:-1]])] if len(sequence) else sequence


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise), powers; inf where there is no noise, -inf where there is nothing but noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and noise < math.inf else -math.inf


def _cosine(yz: float, yy: float, zz: float) -> float:
    """Of the angle; 1 where both are zero, 0 where one is."""
    if yy == 0 or zz == 0:
        return float(yy == zz)
    return max(-1.0, min(1.0, yz / math.sqrt(yy) / math.sqrt(zz)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)


def _share(counts: Sequence[int]) -> float | None:
    return counts[0] / counts[1] if counts[1] else None


def either(value: float | None, default: float) -> float:
    """The value, or the default where there is none."""
    return default if value is None else value


def _leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """What a sequence or map holds, and where."""
    if isinstance(value, list | dict):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(each, (*place, key))
    else:
        yield place, value


def _plain(value: Any) -> Any:
    """A sequence or map in Python's own values, which compare by content."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
