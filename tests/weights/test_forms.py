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
from onnxcompress.weights.chains import SMALLEST, decoded
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.forms import FORMS, bytes_of, chosen, write
from onnxcompress.weights.pen import Pen
from onnxcompress.weights.plain import packed, table
from weights.drawn import coded_tensors

IR_VERSION = {"uint4": 10, "uint2": 13}
MOST = {"uint4": 16, "uint2": 4, "packed": 16, "planes": 128, "tunstall": 128, "sparse": 128}
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


def convolution(entries: int, form: str = "auto", scales: bool = True, zeros: float = 0.0) -> tuple[bytes, Coded]:
    """A model with one coded weight of 36,864 numbers, as it is saved."""
    rng = np.random.default_rng(entries)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64, 8, 8]) for name in "xy"]
    weight = numpy_helper.from_array(np.zeros((64, 64, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    symbols = rng.integers(0, entries, 64 * 64 * 9).astype(np.uint8)
    symbols[rng.random(len(symbols)) < zeros] = 0
    book = np.append(0, rng.normal(size=entries - 1)).astype(np.float32)[None, :, None]
    coded = Coded(
        (64, 64, 3, 3), symbols, book, rng.uniform(1, 2, 64).astype(np.float32) if scales else None, form=form
    )
    clone = model.ir.clone()
    set_coded(clone, "w", coded)
    return to_bytes(finished(model.edited(clone))), coded


@pytest.mark.parametrize(
    ("entries", "zeros", "form", "bits"),
    [(2, 0, "packed", 1), (3, 0, "packed", 1.6), (16, 0, "packed", 4), (8, 0, "planes", 3), (200, 0, "bytes", 8),
     (2, 0.7, "tunstall", 0.63), (16, 0.8, "sparse", 1.55)],
)  # fmt: skip
def test_the_smallest_form_is_chosen_and_the_file_is_as_small(
    entries: int, zeros: float, form: str, bits: float
) -> None:
    data, coded = convolution(entries, zeros=zeros)
    model = load(data)
    again = coded_of(model.initializers["w"])
    assert again is not None and again.form == form and np.array_equal(again.decode(), coded.decode())
    least = bits * coded.size / 8
    size = bytes_of(coded, form)
    assert size is not None and least <= len(data) <= 1.05 * least + 5000  # books, words, tables and nodes
    assert abs(len(data) - size) < 4096  # of the tables that all tensors share, and of the model
    assert to_bytes(finished(model)) == data, "saved again, it is the same file"


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if form.opset == 17])
def test_onnxruntime_folds_the_nodes(form: str, tmp_path) -> None:
    data, coded = convolution(8, form)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.InferenceSession(data, options)
    folded = onnx.load(tmp_path / "folded.onnx")
    assert [node.op_type for node in folded.graph.node] == ["Conv"]
    (weight,) = (numpy_helper.to_array(each) for each in folded.graph.initializer)
    assert np.array_equal(weight, coded.decode())


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
    found = coded_of(load(data).initializers["w"])
    assert found is not None and found.form == form and np.array_equal(found.decode(), coded.decode())
