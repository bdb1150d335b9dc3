"""Tunstall's code: every sequence comes back, and the rate is near the entropy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.weights.tunstall import decode, dictionary, digits, encode


@given(st.lists(st.integers(0, 15), min_size=1, max_size=400), st.integers(2, 100), st.integers(0, 1 << 30))
@settings(max_examples=150, deadline=None)
def test_what_was_coded_comes_back(symbols: list[int], kinds: int, seed: int) -> None:
    given_ = np.minimum(np.array(symbols, np.uint8), kinds - 1)
    counts = np.bincount(given_, minlength=kinds) + np.random.default_rng(seed).integers(0, 3, kinds)
    words = dictionary(counts)
    assert words is not None
    codes = encode(given_, words)
    assert np.array_equal(decode(codes, words, len(given_)), given_)


def test_words_are_a_complete_tree() -> None:
    """Kraft's sum is one: every sequence starts with just one word."""
    words = dictionary(np.array([80, 10, 5, 5]))
    assert words is not None
    assert sum(4.0 ** -int(length) for length in words.lengths) == 1


@pytest.mark.parametrize(
    ("zeros", "kinds", "most"), [(0.8, 16, 1.10), (0.9, 4, 1.15), (0.9, 2, 1.06), (0.0625, 16, 1.12)]
)
def test_the_rate_is_near_the_entropy(zeros: float, kinds: int, most: float) -> None:
    """Within a tenth or so for these sources; the last is uniform, where a word is two symbols of four bits."""
    shares = np.array([zeros] + [(1 - zeros) / (kinds - 1)] * (kinds - 1))
    symbols = np.random.default_rng(0).choice(kinds, 100_000, p=shares).astype(np.uint8)
    words = dictionary(np.bincount(symbols, minlength=kinds))
    assert words is not None
    bits = 8 * len(encode(symbols, words)) / len(symbols)
    entropy = -(shares * np.log2(shares)).sum()
    assert entropy <= bits * 1.01 and bits <= most * entropy
    assert bits == pytest.approx(words.bits(np.bincount(symbols, minlength=kinds)), rel=0.01)


@pytest.mark.parametrize("counts", [[5], [1] * 129, [1] * 256, [10**9, 1]])
def test_symbols_that_no_word_of_two_can_hold_have_no_code(counts: list[int]) -> None:
    words = dictionary(np.array(counts))
    assert words is None or words.lengths.max() <= 255


def test_too_few_codes_are_an_error() -> None:
    words = dictionary(np.array([3, 1]))
    assert words is not None
    with pytest.raises(ValueError, match="fewer than 9999"):
        decode(np.zeros(3, np.uint8), words, 9999)


def test_digits_fill_a_byte() -> None:
    assert [digits(kinds) for kinds in (1, 2, 3, 4, 5, 6, 7, 16, 17, 256)] == [8, 8, 5, 4, 3, 3, 2, 2, 1, 1]
