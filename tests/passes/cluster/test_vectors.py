"""Vector codebooks: the nearest vector, never worse than it on the Gram, in both directions, in the order in which Coded decodes."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import DataError, SettingError
from onnxcompress.passes.cluster import assign
from onnxcompress.passes.cluster.books import Books
from onnxcompress.passes.cluster.vectors import (
    Vectors,
    alternated,
    compensated,
    descended,
    direction,
    fitted,
    loss,
    nearest,
    stored,
    trained,
)
from onnxcompress.weights.coded import Coded

SHAPES = {
    "seed": st.integers(0, 9999),
    "down": st.integers(1, 4),
    "right": st.integers(1, 40),
    "width": st.sampled_from([2, 4]),
    "entries": st.integers(1, 20),
    "across": st.booleans(),
    "scaled": st.booleans(),
    "form": st.sampled_from(["one", "groups", "diagonal", "none"]),
}


def layer(
    seed: int, down: int, right: int, width: int, across: bool, form: str = "one"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights of down x right vectors as [out, row], and a Gram."""
    rng = np.random.default_rng(seed)
    out, row = (down * width, right) if across else (down, right * width)
    groups = down if form == "groups" else 1
    x = np.maximum(rng.standard_normal((groups, 3 * row, row)) @ rng.standard_normal((row, row)) + 0.5, 0)
    x[:, :, rng.random(row) < 0.1] = 0.0
    gram = x.transpose(0, 2, 1) @ x
    forms = {"one": gram[0], "diagonal": np.diagonal(gram[0]).copy(), "none": None}
    return rng.standard_t(4, (out, row)), forms.get(form, gram)


@settings(max_examples=80, deadline=None)
@given(**SHAPES)
def test_never_worse_than_the_nearest_vectors(
    seed: int, down: int, right: int, width: int, entries: int, across: bool, scaled: bool, form: str
) -> None:
    rows, gram = layer(seed, down, right, width, across, form)
    scales = np.abs(rows).max(axis=1) if scaled else None
    book = trained(rows, width, entries, gram, across=across, scales=scales, seed=seed)
    plain = loss(rows, nearest(rows, book, gram), book, gram)
    one = compensated(rows, book, gram)
    more = descended(rows, one, book, gram)
    again = fitted(rows, more, book, gram)
    losses = [plain, loss(rows, one, book, gram), loss(rows, more, book, gram), loss(rows, more, again, gram)]
    for before, after in pairwise(losses):
        assert after <= before * (1 + 1e-9) + 1e-9
    symbols, found = alternated(rows, book, gram, half=False)
    assert loss(rows, symbols, found, gram) <= losses[1] * (1 + 1e-9) + 1e-9
    assert symbols.dtype == np.uint8 and symbols.shape == (down, right) and symbols.max() < len(book.entries) <= entries


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), across=st.booleans(), scaled=st.booleans())
def test_no_single_vector_can_be_moved_to_gain(seed: int, across: bool, scaled: bool) -> None:
    rows, gram = layer(seed, 2, 3, 2, across)
    assert gram is not None
    scales = np.abs(rows).max(axis=1) if scaled else None
    book = trained(rows, 2, 4, gram, across=across, scales=scales)
    symbols = descended(rows, compensated(rows, book, gram), book, gram, sweeps=20)
    value = loss(rows, symbols, book, gram)
    for place in product(range(2), range(3), range(len(book.entries))):
        other = symbols.copy()
        other[place[:2]] = place[2]
        assert loss(rows, other, book, gram) >= value * (1 - 1e-6) - 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), across=st.booleans(), width=st.sampled_from([2, 4]))
def test_nearest_is_the_nearest_in_the_weighted_distance(seed: int, across: bool, width: int) -> None:
    rows, gram = layer(seed, 2, 5, width, across)
    assert gram is not None
    book = trained(rows, width, 5, across=across)
    symbols = nearest(rows, book, gram)
    each = np.array(
        [(book.values(np.full((2, 5), k)) - rows) ** 2 * np.diagonal(gram) for k in range(len(book.entries))]
    )
    by_vector = np.array([book.points(one).sum(axis=2) for one in each])
    assert np.allclose(np.take_along_axis(by_vector, symbols[None].astype(int), axis=0)[0], by_vector.min(axis=0))


