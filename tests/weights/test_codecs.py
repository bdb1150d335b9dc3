"""Tensors to elements and books and back: bit for bit, whatever the numbers, and with the form that their structure asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.weights import books, choice, codecs, gaps, kinds, scales, tunstall
from onnxcompress.weights.choice import fit
from onnxcompress.weights.codecs import BLOCK, FORMS, Fitted


def restored(fitted: Fitted) -> np.ndarray:
    """Values of all blocks, by the same steps as a reader takes."""
    spec = fitted.spec
    spec.check()
    assert [side.size for side in fitted.sides] == [count for _, count in spec.sides]
    table = codecs.unfolded(spec, fitted.sides)
    blocks = [codecs.join(spec, fitted.sides, table, fitted.streams(block)[1], block) for block in range(spec.blocks)]
    return np.concatenate(blocks) if blocks else fitted.elements


def form_of(values: np.ndarray, entropy: str = "ans") -> str:
    """The form that is chosen, after a check that it gives the values back."""
    bits = values.reshape(-1).view(codecs.typed(values.itemsize))
    fitted = fit(bits, values.shape, values.dtype.kind == "f", entropy)
    assert np.array_equal(restored(fitted), bits)
    return (
        FORMS[fitted.spec.form].name
        + (", gaps" if fitted.spec.gaps else "")
        + (", kinds" if fitted.spec.kinds > 1 else "")
    )


RNG = np.random.default_rng(0)
DENSE = RNG.standard_normal((96, 64, 3, 3)).astype(np.float32)
LEVELS = np.sort(RNG.standard_normal(16)).astype(np.float32)
SYMBOLS = RNG.choice(16, DENSE.shape, p=np.r_[0.25, np.full(15, 0.05)])
BOOKS = RNG.standard_normal((96, 16)).astype(np.float32)
SCALES = (RNG.random((96, 1, 1, 1)) + 0.1).astype(np.float32)
SPARSE = np.where(RNG.random(DENSE.shape) < 0.9, np.float32(0), DENSE)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (DENSE, "plain"),
        (LEVELS[SYMBOLS], "book"),
        (np.take_along_axis(BOOKS, SYMBOLS.reshape(96, -1), 1).reshape(DENSE.shape), "book a slice, kinds"),
        (LEVELS[SYMBOLS] * SCALES, "book, scale a slice"),
        (np.rint(DENSE * 2).clip(-8, 7) * SCALES, "book, scale a slice"),
        (np.moveaxis(np.rint(DENSE * 2).clip(-8, 7) * SCALES, 0, 3), "book, scale a slice"),
        (SPARSE, "plain, gaps"),
        (LEVELS[SYMBOLS].astype(np.float16), "book"),
        (LEVELS[SYMBOLS].astype(np.float64), "book"),
        (DENSE.astype(np.float64), "plain"),
        (RNG.integers(0, 256, 5000).astype(np.uint8), "plain"),
        (RNG.choice(16, 3000, p=np.r_[0.4, np.full(15, 0.04)]).astype(np.uint8) * np.uint8(17), "plain"),
        (np.arange(4000, dtype=np.int64) * 3, "plain"),
        (np.zeros((50, 50), np.float32), "book"),
    ],
)
def test_the_form_follows_the_structure(values: np.ndarray, form: str) -> None:
    assert form_of(values) == form


def test_huffman_takes_gaps_where_a_bit_a_weight_is_too_much() -> None:
    values = np.where(RNG.random(DENSE.shape) < 0.9, np.float32(0), LEVELS[SYMBOLS])
    assert form_of(values, "huffman") == "book, gaps"


def test_packed_nibbles_of_a_small_tensor_are_symbols() -> None:
    pairs = RNG.choice(16, (2000, 2), p=np.r_[0.4, np.full(15, 0.04)])
    assert form_of((pairs[:, 0] + 16 * pairs[:, 1]).astype(np.uint8)) == "digits of bytes"


@given(
    st.sampled_from([np.uint8, np.float16, np.float32, np.float64, np.int16, np.int64]),
    st.integers(1, 6), st.integers(1, 9), st.integers(1, 40), st.integers(1, 6), st.integers(0, 99),
)  # fmt: skip
def test_every_form_gives_the_bits_back(
    kind: type, first: int, second: int, third: int, distinct: int, seed: int
) -> None:
    """Signs of zero, NaN and all: values drawn from few bit patterns, on every axis, with every width of gaps."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 256, (distinct, np.dtype(kind).itemsize)).astype(np.uint8).view(kind).reshape(-1)
    values = patterns[rng.integers(0, distinct, (first, second, third)) * (rng.random((first, second, third)) < 0.6)]
    bits = values.reshape(-1).view(codecs.typed(values.itemsize))
    for priced in choice._candidates(bits, values.shape, np.dtype(kind).kind == "f", "ans", choice.Made()):
        for _, each in (priced, *choice._with_gaps(*priced, "ans")):
            assert np.array_equal(restored(each), bits)
            own = replace(each.spec, kinds=3, run=third, runs=second)
            if each.spec.element_width == 1:
                labels = rng.integers(0, 3, second).astype(np.uint8)
                assert np.array_equal(restored(Fitted(own, each.elements, (*each.sides, labels))), bits)


