"""Fused operators against differences in onnxruntime, whose own kernels run them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxcompress.errors import ModelError
from onnxcompress.training.derivatives import COMPOSED, DERIVATIVES
from tests.training.check import check_row, graph_of, with_gradients

RNG = np.random.default_rng(21)


def normal(*shape: int) -> np.ndarray:
    return 0.7 * RNG.normal(size=shape)


def case(op_type: str, inputs: dict[str, np.ndarray], constants: Any = None, order: str = "", **more: Any) -> Any:
    """`order` names the inputs, `_` one that is left out."""
    domain, _, name = op_type.rpartition(".")
    given = ["" if each == "_" else each for each in order] or [*inputs]
    outputs = more.pop("outputs", ["y"])
    return [helper.make_node(name, given, outputs, name="n", domain=domain, **more)], inputs, constants


QKV = {"x": normal(2, 3, 4), "w": normal(4, 12), "b": normal(12)}
APART = {name: normal(2, 3, 4) for name in "qkv"}
MASK = {"m": np.array([[1, 1, 0], [1, 1, 1]], np.int32)}
SKIP = {"x": normal(2, 3, 4), "s": normal(2, 3, 4), "g": normal(4), "b": normal(4), "t": normal(4)}
CONV = {"x": normal(1, 2, 4, 4), "w": normal(3, 2, 3, 3), "b": normal(3)}
CASES = {
    "com.microsoft.Gelu": case("com.microsoft.Gelu", {"x": normal(3, 4)}),
    "com.microsoft.QuickGelu": case("com.microsoft.QuickGelu", {"x": normal(3, 4)}, alpha=1.5),
    "com.microsoft.FastGelu": case("com.microsoft.FastGelu", {"x": normal(3, 4), "b": normal(4)}),
    "com.microsoft.BiasGelu": case("com.microsoft.BiasGelu", {"x": normal(3, 4), "b": normal(4)}),
    "com.microsoft.FusedConv": case("com.microsoft.FusedConv", CONV, activation="Sigmoid", pads=[1, 1, 1, 1], strides=[2, 1]),
    "com.microsoft.FusedConv, leaky": case(
        "com.microsoft.FusedConv", CONV, activation="LeakyRelu", activation_params=[0.2]
    ),
    "com.microsoft.FusedMatMul": case(
        "com.microsoft.FusedMatMul", {"a": normal(2, 4, 3), "b": normal(2, 5, 4)}, transA=1, transB=1, alpha=0.5
    ),
    "com.microsoft.SkipLayerNormalization": case("com.microsoft.SkipLayerNormalization", SKIP, order="xsgbt", epsilon=1e-5),
    "com.microsoft.SkipSimplifiedLayerNormalization": case(
        "com.microsoft.SkipSimplifiedLayerNormalization", {n: SKIP[n] for n in "xsgt"}, order="xsgt"
    ),
    "SimplifiedLayerNormalization": case("SimplifiedLayerNormalization", {"x": normal(2, 3, 4), "g": normal(4)}, axis=-1),
    "com.microsoft.Attention": case("com.microsoft.Attention", QKV, num_heads=2),
    "com.microsoft.Attention, masked": case("com.microsoft.Attention", QKV, MASK, "xwbm", num_heads=2),
    "com.microsoft.Attention, one way": case("com.microsoft.Attention", QKV, num_heads=2, unidirectional=1),
    "com.microsoft.MultiHeadAttention": case("com.microsoft.MultiHeadAttention", APART | {"b": QKV["b"]}, num_heads=2),
    "com.microsoft.MultiHeadAttention, bias of scores": case(
        "com.microsoft.MultiHeadAttention", APART | {"a": normal(1, 2, 3, 3)}, order="qkv__a", num_heads=2, scale=0.3
    ),
}  # fmt: skip
STANDARD = {
    "heads together": case("Attention", APART, q_num_heads=2, kv_num_heads=2),
    "one way": case("Attention", APART, q_num_heads=2, kv_num_heads=2, is_causal=1),
    "shared keys": case("Attention", APART | {"q": normal(2, 3, 8)}, q_num_heads=4, kv_num_heads=2, scale=0.4),
    "heads apart": case("Attention", {n: normal(1, 2, length, 3) for n, length in (("q", 2), ("k", 4), ("v", 4))}),
    "masked": case(
        "Attention", APART, {"m": np.array([[True, True, False]] * 3)}, "qkvm", q_num_heads=2, kv_num_heads=2
    ),
    "added": case("Attention", APART | {"m": normal(3, 3)}, order="qkvm", q_num_heads=2, kv_num_heads=2),
}


@pytest.mark.parametrize("name", CASES)
def test_fused(name: str) -> None:
    nodes, inputs, constants = CASES[name]
    check_row(nodes, inputs, constants=constants, float64=False)


@pytest.mark.parametrize("name", STANDARD)
def test_attention(name: str) -> None:
    nodes, inputs, constants = STANDARD[name]
    check_row(nodes, inputs, constants=constants, opset=23, float64=False)


def test_every_fused_row_is_tested() -> None:
    known = {name for name in {*DERIVATIVES, *COMPOSED} if name.startswith("com.microsoft.")}
    assert known | {"SimplifiedLayerNormalization"} == {name.split(",")[0] for name in CASES}


def test_the_sum_that_a_norm_was_of_takes_part() -> None:
    nodes, inputs, _ = case("com.microsoft.SkipLayerNormalization", SKIP, order="xsgbt", outputs=["a", "", "", "c"])
    check_row([*nodes, helper.make_node("Mul", ["a", "c"], ["y"])], inputs, float64=False)


def test_one_value_as_query_key_and_value() -> None:
    nodes, _, _ = case("Attention", {}, order="xxx", q_num_heads=2, kv_num_heads=2)
    check_row(nodes, {"x": normal(2, 3, 4)}, opset=23, float64=False)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            case("com.microsoft.Attention", QKV, {"m": np.array([2, 3], np.int32)}, "xwbm", num_heads=2),
            "a mask of shape",
        ),
        (case("com.microsoft.FusedConv", CONV, activation="Softplus"), "activation 'Softplus'"),
    ],
)
def test_what_is_left_out_is_refused(made: Any, said: str) -> None:
    nodes, inputs, constants = made
    inputs = {name: x.astype(np.float32) for name, x in inputs.items()}
    with pytest.raises(ModelError, match=f"{nodes[0].op_type} 'n': .*{said}"):
        with_gradients(graph_of(nodes, inputs, constants or {}, "y"), np.ones(()), ["x"])
