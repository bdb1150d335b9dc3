"""Masks against brute force; SparseGPT against the least-squares formula and against masking alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import DataError, SettingError
from onnxcompress.passes.prune.weights import (
    WEIGHT_CRITERIA,
    keep_global,
    keep_pattern,
    keep_per_matrix,
    keep_per_row,
    magnitude,
    sparsegpt,
    wanda,
)

shapes = st.tuples(st.integers(1, 6), st.integers(1, 21))


def layer(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights [rows, columns] and correlated inputs with their Gram matrix."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5 * columns, columns)) @ rng.standard_normal((columns, columns))
    return rng.standard_normal((rows, columns)), x, x.T @ x


def output_error(w: np.ndarray, now: np.ndarray, gram: np.ndarray) -> float:
    return float(np.sum((w - now) @ gram * (w - now)))


def test_wanda_is_magnitude_times_the_input_norm():
    w, x, gram = layer(0, 3, 5)
    expected = np.abs(w) * np.linalg.norm(x, axis=0)
    assert np.allclose(wanda(w, gram), expected)
    assert np.allclose(wanda(w, np.diagonal(gram)), expected)
    assert np.array_equal(magnitude(w), np.abs(w))
    assert set(WEIGHT_CRITERIA) == {"magnitude", "wanda"}


@given(shapes, st.floats(0, 1), st.integers(0, 99))
def test_the_lowest_scores_go(shape, amount, seed):
    scores = np.random.default_rng(seed).random(shape)
    rows, whole = keep_per_row(scores, amount), keep_per_matrix(scores, amount)
    assert whole.shape == shape and (~whole).sum() == int(scores.size * amount + 1e-9)
    assert set((~rows).sum(axis=1)) == {int(shape[1] * amount + 1e-9)}
    for mask, part in [(whole, scores), *zip(rows, scores, strict=True)]:
        if mask.any() and not mask.all():
            assert part[mask].min() > part[~mask].max()


def test_global_masks_share_one_threshold():
    scores = {"small": np.arange(4.0).reshape(2, 2), "large": 10 + np.arange(6.0).reshape(2, 3)}
    masks = keep_global(scores, 0.5)
    assert not masks["small"].any()
    assert masks["large"].tolist() == [[False, True, True], [True, True, True]]


@given(shapes, st.integers(1, 8), st.integers(0, 99), st.data())
def test_every_block_keeps_its_n_largest(shape, m, seed, data):
    n = data.draw(st.integers(1, m))
    scores = np.random.default_rng(seed).random(shape)
    mask = keep_pattern(scores, n, m)
    for start in range(0, shape[1], m):
        part, kept = scores[:, start : start + m], mask[:, start : start + m]
        assert np.all(kept.sum(axis=1) == min(n, part.shape[1]))
        assert np.all(np.where(kept, part, np.inf).min(axis=1) >= np.where(kept, -np.inf, part).max(axis=1))


def test_ties_keep_the_earlier_entry():
    assert keep_per_row(np.ones((1, 4)), 0.5).tolist() == [[True, True, False, False]]
    assert keep_pattern(np.ones((1, 4)), 1, 2).tolist() == [[True, False, True, False]]


def column_by_column(w: np.ndarray, h: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Optimal Brain Surgeon along the columns, with an inverse of its own at each: removals change what comes later."""
    w = w.copy()
    for j in range(w.shape[1]):
        inverse = np.linalg.inv(h[j:, j:])
        for row in np.flatnonzero(~mask[:, j]):
            w[row, j:] -= w[row, j] / inverse[0, 0] * inverse[0]
            w[row, j] = 0.0
    return w


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(2, 20), st.sampled_from([0.3, 0.5, 0.8, (2, 4), (1, 2)]))
def test_sparsegpt_prunes_as_asked_and_repairs_column_by_column(seed, rows, columns, amount):
    w, _, gram = layer(seed, rows, columns)
    mask, new = sparsegpt(w, gram, amount, block=8)
    if isinstance(amount, tuple):
        blocks = range(0, columns - columns % amount[1], amount[1])
        assert all(np.all(mask[:, b : b + amount[1]].sum(axis=1) == amount[0]) for b in blocks)
    else:
        assert (~mask).sum() == sum(int(rows * min(8, columns - b) * amount + 1e-9) for b in range(0, columns, 8))
    ridged = gram + 0.01 * np.diagonal(gram).mean() * np.eye(columns)
    assert not new[~mask].any()
    assert np.allclose(new, column_by_column(w, ridged, mask), rtol=1e-6, atol=1e-8)