def test_blocks_of_slices_know_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "BLOCK", 1000)
    assert BLOCK > 1000
    assert form_of(LEVELS[SYMBOLS] * SCALES) == "book, scale a slice"
    assert form_of(SPARSE) == "plain, gaps"


@given(st.lists(st.integers(0, 3), max_size=400), st.sampled_from(gaps.BITS), st.integers(0, 3))
def test_gaps(elements: list[int], bits: int, common: int) -> None:
    array = np.array(elements, np.uint8)
    steps, left = gaps.split(array, common, bits)
    assert len(steps) == len(left) and (not len(steps) or steps.max() < 2**bits)
    assert np.array_equal(gaps.join(steps, left, common, len(array)), array)


def test_gaps_are_deep_compressions() -> None:
    """The example of its figure 2: with 3 bits, a run of eight zeros takes one more entry."""
    array = np.array([0, 34, 0, 0, 9, *[0] * 10, 17], np.uint8)
    steps, left = gaps.split(array, 0, 3)
    assert steps.tolist() == [1, 2, 7, 2] and left.tolist() == [34, 9, 0, 17]


def test_gaps_that_lead_out_are_refused() -> None:
    with pytest.raises(ValueError, match="out of the tensor"):
        gaps.join(np.array([7, 7], np.uint8), np.array([1, 1], np.uint8), 0, 15)


def test_a_book_that_grows_while_it_is_looked_up() -> None:
    values = np.arange(200, dtype=np.uint32).repeat(np.r_[np.full(199, 1), 100_000]) * np.uint32(2654435761)
    found = books.per_tensor(values, False)
    assert found is not None and len(found[0]) == 200 and np.array_equal(found[0][found[1]], values)
    assert books.per_tensor(np.arange(257, dtype=np.uint32), False) is None


def test_books_are_in_the_order_of_their_values() -> None:
    values = np.array([1, -1, np.nan, 0.0, -0.0, -np.inf, 3], np.float32)
    book = books.ordered(values.view(np.uint32), True).view(np.float32)
    assert book[:-1].tolist() == [-np.inf, -1, 0, 0, 1, 3] and np.signbit(book[2]) and np.isnan(book[-1])


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 999), st.booleans())
def test_scales_are_found_again(entries: int, slices: int, seed: int, grid: bool) -> None:
    rng = np.random.default_rng(seed)
    base = np.arange(entries) - entries // 2 if grid else np.unique(rng.standard_normal(entries))
    table = base.astype(np.float32) * (rng.random((slices, 1)) + 0.01).astype(np.float32)
    found = scales.scaled(np.sort(table, axis=1).view(np.uint32))
    if found is not None:
        back = scales.books_of(found.base, found.scales, found.missed)
        assert np.array_equal(
            np.take_along_axis(back, found.place.astype(int), 1), np.sort(table, axis=1).view(np.uint32)
        )
    assert found is not None or (np.abs(base) > 0).sum() < 2


