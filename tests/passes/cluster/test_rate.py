"""Rate-aware assignment: fewer bits at the same error, one slope everywhere, sizes that are met; the same twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnxcompress.errors import BudgetError, SettingError
from onnxcompress.passes.cluster import assign
from onnxcompress.passes.cluster.books import Books, loss
from onnxcompress.passes.cluster.kmeans import books as optimal
from onnxcompress.passes.cluster.rate import (
    MOST,
    Sketch,
    Tensor,
    entropy,
    entropy_bytes,
    for_size,
    lengths,
    rated,
    searched,
)


def layer(seed: int, outs: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((3 * width, width)) @ rng.standard_normal((width, width)) + 0.5, 0)
    return rng.standard_t(5, (outs, width)), x.T @ x


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    outs=st.integers(1, 6),
    width=st.integers(1, 30),
    form=st.sampled_from(["one", "groups", "diagonal", "none"]),
    share=st.floats(1e-6, 2.0),
    prune=st.booleans(),
)
def test_what_is_coded_is_whole(seed: int, outs: int, width: int, form: str, share: float, prune: bool) -> None:
    rows, gram = layer(seed, outs, width)
    zeros = np.random.default_rng(seed).random(rows.shape) < 0.5 if prune else None
    forms = {"one": gram, "groups": np.repeat(gram[None], outs, axis=0), "diagonal": np.diagonal(gram)}
    tensor = Tensor(rows, forms.get(form), zeros=zeros)
    found = rated(tensor, share * Sketch(tensor).coarsest)
    assert found.symbols.dtype == np.uint8 and found.symbols.shape == rows.shape
    entries = found.books.entries
    assert entries.shape[0] == 1 and 1 <= entries.shape[1] <= MOST and (entries == 0).sum() == 1
    assert set(np.unique(found.symbols)) | {int(np.flatnonzero(entries[0] == 0)[0])} == set(range(entries.shape[1]))
    assert not prune or (found.books.values(found.symbols)[zeros] == 0).all()
    assert found.entropy == pytest.approx(entropy(np.bincount(found.symbols.reshape(-1))))


@pytest.mark.parametrize("entries", [4, 8, 16])
@pytest.mark.parametrize("draw", ["normal", "laplace", "standard_t"])
def test_fewer_bits_than_the_optimal_books_of_k_means_at_less_error(draw: str, entries: int) -> None:
    rng = np.random.default_rng(1)
    rows = getattr(rng, draw)(*([5] if draw == "standard_t" else []), size=(40, 1000))
    plain = Books(optimal(rows, [entries])[entries][None])
    symbols = assign.nearest(rows, plain)
    error, bits = loss(rows, symbols, plain, None).sum(), entropy(np.bincount(symbols.reshape(-1)))
    low, high = 1e-9, 10.0
    for _ in range(20):  # the largest λ that loses no more
        middle = np.sqrt(low * high)
        found = rated(Tensor(rows), middle)
        low, high = (middle, high) if loss(rows, found.symbols, found.books, None).sum() <= error else (low, middle)
    found = rated(Tensor(rows), low)
    assert loss(rows, found.symbols, found.books, None).sum() <= error
    assert found.entropy < bits - 0.05


@pytest.mark.parametrize("decibel", [15, 20, 25])
def test_normal_weights_come_within_a_quarter_bit_of_shannon(decibel: float) -> None:
    """Gish, Pierce 1968: an entropy-coded uniform quantizer needs log2(2 pi e / 12) / 2 = 0.254 bits over the bound at high rates."""
    rows = np.random.default_rng(2).standard_normal((50, 2000))
    price = 2 * np.log(2) * 10 ** (-decibel / 10)
    found = rated(Tensor(rows), price)
    error = loss(rows, found.symbols, found.books, None).sum() / (rows**2).sum()
    assert -10 * np.log10(error) == pytest.approx(decibel, abs=0.5)
    assert found.entropy < -0.5 * np.log2(error) + 0.27


def test_a_higher_price_takes_fewer_bits_and_loses_more() -> None:
    rows, gram = layer(3, 30, 40)
    tensor = Tensor(rows, gram)
    found = [rated(tensor, share * Sketch(tensor).coarsest) for share in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.01)]
    bits = [each.entropy for each in found]
    errors = [float(loss(rows, each.symbols, each.books, gram).sum()) for each in found]
    assert bits == sorted(bits, reverse=True) and errors == sorted(errors)
    assert bits[-1] == 0 and not found[-1].books.values(found[-1].symbols).any()


def test_compensation_inside_the_recursion_beats_a_price_by_the_diagonal() -> None:
    rows, gram = layer(4, 60, 50)
    price = 1e-3 * Sketch(Tensor(rows, gram)).coarsest
    whole, alone = rated(Tensor(rows, gram), price), rated(Tensor(rows, np.diagonal(gram)), price)
    paid = [loss(rows, f.symbols, f.books, gram).sum() + price * f.entropy * rows.size for f in (whole, alone)]
    assert paid[0] < 0.9 * paid[1]


def test_one_price_is_one_slope_whatever_the_size_of_the_weights() -> None:
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((30, 1000))
    errors = []
    for size, worth in ((1.0, 1.0), (0.3, 1.0), (0.3, 4.0)):
        tensor = Tensor(rows * size, worth=worth)
        found = rated(tensor, 3e-4)
        errors.append(float(loss(tensor.rows, found.symbols, found.books, None).sum()) * worth)
    assert errors[1] == pytest.approx(errors[0], rel=0.15) and errors[2] == pytest.approx(errors[0], rel=0.15)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), bits=st.floats(0.3, 5.0))
@example(seed=232, bits=0.5)  # the runs end less than a byte above it
def test_the_target_size_is_met(seed: int, bits: float) -> None:
    tensors = [
        Tensor(rows, gram, worth=1 / np.trace(gram)) for rows, gram in (layer(seed + at, 40, 50) for at in range(3))
    ]
    target = bits * 6000 / 8 + 60
    price, found = for_size(tensors, target)
    total = sum(map(entropy_bytes, found))
    assert total <= target and price > 0
    again = for_size(tensors, target)
    assert again[0] == price and all(np.array_equal(a.symbols, b.symbols) for a, b in zip(found, again[1], strict=True))


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.4, 2.0])
def test_a_size_that_sketches_misjudge_is_met_in_few_runs(factor: float) -> None:
    """On data symbols took 0.62 of what a sketch said; steps of log-log interpolation then ended at two thirds of the target."""
    sketch = Sketch(Tensor(np.random.default_rng(9).standard_normal((40, 1000))))
    tried: list[float] = []

    def coded(price: float) -> tuple[float, float]:
        tried.append(price)
        return factor * sketch.bytes(price), price

    target = 3.0 * 40_000 / 8
    price, found = searched(coded, [sketch], target)
    assert price == found and 0.98 * target < factor * sketch.bytes(price) <= target and len(tried) <= 4


def test_sizes_that_are_met_use_what_they_are_given() -> None:
    tensors = [Tensor(rows, gram) for rows, gram in (layer(at, 300, 40) for at in range(3))]
    target = 3.0 * 36_000 / 8
    assert sum(map(entropy_bytes, for_size(tensors, target)[1])) > 0.97 * target
    fine = for_size(tensors, 1e9)[1]
    assert all(each.books.entries.size > 100 for each in fine)
    dear = for_size(tensors, target, size=lambda each: 2 * entropy_bytes(each))[1]
    assert sum(map(entropy_bytes, dear)) <= target / 2


def test_a_limit_keeps_a_tensor_fine_whatever_the_price() -> None:
    rows = np.random.default_rng(8).standard_normal((30, 100))
    fine, coarse = (rated(Tensor(rows, limit=limit), 100.0) for limit in (1e-2, np.inf))
    assert coarse.entropy == 0 and fine.entropy == rated(Tensor(rows), 1e-2).entropy > 2


def test_what_cannot_be_met_is_said() -> None:
    tensor = Tensor(*layer(1, 4, 10))
    with pytest.raises(BudgetError, match="smallest that was found takes 2 bytes, not 1; give a larger"):
        for_size([tensor], 1.0)
    with pytest.raises(SettingError, match="more than 0"):
        rated(tensor, 0.0)


@pytest.mark.parametrize("most", [2, 3, 7, 15])
def test_fewer_entries_lose_little_of_what_bits_they_cost(most: int) -> None:
    rows = np.random.default_rng(6).standard_t(4, (40, 500))
    tensor, price = Tensor(rows), 0.1
    whole, few = rated(tensor, price), rated(tensor, price, sketch=Sketch(tensor, most))
    assert few.books.entries.size <= most < whole.books.entries.size and (few.books.entries == 0).any()
    paid = [loss(rows, f.symbols, f.books, None).sum() + price * f.entropy * rows.size for f in (whole, few)]
    plain = Books(np.sort(np.append(optimal(rows[rows != 0], [most - 1])[most - 1], 0.0))[None])
    symbols = assign.nearest(rows, plain)
    usual = loss(rows, symbols, plain, None).sum() + price * entropy(np.bincount(symbols.reshape(-1))) * rows.size
    assert paid[0] <= paid[1] * 1.02 and paid[1] < usual


def test_lengths_are_a_code() -> None:
    bits = lengths(np.array([[0, 0, 1, 3]], np.uint8), 5)
    assert (2.0**-bits).sum() == pytest.approx(1.0) and bits[0] < bits[1] < bits[2] < 8


def test_zeros_are_coded_in_no_bits() -> None:
    found = rated(Tensor(np.zeros((3, 4))), 1.0)
    assert found.entropy == 0 and not found.books.values(found.symbols).any()
    assert for_size([Tensor(np.zeros((3, 4)))], 10)[1][0].entropy == 0


def test_a_few_far_weights_do_not_make_all_others_coarse() -> None:
    """A book has 255 entries; a grid of them as far as a weight of 200 deviations would have eight times this step."""
    rows = np.random.default_rng(0).standard_normal((64, 256))
    price = 2 * np.log(2) * 1e-2  # noise 20 dB below the power of all but the far ones
    near = rated(Tensor(rows), price)
    rows[3, :3] = 200, -150, 90
    far = rated(Tensor(rows), price)
    errors = [float(loss(rows, found.symbols, found.books, None)[4:].sum()) for found in (near, far)]
    assert errors[1] < 1.1 * errors[0] and far.entropy < 1.05 * near.entropy
    assert far.books.entries.shape[1] <= MOST
