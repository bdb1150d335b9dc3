"""One-dimensional k-means: the optimum beside another library's, weights, rows, starts."""

from __future__ import annotations

import kmeans1d
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.passes.cluster.kmeans import (
    FEW,
    STARTS,
    ascending,
    atoms_of,
    books,
    condensed,
    lloyd,
    row_books,
)


def cost(values: np.ndarray, book: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    return float(
        (
            np.square(values.reshape(-1)[:, None] - book).min(axis=1)
            * np.broadcast_to(weights, values.shape).reshape(-1)
        ).sum()
    )


def optimum(values: np.ndarray, entries: int) -> float:
    return cost(values, np.array(kmeans1d.cluster(values.reshape(-1), entries).centroids))


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    entries=st.integers(1, 8),
)
def test_the_optimum_of_a_few_values(values: list[float], entries: int) -> None:
    array = np.array(values)
    found = books(array, [entries])[entries]
    assert 1 <= len(found) <= min(entries, len(np.unique(array)))
    assert cost(array, found) == pytest.approx(optimum(array, min(entries, len(values))), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("entries", [2, 3, 16])
def test_the_optimum_up_to_two_thousand_values(entries: int) -> None:
    values = np.random.default_rng(1).standard_t(4, 2000)
    assert cost(values, books(values, [entries])[entries]) == pytest.approx(optimum(values, entries), rel=1e-9)


@pytest.mark.parametrize("size", [20_000, FEW + 5_000])
def test_near_the_optimum_of_many_values(size: int) -> None:
    values = np.random.default_rng(2).standard_t(4, size).astype(np.float32)
    found = books(values, [4, 16])
    for entries, book in found.items():
        assert cost(values.astype(float), book) <= 1.001 * optimum(values.astype(float), entries)


def test_a_weight_counts_as_so_many_copies() -> None:
    rng = np.random.default_rng(3)
    values, copies = rng.standard_normal(60), rng.integers(0, 5, 60)
    weighted, repeated = books(values, [5], copies.astype(float))[5], books(np.repeat(values, copies), [5])[5]
    assert np.allclose(weighted, repeated)


def test_weights_broadcast_over_many_values() -> None:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((600, 300)).astype(np.float32)
    weights = np.where(np.arange(300) < 150, 1.0, 0.0)
    whole, half = books(values, [8], weights)[8], books(values[:, :150], [8])[8]
    assert values.size > FEW
    assert cost(values[:, :150].astype(float), whole) <= 1.001 * cost(values[:, :150].astype(float), half)


def test_weights_of_zero_count_as_all_alike() -> None:
    values = np.array([1.0, 2.0, 9.0])
    assert np.allclose(books(values, [2], np.zeros(3))[2], [1.5, 9.0])


def test_bins_keep_the_order_of_signs() -> None:
    values = np.random.default_rng(5).standard_normal(FEW + 1).astype(np.float32)
    atoms = atoms_of(values)
    assert (np.diff(atoms.values[0]) > 0).all()
    assert atoms.weights.sum() == len(values)
    assert (atoms.values * atoms.weights).sum() == pytest.approx(values.sum(dtype=np.float64), rel=1e-9)


@pytest.mark.parametrize(("entries", "gap"), [(2, 1.01), (4, 1.01), (16, 1.02), (32, 1.03)])
@pytest.mark.parametrize("length", [9, 100, 700])
def test_rows_are_near_their_optimum(entries: int, gap: float, length: int) -> None:
    rows = np.random.default_rng(6).standard_t(5, (20, length))
    found = row_books(rows, entries)
    best = sum(optimum(row, min(entries, length)) for row in rows)
    assert sum(cost(row, book) for row, book in zip(rows, found, strict=True)) <= gap * best + 1e-9


def test_rows_with_weights_of_their_own() -> None:
    rng = np.random.default_rng(7)
    rows, weights = rng.standard_normal((5, 50)), rng.random((5, 50))
    found = row_books(rows, 4, weights)
    for row, weight, book in zip(rows, weights, found, strict=True):
        assert cost(row, book, weight) <= 1.01 * cost(row, books(row, [4], weight)[4], weight) + 1e-12


@pytest.mark.parametrize("start", STARTS)
def test_no_start_beats_the_optimum_and_each_repeats(start: str) -> None:
    rows = np.random.default_rng(8).standard_normal((4, 300))
    found = row_books(rows, 8, start=start, seed=3)
    assert np.array_equal(found, row_books(rows, 8, start=start, seed=3))
    assert all(cost(row, book) >= optimum(row, 8) - 1e-9 for row, book in zip(rows, found, strict=True))


def test_lloyd_never_raises_the_cost_and_leaves_a_fixed_entry() -> None:
    rows = np.random.default_rng(9).standard_normal((3, 200))
    start = np.tile(np.linspace(-1, 1, 5), (3, 1))
    start[:, 2] = 0.0
    found = lloyd(ascending(rows, None), start, fixed=0.0)
    assert (found == 0.0).any(axis=1).all()
    for row, before, after in zip(rows, start, found, strict=True):
        assert cost(row, after) <= cost(row, before)


def test_condensed_atoms_keep_weight_and_mean() -> None:
    rows = np.random.default_rng(10).standard_normal((6, 500))
    weights = np.random.default_rng(11).random(500)
    atoms = ascending(rows, weights)
    few = condensed(atoms, 32)
    assert few.values.shape[1] <= 32
    assert np.allclose(few.weights.sum(axis=1), weights.sum())
    assert np.allclose((few.values * few.weights).sum(axis=1), (rows * weights).sum(axis=1))
