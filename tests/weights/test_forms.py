"""Every form of every coded tensor: onnxruntime computes the decoded weights, folds the nodes, and the door reads them back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.model import load
from onnxcompress.model.edit import coded_of, set_coded
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.weights import huffman, levels, pools
from onnxcompress.weights.chains import SMALLEST, decoded
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.forms import FORMS, bytes_of, chosen, write
from onnxcompress.weights.pen import Pen
from onnxcompress.weights.plain import packed, table
from weights.drawn import coded_tensors

IR_VERSION = {"uint4": 10, "uint2": 13}
MOST = {"uint4": 16, "uint2": 4, "packed": 16, "planes": 128, "tunstall": 128}
"""Entries that a form can hold."""


def written(coded: Coded, form: str) -> onnx.ModelProto:
    """y = x + the tensor, which nothing folds into the input."""
    kind = helper.np_dtype_to_tensor_dtype(coded.dtype)
    ports = [helper.make_tensor_value_info(name, kind, coded.shape) for name in "xy"]
    weight = numpy_helper.from_array(np.zeros(coded.shape, coded.dtype), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight])
    opset = [helper.make_opsetid("", FORMS[form].opset)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION.get(form, 8)))
    pen, value = Pen(model.graph), model.graph.initializers["w"]
    made = write(pen, coded, form)
    value.replace_all_uses_with(made)
    model.graph.initializers.pop("w")
    pen.finish()
    return ir.to_proto(model)


def run(model: onnx.ModelProto, coded: Coded) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": np.zeros(coded.shape, coded.dtype)})[0]


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_onnxruntime_computes_the_decoded_values(form: str, data: st.DataObject) -> None:
    coded = data.draw(coded_tensors(most_entries=MOST.get(form, 256)))
    assume(FORMS[form].size(coded) is not None)
    model = written(coded, form)
    onnx.checker.check_model(model)
    assert np.array_equal(run(model, coded), coded.decode())


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_chain_is_read_back(form: str, data: st.DataObject) -> None:
    coded = data.draw(coded_tensors(smallest=4, most_entries=MOST.get(form, 256)))
    assume(FORMS[form].size(coded) is not None and len(coded.symbols) >= 8 * SMALLEST)
    (each,) = decoded(ir.from_proto(written(coded, form)).graph).values()
    assert np.array_equal(each.values, coded.decode())
    if each.coded is not None:
        assert np.array_equal(each.coded.decode(), coded.decode()) and each.coded.form == form
        if coded.groups is not None and coded.groups.max() == len(coded.books) - 1:  # else one is never used
            assert each.coded.entries <= coded.entries, "several books stay several"


@pytest.mark.parametrize("entries", range(1, 257))
def test_a_byte_holds_digits(entries: int) -> None:
    rows = table(entries)
    assert len(rows) <= 256 and rows.dtype == np.uint8
    symbols = np.random.default_rng(entries).integers(0, entries, 50).astype(np.uint8)
    assert np.array_equal(rows[packed(symbols, entries)].reshape(-1)[:50], symbols)


def convolution(
    entries: int, form: str = "auto", scales: bool = True, zeros: float = 0.0, layers: int = 1
) -> tuple[bytes, Coded]:
    """A model with coded weights of 36,864 numbers, as it is saved, and the last of them; zeros vary a little between layers."""
    rng = np.random.default_rng(entries)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64, 8, 8]) for name in ("v0", f"v{layers}")]
    weights = [numpy_helper.from_array(np.full((64, 64, 3, 3), n, np.float32), f"w{n}") for n in range(layers)]
    nodes = [helper.make_node("Conv", [f"v{n}", f"w{n}"], [f"v{n + 1}"], pads=[1] * 4) for n in range(layers)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    clone = model.ir.clone()
    for layer in range(layers):
        symbols = rng.integers(0, entries, 64 * 64 * 9).astype(np.uint8)
        symbols[rng.random(len(symbols)) < zeros + 0.01 * layer * (zeros > 0)] = 0
        book = np.append(0, rng.normal(size=entries - 1)).astype(np.float32)[None, :, None]
        factors = rng.uniform(1, 2, 64).astype(np.float32) if scales else None
        coded = Coded((64, 64, 3, 3), symbols, book, factors, form=form)
        set_coded(clone, f"w{layer}", coded)
    return to_bytes(finished(model.edited(clone))), coded


@pytest.mark.parametrize(
    ("entries", "zeros", "form", "bits"),
    [(2, 0, "packed", 1), (3, 0, "packed", 1.6), (16, 0, "packed", 4), (8, 0, "planes", 3), (200, 0, "bytes", 8),
     (2, 0.7, "tunstall", 0.63), (16, 0.8, "sparse", 1.8)],
)  # fmt: skip
def test_the_smallest_form_is_chosen_and_the_file_is_as_small(
    entries: int, zeros: float, form: str, bits: float
) -> None:
    data, coded = convolution(entries, zeros=zeros)
    model = load(data)
    again = coded_of(model.initializers["w0"])
    assert again is not None and again.form == form and np.array_equal(again.decode(), coded.decode())
    least = bits * coded.size / 8
    size = bytes_of(coded, form)
    assert size is not None and least <= len(data) <= 1.05 * least + 5000  # books, words, tables and nodes
    assert abs(len(data) - size) < 4096  # of the tables that all tensors share, and of the model
    assert to_bytes(finished(model)) == data, "saved again, it is the same file"


@pytest.mark.parametrize(("form", "zeros", "most"), [("auto", 0.8, 1.05), ("huffman", 0, 1.02), ("huffman", 0.5, 1.02)])
def test_tensors_share_a_stream(form: str, zeros: float, most: float) -> None:
    """With all nodes, words and books the file is near the entropy of the symbols."""
    data, _ = convolution(16, form, scales=False, zeros=zeros, layers=9)
    model = load(data)
    found = [coded for value in model.initializers.values() if (coded := coded_of(value)) is not None]
    assert len(found) == 9 and {each.form for each in found} == {"sparse" if form == "auto" else form}
    assert len(data) <= most * sum(each.size * each.entropy() for each in found) / 8 + 6000
    assert to_bytes(finished(model)) == data, "saved again, it is the same file"


def test_a_stream_for_each_density_where_that_is_smaller() -> None:
    rng = np.random.default_rng(0)

    def mask(zeros: float, size: int) -> Coded:
        symbols = np.where(rng.random(size) < zeros, 0, rng.integers(1, 4, size)).astype(np.uint8)
        return Coded((size,), symbols, np.arange(4, dtype=np.float32)[None, :, None])

    large = [mask(zeros, 1 << 18) for zeros in (0.5, 0.95, 0.5, 0.95)]
    assert pools.pools(large, "sparse") == [[0, 2], [1, 3]]
    assert pools.pools([mask(zeros, 2000) for zeros in (0.5, 0.95, 0.5, 0.95)], "sparse") == [[0, 1, 2, 3]]


@given(
    st.lists(st.integers(0, 500), min_size=2, max_size=40).filter(lambda counts: sum(map(bool, counts)) > 1),
    st.integers(0, 99),
)
def test_levels_hold_a_code_of_the_right_length(counts: list[int], seed: int) -> None:
    """Decoded one by one, by the paths of its tree; as long as Huffman's code."""
    symbols = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.uint8)
    code = levels.code_of(np.array(counts))
    assert code is not None
    bits = levels.encode(symbols, code)
    lengths = huffman.lengths_of(np.pad(counts, (0, 256 - len(counts))), levels.LONGEST)
    assert sum(map(len, bits)) == (np.array(counts) * lengths[: len(counts)]).sum()
    paths = {tuple(code.bits[: lengths[symbol], symbol]): symbol for symbol in np.flatnonzero(lengths)}
    for place, symbol in enumerate(symbols[:50]):
        path: tuple[int, ...] = ()
        for level in bits:
            path = (*path, level[place])
            if path in paths:
                break
            place = int((level[:place] == 0).sum()) if not level[place] else len(level) - int(level[: place + 1].sum())
        assert paths[path] == symbol


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if form.opset == 17])
def test_onnxruntime_folds_the_nodes(form: str, tmp_path) -> None:
    data, coded = convolution(8, form, layers=2)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.InferenceSession(data, options)
    folded = onnx.load(tmp_path / "folded.onnx")
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Conv"]
    weights = [numpy_helper.to_array(each) for each in folded.graph.initializer]
    assert len(weights) == 2 and any(np.array_equal(weight, coded.decode()) for weight in weights)


