"""Kinds: sums that join to the same numbers, exactly enough, and survive being saved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxcompress.evidence.kinds as kinds
from onnxcompress.evidence.kinds import KINDS

ROWS = (np.random.default_rng(0).standard_normal((500, 7)) + 3).astype(np.float32) * (np.arange(7) > 0)


def states(kind: str) -> tuple[Any, Any]:
    """Measured at once, and in three unequal parts."""
    row = KINDS[kind]
    parts = None
    for part in np.split(ROWS, [1, 200]):
        parts = row.update(parts, part)
    return row.update(None, ROWS), parts


@pytest.mark.parametrize("kind", KINDS)
def test_parts_join_to_the_whole(kind: str) -> None:
    whole, parts = (KINDS[kind].save(state) for state in states(kind))
    assert whole.keys() == KINDS[kind].joins.keys()
    assert all(np.allclose(whole[name], parts[name], rtol=1e-13) for name in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(kind: str) -> None:
    row, (whole, _) = KINDS[kind], states(kind)
    again = row.load(row.save(whole))
    for name in row.joins:
        assert np.array_equal(getattr(again, name), getattr(whole, name))
        assert type(getattr(again, name)) is type(getattr(whole, name))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_what_the_row_says(kind: str) -> None:
    size = sum(array.nbytes for array in KINDS[kind].save(states(kind)[0]).values())
    assert 0 <= size - KINDS[kind].bytes(7) <= 16  # the counts


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_seen_stays_nothing(kind: str) -> None:
    row, (whole, _) = KINDS[kind], states(kind)
    assert row.update(None, ROWS[:0]) is None and row.update(whole, ROWS[:0]) is whole


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_do_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = KINDS[kind].save(states(kind)[0])
    monkeypatch.setattr(kinds, "BLOCK", 64)
    blocks = KINDS[kind].save(states(kind)[0])
    assert all(np.allclose(whole[name], blocks[name], rtol=1e-13) for name in whole)


def test_weights_count_rows_several_times() -> None:
    for kind in ("moments", "gram"):
        twice, double = KINDS[kind].update(None, np.concatenate([ROWS, ROWS])), KINDS[kind].update(None, ROWS, 2.0)
        alike = KINDS[kind].joins.keys() - {"seen"}
        assert all(np.allclose(getattr(twice, name), getattr(double, name)) for name in alike)


def test_a_large_mean_does_not_spoil_variance_and_gram() -> None:
    rows = np.random.default_rng(1).normal([0, 1e3, 1e5], 1, (4000, 3)).astype(np.float32)
    x = rows.astype(np.float64)
    moments, gram = KINDS["moments"].update(None, rows), KINDS["gram"].update(None, rows)
    assert np.allclose(moments.variance, x.var(0), rtol=1e-3)
    assert np.allclose(gram.matrix, x.T @ x, rtol=1e-14)
    assert np.allclose(np.diag(gram.centred), x.var(0) * 4000, rtol=1e-3)


def test_shares_means_and_zeros() -> None:
    moments = KINDS["moments"].update(None, ROWS)
    assert moments.zero_share.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert moments.variance[0] == 0 and np.allclose(moments.mean, ROWS.mean(0, dtype=np.float64))
