"""Who shares a book: errors, zeros that stay, groups that are found, float16 entries, the choice at equal bytes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.passes.cluster.allocation import SIZES, Choice, best_sharing, bits_of, candidates, payload
from onnxcompress.passes.cluster.books import Books
from onnxcompress.passes.cluster.sharing import SHARINGS, lost, placed, pruned, shared

rng = np.random.default_rng(0)
NORMAL = rng.standard_normal((24, 90)).astype(np.float32)
SCALED = (NORMAL * np.exp(rng.standard_normal((24, 1)))).astype(np.float32)


def error(rows: np.ndarray, sharing: str, entries: int = 8, weights: np.ndarray | None = None) -> float:
    found = shared(rows, entries, sharing, weights)
    return lost(rows, placed(rows, found), found, weights)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_symbols_are_the_nearest_entries(sharing: str) -> None:
    found = shared(SCALED, 8, sharing)
    symbols = placed(SCALED, found)
    tables = found.tables(len(SCALED))
    distance = np.abs(SCALED[:, :, None] - tables[:, None, :])
    chosen = np.take_along_axis(distance, symbols[:, :, None].astype(int), axis=2)[:, :, 0]
    assert np.allclose(chosen, distance.min(axis=2), rtol=1e-5, atol=1e-6)
    assert symbols.max() < 8 and found.entries.shape[1] == 8


@pytest.mark.parametrize("sharing", SHARINGS)
def test_entries_and_scales_fit_in_float16(sharing: str) -> None:
    found = shared(SCALED, 8, sharing)
    parts = [found.entries] if found.scales is None else [found.entries, found.scales]
    assert all(np.array_equal(part.astype(np.float16).astype(float), part) for part in parts)


def test_rows_of_several_sizes_want_scales_or_books_of_their_own() -> None:
    one = error(SCALED, "tensor")
    assert error(SCALED, "scaled") < 0.7 * one
    assert error(SCALED, "4 books") < 0.7 * one
    assert error(SCALED, "channel") < error(SCALED, "16 books") < error(SCALED, "4 books")


def test_groups_of_rows_are_found() -> None:
    kinds = np.array([0, 1, 2, 3] * 6)
    values = np.array([[-1, -0.5, 0.5, 1], [-8, -2, 1, 4], [0.1, 0.2, 0.3, 0.4], [3, 5, 7, 20]])
    rows = np.stack([rng.choice(values[kind], 50) for kind in kinds]).astype(np.float32)
    found = shared(rows, 4, "4 books")
    assert found.groups is not None
    assert len({(kind, group) for kind, group in zip(kinds, found.groups, strict=True)}) == 4
    assert lost(rows, placed(rows, found), found) < 1e-3


@pytest.mark.parametrize("sharing", SHARINGS)
def test_weights_decide_what_is_near(sharing: str) -> None:
    weights = np.where(np.arange(90) < 45, 100.0, 0.01)
    plain = shared(SCALED, 8, sharing)
    assert error(SCALED, sharing, weights=weights) < lost(SCALED, placed(SCALED, plain), plain, weights)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_pruned_zeros_stay_and_nothing_else_is_lost_to_them(sharing: str) -> None:
    rows = np.where(rng.random(SCALED.shape) < 0.6, 0.0, SCALED).astype(np.float32)
    assert pruned(rows) and not pruned(SCALED)
    found = shared(rows, 8, sharing)
    values = found.values(placed(rows, found))
    assert (values[rows == 0] == 0).all()
    assert (found.entries == 0).any(axis=1).all()


def test_a_row_of_zeros_and_a_constant_row() -> None:
    rows = np.stack([np.full(40, 2.0), np.linspace(-1, 1, 40)]).astype(np.float32)
    for sharing in SHARINGS:
        found = shared(rows, 4, sharing)
        assert np.isfinite(found.values(placed(rows, found))).all()


@pytest.mark.parametrize("start", ["linear", "density", "random"])
def test_other_starts_are_no_better(start: str) -> None:
    best = error(NORMAL, "tensor", 16)
    found = shared(NORMAL, 16, "tensor", start=start)
    assert lost(NORMAL, placed(NORMAL, found), found) >= 0.999 * best


@pytest.mark.parametrize(
    ("entries", "bits"), [(2, 1), (3, 1.6), (4, 2), (6, 8 / 3), (8, 3), (16, 4), (32, 5), (128, 7), (256, 8)]
)
def test_bits_of_a_symbol(entries: int, bits: float) -> None:
    assert bits_of(entries) == pytest.approx(bits)


def test_bytes_count_books_scales_and_numbers() -> None:
    assert payload((10, 100), Choice(16, "tensor")) == 500 + 32
    assert payload((10, 100), Choice(16, "scaled")) == 500 + 32 + 20
    assert payload((10, 100), Choice(16, "channel")) == 500 + 320 + 20
    assert payload((10, 100), Choice(16, "4 books")) == 500 + 128 + 20


def test_the_sharing_that_loses_least_at_equal_bytes() -> None:
    assert best_sharing(np.tile(NORMAL, (1, 1)), 16) == "tensor"
    assert best_sharing(np.tile(SCALED, (1, 8)), 16) != "tensor"


def test_zeros_of_a_pruned_tensor_pay_for_no_books() -> None:
    few, many = (np.pad(SCALED[:, :24], ((0, 0), (0, zeros))) for zeros in (8, 2000))
    assert best_sharing(few, 8) == best_sharing(many, 8) != "channel"


def test_candidates_cost_more_where_they_lose_less() -> None:
    power = float((SCALED**2).sum())
    found = candidates("w", SCALED, power, 2.0, SIZES)
    plain = [each for each in found if each.setting.sharing == "tensor"]  # type: ignore[attr-defined]
    assert [each.cost for each in plain] == sorted(each.cost for each in plain)
    assert [each.error for each in plain] == sorted((each.error for each in plain), reverse=True)
    sixteen = next(each for each in plain if each.setting.entries == 16)  # type: ignore[attr-defined]
    assert sixteen.error == pytest.approx(2 * error(SCALED, "tensor", 16) / power, rel=0.02)


def test_one_book_without_groups() -> None:
    assert shared(NORMAL, 4, "tensor").groups is None
    assert isinstance(shared(NORMAL, 4, "scaled"), Books)
