"""Kinds: sums that join to the same numbers, exactly enough, and survive being saved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import onnxcompress.evidence.kinds as kinds
from onnxcompress.evidence.kinds import KINDS

ONE_A_BATCH = {"histogram": {"samples", "lows", "highs"}}
"""Fields that add up what each update saw: parts give more of them than the whole."""

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
    alike = whole.keys() - ONE_A_BATCH.get(kind, set())
    assert all(np.allclose(whole[name], parts[name], rtol=1e-13) for name in alike)


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


# ---- histograms ----

MEASURE = KINDS["histogram"]

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
entries = st.lists(floats | st.floats(-4, 4, width=32) | st.just(0.0), min_size=1, max_size=40)


def measured(values: Any) -> kinds.Histogram:
    return MEASURE.update(None, np.asarray(values, np.float32).reshape(-1, 1))  # type: ignore[no-any-return]


def as_numbers(found: kinds.Histogram) -> dict[str, Any]:
    return {name: array.tolist() for name, array in MEASURE.save(found).items() if name not in ("lows", "highs")}


@given(parts=st.lists(entries, min_size=1, max_size=5), seed=st.integers(0, 99))
def test_histograms_join_alike_in_any_order(parts: list[list[float]], seed: int) -> None:
    """Bit for bit, but for sums of float32; and as if all had been read at once."""
    rng = np.random.default_rng(seed)
    states = [measured(part) for part in parts]
    pending = [states[place] for place in rng.permutation(len(states))]
    while len(pending) > 1:
        one, other = (pending.pop(int(rng.integers(len(pending)))) for _ in range(2))
        pending.append(MEASURE.merge(MEASURE.load(MEASURE.save(one)), other))
    whole = as_numbers(measured(np.concatenate([np.float32(part) for part in parts])))
    found = as_numbers(pending[0])
    assert found.pop("samples") == len(parts) and whole.pop("samples") == 1
    assert found == whole


@given(values=entries)
@example(values=[6.3122049844897115e-40])
def test_every_entry_lies_in_its_bin(values: list[float]) -> None:
    x, found = np.float32(values), measured(values)
    low, high, counts = found.bins
    assert counts.sum() == found.count == len(x)
    assert (found.minimum, found.maximum) == (x.min(), x.max())
    smallest = np.finfo(np.float32).tiny
    assert found.zeros == (np.abs(x) < smallest).sum()
    assert found.zeros + found.tiny >= (np.abs(x) < np.abs(x).max() * 2.0**-kinds.OCTAVES).sum()
    power = np.frexp(max(float(np.abs(x).max()), smallest))[1]  # the window ends at a power of two
    beside = x[np.abs(x) >= max(2.0 ** float(power - kinds.OCTAVES), smallest)].astype(np.float64)
    for lower, upper, count in zip(low, high, counts, strict=True):
        if lower != 0 or upper != 0:
            assert ((beside >= lower) & (beside <= upper)).sum() >= count > 0
            assert upper - lower <= max(abs(lower), abs(upper)) / kinds.STEPS


def test_a_histogram_does_not_grow_with_what_it_reads() -> None:
    rng, state, sizes = np.random.default_rng(0), None, set()
    for batch in range(20):
        state = MEASURE.update(state, rng.standard_cauchy((5000, 1)).astype(np.float32) * 10.0**batch)
        sizes.add(sum(array.nbytes for array in MEASURE.save(state).values()))
    assert len(sizes) == 1 and sizes.pop() < 21_000
    assert state is not None and state.count == 100_000 and state.samples == 20


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8, np.bool_])
def test_other_types_are_counted_as_float32(dtype: type) -> None:
    rows = np.arange(200).reshape(-1, 1).astype(dtype)
    assert as_numbers(MEASURE.update(None, rows)) == as_numbers(measured(rows))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_extremes(bad: float) -> None:
    joined = MEASURE.merge(measured([1.0, bad]), measured([2.0]))
    assert not np.isfinite([joined.minimum, joined.maximum]).all()
    assert joined.count == 2


def test_a_weight_counts_entries_several_times() -> None:
    double, twice = MEASURE.update(None, ROWS, 2.0), measured(np.concatenate([ROWS, ROWS]))
    assert as_numbers(double) == as_numbers(twice) | {
        "samples": ROWS.shape[1]
    }  # weight 2 is that of an entry, not of a sample
