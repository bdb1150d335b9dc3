"""Criteria against their formulas, choices against their promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxcompress.errors import DataError, SettingError
from onnxcompress.passes.prune.criteria import (
    AGGREGATES,
    CRITERIA,
    NORMALISERS,
    UnitEvidence,
    choose_global,
    choose_local,
    combine,
    find_criterion,
    keep_largest,
    kept_count,
    normalise,
)

W = np.array([[3.0, -4.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
scores_of_a_group = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 100, width=32))


def score(name: str, *slices: np.ndarray, **evidence) -> np.ndarray:
    return CRITERIA[name].score(list(slices), UnitEvidence(**evidence))


@pytest.mark.parametrize(
    "name, evidence, expected",
    [
        ("l1", {}, [7, 1, 1, 0]),
        ("l2", {}, [5, 1, 1, 0]),
        ("lamp", {}, [1, 1 / 27, 1 / 27, 0]),
        ("bn_scale", {}, [3.5, 0.5, 0.5, 0]),
        ("apoz", {"zero_share": np.array([0, 0.25, 0.5, 1])}, [1, 0.75, 0.5, 0]),
        ("activation_mean", {"mean": np.array([-3.0, 1, 2, 0])}, [3, 1, 2, 0]),
        (
            "activation_variance",
            {"mean": np.array([-3.0, 1, 2, 1]), "mean_square": np.array([10.0, 1, 8, 0.9999])},
            [1, 0, 4, 0],
        ),
        ("taylor", {"gate_gradients": np.array([[1.0, 2, 0, 0], [-3.0, 2, 0, 1]])}, [5, 4, 0, 0.5]),
        ("hessian", {"hessian_slices": [np.ones((4, 2))]}, [12.5, 0.5, 0.5, 0]),
    ],
)
def test_scores_follow_the_formula(name, evidence, expected):
    assert np.allclose(score(name, W, **evidence), expected)


def test_the_geometric_median_gives_the_most_replaceable_the_lowest_score():
    ring = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1], [0, 0]])
    scores = score("fpgm", ring)
    assert np.argmin(scores) == 4
    assert scores[4] == pytest.approx(4.0)
    assert scores[0] == pytest.approx(1 + 2 + 2 * np.sqrt(2))


def test_random_is_repeatable_by_seed():
    draws = [score("random", W, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


@pytest.mark.parametrize("name", CRITERIA)
def test_every_row_is_complete_and_returns_float64_per_unit(name):
    row = find_criterion(name)
    evidence = UnitEvidence(
        mean=np.ones(4, np.float32),
        mean_square=np.ones(4, np.float32),
        zero_share=np.zeros(4, np.float32),
        gate_gradients=np.ones((3, 4), np.float32),
        hessian_slices=[W.astype(np.float32)],
        rng=np.random.default_rng(0),
    )
    scores = row.score([W.astype(np.float32)], evidence)
    assert scores.shape == (4,) and scores.dtype == np.float64
    assert row.name == name and row.slices_of in ("write", "scale")
    assert set(row.needs) <= {"moments", "gradient", "hessian"}
    assert row.score.__doc__ and (row.paper in row.score.__doc__ or "Optimal Brain" in row.score.__doc__)


@pytest.mark.parametrize("name", [name for name, row in CRITERIA.items() if row.needs or name == "random"])
def test_missing_evidence_is_a_clear_refusal(name):
    with pytest.raises(SettingError, match=f"'{name}' needs"):
        score(name, W)


def test_refusals_name_the_wish_and_the_nearest_name():
    with pytest.raises(SettingError, match="nearest name is 'fpgm'"):
        find_criterion("fpg")
    with pytest.raises(SettingError, match="'bn_scale' reads BatchNormalization scales"):
        score("bn_scale")
    with pytest.raises(SettingError, match="no tensor"):
        score("l2")
    with pytest.raises(SettingError, match="nearest name is 'mean'"):
        score("l2", W, aggregate="meen")
    with pytest.raises(SettingError, match="nearest name is 'sum'"):
        normalise(W[:, 0], "sums")
    with pytest.raises(DataError, match="does not fit"):
        score("hessian", W, hessian_slices=[W[:2]])


@pytest.mark.parametrize("aggregate, expected", [("sum", 11), ("mean", 5.5), ("max", 6), ("product", 30)])
def test_slices_of_a_unit_are_combined(aggregate, expected):
    assert score("l2", W, np.full((4, 4), 3.0), aggregate=aggregate)[0] == expected
    assert set(AGGREGATES) == {"sum", "mean", "max", "product"}


@pytest.mark.parametrize("how", NORMALISERS)
@given(scores=scores_of_a_group)
def test_normalising_keeps_the_order_and_the_input(how, scores):
    before = scores.copy()
    result = normalise(scores, how)
    assert np.array_equal(scores, before) and np.isfinite(result).all()
    order = np.argsort(scores, kind="stable")
    assert np.all(np.diff(result[order]) >= 0)


def test_normalised_scores_are_on_the_named_scale():
    scores = np.array([1.0, 3.0, 6.0])
    assert normalise(scores, "sum").sum() == pytest.approx(1)
    assert normalise(scores, "mean").mean() == pytest.approx(1)
    assert normalise(scores, "max").max() == pytest.approx(1)
    assert np.linalg.norm(normalise(scores, "l2")) == pytest.approx(1)
    assert list(normalise(scores, "range")[[0, 2]]) == [0, 1]
    assert normalise(scores, "standard").std() == pytest.approx(1)


# ---- choosing ----


@pytest.mark.parametrize(
    "units, amount, minimum, round_to, kept",
    [
        (10, 0.5, 1, 1, 5),
        (10, 0.0, 1, 8, 10),
        (10, 1.0, 1, 1, 1),
        (10, 1.0, 3, 1, 3),
        (3, 0.5, 1, 1, 2),
        (64, 0.5, 1, 8, 32),
        (64, 0.43, 1, 8, 40),
        (64, 0.99, 1, 8, 8),
        (64, 0.99, 9, 8, 16),
        (20, 0.05, 1, 8, 16),
        (23, 0.1, 1, 8, 23),
        (20, 0.2, 1, 8, 16),
        (6, 0.5, 1, 8, 3),
        (4, 0.5, 9, 1, 4),
        (1, 0.9, 1, 8, 1),
    ],
)
def test_kept_counts(units, amount, minimum, round_to, kept):
    assert kept_count(units, amount, minimum, round_to) == kept


@given(st.integers(1, 300), st.floats(0, 1), st.integers(1, 20), st.sampled_from([1, 2, 4, 8, 16]))
def test_kept_counts_are_in_range_rounded_and_fall_with_the_amount(units, amount, minimum, round_to):
    kept = kept_count(units, amount, minimum, round_to)
    assert min(minimum, units) <= kept <= units and kept >= 1
    assert kept == units or units < round_to or kept % round_to == 0
    assert kept_count(units, amount / 2, minimum, round_to) >= kept


def test_of_equal_scores_the_lower_index_stays():
    assert list(keep_largest(np.array([1.0, 2, 1, 1]), 2)) == [True, True, False, False]


@given(scores_of_a_group, st.floats(0, 1))
def test_local_choice_keeps_the_largest(scores, amount):
    kept = choose_local({"a": scores}, amount)["a"]
    assert kept.sum() == kept_count(len(scores), amount)
    if not kept.all():
        assert scores[kept].min() >= scores[~kept].max()


def test_local_amounts_may_differ_and_unnamed_groups_stay_whole():
    kept = choose_local({"a": np.arange(4.0), "b": np.arange(6.0)}, {"a": 0.5})
    assert list(kept["a"]) == [False, False, True, True] and kept["b"].all()


@settings(deadline=None)
@given(st.lists(scores_of_a_group, min_size=1, max_size=4), st.floats(0, 0.95), st.integers(1, 3))
def test_global_choice_is_one_threshold(groups, amount, minimum):
    scores = {f"g{i}": group for i, group in enumerate(groups)}
    costs = {name: 1.0 + index for index, name in enumerate(scores)}
    kept = choose_global(scores, costs, amount, minimum=minimum)
    removed = [scores[name][~kept[name]] for name in scores]
    highest = max((part.max() for part in removed if len(part)), default=-np.inf)
    total = sum(costs[name] * len(scores[name]) for name in scores)
    gone = sum(costs[name] * (~kept[name]).sum() for name in scores)
    capped = False
    for name, mask in kept.items():
        assert mask.sum() >= min(minimum, len(mask))
        if mask.sum() > minimum:
            assert scores[name][mask].min() >= highest
        else:
            capped = True
    assert gone <= amount * total + max(costs.values())
    assert capped or gone >= amount * total * (1 - 1e-9)


def test_global_choice_counts_costs_and_rounds_groups():
    scores = {"cheap": np.array([1.0, 2, 9, 9]), "dear": np.array([3.0, 9, 9, 9])}
    assert choose_global(scores, {"cheap": 1, "dear": 10}, 2 / 44)["dear"].all()
    assert list(choose_global(scores, {"cheap": 1, "dear": 10}, 12 / 44)["dear"]) == [False, True, True, True]
    rounded = choose_global({"a": np.arange(16.0), "b": 20 + np.arange(16.0)}, {"a": 1, "b": 1}, 7 / 32, round_to=8)
    assert rounded["a"].sum() == 8 and rounded["b"].all()
    tied = choose_global({"a": np.ones(3), "b": np.ones(3)}, {"a": 1, "b": 1}, 0.5)
    assert list(tied["a"]) == [True, False, False] and list(tied["b"]) == [True, True, False]


def test_a_floor_keeps_a_layer_open_that_one_threshold_would_close():
    scores = {"open": 100 + np.arange(20.0), "closed": np.arange(20.0)}
    costs = dict.fromkeys(scores, 1.0)
    assert {name: kept.sum() for name, kept in choose_global(scores, costs, 0.5).items()} == {"open": 19, "closed": 1}
    kept = choose_global(scores, costs, 0.5, floor=0.15)
    assert {name: mask.sum() for name, mask in kept.items()} == {"open": 17, "closed": 3}
    assert choose_global(scores, costs, 0.5, floor=0.15, round_to=8)["closed"].sum() == 8


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_an_amount_out_of_range_is_refused(amount):
    with pytest.raises(SettingError, match="between 0 and 1"):
        choose_local({"a": np.ones(3)}, amount)
    with pytest.raises(SettingError, match="between 0 and 1"):
        choose_global({"a": np.ones(3)}, {"a": 1.0}, amount)


def test_scores_that_are_not_finite_are_refused_with_their_group():
    with pytest.raises(DataError, match="group 'conv'"):
        choose_local({"conv": np.array([1.0, np.nan])}, 0.5)
    assert combine([np.ones(2)], "max").dtype == np.float64


@pytest.mark.parametrize(("units", "kept"), [(6, 4), (24, 16), (40, 24), (64, 32), (100, 64)])
def test_by_default_wide_groups_keep_multiples_of_16_and_others_of_8(units, kept):
    assert kept_count(units, 0.4, 1, None) == kept
