"""Assignment: the best of all on tiny rows, never worse than the nearest entries on the Gram, pruned weights stay, the same twice."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import DataError, SettingError
from onnxcompress.passes.cluster.assign import Picker, alternated, compensated, descended, nearest
from onnxcompress.passes.cluster.books import Books, loss, refitted, rescaled, shrunk, times
from onnxcompress.passes.quantize.rounding import Lattice, gptq

SHAPES = {
    "seed": st.integers(0, 9999),
    "outs": st.integers(1, 6),
    "width": st.integers(1, 24),
    "entries": st.integers(1, 9),
}
FORMS = ["one", "groups", "each", "diagonal", "none"]


def layer(seed: int, outs: int, width: int, form: str = "one") -> tuple[np.ndarray, np.ndarray | None]:
    """Weights [out, row] and the Gram of correlated inputs, some of them dead, in one of its forms."""
    rng = np.random.default_rng(seed)
    groups = {"groups": max(d for d in (1, 2, 3) if outs % d == 0), "each": outs}.get(form, 1)
    x = np.maximum(rng.standard_normal((groups, 3 * width, width)) @ rng.standard_normal((width, width)) + 0.5, 0)
    x[:, :, rng.random(width) < 0.1] = 0.0
    gram = x.transpose(0, 2, 1) @ x
    forms = {"one": gram[0], "diagonal": np.diagonal(gram[0]).copy(), "none": None}
    return rng.standard_t(4, (outs, width)), forms.get(form, gram)


def books_of(rows: np.ndarray, entries: int, kind: str, *, zero: bool = False) -> Books:
    """Quantiles of the rows, out of order; a book for all, for each row, for two groups, or for all with scales."""
    out = len(rows)
    scales = np.abs(rows).max(axis=1) + 0.1 if kind == "scales" else None
    each = rows if scales is None else rows / scales[:, None]
    groups = {"row": np.arange(out), "groups": np.arange(out) % 2}.get(kind, np.zeros(out, int))
    levels = (np.arange(entries) + 0.5) / entries
    found = np.stack([np.quantile(each[groups == g], levels) for g in range(groups.max() + 1)])[:, ::-1].copy()
    if zero:
        found[:, entries // 2] = 0.0
    return Books(found, None if kind in ("one", "scales") else groups, scales)


def pruned(rows: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(rows.shape) < 0.4


@settings(max_examples=80, deadline=None)
@given(
    **SHAPES, form=st.sampled_from(FORMS), kind=st.sampled_from(["one", "row", "groups", "scales"]), prune=st.booleans()
)
def test_never_worse_than_nearest_on_the_gram(
    seed: int, outs: int, width: int, entries: int, form: str, kind: str, prune: bool
) -> None:
    rows, gram = layer(seed, outs, width, form)
    zeros = pruned(rows, seed) if prune else None
    books = books_of(rows, entries, kind, zero=prune)
    plain = loss(rows, nearest(rows, books, gram, zeros=zeros), books, gram)
    one = compensated(rows, books, gram, zeros=zeros)
    more = descended(rows, one, books, gram, zeros=zeros)
    less = loss(rows, one, books, gram)
    assert (less <= plain + 1e-9 * (1 + plain)).all()
    assert (loss(rows, more, books, gram) <= less + 1e-9 * (1 + less)).all()
    symbols, fitted = alternated(rows, books, gram, zeros=zeros, half=False)
    assert loss(rows, symbols, fitted, gram).sum() <= less.sum() * (1 + 1e-9) + 1e-9
    for found, with_books in ((one, books), (more, books), (symbols, fitted)):
        assert found.dtype == np.uint8 and found.shape == rows.shape and found.max() < entries
        assert not prune or (with_books.values(found)[zeros] == 0).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), entries=st.integers(2, 4), priced=st.booleans())
def test_after_descent_no_single_weight_can_be_moved_to_gain(seed: int, entries: int, priced: bool) -> None:
    rows, gram = layer(seed, 1, 4)
    assert gram is not None
    books = books_of(rows, entries, "one")
    price = np.random.default_rng(seed).random((1, entries)) * np.trace(gram) / 20 if priced else None
    every = np.array(list(product(range(entries), repeat=4)), np.uint8)
    best = loss(np.repeat(rows, len(every), axis=0), every, books, gram, price).min()
    found = descended(rows, compensated(rows, books, gram, price=price), books, gram, price=price, sweeps=9)
    value = loss(rows, found, books, gram, price)[0]
    assert value >= best * (1 - 1e-9) - 1e-9
    for j in range(4):
        for entry in range(entries):
            other = found.copy()
            other[0, j] = entry
            assert loss(rows, other, books, gram, price)[0] >= value * (1 - 1e-6) - 1e-9


def test_most_tiny_layers_come_out_at_the_optimum() -> None:
    hits = 0
    for seed in range(60):
        rows, gram = layer(seed, 1, 4)
        assert gram is not None
        books = books_of(rows, 3, "one")
        every = np.array(list(product(range(3), repeat=4)), np.uint8)
        best = loss(np.repeat(rows, len(every), axis=0), every, books, gram).min()
        found = descended(rows, compensated(rows, books, gram), books, gram)
        hits += loss(rows, found, books, gram)[0] <= best * (1 + 1e-9) + 1e-12
    assert hits >= 40


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), outs=st.integers(1, 5), width=st.integers(1, 200))
def test_uniform_books_are_rounded_as_levels_are(seed: int, outs: int, width: int) -> None:
    rows, gram = layer(seed, outs, width)
    scale = np.abs(rows).max(axis=1, keepdims=True) / 7
    books = Books(np.arange(-8, 8) * scale)
    lattice = Lattice(scale, np.zeros_like(scale), -8, 7)
    ours, theirs = compensated(rows, books, gram), gptq(rows, lattice, gram) + 8
    assert gram is not None and (ours == theirs).mean() > 0.9  # a tie may fall to either side
    assert np.allclose(loss(rows, ours, books, gram), loss(rows, theirs, books, gram), rtol=0.1)


@settings(max_examples=60, deadline=None)
@given(**SHAPES, form=st.sampled_from(FORMS), kind=st.sampled_from(["one", "row", "groups", "scales"]))
def test_refit_finds_the_least_squares_entries(
    seed: int, outs: int, width: int, entries: int, form: str, kind: str
) -> None:
    rows, gram = layer(seed, outs, width, form)
    books = books_of(rows, entries, kind)
    symbols = nearest(rows, books)
    before = loss(rows, symbols, books, gram).sum()
    fitted = refitted(rows, symbols, books, gram)
    for _ in range(30):
        fitted = refitted(rows, symbols, fitted, gram)
    after = loss(rows, symbols, fitted, gram).sum()
    assert after <= before * (1 + 1e-9) + 1e-9
    assert after <= _least_squares(rows, symbols, books, gram) * (1 + 1e-3) + 1e-6 * (rows**2).sum()


def _least_squares(rows: np.ndarray, symbols: np.ndarray, books: Books, gram: np.ndarray | None) -> float:
    """Error of the best entries, by one dense system for all books."""
    count, size = books.entries.shape
    root_of = []
    for o in range(len(rows)):
        one = np.eye(rows.shape[1]) if gram is None else np.diag(gram) if gram.ndim == 1 else gram
        one = one[o * len(one) // len(rows)] if one.ndim == 3 else one
        values, vectors = np.linalg.eigh(one)
        root_of.append((vectors * np.sqrt(np.maximum(values, 0))).T)
    design, goal = [], []
    for o, root in enumerate(root_of):
        indicator = np.zeros((rows.shape[1], count * size))
        indicator[np.arange(rows.shape[1]), books.of(len(rows))[o] * size + symbols[o]] = books.factors(len(rows))[o]
        design.append(root @ indicator)
        goal.append(root @ rows[o])
    matrix, wanted = np.concatenate(design), np.concatenate(goal)
    found = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    return float(((matrix @ found - wanted) ** 2).sum())


def test_refit_keeps_zero_and_entries_that_nobody_uses() -> None:
    rows, gram = layer(3, 4, 12)
    books = Books(np.array([[-1.0, 0.0, 1.0, 77.0]]))
    symbols = nearest(rows, books)
    kept = refitted(rows, symbols, books, gram, keep_zero=True).entries[0]
    assert kept[1] == 0 and kept[3] == 77 and kept[0] != -1
    assert refitted(rows, symbols, books, gram).entries[0, 1] != 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), factor=st.floats(0.5, 2.0))
def test_scales_are_the_best_for_their_rows(seed: int, factor: float) -> None:
    rows, gram = layer(seed, 3, 10)
    books = books_of(rows, 4, "scales")
    symbols = nearest(rows, books)
    found = rescaled(rows, symbols, books, gram)
    assert found.scales is not None
    other = Books(found.entries, found.groups, found.scales * factor)
    assert (loss(rows, symbols, found, gram) <= loss(rows, symbols, other, gram) * (1 + 1e-9) + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), entries=st.integers(1, 20), copies=st.booleans())
def test_the_nearest_entry_is_the_nearest(seed: int, entries: int, copies: bool) -> None:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((5, entries))
    if copies:
        table[:, entries // 2 :] = table[:, entries // 2 : entries // 2 + 1]
    wish = rng.standard_normal(5) * 2
    pick = Picker(Books(table), 5)
    found = pick.values(pick(wish, 1.0))
    assert np.allclose(np.abs(found - wish), np.abs(table - wish[:, None]).min(axis=1), rtol=1e-12)
    free = Picker(Books(table), 5, np.zeros((5, entries)))
    assert np.array_equal(free.values(free(wish, 1.0)), found)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 9999), entries=st.integers(1, 30), copies=st.booleans(), stiff=st.floats(0.01, 100.0))
def test_with_a_price_the_sum_is_least(seed: int, entries: int, copies: bool, stiff: float) -> None:
    rng = np.random.default_rng(seed)
    book, price = np.round(rng.standard_normal((1, entries)), 1 if copies else 9), rng.exponential(1.0, (1, entries))
    wish = rng.standard_normal(50) * 2
    alike, apart = (
        Picker(Books(book), 50, price),
        Picker(Books(np.repeat(book, 50, axis=0)), 50, np.repeat(price, 50, axis=0)),
    )
    sums = stiff * (wish[:, None] - book) ** 2 + price
    for pick in (alike, apart):
        place = pick(wish, stiff)
        assert np.allclose(stiff * (wish - pick.values(place)) ** 2 + pick.prices(place), sums.min(axis=1), rtol=1e-9)
    assert np.array_equal(alike.values(alike(wish, 0.0)), book[:, [price.argmin()]].repeat(50, axis=1)[0])


def test_a_price_moves_weights_to_cheap_entries() -> None:
    rows, gram = layer(5, 8, 20)
    books = books_of(rows, 8, "one")
    price = np.where(np.arange(8) == 3, 0.0, 1e9)[None]
    assert (compensated(rows, books, gram, price=price) == 3).all()


def test_the_same_twice_and_batches_do_not_matter() -> None:
    rows, gram = layer(7, 6, 200)
    books = books_of(rows, 16, "row")
    first, second = (alternated(rows, books, gram) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1].entries, second[1].entries)
    assert gram is not None
    each = np.repeat(gram[None, :100, :100], 6, axis=0)
    assert np.array_equal(compensated(rows[:, :100], books, each), compensated(rows[:, :100], books, gram[:100, :100]))


@pytest.mark.parametrize("form", FORMS)
def test_times_is_the_product_with_the_gram(form: str) -> None:
    rows, gram = layer(1, 6, 5, form)
    whole = np.eye(5) if gram is None else np.diag(gram) if gram.ndim == 1 else gram
    each = whole if whole.ndim == 3 else whole[None]
    wanted = np.concatenate([part @ one for part, one in zip(np.split(rows, len(each)), each, strict=True)])
    assert np.allclose(times(rows, gram), wanted)


def test_shrinking_keeps_the_diagonal() -> None:
    gram = layer(2, 4, 6, "groups")[1]
    assert gram is not None
    found = shrunk(gram, 0.25)
    assert np.allclose(np.einsum("gkk->gk", found), np.einsum("gkk->gk", gram))
    assert np.allclose(found[:, 0, 1:], 0.75 * gram[:, 0, 1:])


def test_halved_books_are_float16_numbers_unless_too_coarse() -> None:
    rows, _ = layer(4, 3, 9)
    books = books_of(rows, 4, "scales").halved()
    assert np.array_equal(books.entries, books.entries.astype(np.float16))
    tiny = Books(np.array([[1e-7, 2.3e-7]]))
    assert np.array_equal(tiny.halved().entries, tiny.entries)
    large = Books(np.array([[1e6, 1.0]]), scales=np.array([1e-9]))
    assert large.halved().entries[0, 0] == 1e6 and large.halved().scales == np.float32(1e-9)


def test_what_cannot_be_done_is_said() -> None:
    rows, gram = layer(6, 2, 5)
    assert gram is not None
    with pytest.raises(SettingError, match="exactly zero"):
        nearest(rows, Books(np.array([[1.0, 2.0]])), zeros=rows > 0)
    gram[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        compensated(rows, Books(np.array([[1.0, 2.0]])), gram)
