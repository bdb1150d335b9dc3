"""Trellis-coded tensors: paths and symbols are each other's inverse; onnxruntime computes what `decode` says; files are read back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.model import load
from onnxcompress.model.edit import coded_of, set_coded
from onnxcompress.model.save import save
from onnxcompress.weights import trellis
from onnxcompress.weights.coded import Coded, recoded
from onnxcompress.weights.forms import chosen
from onnxcompress.weights.trellis import CODES


@settings(max_examples=80, deadline=None)
@given(
    states=st.sampled_from(list(CODES)),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 4)),
    symbols=st.sampled_from([2, 4, 6, 16, 64]),
    seed=st.integers(0, 999),
)
def test_paths_and_symbols_are_inverse(states: int, shape: tuple[int, int, int], symbols: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, symbols, shape).astype(np.uint8)
    levels = trellis.levels_of(drawn, states)
    assert levels.max() < 2 * symbols and np.array_equal(trellis.symbols_of(levels, states), drawn)
    at = trellis.states_of(drawn, states).astype(int)
    assert np.array_equal(trellis.table(states, symbols)[at * symbols + drawn], levels)


def test_what_follows_no_path_is_refused() -> None:
    with pytest.raises(ValueError, match="no path"):
        trellis.symbols_of(np.array([[1], [0]], np.uint8), 8)  # the first state allows even entries alone


@pytest.mark.parametrize("states", CODES)
def test_every_state_allows_two_subsets_and_is_reached_from_two(states: int) -> None:
    subsets = trellis.table(states, 4).reshape(states, 4) % 4
    assert all(len(set(row)) == 2 for row in subsets)
    odd, turned = trellis.rules(states)
    ways = {state: [] for state in range(states)}
    for state in range(states):
        for bit in (0, 1):
            ways[(state << 1 | bit) & (states - 1)].append(2 * (bit ^ turned[state]) + odd[state])
    # paths that meet again differ by two steps of the book there, as those that part do
    assert all(len(set(found)) == 2 and len({each % 2 for each in found}) == 1 for found in ways.values())


def drawn(shape: tuple[int, ...], axis: int, states: int, symbols: int, sharing: str, seed: int = 0) -> Coded:
    rng = np.random.default_rng(seed)
    count = min(3, shape[axis]) if sharing == "groups" else 1
    groups = np.arange(shape[axis]) % count if count > 1 else None
    scales = rng.uniform(0.5, 2, shape[axis]).astype(np.float32) if sharing == "scaled" else None
    books = np.sort(rng.standard_normal((count, 2 * symbols)), axis=1).astype(np.float16).astype(np.float32)
    flat = rng.integers(0, symbols, int(np.prod(shape))).astype(np.uint8)
    return Coded(shape, flat, books[:, :, None], scales, groups, axis, states=states)


@settings(max_examples=40, deadline=None)
@given(
    states=st.sampled_from(list(CODES)),
    case=st.sampled_from(
        [((64, 48), 0), ((64, 48), 1), ((33, 4, 3, 3), 0), ((2, 1500), 0), ((1500, 2), 1), ((1500, 2), 0)]
    ),
    symbols=st.sampled_from([2, 4, 8, 16, 32]),
    sharing=st.sampled_from(["tensor", "scaled", "groups"]),
)
def test_the_file_computes_what_decode_says_and_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    states: int,
    case: tuple[tuple[int, ...], int],
    symbols: int,
    sharing: str,
) -> None:
    coded = drawn(*case, states, symbols, sharing)
    x = ir.val("x", ir.DataType.FLOAT, ir.Shape([]))
    w = ir.val("w", ir.DataType.FLOAT, ir.Shape(coded.shape), const_value=ir.tensor(coded.decode(), name="w"))
    node = ir.node("Add", [x, w], name="add")
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = "y", ir.DataType.FLOAT, ir.Shape(coded.shape)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17}, name="g")
    model = ir.Model(graph, ir_version=9)
    set_coded(model, "w", coded)
    path = tmp_path_factory.mktemp("trellis") / "m.onnx"
    save(load(ir.to_proto(model)).edited(model), path)
    y = onnxruntime.InferenceSession(path).run(None, {"x": np.zeros((), np.float32)})[0]
    assert np.array_equal(y, coded.decode())
    again = coded_of(load(path).initializers["w"])
    if chosen(coded) is not None:
        assert again is not None and again.states == states and np.array_equal(again.symbols, coded.symbols)
        assert np.array_equal(again.decode(), coded.decode())


def test_a_tied_matrix_is_the_transpose() -> None:
    coded = drawn((40, 64), 0, 8, 4, "scaled")
    assert np.array_equal(coded.transposed().decode(), coded.decode().T)


def test_values_that_were_edited_are_coded_without_the_trellis() -> None:
    coded = drawn((40, 64), 0, 8, 4, "tensor")
    values = coded.decode().copy()
    values[:7] = 0
    found = recoded(values, coded)
    assert found is not None and found.states == 1 and np.array_equal(found.decode(), values)
