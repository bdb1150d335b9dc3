"""The error tree. A message says what, where (a node, tensor, file or option name) and what to do next, on one line.

    OnnxCompressError
    ├── ModelError      the model is damaged, unsupported, or not the one that a plan was made for
    ├── DataError       calibration or held-out data that does not fit the model
    ├── SettingError    a setting out of range, or a wish that matches nothing
    │   ├── UnmetError      a target that is out of reach; it knows the least that is not
    │   └── DivergedError   a training whose loss or gradients are no finite numbers any more: mostly a rate too high
    └── BudgetError     a gate on the comparison was not met (outputs are still written)

The command line prints the message behind ``error:`` and exits with 1 for a BudgetError, with 2 for the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxCompressError(Exception):
    """What every error raised on purpose by this package is a child of."""


class ModelError(OnnxCompressError):
    """The model cannot be read, is not supported, or is not the one that was meant."""


class DataError(OnnxCompressError):
    """Data that is empty, unreadable, not finite, or does not fit the model's inputs."""


class SettingError(OnnxCompressError):
    """A setting out of range, or a name pattern that matches nothing."""


class UnmetError(SettingError):
    """A target that is out of reach; `least`: the nearest value that is not, in the target's own unit or share."""

    def __init__(self, message: str, least: float) -> None:
        super().__init__(message)
        self.least = least


class DivergedError(SettingError):
    """A training whose loss or gradients are no finite numbers any more."""


class BudgetError(OnnxCompressError):
    """A gate on the comparison was not met."""


def nearest(wanted: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the closest known one, or a few of those there are."""
    names = list(known)
    close = difflib.get_close_matches(wanted.strip("*?"), names, n=1, cutoff=0.4)
    if close:
        return f"the nearest name is {close[0]!r}"
    return f"known are {', '.join(sorted(names)[:6])}{', …' if len(names) > 6 else ''}"