def test_sparsegpt_first_removes_what_costs_least_given_the_later_columns():
    w, _, gram = layer(5, 4, 6)
    mask, _ = sparsegpt(w, gram, 0.5)
    ridged = gram + 0.01 * np.diagonal(gram).mean() * np.eye(6)
    costs = np.stack([w[:, j] ** 2 / np.linalg.inv(ridged[j:, j:])[0, 0] for j in range(6)], axis=1)
    assert np.array_equal(mask, keep_per_matrix(costs, 0.5))


def test_removing_the_first_columns_is_repaired_to_the_least_squares_optimum():
    """What goes first may be made up for by everything that comes later: then SparseGPT is the exact refit."""
    w, _, gram = layer(1, 4, 10)
    gram[:3, :] *= 1e-3
    gram[:, :3] *= 1e-3  # weak inputs: all rows lose exactly these
    mask, new = sparsegpt(w, gram, 0.3, ridge=1e-9)
    assert not mask[:, :3].any() and mask[:, 3:].all()
    ridged = gram + 1e-9 * np.diagonal(gram).mean() * np.eye(10)
    expected = w @ ridged[:, 3:] @ np.linalg.inv(ridged[3:, 3:])
    assert np.allclose(new[:, 3:], expected, rtol=1e-6, atol=1e-8)


def test_blocks_do_not_change_a_pattern_result():
    w, _, gram = layer(2, 5, 24)
    results = [sparsegpt(w, gram, (2, 4), block=block) for block in (4, 8, 128)]
    for mask, new in results[1:]:
        assert np.array_equal(mask, results[0][0]) and np.allclose(new, results[0][1])


def test_sparsegpt_beats_magnitude_and_wanda_on_correlated_inputs():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 16)) @ rng.standard_normal((16, 64)) + 0.3 * rng.standard_normal((300, 64))
    w, gram = rng.standard_normal((32, 64)), x.T @ x
    _, new = sparsegpt(w, gram, 0.5)
    by_wanda = output_error(w, w * keep_per_row(wanda(w, gram), 0.5), gram)
    by_magnitude = output_error(w, w * keep_per_row(magnitude(w), 0.5), gram)
    assert output_error(w, new, gram) < 0.5 * min(by_wanda, by_magnitude)


def test_dead_inputs_lose_their_weights_first():
    w = np.sign(layer(4, 3, 6)[0])
    mask, _ = sparsegpt(w, np.diag([1.0, 0, 1, 1, 0, 1]), 1 / 3)
    assert not mask[:, [1, 4]].any() and mask[:, [0, 2, 3, 5]].all()
    assert sparsegpt(w, np.zeros((6, 6)), 0.5)[0].sum() == 9


def test_refusals():
    w, _, gram = layer(0, 3, 5)
    with pytest.raises(SettingError, match="calibration data"):
        wanda(w)
    with pytest.raises(DataError, match="do not fit"):
        wanda(w, gram[:4, :4])
    with pytest.raises(DataError, match="do not fit"):
        sparsegpt(w, gram[:4, :4], 0.5)
    with pytest.raises(DataError, match="not finite"):
        sparsegpt(w, gram * np.nan, 0.5)
    with pytest.raises(DataError, match="singular"):
        sparsegpt(w, np.ones((5, 5)), 0.5, ridge=0.0)
    with pytest.raises(DataError, match="not finite"):
        keep_per_row(w * np.inf, 0.5)
    with pytest.raises(SettingError, match="between 0 and 1"):
        keep_per_matrix(w, 1.5)
    with pytest.raises(SettingError, match="pattern is 5:4"):
        keep_pattern(w, 5, 4)