def test_books_that_are_no_multiples_are_left() -> None:
    assert scales.scaled(BOOKS.view(np.uint32)) is None
    assert scales.scaled(np.full((2, 3), np.nan, np.float32).view(np.uint32)) is None


@pytest.mark.parametrize(
    "facts",
    [
        dict(form=99), dict(width=3), dict(rotate=2), dict(size=7), dict(gaps=6), dict(common=1 << 40), dict(form=1, entries=0),
        dict(form=1, entries=300), dict(stride=0), dict(stride=9), dict(count=0), dict(form=2, entries=256, count=1 << 30),
        dict(form=5, width=8, size=8, entries=1), dict(form=3), dict(form=3, width=1, entries=17), dict(form=0, entries=1),
        dict(form=4, width=1, entries=2, count=257, symbols=9), dict(form=4, width=1, entries=2, symbols=8 * 255 + 1),
        dict(form=6, width=1, entries=4, symbols=8), dict(form=6, width=1, entries=3, symbols=8),
        dict(form=7, width=1, entries=2, symbols=65),
        dict(kinds=0), dict(kinds=9), dict(run=0), dict(kinds=2, runs=0), dict(kinds=2, runs=1 << 23),
    ],
)  # fmt: skip
def test_what_no_writer_says_is_refused(facts: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        codecs.Spec(**{**dict(form=0, width=4, rotate=1, size=8), **facts}).check()


def test_slices_of_a_kind_share_frequencies() -> None:
    """Rows of two densities: one code for all takes a tenth more."""
    zeros = np.repeat([0.5, 0.95], 48)[RNG.permutation(96)]
    values = np.where(RNG.random((96, 576)) < zeros[:, None], np.float32(0), LEVELS[SYMBOLS].reshape(96, -1))
    assert form_of(values) == form_of(np.ascontiguousarray(values.T)) == "book, kinds"


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 7), st.integers(0, 2000))
def test_the_slice_of_each_element(length: int, run: int, runs: int, start: int) -> None:
    assert codecs.spread(start, length, run, runs).tolist() == [
        place // run % runs for place in range(start, start + length)
    ]


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8), st.integers(0, 99), st.sampled_from([0, 1, 300, 5000]))
@settings(deadline=None)
def test_words_come_back_block_by_block(shares: list[float], seed: int, count: int) -> None:
    """Whatever numbers of words there are: the last one need not be whole."""
    words = tunstall.dictionary(np.array(shares))
    assert words is not None
    assert tunstall.kinds_of(words.lengths) is not None
    assert np.array_equal(tunstall.words_of(words.lengths, len(shares)).symbols, words.symbols)
    codes = np.random.default_rng(seed).integers(0, len(words.lengths), count).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "BLOCK", 700)
        found = [
            each
            for _, each in choice._candidates(codes, (count,), False, "ans", choice.Made(words))
            if each.spec.form == codecs.WORDS
        ]
        assert len(found) == 1 and np.array_equal(restored(found[0]), codes)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(2, 4))
def test_lengths_that_are_no_words(lengths: list[int], kinds: int) -> None:
    array = np.array(lengths, np.uint8)
    try:
        words = tunstall.words_of(array, kinds)
    except ValueError:
        return
    assert words.lengths.tolist() == lengths and sum(kinds ** (4 - each) for each in lengths) == kinds**4


def test_kinds_are_found() -> None:
    counts = np.array([[90, 10], [50, 50]])[RNG.integers(0, 2, 300)] + RNG.integers(0, 5, (300, 2))
    kind = kinds.found(counts.astype(float), 2)
    assert len(set(kind[counts[:, 1] > 30])) == 1 and len(set(kind)) == 2