def test_vectors_without_correlation_are_fixed_as_scalars_are() -> None:
    """A grid of all pairs of scalar entries has the same optimum where the metric is diagonal."""
    rows, gram = layer(3, 4, 20, 2, across=True)
    assert gram is not None
    levels = np.array([-1.0, -0.3, 0.2, 0.9])
    pairs = Vectors(np.array(list(product(levels, levels))), across=True)
    found, scalar = compensated(rows, pairs, gram), Books(levels[None])
    assert np.array_equal(pairs.values(found), scalar.values(assign.compensated(rows, scalar, gram)))


def test_correlated_columns_are_fixed_together() -> None:
    """Two columns whose errors cancel: the pair that a layer cannot tell apart from the weights beats the nearest one."""
    rows = np.array([[0.4, 0.4]])
    gram = np.array([[1.0, 0.999], [0.999, 1.0]])
    book = Vectors(np.array([[0.5, 0.5], [1.0, -0.2], [0.0, 0.0]]))
    assert nearest(rows, book)[0, 0] == 0
    assert compensated(rows, book, gram)[0, 0] == 1


def test_training_finds_clusters_that_are_there() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((8, 2)) * 5
    points = centres[rng.integers(0, 8, 4000)] + 0.01 * rng.standard_normal((4000, 2))
    book = trained(points.reshape(20, -1), 2, 8, seed=1).entries
    assert np.abs(book[np.argsort(book[:, 0])] - centres[np.argsort(centres[:, 0])]).max() < 0.01
    again = trained(points.reshape(20, -1), 2, 8, seed=1).entries
    assert np.array_equal(book, again)


def test_a_tensor_of_few_vectors_has_few_entries() -> None:
    rows = np.array([[1.0, 2.0, 1.0, 2.0]])
    book = trained(rows, 2, 16)
    assert loss(rows, nearest(rows, book), book, None) == 0
    assert len(trained(np.zeros((2, 4)), 2, 16).entries) <= 4


LAYOUTS = {
    "Conv": ((6, 4, 3, 3), (0, 1, 2, 3), False),
    "MatMul": ((5, 8), (1, 0), True),
    "Gemm": ((8, 6), (0, 1), False),
    "ConvTranspose": ((3, 5, 2, 2), (1, 0, 2, 3), False),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_symbols_are_in_the_order_that_coded_decodes(case: str) -> None:
    shape, order, across = LAYOUTS[case]
    tensor = np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    def view(array: np.ndarray) -> np.ndarray:
        moved = array.transpose(order)
        return moved.reshape(len(moved), -1)

    positions = view(np.arange(tensor.size).reshape(shape))
    assert direction(positions, 2) is across
    book = trained(view(tensor), 2, 8, across=across)
    symbols = nearest(view(tensor), book)
    coded = Coded(shape, stored(symbols, book, positions), book.entries[None].astype(np.float32))
    assert np.array_equal(view(coded.decode()), book.values(symbols).astype(np.float32))


def test_layouts_without_whole_vectors_say_why() -> None:
    depthwise = np.arange(36).reshape(4, 9)
    assert "rows of 9 weights for 4 outputs" in str(direction(depthwise, 2))
    assert "widths are 2, 4, 8" in str(direction(np.arange(36).reshape(4, 9), 3))
    assert "memory" in str(direction(np.arange(48).reshape(3, 4, 4).transpose(1, 2, 0).reshape(4, 12), 2))
    with pytest.raises(SettingError, match="1 to 256"):
        trained(np.zeros((2, 4)), 2, 300)
    rows, gram = layer(0, 2, 5, 2, across=True)
    assert gram is not None
    book = trained(rows, 2, 4, across=True)
    with pytest.raises(SettingError, match="not whole vectors"):
        compensated(rows, book, np.repeat(gram[None], 4, axis=0))
    with pytest.raises(DataError, match="not finite"):
        compensated(rows, book, gram * np.nan)


def test_float16_entries_are_descended_on() -> None:
    rows, gram = layer(5, 6, 30, 2, across=False)
    symbols, found = alternated(rows, trained(rows, 2, 16, gram), gram)
    assert np.array_equal(found.entries, found.entries.astype(np.float16))
    again = descended(rows, symbols, found, gram, sweeps=5)
    assert loss(rows, again, found, gram) <= loss(rows, symbols, found, gram)
