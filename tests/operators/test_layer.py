"""The layer view: one orientation for every operator's own layout, there and back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from zoo import ZOO

from onnxcompress.model import load
from onnxcompress.operators.cost import cost, macs_by_layer, uncounted
from onnxcompress.operators.layer import layers


def one(graph: str, **weights: tuple[int, ...]):  # type: ignore[no-untyped-def]
    """The first layer of a model written as text, and the model."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {graph}')
    for name, shape in weights.items():
        values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    model = load(proto)
    return layers(model)[0], model


@pytest.mark.parametrize("name", ZOO)
def test_every_view_goes_there_and_back(name: str) -> None:
    model = load(ZOO[name]())
    for layer in layers(model):
        values = model.array(layer.weight)
        matrix = layer.matrix(values)
        assert matrix.size == values.size
        np.testing.assert_array_equal(layer.stored(matrix, values), values)


def test_gemm_and_matmul_are_seen_alike() -> None:
    gemm, model = one("(float[N,5] x) => (float[N,3] y) { y = Gemm<transB=1>(x, w) }", w=(3, 5))
    assert gemm.matrix(model.array("w")).shape == (3, 5)
    product, model = one("(float[N,5] x) => (float[N,3] y) { y = MatMul(x, w) }", w=(5, 3))
    np.testing.assert_array_equal(product.matrix(model.array("w")), model.array("w").T)


def test_the_groups_of_a_transposed_convolution() -> None:
    layer, model = one("(float[N,4,5,5] x) => (float[N,6,7,7] y) { y = ConvTranspose<group=2>(x, w) }", w=(4, 3, 3, 3))
    values = model.array("w")
    matrix = layer.matrix(values)
    assert matrix.shape == (6, 2, 3, 3)
    np.testing.assert_array_equal(matrix[4], values[2:, 1])  # channel 1 of the second group reads its two inputs


def test_multiply_adds_of_a_convolution() -> None:
    _, model = one("(float[N,3,8,8] x) => (float[N,4,6,6] y) { y = Conv(x, w) }", w=(4, 3, 3, 3))
    assert sum(macs_by_layer(model, {"x": (2, 3, 8, 8), "y": (2, 4, 6, 6)}).values()) == 2 * 36 * 4 * 27
    assert cost(model).parameters == 4 * 27 and cost(model).macs is None


def test_what_is_not_counted_is_told() -> None:
    _, model = one(
        "(float[N,4] x, int64 n, bool go) => (float[N,4] y) { k = MatMul(x, w)"
        " y = Loop(n, go, k) <body = b (int64 i, bool c, float[N,4] s) => (bool d, float[N,4] t)"
        " { d = Identity(c)  t = MatMul(s, w) }> }",
        w=(4, 4),
    )
    shapes = {"x": (1, 4), "k": (1, 4), "y": (1, 4)}
    assert uncounted(model, shapes).startswith("multiply-adds are without")
    _, model = one("(float[N,5] x) => (float[N,3] y) { y = MatMul(x, w) }", w=(5, 3))
    assert uncounted(model, {"x": (1, 5), "y": (1, 3)}) == ""