def test_what_cannot_win_stays_dense() -> None:
    coded = Coded((4, 4), np.zeros(16, np.uint8), np.zeros((1, 2, 1), np.float32))
    assert chosen(coded) is None
    assert chosen(replace(coded, form="bytes")) is None


def test_a_chain_that_asks_for_too_much_is_refused() -> None:
    data, _ = convolution(16, "tunstall", zeros=0.8)
    model = onnx.load_from_string(data)
    for each in model.graph.initializer:
        if each.data_type == TensorProto.INT64 and numpy_helper.to_array(each).tolist() == [64 * 64 * 9]:
            each.CopyFrom(numpy_helper.from_array(np.array([1 << 40]), each.name))
    with pytest.raises(ModelError, match="not read"):
        load(model)


@pytest.mark.parametrize("entries", [2, 8, 16])
def test_damaged_symbols_are_one_line(entries: int) -> None:
    data, _ = convolution(entries, "bytes")
    model = onnx.load_from_string(data)
    for each in model.graph.initializer:
        if each.data_type == TensorProto.UINT8 and len(each.dims) == 4:
            each.CopyFrom(numpy_helper.from_array(np.full(tuple(each.dims), 255, np.uint8), each.name))
    with pytest.raises(ModelError, match="cannot be decoded"):
        load(model)


def test_a_graph_output_stays_a_tensor() -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in "xyw"]
    weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    clone = model.ir.clone()
    symbols = np.random.default_rng(0).integers(0, 2, 4096).astype(np.uint8)
    set_coded(clone, "w", Coded((64, 64), symbols, np.array([[[-1], [1]]], np.float32)))
    data = to_bytes(finished(model.edited(clone)))
    assert sorted(load(data).initializers) == ["w"]


@given(st.integers(2, 16), st.sampled_from([0.0, 0.6, 0.9]))
@settings(max_examples=10, deadline=None)
def test_bytes_are_the_same_twice(entries: int, zeros: float) -> None:
    assert convolution(entries, zeros=zeros)[0] == convolution(entries, zeros=zeros)[0]


@pytest.mark.parametrize(("entries", "form", "opset"), [(16, "uint4", 21), (4, "uint2", 25)])
def test_a_type_that_is_asked_for_raises_the_opset(entries: int, form: str, opset: int) -> None:
    data, coded = convolution(entries, form)
    model = onnx.load_from_string(data)
    assert [each.version for each in model.opset_import] == [opset]
    ort.InferenceSession(data)
    found = coded_of(load(data).initializers["w0"])
    assert found is not None and found.form == form and np.array_equal(found.decode(), coded.decode())
