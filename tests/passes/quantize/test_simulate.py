"""Simulated kernels against onnxruntime's, and saturation against sums formed pair by pair."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import DataError
from onnxcompress.passes.quantize.grid import Grid
from onnxcompress.passes.quantize.portable import pairing
from onnxcompress.passes.quantize.simulate import Attributes, Operand, row_sums, simulate, sums_of
from onnxcompress.runtime.session import open_session


def grid(scale: float | np.ndarray, zero: int, kind: str, axis: int | None = None) -> Grid:
    low, high = (-128, 127) if kind == "int8" else (0, 255)
    zeros = np.full(np.shape(scale), zero)
    return Grid(np.asarray(scale, np.float32), zeros, kind, axis, low, high)  # type: ignore[arg-type]


def run(nodes: list[onnx.NodeProto], x: np.ndarray, constants: dict[str, np.ndarray], kind: int) -> np.ndarray:
    """onnxruntime on one input called x and one output called y."""
    feed = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    output = helper.make_tensor_value_info("y", kind, None)
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [feed], [output], held)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return open_session(model.SerializeToString()).run({"x": x})["y"]


def distance(
    y: np.ndarray, op: str, attributes: dict, x: Operand, w: Operand, bias: np.ndarray | None, out: Grid
) -> int:
    """Steps between onnxruntime and the nearer of the two arithmetics: which of them it uses is up to the CPU."""
    read = Attributes(attributes)
    both = [simulate(op, read, x, w, bias, out, saturate=saturate) for saturate in (False, True)]
    assert all(one.shape == y.shape for one in both)
    return min(int(np.abs(one - y.astype(int)).max()) for one in both)


QLINEAR = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]


def operands(
    rng: np.random.Generator, x: tuple[int, ...], w: tuple[int, ...], outs: int, axis: int, wide: bool
) -> tuple[Operand, Operand, np.ndarray, Grid]:
    """Levels all over their types (wide: near the ends, so that pairs saturate), a bias, and an output grid that they fill."""
    data = rng.integers(160 if wide else 0, 256, x, dtype=np.uint8)
    weights = rng.choice([-128, -120, 110, 127], w) if wide else rng.integers(-128, 128, w)
    scales = rng.uniform(0.5, 1.5, outs).astype(np.float32) / 256
    spread = 90.0 * np.sqrt(np.prod(w) / outs) * 128 * 0.02 / 256
    out = grid(spread / 64, int(rng.integers(0, 256)), "uint8")
    bias = rng.integers(-9000, 9000, outs).astype(np.int32)
    x_operand = Operand(data, grid(0.02, int(rng.integers(0, 256)), "uint8"))
    return x_operand, Operand(weights.astype(np.int8), grid(scales, 0, "int8", axis)), bias, out


def constants(x: Operand, w: Operand, out: Grid, **more: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "xs": x.grid.scale,
        "xz": np.uint8(x.zero),
        "w": w.levels,
        "ws": w.grid.scale,
        "wz": np.asarray(w.grid.zero, np.int8),
        "ys": out.scale,
        "yz": np.asarray(out.zero, np.uint8),
        **more,
    }


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    rank=st.integers(1, 3),
    groups=st.integers(1, 3),
    per=st.integers(1, 4),
    out_per=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 2),
    wide=st.booleans(),
)
def test_convolutions_are_onnxruntimes_within_one_step(
    seed: int,
    rank: int,
    groups: int,
    per: int,
    out_per: int,
    kernel: int,
    stride: int,
    dilation: int,
    pad: int,
    wide: bool,
) -> None:
    rng = np.random.default_rng(seed)
    sizes = tuple(int(size) for size in rng.integers(5, 8, rank))
    shape = (groups * out_per, per, *(kernel,) * rank)
    pads = [int(p) for p in rng.integers(0, pad + 1, 2 * rank)]
    attributes = {"group": groups, "strides": [stride] * rank, "dilations": [dilation] * rank, "pads": pads}
    x, w, bias, out = operands(rng, (2, groups * per, *sizes), shape, groups * out_per, 0, wide)
    node = helper.make_node("QLinearConv", [*QLINEAR, "b"], ["y"], **attributes)
    y = run([node], x.levels, constants(x, w, out, b=bias), TensorProto.UINT8)
    assert distance(y, "Conv", attributes, x, w, bias, out) <= 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    lead=st.lists(st.integers(1, 3), max_size=2),
    width=st.integers(1, 40),
    outs=st.integers(1, 9),
    wide=st.booleans(),
)
def test_products_are_onnxruntimes_within_one_step(
    seed: int, lead: list[int], width: int, outs: int, wide: bool
) -> None:
    rng = np.random.default_rng(seed)
    x, w, _, out = operands(rng, (*lead, 3, width), (width, outs), outs, 1, wide)
    y = run([helper.make_node("QLinearMatMul", QLINEAR, ["y"])], x.levels, constants(x, w, out), TensorProto.UINT8)
    assert distance(y, "MatMul", {}, x, w, None, out) <= 1


@pytest.mark.parametrize("turned", [0, 1])
def test_gemm_with_bias_is_onnxruntimes_within_one_step(turned: int) -> None:
    rng = np.random.default_rng(turned)
    x, w, bias, out = operands(rng, (4, 30), (5, 30) if turned else (30, 5), 5, 1 - turned, False)
    node = helper.make_node("QGemm", [*QLINEAR[:6], "b", "ys", "yz"], ["y"], domain="com.microsoft", transB=turned)
    y = run([node], x.levels, constants(x, w, out, b=bias), TensorProto.UINT8)
    assert distance(y, "Gemm", {"transB": turned}, x, w, bias, out) <= 1


def test_products_of_activations_broadcast() -> None:
    rng = np.random.default_rng(0)
    x = Operand(rng.integers(0, 256, (2, 1, 3, 6), dtype=np.uint8), grid(0.02, 100, "uint8"))
    w = Operand(rng.integers(0, 256, (1, 4, 6, 5), dtype=np.uint8), grid(0.02, 140, "uint8"))
    out = grid(0.2, 128, "uint8")
    y = run(
        [helper.make_node("QLinearMatMul", QLINEAR, ["y"])], x.levels, {**constants(x, w, out), "wz": np.uint8(140)}, 2
    )
    assert distance(y, "MatMul", {}, x, w, None, out) <= 1
    assert sums_of("MatMul", Attributes({}), x, w).saturated == 0


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_that_is_computed(auto: str) -> None:
    rng = np.random.default_rng(1)
    attributes = {"auto_pad": auto, "strides": [2, 1]}
    x, w, bias, out = operands(rng, (1, 3, 7, 8), (4, 3, 2, 3), 4, 0, False)
    node = helper.make_node("QLinearConv", [*QLINEAR, "b"], ["y"], **attributes)
    y = run([node], x.levels, constants(x, w, out, b=bias), TensorProto.UINT8)
    assert distance(y, "Conv", attributes, x, w, bias, out) <= 1


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 9999),
    rank=st.integers(1, 2),
    groups=st.integers(1, 2),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 2),
    extra=st.integers(0, 1),
)
def test_transposed_convolutions_are_the_float_operator(
    seed: int, rank: int, groups: int, kernel: int, stride: int, dilation: int, pad: int, extra: int
) -> None:
    assume(extra < stride and dilation * (kernel - 1) + 1 > 2 * pad)
    rng = np.random.default_rng(seed)
    x = Operand(rng.integers(0, 256, (2, 2 * groups, *(4, 5)[:rank]), dtype=np.uint8), grid(1.0, 77, "uint8"))
    w = Operand(rng.integers(-128, 128, (2 * groups, 3, *(kernel,) * rank)).astype(np.int8), grid(1.0, 0, "int8"))
    attributes = {
        "group": groups,
        "strides": [stride] * rank,
        "dilations": [dilation] * rank,
        "pads": [pad] * 2 * rank,
        "output_padding": [extra] * rank,
    }
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    y = run([node], x.levels.astype(np.float32) - 77, {"w": w.levels.astype(np.float32)}, TensorProto.FLOAT)
    np.testing.assert_array_equal(simulate("ConvTranspose", Attributes(attributes), x, w), y)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), width=st.integers(1, 9), top=st.integers(1, 255))
def test_saturation_is_that_of_sums_formed_pair_by_pair(seed: int, width: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.integers(0, top + 1, (4, width)), rng.integers(-128, 128, (3, width))
    pairs = pairing("MatMul", (3, width))
    found = row_sums(x, w, pairs)
    products = x[:, None] * w[None]
    exact = np.add.reduceat(products, range(0, width, 2), axis=2)
    clipped = np.clip(exact, -32768, 32767)
    np.testing.assert_array_equal(found.exact, exact.sum(axis=2))
    np.testing.assert_array_equal(found.saturating, clipped.sum(axis=2))
    assert found.saturated == (exact != clipped).sum()
    assert found.pairs == 12 * (width // 2)
    assert (found.db == np.inf) == (found.saturated == 0)


def test_only_unsigned_data_with_signed_weights_saturate() -> None:
    full = np.full((1, 4), 255, np.uint8)
    signed = Operand(np.full((4, 1), 127, np.int8), grid(1.0, 0, "int8"))
    unsigned = Operand(np.full((4, 1), 127, np.uint8), grid(1.0, 0, "uint8"))
    x = Operand(full, grid(1.0, 0, "uint8"))
    assert simulate("MatMul", Attributes({}), x, signed)[0, 0] == 2 * 32767
    assert simulate("MatMul", Attributes({}), x, signed, saturate=False)[0, 0] == 4 * 255 * 127
    assert simulate("MatMul", Attributes({}), x, unsigned)[0, 0] == 4 * 255 * 127
    assert sums_of("MatMul", Attributes({}), x, signed).share == 1.0


def test_an_unknown_operator_is_an_error() -> None:
    x = Operand(np.zeros((1, 1), np.uint8), grid(1.0, 0, "uint8"))
    with pytest.raises(DataError, match="Softmax has no integer sums; known are Conv, "):
        simulate("Softmax", Attributes({}), x, x)
