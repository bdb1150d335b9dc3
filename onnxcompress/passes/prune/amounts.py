"""From a target (parameters, multiply-adds, bytes) to the amount that reaches it: counted, never guessed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.channels import Group
from onnxcompress.channels.footprint import Footprint
from onnxcompress.errors import SettingError

STEPS = 24
"""Halvings of the amount: finer than one channel in a group of 10 million."""

Kept = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Budgeted:
    """Groups, what they weigh, and the share that may be left of one cost (at most one target is given).

    target_size counts the bytes of floating-point weights, all of one type: the same share as parameters.
    """

    groups: Sequence[Group]
    footprint: Footprint
    target_params: float | None
    target_macs: float | None
    target_size: float | None

    @property
    def target(self) -> float | None:
        """The share that may be left; None: no target."""
        return next((t for t in (self.target_params, self.target_macs, self.target_size) if t is not None), None)

    def gone(self, kept: Kept) -> np.ndarray:
        """[units] bool, True where a unit goes."""
        top = max((int(units.max(initial=-1)) for axes in self.footprint.cuts.values() for units in axes), default=-1)
        gone = np.zeros(top + 1, bool)
        for group in self.groups:
            gone[group.units[~kept[group.name]]] = True
        return gone

    def left(self, kept: Kept) -> float:
        """Share of the cost that is left."""
        nothing = {group.name: np.ones(group.size, bool) for group in self.groups}
        measure = self.footprint.macs if self.target_macs is not None else self.footprint.parameters
        whole = measure(self.gone(nothing))
        if not whole:
            raise SettingError("target_macs needs the shapes of a run and none is known; use target_params or amount")
        return measure(self.gone(kept)) / whole


def amounts_for(budget: Budgeted, at: Callable[[float], Kept], amount: float) -> Kept:
    """What stays at `amount`; with a target, at the smallest amount that reaches it. SettingError where none does."""
    if budget.target is None:
        return at(amount)
    low, high = 0.0, 1.0
    if budget.left(at(high)) > budget.target:
        raise SettingError(
            f"the target {budget.target:g} cannot be reached: {budget.left(at(high)):.3f} is left with one unit a group; "
            "see 'onnxcompress inspect' for what is frozen"
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if budget.left(at(middle)) <= budget.target else (middle, high)
    return at(high)
