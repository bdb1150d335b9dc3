"""What is spent where under one budget: the multiple-choice knapsack that amounts, bits, ranks and forms come down to.

    minimise Σ error(c_l)   with one candidate c_l a layer   and   Σ cost(c_l) <= budget

And the same where layers share what they err by, as nodes that read one grid do (`left_out`):

    minimise Σ cost(n) · out(n)   with   Σ error(p) · there(p) <= budget   and   there(p) >= 1 - out(n) where n touches p

Costs and errors are taken as additive. Small problems are solved exactly (scipy's HiGHS), large ones on the lower
convex hull of each layer: a greedy walk, above the optimum by less than the one step that no longer fitted saves
(Sinha, Zoltners, Operations Research 1979).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy  # its parts are imported when they are named: optimize is large, and few need it
from scipy.sparse import csr_array

from onnxcompress.errors import SettingError

EXACT_UP_TO = 5000  # candidates; HiGHS took 0.3 s for 4,374 of 250 layers
ROW_SCALE = 1e4  # budget in the solver's row: its absolute tolerance of 1e-6 is then 1e-10 of the budget
# Of the budget: where the solver's tolerances let an answer exceed it all the same, a second try stays below.
TIGHTER = (0.0, 2e-6)


@dataclass(frozen=True)
class Candidate:
    """A setting that one layer may take: its cost (bytes, MACs, ...) and its error, each in one unit for all layers."""

    layer: str
    setting: Hashable
    cost: float
    error: float


@dataclass(frozen=True)
class _Option:
    """A candidate as the solver sees it: `weight` is bounded in sum, `value` is minimised in sum."""

    candidate: Candidate
    weight: float
    value: float


def allocate(candidates: Iterable[Candidate], budget: float, *, maximum_gap: float = 0.0) -> dict[str, Candidate]:
    """One candidate a layer with the least summed error whose summed cost is within the budget.

    maximum_gap  error above the optimum that may be left, as a share of the optimum; 0: exact
    returns      by layer, in the order in which the layers first appear
    raises       SettingError where there is no candidate, or no choice within the budget (it says the least cost)
    Beyond EXACT_UP_TO candidates, not counting dominated ones, the answer is that of the convex hull: above the optimum
    by less than the error that the first unaffordable step would have saved.
    """
    options = [_Option(c, c.cost, c.error) for c in candidates]
    return _solve(options, budget, maximum_gap, "budget", "cost")


def allocate_error(
    candidates: Iterable[Candidate], max_error: float, *, maximum_gap: float = 0.0
) -> dict[str, Candidate]:
    """The dual: one candidate a layer with the least summed cost whose summed error is at most `max_error`.

    Arguments and errors as for `allocate`, with cost and error exchanged.
    """
    options = [_Option(c, c.error, c.cost) for c in candidates]
    return _solve(options, max_error, maximum_gap, "error bound", "error")


PATIENCE = 10.0
"""Seconds for one program of `left_out`, far above what the largest took (some hundred nodes of a text reader)."""


def left_out(
    cost: Mapping[str, float],
    touches: Mapping[str, Collection[str]],
    error: Mapping[str, float],
    max_error: float,
    *,
    maximum_gap: float = 0.0,
) -> list[str] | None:
    """The cheapest to leave out, so that what the others touch errs by at most `max_error` in sum; in the order of `cost`.

    cost     of leaving each out                touches  which places each one errs at, as long as it is not left out
    error    of a place, once however many touch it
    None where the solver found nothing within PATIENCE. SettingError where `max_error` is not above zero.
    """
    if not max_error > 0:
        raise SettingError(f"the error bound is {max_error}; it must be above 0")
    names, places = list(cost), [place for place, most in error.items() if most > 0]
    at = {place: len(names) + index for index, place in enumerate(places)}
    pairs = [(i, at[place]) for i, name in enumerate(names) for place in touches[name] if place in at]
    size = len(names) + len(places)
    values = np.concatenate([[cost[name] for name in names], np.zeros(len(places))])
    shares = np.concatenate([np.zeros(len(names)), [error[place] for place in places]]) / max_error
    constraints = [scipy.optimize.LinearConstraint(shares[None], -np.inf, 1.0)]
    if pairs:
        rows = np.repeat(np.arange(len(pairs)), 2)
        matrix = csr_array((np.ones(2 * len(pairs)), (rows, np.asarray(pairs).reshape(-1))), shape=(len(pairs), size))
        constraints.append(scipy.optimize.LinearConstraint(matrix, 1.0, np.inf))
    whole = np.concatenate([np.ones(len(names)), np.zeros(len(places))])  # there(p) comes out whole by itself
    x = _minimised(
        values, whole, scipy.optimize.Bounds(0, 1), constraints, mip_rel_gap=maximum_gap, time_limit=PATIENCE
    )
    return None if x is None else [name for name, out in zip(names, x, strict=False) if out > 0.5]


def _minimised(
    values: np.ndarray,
    whole: np.ndarray,
    bounds: scipy.optimize.Bounds,
    constraints: list[scipy.optimize.LinearConstraint],
    **options: float,
) -> np.ndarray | None:
    """By HiGHS; None where it found nothing. Its presolve saves no time."""
    with _unheard():
        found = scipy.optimize.milp(
            values, integrality=whole, bounds=bounds, constraints=constraints, options={**options, "presolve": False}
        )
    return None if found.x is None else np.asarray(found.x)


@contextmanager
def _unheard() -> Iterator[None]:
    """Nothing that C code prints meanwhile reaches standard output, where a report may go.

    HiGHS of scipy 1.17 prints a line of its own debugging, whatever its options, where a rounded answer misses a tolerance and is
    solved again (one problem in some hundreds).
    """
    flush = ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush
    try:
        kept = os.dup(1)
    except OSError:  # closed: nobody would hear it
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    flush(None)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _solve(
    options: list[_Option], bound: float, maximum_gap: float, bound_name: str, weight: str
) -> dict[str, Candidate]:
    if maximum_gap < 0:
        raise SettingError(f"maximum_gap is {maximum_gap}; it must be 0 or more")
    layers = _by_layer(options, weight)
    least = sum(choices[0].weight for choices in layers.values())
    if not least <= bound:
        raise SettingError(
            f"{bound_name} {bound:.6g} cannot be met: the least {weight} of all layers together is {least:.6g}; "
            f"raise it, or give layers candidates with less {weight}"
        )
    best, lower = _walk_hull(layers, bound)
    gap = _value(best) - lower
    small = sum(len(choices) for choices in layers.values()) <= EXACT_UP_TO
    if small and gap > maximum_gap * abs(lower) + 1e-12 * abs(_value(best)):
        answers = (_solve_exactly(layers, bound, maximum_gap, tighter) for tighter in TIGHTER)
        exact = next((answer for answer in answers if answer is not None), best)
        best = min(best, exact, key=_value)
    return {layer: option.candidate for layer, option in best.items()}


def _by_layer(options: list[_Option], weight: str) -> dict[str, list[_Option]]:
    """Options of each layer that no other one beats, lightest first: weight rises, value falls."""
    if not options:
        raise SettingError("there is nothing to allocate: no layer has a candidate")
    grouped: dict[str, list[_Option]] = {}
    for option in options:
        if not (np.isfinite(option.weight) and np.isfinite(option.value)):
            c = option.candidate
            where = f"layer {c.layer!r}, setting {c.setting!r}"
            raise SettingError(f"{where}: cost {c.cost} and error {c.error} must be finite; leave that candidate out")
        grouped.setdefault(option.candidate.layer, []).append(option)
    for layer, choices in grouped.items():
        front: list[_Option] = []
        for option in sorted(choices, key=lambda o: (o.weight, o.value)):
            if not front or option.value < front[-1].value:
                front.append(option)
        grouped[layer] = front
    return grouped


def _value(chosen: dict[str, _Option]) -> float:
    return sum(option.value for option in chosen.values())


def _hull(front: list[_Option]) -> list[_Option]:
    """Lower convex hull: the value saved per weight falls from step to step."""
    hull: list[_Option] = []
    for option in front:
        while len(hull) > 1 and _rate(hull[-2], hull[-1]) <= _rate(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _rate(light: _Option, heavy: _Option) -> float:
    return (light.value - heavy.value) / (heavy.weight - light.weight)


def _walk_hull(layers: dict[str, list[_Option]], bound: float) -> tuple[dict[str, _Option], float]:
    """From the lightest of each layer, the steps with the best rate while they fit; and a lower bound of any value.

    The bound is the linear relaxation: the first step that does not fit, taken in part. Later steps that still fit are
    taken too, as long as the earlier steps of their layer were.
    """
    chosen = {layer: front[0] for layer, front in layers.items()}
    steps = [
        (-_rate(light, heavy), position, number, layer, light, heavy)
        for position, (layer, front) in enumerate(layers.items())
        for hull in [_hull(front)]
        for number, (light, heavy) in enumerate(pairwise(hull))
    ]
    spent, lower = sum(option.weight for option in chosen.values()), None
    for negative_rate, _, _, layer, light, heavy in sorted(steps, key=lambda step: step[:3]):
        extra = heavy.weight - light.weight
        if chosen[layer] is light and spent + extra <= bound:
            chosen[layer] = heavy
            spent += extra
        elif lower is None:
            lower = _value(chosen) + negative_rate * (bound - spent)
    return chosen, _value(chosen) if lower is None else lower


def _solve_exactly(
    layers: dict[str, list[_Option]], bound: float, maximum_gap: float, tighter: float
) -> dict[str, _Option] | None:
    """By branch and bound; None where its answer exceeds the bound, by its tolerances, or there is none."""
    flat = [option for front in layers.values() for option in front]
    rows = np.repeat(np.arange(len(layers)), [len(front) for front in layers.values()])
    weights, values = np.array([o.weight for o in flat]), np.array([o.value for o in flat])
    # Offsets that every choice shares, and units, are taken out: HiGHS judges zero by absolute tolerances.
    spare = bound - sum(front[0].weight for front in layers.values())
    weights = weights - np.array([front[0].weight for front in layers.values()])[rows]
    values = values - np.array([front[-1].value for front in layers.values()])[rows]
    unit_weight, unit_value = (spare or 1.0) / ROW_SCALE, values.max() or 1.0
    one_each = csr_array((np.ones(len(flat)), (rows, np.arange(len(flat)))), shape=(len(layers), len(flat)))
    within = scipy.optimize.LinearConstraint(
        weights[None] / unit_weight, -np.inf, (spare / unit_weight) * (1 - tighter)
    )
    one_a_layer = [scipy.optimize.LinearConstraint(one_each, 1, 1), within]
    bounds = scipy.optimize.Bounds(0, np.where(weights <= spare, 1, 0))
    x = _minimised(values / unit_value, np.ones(len(flat)), bounds, one_a_layer, mip_rel_gap=maximum_gap)
    if x is None:
        return None
    picked = [flat[index] for index in np.flatnonzero(x > 0.5)]
    if len(picked) != len(layers) or sum(o.weight for o in picked) > bound:
        return None
    return dict(zip(layers, picked, strict=True))
