"""The solver against brute force, its promises on larger problems."""

from __future__ import annotations

import ctypes
import os
from itertools import pairwise, product

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress import allocate as module
from onnxcompress.allocate import Candidate, allocate, allocate_error, left_out
from onnxcompress.errors import SettingError

numbers = st.integers(0, 30)
problems = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=4)
exact = settings(max_examples=60, deadline=None)


def candidates_of(drawn) -> list[Candidate]:
    return [Candidate(f"l{i}", j, float(c), float(e)) for i, row in enumerate(drawn) for j, (c, e) in enumerate(row)]


def cost(chosen: dict[str, Candidate]) -> float:
    return sum(c.cost for c in chosen.values())


def error(chosen: dict[str, Candidate]) -> float:
    return sum(c.error for c in chosen.values())


def curves(seed: int, layers: int, settings_each: int) -> list[Candidate]:
    """Errors that fall with the cost, as those of ranks, bits or amounts do, with noise."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(layers):
        costs = np.sort(rng.integers(1_000, 5_000_000, settings_each))
        errors = rng.random() * np.exp(-4 * costs / 5_000_000) * (1 + 0.2 * rng.random(settings_each))
        pairs = enumerate(zip(costs, errors, strict=True))
        made += [Candidate(f"l{index:04}", j, float(c), float(e)) for j, (c, e) in pairs]
    return made


@exact
@given(problems, st.integers(0, 130))
def test_the_answer_is_that_of_brute_force(drawn, budget):
    everything = [dict(zip(range(len(drawn)), pick, strict=True)) for pick in product(*drawn)]
    feasible = [sum(e for _, e in pick.values()) for pick in everything if sum(c for c, _ in pick.values()) <= budget]
    if not feasible:
        with pytest.raises(SettingError, match="cannot be met"):
            allocate(candidates_of(drawn), budget)
        return
    chosen = allocate(candidates_of(drawn), budget)
    assert list(chosen) == [f"l{i}" for i in range(len(drawn))]
    assert cost(chosen) <= budget
    assert error(chosen) == min(feasible)


@exact
@given(problems, st.integers(0, 130))
def test_the_dual_is_that_of_brute_force(drawn, bound):
    feasible = [sum(c for c, _ in pick) for pick in product(*drawn) if sum(e for _, e in pick) <= bound]
    if feasible:
        chosen = allocate_error(candidates_of(drawn), bound)
        assert error(chosen) <= bound
        assert cost(chosen) == min(feasible)
    else:
        with pytest.raises(SettingError, match="least error of all layers together"):
            allocate_error(candidates_of(drawn), bound)


def test_a_budget_that_is_met_exactly_is_used():
    candidates = [Candidate("a", 8, 1e9, 0.1), Candidate("a", 4, 5e8, 0.3), Candidate("b", 8, 1e9 + 1, 0.2)]
    assert allocate(candidates, 2e9 + 1)["a"].setting == 8
    assert allocate(candidates, 2e9)["a"].setting == 4


def test_a_larger_budget_never_has_a_larger_error():
    candidates = curves(0, 30, 6)
    low, high = (sum(f(c.cost for c in candidates if c.layer == f"l{i:04}") for i in range(30)) for f in (min, max))
    errors = [error(allocate(candidates, budget)) for budget in np.linspace(low, high, 8)]
    assert all(b <= a + 1e-12 for a, b in pairwise(errors))
    least = sum(min(c.error for c in candidates if c.layer == f"l{i:04}") for i in range(30))
    assert errors[-1] == pytest.approx(least)


def test_the_walk_is_within_its_bound_of_the_optimum(monkeypatch):
    candidates = curves(1, 40, 8)
    budget = 0.4 * sum(c.cost for c in candidates) / 8
    best = allocate(candidates, budget)
    monkeypatch.setattr(module, "EXACT_UP_TO", 0)
    walked = allocate(candidates, budget)
    largest_step = max(c.error for c in candidates)
    assert cost(best) <= budget and cost(walked) <= budget
    assert error(best) <= error(walked) <= error(best) + largest_step
    assert error(walked) <= 1.05 * error(best)


def test_a_gap_that_is_allowed_is_not_exceeded():
    candidates = curves(2, 30, 8)
    budget = 0.4 * sum(c.cost for c in candidates) / 8
    assert error(allocate(candidates, budget, maximum_gap=0.02)) <= 1.02 * error(allocate(candidates, budget)) + 1e-12


def test_a_large_problem_stays_within_the_budget_and_repeats():
    candidates = curves(3, 1000, 20)
    budget = 0.3 * sum(c.cost for c in candidates) / 20
    chosen = allocate(candidates, budget)
    assert len(chosen) == 1000 and cost(chosen) <= budget
    assert chosen == allocate(list(candidates), budget)


def test_an_unlimited_budget_takes_the_least_error_and_the_cheapest_of_equals():
    candidates = [Candidate("a", "big", 9, 0.0), Candidate("a", "small", 3, 0.0), Candidate("a", "tiny", 1, 5.0)]
    assert allocate(candidates, float("inf"))["a"].setting == "small"


def test_refusals_say_what_is_wrong():
    with pytest.raises(SettingError, match=r"budget 2 cannot be met: the least cost of all layers together is 3"):
        allocate([Candidate("a", 0, 3.0, 0.0), Candidate("a", 1, 4.0, 0.0)], 2)
    with pytest.raises(SettingError, match="no layer has a candidate"):
        allocate([], 2)
    with pytest.raises(SettingError, match="layer 'a', setting 4"):
        allocate([Candidate("a", 4, 1.0, float("nan"))], 2)
    with pytest.raises(SettingError, match="maximum_gap"):
        allocate([Candidate("a", 4, 1.0, 1.0)], 2, maximum_gap=-1)
    with pytest.raises(SettingError, match="cannot be met"):
        allocate([Candidate("a", 4, 1.0, 1.0)], float("nan"))


shared = st.lists(st.tuples(st.integers(1, 20), st.sets(st.sampled_from("abcd"), max_size=3)), min_size=1, max_size=6)


@exact
@given(shared, st.lists(st.integers(0, 9), min_size=4, max_size=4), st.integers(1, 30))
def test_shared_errors_are_those_of_brute_force(drawn, errors, most):
    """A place errs as long as anybody who touches it is left in, and once for all of them."""
    cost = {f"n{i}": float(price) for i, (price, _) in enumerate(drawn)}
    touches = {f"n{i}": places for i, (_, places) in enumerate(drawn)}
    error = dict(zip("abcd", map(float, errors), strict=True))

    def erring(out: set[str]) -> float:
        return sum(error[place] for place in set().union(*(touches[name] for name in cost if name not in out)))

    feasible = [
        sum(cost[name] for name in out)
        for picked in product([False, True], repeat=len(cost))
        if erring(out := {name for name, gone in zip(cost, picked, strict=True) if gone}) <= most
    ]
    found = left_out(cost, touches, error, float(most))
    assert found is not None and erring(set(found)) <= most + 1e-6
    assert sum(cost[name] for name in found) == pytest.approx(min(feasible))


def test_no_error_at_all_is_not_asked_for():
    with pytest.raises(SettingError, match="above 0"):
        left_out({"a": 1.0}, {"a": ("p",)}, {"p": 1.0}, 0.0)


def test_what_the_solver_prints_reaches_no_report(monkeypatch, capfd):
    library, real = ctypes.CDLL("ucrtbase" if os.name == "nt" else None), scipy.optimize.milp

    def talkative(*args, **options):
        library.puts(b"debugging")
        return real(*args, **options)

    monkeypatch.setattr(scipy.optimize, "milp", talkative)
    assert left_out({"a": 1.0, "b": 2.0}, {"a": ("p",), "b": ("q",)}, {"p": 1.0, "q": 1.0}, 1.0) == ["a"]
    library.puts(b"after")
    library.fflush(None)
    assert capfd.readouterr().out == "after\n"
