"""Whole quantized models in both arithmetics: onnxruntime must be one of the two, whatever the CPU."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.passes.quantize.walked import Simulation, can_saturate, products
from onnxcompress.runtime.session import open_session


def scales_of(outs: int) -> np.ndarray:
    """A scale for each channel of a weight."""
    return np.linspace(0.5, 1.5, outs, dtype=np.float32) / 1000


class Net:
    """A QDQ model under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.held.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], domain: str = "", **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def rounded(self, value: str, scale: float, zero: int) -> str:
        """QuantizeLinear and DequantizeLinear."""
        pair = [self.constant(f"{value}.s", np.float32(scale)), self.constant(f"{value}.z", np.uint8(zero))]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [value, *pair]), *pair])

    def bias(self, levels: np.ndarray, scale: float) -> str:
        """On the grid of `weight` times that of the data, `scale`."""
        name = f"b{len(self.held)}"
        scales = self.constant(f"{name}.s", scales_of(len(levels)) * np.float32(scale))
        return self.node("DequantizeLinear", [self.constant(name, levels.astype(np.int32)), scales], axis=0)

    def weight(self, levels: np.ndarray, axis: int) -> str:
        name, outs = f"w{len(self.held)}", levels.shape[axis]
        scale = self.constant(f"{name}.s", scales_of(outs))
        zero = self.constant(f"{name}.z", np.zeros(outs, np.int8))
        return self.node("DequantizeLinear", [self.constant(name, levels.astype(np.int8)), scale, zero], axis=axis)

    def model(self, output: str, shape: list[int], kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
        feed = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        graph = helper.make_graph(
            self.nodes, "g", [feed], [helper.make_tensor_value_info(output, kind, None)], self.held
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def network(seed: int, top: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """Conv, Relu, grouped Conv, a residual sum, mean, Gemm, all QDQ; weight levels within ±top."""
    rng = np.random.default_rng(seed)

    def levels(*shape: int) -> np.ndarray:
        return rng.choice([-top, -top + 5, top - 9, top], shape, p=[0.1, 0.2, 0.3, 0.4])

    net = Net()
    x = net.rounded("x", 1 / 255, 0)
    bias = net.bias(rng.integers(-50000, 50000, 4), 1 / 255)
    y = net.node("Relu", [net.node("Conv", [x, net.weight(levels(4, 3, 3, 3), 0), bias], pads=[1] * 4)])
    y = net.rounded(y, 0.015 * top / 127, 0)
    z = net.node("Conv", [y, net.weight(levels(4, 2, 3, 3), 0)], group=2, pads=[1] * 4)
    z = net.node("Add", [net.rounded(z, 0.03, 0), y])
    z = net.node("Flatten", [net.node("GlobalAveragePool", [net.rounded(z, 0.03, 0)])])
    z = net.node("Gemm", [net.rounded(z, 0.03, 0), net.weight(levels(5, 4), 0)], transB=1)
    z = net.rounded(z, 0.02, 128)
    return net.model(z, [2, 3, 7, 7]), rng.uniform(0.6, 1, (2, 3, 7, 7)).astype(np.float32)


def both(proto: onnx.ModelProto, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, Simulation]:
    """onnxruntime's output, the exact one and the saturating one, and the saturating Simulation."""
    model, output = ir.from_proto(proto), proto.graph.output[0].name
    real = open_session(proto.SerializeToString()).run({"x": x})[output]
    tight = Simulation(model)
    exact = Simulation(model, saturate=False, every=True).run({"x": x}).outputs[output]
    return real, exact, tight.run({"x": x}).outputs[output], tight


@pytest.mark.parametrize("seed", range(4))
def test_onnxruntime_is_one_of_the_two_arithmetics(seed: int) -> None:
    proto, x = network(seed, 127)
    real, exact, saturating, tight = both(proto, x)
    near = [float(np.abs(real - one).max()) for one in (exact, saturating)]
    assert min(near) <= 0.02 * 1.01  # one step of the output's grid
    assert np.abs(exact - saturating).max() > 0.05  # so that the test could tell them apart
    found = tight.run({"x": x}).saturation
    assert [seen.node for seen in found] == [item.node.name for item in products(tight.model)]
    assert all(seen.share > 0 and np.isfinite(seen.db) for seen in found[:1])


def test_weights_that_fit_are_left_to_onnxruntime() -> None:
    proto, x = network(0, 64)
    real, exact, saturating, tight = both(proto, x)
    assert not tight.simulated and not any(can_saturate(item) for item in products(tight.model))
    assert max(np.abs(real - exact).max(), np.abs(real - saturating).max()) <= 0.02 * 1.01


def test_operators_on_levels_are_read_too() -> None:
    """QLinearConv, QLinearMatMul, QGemm and MatMulInteger in one chain."""
    rng = np.random.default_rng(5)
    net = Net()
    one, zero = net.constant("one", np.float32(1 / 255)), net.constant("zero", np.uint8(0))
    none, weight = net.constant("none", np.int8(0)), net.constant("ws", np.float32(1 / 300))
    wide = {name: net.constant(name, rng.choice([90, 120, 127], shape).astype(np.int8)) for name, shape in
            {"wc": (4, 2, 2), "wm": (6, 5), "wg": (5, 6), "wi": (6, 3)}.items()}  # fmt: skip
    bias = net.constant("b", rng.integers(0, 999, 4).astype(np.int32))
    y = net.node("QuantizeLinear", ["x", one, zero])
    scales = [net.constant(f"s{n}", np.float32(value)) for n, value in enumerate((0.008, 0.02, 0.06))]
    y = net.node("QLinearConv", [y, one, zero, wide["wc"], weight, none, scales[0], zero, bias])
    y = net.node("QLinearMatMul", [y, scales[0], zero, wide["wm"], weight, none, scales[1], zero])
    y = net.node("Reshape", [y, net.constant("to", np.array([-1, 5]))])
    y = net.node("QGemm", [y, scales[1], zero, wide["wg"], weight, none, "", scales[2], zero], domain="com.microsoft")
    y = net.node("MatMulInteger", [y, wide["wi"], zero, none])
    proto = net.model(y, [1, 2, 7], TensorProto.INT32)
    real, exact, saturating, tight = both(proto, rng.uniform(0.7, 1, (1, 2, 7)).astype(np.float32))
    assert [item.op for item in products(tight.model)] == ["Conv", "MatMul", "Gemm", "MatMul"]
    assert len(tight.simulated) == 4 and real.dtype == exact.dtype == np.int32
    assert np.abs(exact - saturating).max() > 3000
    # one step in each of three roundings, times six weights of at most 127
    assert min(np.abs(real - one).max() for one in (exact, saturating)) <= 3 * 6 * 127


def test_a_model_is_cut_where_bodies_read_from_around_them() -> None:
    """An If whose branches read what the simulated node made."""
    proto, x = network(1, 127)
    last = proto.graph.output[0].name
    inner = [helper.make_node("Neg", [last], ["a"]), helper.make_node("Abs", [last], ["b"])]
    branches = [
        helper.make_graph([node], name, [], [helper.make_tensor_value_info(node.output[0], 1, None)])
        for node, name in zip(inner, ("then", "else"), strict=True)
    ]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    proto.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=branches[0], else_branch=branches[1]))
    proto.graph.output[0].name = "z"
    plain, _ = network(1, 127)
    outputs = [Simulation(ir.from_proto(each)).run({"x": x}).outputs for each in (proto, plain)]
    np.testing.assert_array_equal(outputs[0]["z"], -outputs[1][last])
