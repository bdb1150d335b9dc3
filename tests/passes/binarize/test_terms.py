"""Binary and ternary terms against brute force, the papers' closed forms, and each other."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.passes.binarize.terms import DIGITS, approximated, fitted, patterns
from onnxcompress.passes.cluster.books import loss, times

SEEDS = st.integers(0, 1 << 30)


def drawn(seed: int, out: int = 4, row: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(row, 3 * row)) * np.exp(rng.normal(size=(row, 1)))
    return rng.normal(size=(out, row)), inputs @ inputs.T


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_one_binary_term_is_the_sign_and_the_mean_size(seed: int) -> None:
    rows, _ = drawn(seed)
    symbols, books = approximated(rows, "binary", 1)
    assert np.allclose(books.values(symbols), np.sign(rows) * np.abs(rows).mean(axis=1, keepdims=True))


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_one_ternary_term_is_the_best_of_all(seed: int) -> None:
    rows, _ = drawn(seed)
    symbols, books = approximated(rows, "ternary", 1)
    found = loss(rows, symbols, books, None)
    for number, row in enumerate(rows):
        terms = np.array(list(product((-1, 0, 1), repeat=len(row))))[:-1]
        power = (terms**2).sum(axis=1)
        taken = np.divide((terms @ row) ** 2, power, out=np.zeros(len(terms)), where=power > 0)
        assert found[number] == pytest.approx((row**2).sum() - taken.max())


@given(SEEDS, st.sampled_from(["binary", "ternary"]), st.integers(1, 2), st.sampled_from(["none", "diagonal", "whole"]))
@settings(max_examples=60, deadline=None)
def test_factors_are_the_least_squares_ones(seed: int, kind: str, terms: int, form: str) -> None:
    rows, whole = drawn(seed)
    gram = {"none": None, "diagonal": np.diagonal(whole).copy(), "whole": whole}[form]
    symbols, _ = approximated(rows, kind, terms, gram)
    parts = patterns(kind, terms)[symbols]
    error = (parts @ fitted(rows, parts, gram)[:, :, None])[:, :, 0] - rows
    slope = np.einsum("ort,or->ot", parts, times(error, gram))
    assert np.abs(slope).max() <= 1e-7 * max(np.abs(times(rows, gram)).max(), 1) * rows.shape[1]


@given(SEEDS, st.sampled_from(["binary", "ternary"]))
@settings(max_examples=30, deadline=None)
def test_more_terms_lose_less(seed: int, kind: str) -> None:
    rows, _ = drawn(seed, row=24)
    lost = [loss(rows, *approximated(rows, kind, terms), None).sum() for terms in (1, 2, 3)]
    assert lost[0] > lost[1] > lost[2]


@given(SEEDS, st.sampled_from(["binary", "ternary"]), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_a_gram_matrix_never_hurts_on_itself(seed: int, kind: str, terms: int) -> None:
    rows, gram = drawn(seed, row=12)
    plain, books = approximated(rows, kind, terms)
    before = loss(rows, plain, books, np.diagonal(gram).copy()).sum()
    light = approximated(rows, kind, 1, np.diagonal(gram).copy())
    if terms == 1 and kind == "binary":
        assert loss(rows, *light, np.diagonal(gram).copy()).sum() <= before * (1 + 1e-9)
    aware = loss(rows, *approximated(rows, kind, terms, gram), gram)
    signs = patterns(kind, terms)[approximated(rows, kind, terms, np.diagonal(gram).copy())[0]]
    refitted = (signs @ fitted(rows, signs, gram)[:, :, None])[:, :, 0] - rows
    assert (aware <= np.einsum("or,or->o", times(refitted, gram), refitted) * (1 + 1e-9) + 1e-9).all()


@given(SEEDS, st.sampled_from(["binary", "ternary"]), st.integers(1, 2))
@settings(max_examples=20, deadline=None)
def test_each_group_is_weighed_by_what_it_is_fed(seed: int, kind: str, terms: int) -> None:
    pairs = [drawn(seed + number) for number in range(3)]
    rows, grams = np.concatenate([rows for rows, _ in pairs]), np.stack([gram for _, gram in pairs])
    symbols, books = approximated(rows, kind, terms, grams)
    alone = [approximated(rows, kind, terms, gram) for rows, gram in pairs]
    assert np.array_equal(symbols, np.concatenate([found for found, _ in alone]))
    assert np.allclose(books.values(symbols), np.concatenate([books.values(found) for found, books in alone]))


@pytest.mark.parametrize(("kind", "terms", "decibel"), [("binary", 1, 4.4), ("ternary", 1, 7.2), ("binary", 2, 9.3)])
def test_gaussian_weights_lose_what_theory_says(kind: str, terms: int, decibel: float) -> None:
    """Max 1960, table I: the best quantizers of 2, 3 and 4 levels for a Gaussian leave 0.3634, 0.1902 and 0.1175 of its variance."""
    rows = np.random.default_rng(0).normal(size=(8, 4096))
    lost = loss(rows, *approximated(rows, kind, terms), None).sum()
    assert 10 * np.log10((rows**2).sum() / lost) == pytest.approx(decibel, abs=0.1)


@pytest.mark.parametrize("kind", DIGITS)
def test_rows_of_zeros_stay_zeros(kind: str) -> None:
    symbols, books = approximated(np.zeros((2, 5)), kind, 2)
    assert (books.values(symbols) == 0).all()
