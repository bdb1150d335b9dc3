"""From a target to what stays of each group: an amount for all (parameters, multiply-adds, bytes), or one a group (error).

Costs are counted, never guessed. Errors are expected: see `selection.curves_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.allocate import Candidate, allocate_error
from onnxcompress.channels import Group
from onnxcompress.channels.footprint import Footprint
from onnxcompress.errors import SettingError
from onnxcompress.passes.prune.criteria import kept_count

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

    def weight(self, kept: Kept) -> float:
        """Mean share of parameters and, where they are known, multiply-adds that is left: what the largest cut is largest in."""
        nothing = self.gone({group.name: np.ones(group.size, bool) for group in self.groups})
        gone = self.gone(kept)
        measures = (self.footprint.parameters, self.footprint.macs)
        return float(np.mean([measure(gone) / whole for measure in measures if (whole := measure(nothing))]))

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


LEVELS = 16
"""Amounts that a group may take: 0, 1/16, ... 15/16; finer ones lost nothing but time."""

ROUNDS = 4
"""How often costs are taken anew about the last choice: those of neighbouring groups multiply. The second settles most."""


def within_error(
    budget: Budgeted, curves: Mapping[str, np.ndarray], round_to: int | None, most: float
) -> dict[str, int]:
    """Units kept in each group by the largest cut whose expected errors add up to at most `most`.

    curves  group -> [size - 1] expected error after 1, 2, ... units went; a group without stays whole
    The multiple-choice knapsack of allocate.py, solved for costs that are linear about the last solution; the best of
    ROUNDS by counted cost.
    """
    sizes = {group.name: group.size for group in budget.groups}
    options = {name: _options(sizes[name], curve, round_to) for name, curve in curves.items()}
    counts, best = dict(sizes), (1.0, dict(sizes))
    for _ in range(ROUNDS):
        candidates = [
            Candidate(name, count, cost, error)
            for name, errors in options.items()
            for (count, error), cost in zip(errors.items(), _costs(budget, counts, name, list(errors)), strict=True)
        ]
        if not candidates:
            break
        chosen = allocate_error(candidates, most, maximum_gap=math.inf)  # exact for costs that are not would be idle
        found = {**sizes, **{name: int(str(each.setting)) for name, each in chosen.items()}}
        best = min(best, (budget.weight(_first(sizes, found)), found), key=lambda pair: pair[0])
        if found == counts:
            break
        counts = found
    return best[1]


def _options(size: int, curve: np.ndarray, round_to: int | None) -> dict[int, float]:
    """Count kept -> expected error."""
    counts = [kept_count(size, level / LEVELS, 1, round_to) for level in range(LEVELS)]
    return {count: float(max(curve[size - count - 1], 0.0)) if count < size else 0.0 for count in counts}


def _costs(budget: Budgeted, counts: Mapping[str, int], name: str, wanted: Sequence[int]) -> list[float]:
    """Cost left with these counts of one group and the present ones of all others.

    A tensor has a group along two axes at most (what it reads and what it writes), so the cost is a parabola of the count.
    """
    sizes = {group.name: group.size for group in budget.groups}
    places = np.unique([0, sizes[name] // 2, sizes[name]])
    costs = [budget.weight(_first(sizes, {**counts, name: int(place)})) for place in places]
    return np.polyval(np.polyfit(places / sizes[name], costs, len(places) - 1), np.array(wanted) / sizes[name]).tolist()


def _first(sizes: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Masks of that many units: which ones does not matter for a cost."""
    return {name: np.arange(size) < counts[name] for name, size in sizes.items()}
