"""Coded: what a tensor's symbols, books and scales decode to, and symbols found again after edits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.weights.coded import Coded, per_slice, per_tensor, recoded
from weights.drawn import coded_tensors


@given(coded_tensors())
@settings(max_examples=100, deadline=None)
def test_decode_is_the_definition_one_weight_at_a_time(coded: Coded) -> None:
    values = coded.decode()
    assert values.shape == coded.shape and values.dtype == coded.dtype
    for flat in range(coded.size):
        place = np.unravel_index(flat, coded.shape)[coded.axis]
        book = coded.books[0 if coded.groups is None else coded.groups[place]]
        expected = book[coded.symbols[flat // coded.width], flat % coded.width]
        if coded.scales is not None:
            expected = expected * coded.scales[place]
        assert values.reshape(-1)[flat] == expected


@given(coded_tensors(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_cut_tensor_keeps_its_codes(coded: Coded, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(coded.shape) - 1))
    keep = sorted(data.draw(st.sets(st.integers(0, coded.shape[axis] - 1), min_size=1)))
    values = coded.decode().take(keep, axis=axis)
    found = recoded(values, coded)
    if found is not None:
        assert np.array_equal(found.decode(), values) and found.form == coded.form
    elif coded.width == 1:  # vectors may be cut apart; else there are too many numbers, or too few weights, for a book
        assert coded.groups is not None and per_tensor(values) is None and per_slice(values, coded.axis) is None


def test_zeros_that_pruning_left_become_an_entry() -> None:
    symbols = np.arange(64, dtype=np.uint8) % 15
    book = np.linspace(-1, 1.3, 15, dtype=np.float32)
    coded = Coded((8, 8), symbols, book[None, :, None], np.linspace(0.5, 2, 8, dtype=np.float32))
    values = coded.decode()
    values[2:5] = 0
    values[6, 3] = 0
    found = recoded(values, coded)
    assert found is not None and found.entries == 16 and found.scales is not None
    assert np.array_equal(found.decode(), values)


def test_other_numbers_are_dense_again() -> None:
    rng = np.random.default_rng(0)
    coded = Coded(
        (32, 32), rng.integers(0, 4, 1024).astype(np.uint8), np.array([[-1, 0, 1, 2]], np.float32)[:, :, None]
    )
    assert recoded(rng.normal(size=(32, 32)).astype(np.float32), coded) is None


@pytest.mark.parametrize("kinds", [1, 2, 16, 256])
def test_entropy_is_that_of_the_symbols(kinds: int) -> None:
    symbols = np.repeat(np.arange(kinds), 4).astype(np.uint8)
    coded = Coded((kinds, 4), symbols, np.arange(kinds, dtype=np.float32)[None, :, None])
    assert coded.entropy() == pytest.approx(np.log2(kinds))
