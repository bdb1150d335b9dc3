"""Trellis-coded books: the best of all paths, errors made up for, more decibels than books of as many symbols; files that hold them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import onnxcompress
from onnxcompress.errors import DataError
from onnxcompress.model import load
from onnxcompress.model.edit import coded_of
from onnxcompress.passes.cluster import assign, trellis
from onnxcompress.passes.cluster.allocation import Choice
from onnxcompress.passes.cluster.books import Books, loss
from onnxcompress.passes.cluster.choices import by_trellis
from onnxcompress.passes.cluster.sharing import placed, shared
from onnxcompress.passes.cluster.trellis import Trellis
from onnxcompress.weights.trellis import levels_of, symbols_of


def gram_of(width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((4 * width, width)) @ rng.standard_normal((width, width)) / width**0.5 + 0.3, 0)
    return x.T @ x


def drawn(out: int, symbols: int, sharing: str, states: int, seed: int) -> Trellis:
    rng = np.random.default_rng(seed)
    count = 2 if sharing == "groups" else 1
    entries = np.sort(rng.standard_normal((count, 2 * symbols)), axis=1)
    scales = rng.uniform(0.5, 2, out) if sharing == "scaled" else None
    return Trellis(entries, np.arange(out) % count if count > 1 else None, scales, states)


@settings(max_examples=25, deadline=None)
@given(
    states=st.sampled_from([4, 8]),
    symbols=st.sampled_from([2, 4]),
    sharing=st.sampled_from(["tensor", "scaled", "groups"]),
    weighed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_no_path_is_better_than_the_one_that_is_followed(
    states: int, symbols: int, sharing: str, weighed: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, books = rng.standard_normal((3, 5)), drawn(3, symbols, sharing, states, seed)
    gram = rng.uniform(0.1, 3, 5) if weighed else None
    every = np.array(list(product(range(symbols), repeat=5)), np.uint8)
    paths = levels_of(np.ascontiguousarray(every.T)[None], states)[0].T
    best = [
        loss(np.repeat(rows[row : row + 1], len(paths), axis=0), paths, _alike(books, row, len(paths)), gram).min()
        for row in range(3)
    ]
    assert loss(rows, trellis.followed(rows, books, gram), books, gram) == pytest.approx(np.array(best))


def _alike(books: Trellis, row: int, count: int) -> Books:
    """The books of one row for many."""
    return Books(books.tables(3)[row : row + 1], np.zeros(count, int))


@settings(max_examples=25, deadline=None)
@given(
    states=st.sampled_from([4, 8, 16]),
    sharing=st.sampled_from(["tensor", "scaled", "groups"]),
    form=st.sampled_from(["one", "groups"]),
    width=st.integers(2, 70),
    seed=st.integers(0, 99),
)
def test_errors_made_up_for_follow_a_path_and_lose_no_more(
    states: int, sharing: str, form: str, width: int, seed: int
) -> None:
    rows, books = np.random.default_rng(seed).standard_normal((6, width)), drawn(6, 4, sharing, states, seed)
    gram = gram_of(width, seed) if form == "one" else np.stack([gram_of(width, seed), gram_of(width, seed + 1)])
    found = trellis.compensated(rows, books, gram)
    symbols_of(np.ascontiguousarray(found.T), states)
    assert (loss(rows, found, books, gram) <= loss(rows, trellis.followed(rows, books, gram), books, gram)).all()
    assert np.array_equal(found, trellis.compensated(rows, books, gram))


@pytest.mark.parametrize(("symbols", "more"), [(4, 1.0), (16, 1.3)])
def test_a_decibel_over_books_of_as_many_symbols(symbols: int, more: float) -> None:
    rows, gram = np.random.default_rng(0).standard_normal((64, 192)), gram_of(192)
    plain = shared(rows, symbols, "tensor")
    books = trellis.trained(rows, symbols, "tensor")
    ratio = (
        loss(rows, placed(rows, plain), plain, None).sum()
        / loss(rows, trellis.followed(rows, books), books, None).sum()
    )
    assert 10 * np.log10(ratio) > more
    weights = np.diagonal(gram) / np.diagonal(gram).mean()
    symbols_, plain = assign.alternated(rows, shared(rows, symbols, "tensor", weights), gram)
    levels, books = trellis.alternated(rows, trellis.trained(rows, symbols, "tensor", weights), gram)
    assert 10 * np.log10(loss(rows, symbols_, plain, gram).sum() / loss(rows, levels, books, gram).sum()) > 0.7


def test_a_gram_matrix_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        trellis.compensated(np.ones((4, 4)), drawn(4, 4, "tensor", 8, 0), np.full((4, 4), np.nan))


def test_where_a_trellis_does_not_pay_books_stay_plain() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 400)).astype(np.float32)
    assert by_trellis((64, 400), 0, rows, Choice(16, "tensor")) is not None
    assert (
        by_trellis((8, 64, 50), 1, rows, Choice(16, "tensor")) is None
    )  # its rows are not columns of a matrix in memory
    assert by_trellis((64, 400), 0, rows, Choice(256, "tensor")) is None
    assert by_trellis((64, 400), 0, rows, Choice(3, "tensor")) is None
    assert by_trellis((64, 400), 0, rows, Choice(16, "channel")) is None
    assert by_trellis((64, 9), 0, rows[:, :9], Choice(16, "tensor")) is None
    assert by_trellis((64, 400), 0, np.where(np.abs(rows) < 0.5, 0, rows), Choice(16, "tensor")) is None


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name)
        for name, shape in (("c", (128, 8, 3, 3)), ("m", (128, 96)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    given = [helper.make_tensor_value_info("x", 1, ["n", 8, 8, 8])]
    made = [helper.make_tensor_value_info("y", 1, ["n", 96])]
    return helper.make_model(
        helper.make_graph(nodes, "g", given, made, weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )


@pytest.mark.parametrize("with_data", [False, True])
def test_the_file_computes_with_the_decoded_weights(with_data: bool, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((24, 8, 8, 8)).astype(np.float32)
    model, path = network(), tmp_path / "small.onnx"
    done = onnxcompress.cluster(
        model, data={"x": x} if with_data else None, bits=4, same=True, share="tensor", trellis=True, smallest=0
    )
    done.save(path)
    again = load(path)
    for name in "cm":
        coded = coded_of(again.initializers[name])
        assert coded is not None and coded.states == trellis.STATES and coded.entries == 16
        tensor = next(each for each in model.graph.initializer if each.name == name)
        tensor.CopyFrom(numpy_helper.from_array(coded.decode(), name))
    plain = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    biased = any(name not in "cm" for name in again.initializers if again.array(name).dtype == np.float32)
    if not biased:
        assert np.array_equal(onnxruntime.InferenceSession(path).run(None, {"x": x})[0], plain)
    assert path.stat().st_size < 128 * (8 * 9 + 96) / 2 + 6000
