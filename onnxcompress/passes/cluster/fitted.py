"""An allocation whose codes take no more than a budget: what nodes take beside symbols is measured, then made room for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxcompress.allocate import Candidate
from onnxcompress.errors import BudgetError
from onnxcompress.model import Model
from onnxcompress.passes.cluster.allocation import Choice, allocated
from onnxcompress.passes.cluster.walk import Found, Start, begun
from onnxcompress.passes.cluster.written import Budget

NODES = 1400
"""Bytes that the nodes of a coded tensor take in a file at most, constants that others share counted: a first guess."""

NEAR = 0.005
"""Share of the budget that may be left unused."""

BEGUN, TURNS = 6, 3
"""Allocations that are begun at most, and walked at most."""


def fitted(
    model: Model,
    options: Sequence[Candidate],
    budget: Budget,
    beside: float,
    begins: Callable[[Mapping[str, Choice]], Start],
    walks: Callable[[Start], Found],
) -> tuple[Start, Found]:
    """What each tensor begins with and what it becomes: the least summed error of those allocations that are within the budget.

    options  choices of all tensors, their bytes without nodes        beside  bytes that nodes may take; 0: none are counted
    begins   what tensors begin with        walks  what becomes of it
    BudgetError where the smallest is too large.
    """
    least: dict[str, float] = {}
    for each in options:
        least[each.layer] = min(each.cost, least.get(each.layer, each.cost))
    floor = sum(least.values())
    if floor > budget.bytes:
        raise BudgetError(
            f"the fewest values a weight take {floor:,.0f} bytes with their books, and {budget.bytes:,.0f} are left for them; "
            "give more bits or a larger target size (clusters and same do not count the bytes of books)"
        )
    room, tried = budget.bytes, dict[float, Mapping[str, Choice]]()
    if beside:
        room, tried = _room(
            max(budget.bytes - beside, floor), floor, budget, options, lambda each: begun(model, begins(each))
        )
    for _ in range(TURNS):
        start = begins(tried[room] if room in tried else allocated(options, room))
        found = walks(start)
        over = -budget.left(found.coded) if beside else 0.0
        if over <= 0:
            return start, found
        if room <= floor:
            break
        room = max(room - over - NEAR / 2 * budget.bytes, floor)
    raise BudgetError(
        f"the smallest that was found takes {over:,.0f} bytes more than there may be; give a larger target size"
    )


def _room(
    room: float,
    floor: float,
    budget: Budget,
    options: Sequence[Candidate],
    codes: Callable[[Mapping[str, Choice]], Found],
) -> tuple[float, dict[float, Mapping[str, Choice]]]:
    """The most bytes of symbols and books whose codes are within the budget, of those tried; and the choices of all that were."""
    tried: dict[float, Mapping[str, Choice]] = {}
    low, high = floor, np.inf
    while len(tried) < BEGUN and room not in tried:
        tried[room] = allocated(options, room)
        left = budget.left(codes(tried[room]).coded)
        low, high = (max(low, room), high) if left >= 0 else (low, min(high, room))
        if 0 <= left <= NEAR * budget.bytes:
            break
        room = max(room + left - NEAR / 2 * budget.bytes, floor)
        if not low < room < high:
            room = (low + high) / 2 if np.isfinite(high) else low
    return low, tried
