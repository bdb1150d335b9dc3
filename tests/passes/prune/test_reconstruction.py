"""Column selection against brute force on small Gram matrices; every function against the plain formula."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import DataError, SettingError
from onnxcompress.passes.prune import reconstruction as select
from onnxcompress.passes.prune.reconstruction import SELECTORS, reconstruction_error

problems = st.tuples(st.integers(0, 10_000), st.integers(3, 9), st.integers(1, 6))
exact = settings(max_examples=40, deadline=None)


def problem(seed: int, n: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Correlated ReLU inputs x [samples, n], weights w [out, n], and their G and T."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((60, n)) @ rng.standard_normal((n, n)) + 0.1 * rng.standard_normal((60, n)), 0)
    w = rng.standard_normal((out, n)) * rng.random(n)
    return x, w, x.T @ x, w.T @ w


def refitted_error(x: np.ndarray, w: np.ndarray, kept: np.ndarray) -> float:
    y = x @ w.T
    refit = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
    return float(((y - x[:, kept] @ refit) ** 2).sum() / (y**2).sum())


def best_error(gram: np.ndarray, target: np.ndarray, keep: int, positions: np.ndarray | None = None) -> float:
    units = len(gram) if positions is None else len(positions)
    subsets = combinations(range(units), keep)
    return min(reconstruction_error(gram, target, np.array(kept), positions=positions) for kept in subsets)


@exact
@given(problems, st.data())
def test_the_error_is_that_of_a_least_squares_refit(drawn, data):
    x, w, gram, target = problem(*drawn)
    kept = data.draw(st.lists(st.integers(0, len(gram) - 1), min_size=1, unique=True))
    expected = refitted_error(x, w, np.array(kept))
    error = reconstruction_error(gram, target, np.array(kept), ridge=1e-12)
    assert error == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_the_error_is_zero_for_all_units_and_one_for_none():
    _, _, gram, target = problem(0, 6, 3)
    assert reconstruction_error(gram, target, np.arange(6)) == 0.0
    assert reconstruction_error(gram, target, np.array([], dtype=int)) == pytest.approx(1.0)


@exact
@given(problems)
def test_each_elimination_step_is_the_best_single_step_and_the_errors_are_exact(drawn):
    _, _, gram, target = problem(*drawn)
    n = len(gram)
    order, errors = select.eliminate(gram, target)
    assert sorted(order) == list(range(n))
    assert np.all(np.diff(errors) >= -1e-9)
    for step in range(n):
        kept = np.setdiff1d(np.arange(n), order[: step + 1])
        assert errors[step] == pytest.approx(reconstruction_error(gram, target, kept), rel=1e-6, abs=1e-9)
        before = np.append(kept, order[step])
        others = [reconstruction_error(gram, target, np.setdiff1d(before, [unit])) for unit in before]
        assert errors[step] <= min(others) * (1 + 1e-6) + 1e-9


@exact
@given(problems)
def test_each_forward_step_is_the_best_single_step(drawn):
    _, _, gram, target = problem(*drawn)
    chosen: list[int] = []
    for keep in range(1, len(gram)):
        now = select.forward_selection(gram, target, keep)
        assert set(chosen) <= set(now)
        error = reconstruction_error(gram, target, now)
        rest = set(range(len(gram))) - set(chosen)
        assert error <= min(reconstruction_error(gram, target, [*chosen, u]) for u in rest) * (1 + 1e-6) + 1e-9
        chosen = list(now)


def test_postponed_updates_stay_exact_beyond_several_panels():
    _, _, gram, target = problem(3, 200, 50)
    order, errors = select.eliminate(gram, target)
    for step in (0, 63, 64, 100, 150, 190):
        kept = order[step + 1 :]
        assert errors[step] == pytest.approx(reconstruction_error(gram, target, kept), rel=1e-6, abs=1e-10)


def test_a_given_order_has_the_errors_of_its_prefixes():
    _, _, gram, target = problem(5, 9, 4)
    order = np.random.default_rng(0).permutation(9)[:7]
    curve = select.error_curve(gram, target, order)
    for step in range(7):
        kept = np.setdiff1d(np.arange(9), order[: step + 1])
        assert curve[step] == pytest.approx(reconstruction_error(gram, target, kept), rel=1e-6)


@exact
@given(problems, st.data())
def test_no_swap_is_left_after_local_search_and_it_is_never_worse_than_its_start(drawn, data):
    _, _, gram, target = problem(*drawn)
    n = len(gram)
    keep = data.draw(st.integers(1, n - 1))
    start = np.array(data.draw(st.permutations(range(n)))[:keep])
    found = select.local_search(gram, target, keep, start=start)
    error = reconstruction_error(gram, target, found)
    assert len(found) == keep
    assert error <= reconstruction_error(gram, target, start) + 1e-9
    for out in found:
        for into in np.setdiff1d(np.arange(n), found):
            swapped = np.append(np.setdiff1d(found, [out]), into)
            assert reconstruction_error(gram, target, swapped) >= error * (1 - 1e-6) - 1e-8


@exact
@given(problems, st.data())
def test_local_search_is_no_worse_than_elimination_and_close_to_the_optimum(drawn, data):
    _, _, gram, target = problem(*drawn)
    keep = data.draw(st.integers(1, len(gram) - 1))
    error = reconstruction_error(gram, target, select.local_search(gram, target, keep))
    greedy = reconstruction_error(gram, target, select.backward_elimination(gram, target, keep))
    best = best_error(gram, target, keep)
    assert best * (1 - 1e-9) - 1e-12 <= error <= greedy + 1e-9


def test_local_search_finds_the_optimum_more_often_than_elimination():
    """On features of low rank, where a greedy order is misled."""
    found = {"backward": 0, "osscar": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((40, 4)) @ rng.standard_normal((4, 10)) + 0.1 * rng.standard_normal((40, 10))
        gram, target = x.T @ x, np.eye(10)
        best = best_error(gram, target, 3)
        for name in found:
            kept = SELECTORS[name](gram, target, 3, select.RIDGE, None)
            found[name] += reconstruction_error(gram, target, kept) <= best * (1 + 1e-6)
    assert found["backward"] + 10 <= found["osscar"], found


@pytest.mark.parametrize("name", SELECTORS)
@exact
@given(drawn=problems, data=st.data())
def test_every_selector_keeps_the_count_and_beats_the_worst_choice(name, drawn, data):
    _, _, gram, target = problem(*drawn)
    keep = data.draw(st.integers(1, len(gram)))
    kept = SELECTORS[name](gram, target, keep, select.RIDGE, None)
    assert len(kept) == keep and list(kept) == sorted(set(kept))
    assert np.array_equal(kept, SELECTORS[name](gram.copy(), target.copy(), keep, select.RIDGE, None))
    assert reconstruction_error(gram, target, kept) <= reconstruction_error(gram, target, kept[:-1]) + 1e-9


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_drops_dead_channels_first(name):
    _, _, gram, target = problem(11, 8, 4)
    gram[[1, 4, 6]], gram[:, [1, 4, 6]] = 0.0, 0.0
    target += np.eye(8)
    assert list(SELECTORS[name](gram, target, 5, select.RIDGE, None)) == [0, 2, 3, 5, 7]


@pytest.mark.parametrize("name", ["backward", "forward", "osscar"])
def test_one_of_two_equal_channels_is_free_to_go(name):
    x, w, _, _ = problem(2, 6, 4)
    x[:, 5] = 2 * x[:, 2]
    gram, target = x.T @ x, w.T @ w
    kept = SELECTORS[name](gram, target, 5, select.RIDGE, None)
    assert len({2, 5} & set(kept)) == 1
    assert reconstruction_error(gram, target, kept) < 1e-5


def test_thinet_takes_the_removal_whose_summed_contribution_stays_least():
    x, w, gram, target = problem(4, 6, 3)
    removed: list[int] = []
    for _ in range(3):
        rest = [unit for unit in range(6) if unit not in removed]
        removed.append(min(rest, key=lambda unit: ((x[:, [*removed, unit]] @ w[:, [*removed, unit]].T) ** 2).sum()))
    assert list(select.thinet_greedy(gram, target, 3, ridge=0.0)) == sorted(set(range(6)) - set(removed))


@pytest.mark.parametrize("keep", [1, 5, 20, 39])
def test_lasso_reaches_any_count_and_beats_random_choice(keep):
    _, _, gram, target = problem(8, 40, 10)
    kept = select.lasso_selection(gram, target, keep)
    rng = np.random.default_rng(0)
    drawn = [reconstruction_error(gram, target, rng.permutation(40)[:keep]) for _ in range(20)]
    assert len(kept) == keep
    assert reconstruction_error(gram, target, kept) < np.median(drawn)


def test_coordinate_descent_meets_the_optimality_conditions():
    _, _, gram, target = problem(9, 12, 5)
    m = gram * target
    linear = m.sum(axis=1)
    penalty = 0.2 * np.abs(linear).max()
    beta = select._coordinate_descent(m, linear, penalty, np.ones(12))
    slope = linear - m @ beta
    assert 0 < np.count_nonzero(beta) < 12
    assert np.allclose(slope[beta != 0], penalty * np.sign(beta[beta != 0]), atol=1e-3 * penalty)
    assert np.all(np.abs(slope[beta == 0]) <= penalty * (1 + 1e-3))


# ---- units of several columns, columns without a unit, several readers ----

HEADS = np.arange(12).reshape(3, 4).T  # four units of three interleaved columns


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("seed", range(5))
def test_units_of_several_columns_go_together(name, seed):
    _, _, gram, target = problem(seed, 12, 4)
    kept = SELECTORS[name](gram, target, 2, select.RIDGE, HEADS)
    columns = HEADS[kept].ravel()
    error = reconstruction_error(gram, target, kept, positions=HEADS)
    assert error == pytest.approx(reconstruction_error(gram, target, columns), rel=1e-9)
    if name == "osscar":
        swapped = [np.append(kept[kept != out], into) for out in kept for into in set(range(4)) - set(kept)]
        assert error <= min(reconstruction_error(gram, target, s, positions=HEADS) for s in swapped) * (1 + 1e-6) + 1e-9


def test_elimination_of_units_of_several_columns_is_exact_across_panels():
    _, _, gram, target = problem(1, 120, 30)
    positions = np.arange(120).reshape(24, 5)
    order, errors = select.eliminate(gram, target, positions=positions)
    for step in range(0, 23, 3):
        expected = reconstruction_error(gram, target, order[step + 1 :], positions=positions)
        assert errors[step] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", SELECTORS)
def test_columns_that_no_unit_names_are_always_kept(name):
    _, _, gram, target = problem(6, 8, 3)
    positions = np.array([[0], [2], [3], [5], [7]])
    kept = SELECTORS[name](gram, target, 2, select.RIDGE, positions)
    columns = np.concatenate([positions[kept].ravel(), [1, 4, 6]])
    expected = reconstruction_error(gram, target, columns)
    assert reconstruction_error(gram, target, kept, positions=positions) == pytest.approx(expected)
    if name in ("forward", "backward", "osscar"):
        assert expected <= best_error(gram, target, 2, positions) * 1.5 + 1e-9


def test_errors_of_several_readers_add():
    (_, _, g1, t1), (_, _, g2, t2) = problem(0, 6, 3), problem(1, 12, 2)
    wide = np.arange(12).reshape(6, 2)
    args = [g1, g2], [t1, t2]
    positions = [np.arange(6)[:, None], wide]
    kept = np.array([0, 3, 4])
    e1, e2 = np.sum(g1 * t1), np.sum(g2 * t2)
    parts = reconstruction_error(g1, t1, kept) * e1 + reconstruction_error(g2, t2, kept, positions=wide) * e2
    assert reconstruction_error(*args, kept, positions=positions) == pytest.approx(parts / (e1 + e2), rel=1e-4)
    order, errors = select.eliminate(*args, positions=positions)
    for step in range(6):
        expected = reconstruction_error(*args, order[step + 1 :], positions=positions)
        assert errors[step] == pytest.approx(expected, rel=1e-6)
    found = {name: choose(*args, 3, select.RIDGE, positions) for name, choose in SELECTORS.items()}
    error = {name: reconstruction_error(*args, kept, positions=positions) for name, kept in found.items()}
    assert error["osscar"] <= error["backward"] + 1e-9


def test_saliency_is_the_error_of_removing_one_unit():
    _, _, gram, target = problem(7, 8, 3)
    expected = [reconstruction_error(gram, target, np.delete(np.arange(8), unit)) for unit in range(8)]
    assert np.allclose(select.saliency(gram, target), expected, rtol=1e-6)
    pairs = np.arange(8).reshape(4, 2)
    expected = [reconstruction_error(gram, target, np.delete(np.arange(4), u), positions=pairs) for u in range(4)]
    assert np.allclose(select.saliency(gram, target, positions=pairs), expected, rtol=1e-6)


def test_nothing_to_lose_is_an_error_of_zero():
    zero = np.zeros((4, 4))
    assert reconstruction_error(zero, zero, np.array([0])) == 0.0
    assert all(len(choose(zero, zero, 2, select.RIDGE, None)) == 2 for choose in SELECTORS.values())


# ---- refusals ----


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("keep", [0, 7])
def test_a_count_out_of_range_is_refused(name, keep):
    _, _, gram, target = problem(0, 6, 3)
    with pytest.raises(SettingError, match="between 1 and 6"):
        SELECTORS[name](gram, target, keep, select.RIDGE, None)


def test_what_is_not_finite_or_does_not_fit_is_refused():
    _, _, gram, target = problem(0, 6, 3)
    bad = gram.copy()
    bad[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        select.eliminate(bad, target)
    with pytest.raises(DataError, match="both must be"):
        select.eliminate(gram, target[:5, :5])
    with pytest.raises(DataError, match="2 Gram matrices, 1 targets"):
        select.eliminate([gram, gram], [target])
    with pytest.raises(DataError, match="must agree"):
        select.eliminate([gram, gram], [target, target], positions=[np.arange(6)[:, None], np.arange(6).reshape(3, 2)])
    with pytest.raises(DataError, match="singular"):
        select.eliminate(np.ones((6, 6)), target, ridge=0.0)
    with pytest.raises(SettingError, match="0 or more"):
        select.eliminate(gram, target, ridge=-1.0)
    with pytest.raises(SettingError, match="names 2 units"):
        select.local_search(gram, target, 3, start=np.array([0, 1]))
