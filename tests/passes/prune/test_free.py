"""Constant units go without a change of the output; behind zero padding they stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from generate import feeds, models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import CUT_EQUALS_ZEROED, distance
from onnx import numpy_helper, parser
from zoo import ZOO

from onnxcompress.model import Model, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.operators.cost import parameters
from onnxcompress.operators.layer import layers
from onnxcompress.passes import Prune
from onnxcompress.runtime.session import open_session


def _with(name: str, **changes: dict[int, float]) -> onnx.ModelProto:
    """A model of the zoo, some initializers of which have rows set to one number."""
    proto = ZOO[name]()
    for tensor in proto.graph.initializer:
        if tensor.name in changes:
            values = numpy_helper.to_array(tensor).copy()
            for row, number in changes[tensor.name].items():
                values[row] = number
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


def _cut(proto: onnx.ModelProto, tolerance: float = 1e-5) -> tuple[Model, Model, list[dict[str, object]]]:
    """Before, after, and decisions; only what is free goes, and the answers stay."""
    model, prune, inputs = load(proto), Prune(amount=0.0, round_to=1), feeds(proto, 0)
    if not prune.groups(model):
        return model, model, []
    plan = prune.plan(model, {})
    cut = prune.apply(model, plan)
    before = open_session(proto.SerializeToString()).run(inputs)
    assert distance(open_session(to_bytes(finished(cut))).run(inputs), before, before) <= tolerance
    return model, cut, plan.decisions


def _constant(decisions: list[dict[str, object]]) -> dict[str, object]:
    return {str(each["group"]): each["constant"] for each in decisions if "constant" in each}


def test_filters_of_zeros_with_a_bias_are_folded_into_the_next_bias() -> None:
    proto = _with("conv_chain", w2={1: 0.0, 4: 0.0}, b2={1: 0.7, 4: 0.3})
    model, cut, decisions = _cut(proto)
    assert _constant(decisions) == {"w2": [1, 4]}
    assert cut.array("b3").shape == (5,) and not np.allclose(cut.array("b3"), model.array("b3"))


def test_a_constant_behind_zero_padding_stays() -> None:
    _, _, decisions = _cut(_with("conv_chain", w1={1: 0.0}, b1={1: 0.7}))
    assert not decisions


def test_a_unit_that_relu_never_lets_through_goes_behind_padding_too() -> None:
    proto = _with("conv_chain", w1={2: 0.0}, b1={2: -0.5}, w2={3: -0.1}, b2={3: -0.2})
    _, _, decisions = _cut(proto)
    assert _constant(decisions) == {"w1": [2], "w2": [3]}  # w2: what it reads is never below zero


def test_a_scale_of_zero_makes_a_constant() -> None:
    _, _, decisions = _cut(_with("conv_bn", scale2={0: 0.0}, beta2={0: 1.5}))
    assert _constant(decisions) == {"w2": [0]}


def test_a_reader_without_a_bias_gets_one() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
        a = Conv(x, w1, b1)  r = Relu(a)  y = Conv(r, w2) }"""
    proto, rng = parser.parse_model(text), np.random.default_rng(0)
    arrays = {"w1": rng.normal(size=(4, 3, 1, 1)), "b1": rng.normal(size=4), "w2": rng.normal(size=(5, 4, 1, 1))}
    arrays["w1"][3], arrays["b1"][3] = 0, 2.0
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    _, cut, decisions = _cut(proto)
    assert _constant(decisions) == {"w1": [3]}
    assert next(layer for layer in layers(cut) if layer.weight == "w2").bias is not None


def test_units_that_go_different_ways_are_no_duplicates() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,6] x) => (float[N,3] y) {
        h = MatMul(x, w1)  a, b = Split<axis=1>(h, halves)  s = Sigmoid(a)  r = Relu(b)
        c = Concat<axis=1>(s, r)  y = MatMul(c, w2) }"""
    proto, rng = parser.parse_model(text), np.random.default_rng(0)
    w1, w2 = rng.normal(size=(6, 4)), rng.normal(size=(4, 3))
    w1[:, 2] = w1[:, 0]
    arrays = {"w1": w1.astype(np.float32), "w2": w2.astype(np.float32), "halves": np.array([2, 2])}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    assert _cut(proto)[2] == []


def test_constants_are_left_where_axes_are_inexact() -> None:
    proto = _with("conv_chain", w2={1: 0.0}, b2={1: 0.7})
    assert not Prune(amount=0.0, round_to=1, inexact=True).plan(load(proto), {}).decisions


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(proto=models(), seed=st.integers(0, 999), negative=st.booleans())
def test_what_is_free_on_generated_models_changes_nothing(proto: onnx.ModelProto, seed: int, negative: bool) -> None:
    """Some rows of weights, scales and biases become zero (or all of one sign), as training leaves them."""
    rng = np.random.default_rng(seed)
    places = {"Conv": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "BatchNormalization": (1, 2)}
    mutable = {node.input[i] for node in proto.graph.node for i in places.get(node.op_type, ()) if i < len(node.input)}
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name in mutable and values.ndim and rng.random() < 0.7:
            values, gone = values.copy(), rng.random(len(values)) < 0.4
            values[gone] = -np.abs(values[gone]) if negative else 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    # a normalisation of what hardly varies divides by the root of its epsilon: rounding grows three hundredfold
    model, cut, decisions = _cut(proto, tolerance=CUT_EQUALS_ZEROED)
    assert (parameters(cut) < parameters(model)) == bool(decisions)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("float16", "cast_fp16")])
def test_free_cuts_of_the_zoo_change_nothing(name: str) -> None:
    _cut(ZOO[name]())
