"""Several teachers that answer as one: the weighted mean of what they say, in probabilities or in numbers.

Hinton, Vinyals, Dean 2015, arXiv:1503.02531, teach a student with the arithmetic or the geometric mean of an ensemble's distributions;
You et al., KDD 2017, with the arithmetic one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxcompress.errors import SettingError
from onnxcompress.runtime.session import Port, Session

Mean = Literal["probabilities", "numbers"]
Combine = Callable[[Sequence[np.ndarray], np.ndarray, int], np.ndarray]
"""(what each teacher says, weights that sum to one, axis of the classes) -> what the ensemble says, of the same kind."""


def _numbers(values: Sequence[np.ndarray], weights: np.ndarray, axis: int) -> np.ndarray:
    """The mean; of logits it stands for the geometric mean of the distributions."""
    total: np.ndarray = sum(w * v.astype(np.float64) for w, v in zip(weights, values, strict=True))  # type: ignore[assignment]
    return total


def _logits(values: Sequence[np.ndarray], weights: np.ndarray, axis: int) -> np.ndarray:
    """The logarithm of the mean distribution."""
    logs = [v.astype(np.float64) for v in values]
    logs = [
        v - np.logaddexp.reduce(v, axis=axis, keepdims=True) + np.log(w) for v, w in zip(logs, weights, strict=True)
    ]
    return np.asarray(np.logaddexp.reduce(logs, axis=0))


def _odds(values: Sequence[np.ndarray], weights: np.ndarray, axis: int) -> np.ndarray:
    """log p / (1 - p) of the mean probability."""
    wide = [v.astype(np.float64) for v in values]
    yes, no = (
        np.logaddexp.reduce([np.log(w) - np.logaddexp(0, sign * v) for v, w in zip(wide, weights, strict=True)], axis=0)
        for sign in (-1, 1)
    )
    return np.asarray(yes - no)


COMBINE: dict[str, Combine] = {"logits": _logits, "log odds": _odds, "features": _numbers}
"""What a loss takes -> how several teachers' values become one, where probabilities are averaged."""


@dataclass(frozen=True)
class Part:
    """One value that is learned: its name in each teacher, what its loss takes, the axis of its classes. The first name is the part's."""

    names: tuple[str, ...]
    of: str
    axis: int


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Answers like a session of the first teacher; where a part has one name only, that teacher alone says it."""

    members: Sequence[Session]
    weights: np.ndarray
    parts: Sequence[Part]
    mean: Mean

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The combined values, by their names in the first teacher, in its types."""
        said = [member.run(feed) for member in self.members]
        found: dict[str, Any] = {}
        for part in self.parts:
            values = [one[name] for one, name in zip(said, part.names, strict=False)]
            floats = len(values) > 1 and values[0].dtype.kind == "f"
            combine = COMBINE[part.of if self.mean == "probabilities" else "features"]
            found[part.names[0]] = (
                combine(values, self.weights, part.axis).astype(values[0].dtype) if floats else values[0]
            )
        return found

    @property
    def outputs(self) -> list[Port]:
        """Those of the first teacher that are parts."""
        names = [part.names[0] for part in self.parts]
        return [port for port in self.members[0].outputs if port.name in names]


def weights_of(given: Sequence[float] | None, count: int) -> np.ndarray:
    """[count], sum 1; equal where none are given. SettingError for another number of them, or one that is not above 0."""
    if given is None:
        return np.full(count, 1 / count)
    if len(given) != count:
        raise SettingError(f"{len(given)} weights are given for {count} teachers; give one for each")
    if not all(np.isfinite(each) and each > 0 for each in given):
        raise SettingError(f"weights of teachers are {', '.join(f'{each:g}' for each in given)}; give numbers above 0")
    return np.asarray(given, np.float64) / np.sum(given)


__all__ = ["COMBINE", "Ensemble", "Mean", "Part", "weights_of"]
