"""Generated chains and branches of linear nodes, with every kind of window, and models for them."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

import numpy as np
import onnx
from generate import Graph
from hypothesis import strategies as st
from onnx import TensorProto, helper

SIZE = 9


def _count(draw: st.DrawFn) -> int:
    return draw(st.sampled_from([1, 2, 3, 4, 6]))


def conv(g: Graph, x: str, channels: int, axes: int, draw: st.DrawFn) -> tuple[str, int]:
    """Any kernel, stride, padding, dilation and number of groups."""
    out = _count(draw)
    group = draw(st.sampled_from([n for n in (1, 2, 3, gcd(channels, out)) if channels % n == 0 and out % n == 0]))
    kernel = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(axes)]
    bias = [g.vector(out)] * draw(st.booleans())
    moving = {
        "strides": [draw(st.sampled_from([1, 1, 1, 2])) for _ in range(axes)],
        "dilations": [draw(st.sampled_from([1, 1, 2])) for _ in range(axes)],
        "pads": [draw(st.sampled_from([0, 0, 1, 2])) for _ in range(2 * axes)]
        if draw(st.booleans())
        else [0] * 2 * axes,
    }
    w = g.weight(out, channels // group, *kernel, fan_in=channels // group * int(np.prod(kernel)))
    return g.op("Conv", x, w, *bias, group=group, **moving), out


def transposed(g: Graph, x: str, channels: int, axes: int, draw: st.DrawFn) -> tuple[str, int]:
    group = draw(st.sampled_from([n for n in (1, 2, channels) if channels % n == 0]))
    out = group * draw(st.integers(1, 3))
    kernel = [draw(st.sampled_from([1, 2, 3])) for _ in range(axes)]
    bias = [g.vector(out)] * draw(st.booleans())
    w = g.weight(channels, out // group, *kernel, fan_in=channels // group)
    stride = draw(st.sampled_from([1, 2]))
    return g.op("ConvTranspose", x, w, *bias, group=group, strides=[stride] * axes), out


def norm(g: Graph, x: str, channels: int, axes: int, draw: st.DrawFn) -> tuple[str, int]:
    shift = g.vector(channels) if draw(st.booleans()) else np.zeros(channels, np.float32)
    mean = np.zeros(channels, np.float32) if draw(st.booleans()) else g.vector(channels)
    return g.op("BatchNormalization", x, g.scale(channels), shift, mean, g.scale(channels)), channels


def affine(g: Graph, x: str, channels: int, axes: int, draw: st.DrawFn) -> tuple[str, int]:
    op = draw(st.sampled_from(["Mul", "Add", "Sub", "Div"]))
    values = g.scale(channels).reshape(-1, *[1] * axes) if draw(st.booleans()) else np.float32(g.scale(1)[0])
    operands = [x, values] if op == "Div" or draw(st.booleans()) else [values, x]
    return g.op(op, *operands), channels


def point(g: Graph, x: str, channels: int, axes: int, draw: st.DrawFn) -> tuple[str, int]:
    out = _count(draw)
    bias = [g.vector(out)] * draw(st.booleans())
    return g.op("Conv", x, g.weight(out, channels, *[1] * axes, fan_in=channels), *bias), out


Make = Callable[[Graph, str, int, int, st.DrawFn], tuple[str, int]]
IMAGE: tuple[Make, ...] = (point, conv, norm, affine, transposed)


def _matrix(g: Graph, x: str, channels: int, rank: int, draw: st.DrawFn) -> tuple[str, int]:
    out = _count(draw)
    if rank == 2 and draw(st.booleans()):
        turned = draw(st.booleans())
        w = g.weight(out, channels, fan_in=channels) if turned else g.weight(channels, out, fan_in=channels)
        return g.op("Gemm", x, w, *[g.vector(out)] * draw(st.booleans()), transB=int(turned)), out
    made = g.op("MatMul", x, g.weight(channels, out, fan_in=channels))
    return (g.op("Add", made, g.vector(out)), out) if draw(st.booleans()) else (made, out)


def _scaled(g: Graph, x: str, channels: int, rank: int, draw: st.DrawFn) -> tuple[str, int]:
    op = draw(st.sampled_from(["Mul", "Add"]))
    return g.op(op, x, g.scale(channels) if draw(st.booleans()) else np.float32(g.scale(1)[0])), channels


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    """Two to five linear nodes in a row, now and then with a Relu between."""
    g, count = Graph(17, draw(st.integers(0, 2**16))), draw(st.integers(2, 5))
    axes = draw(st.sampled_from([0, 1, 2, 2, 3]))
    channels = width = _count(draw)
    x, rank = "x", draw(st.sampled_from([2, 3]))
    for _ in range(count):
        if axes:
            x, channels = draw(st.sampled_from(IMAGE))(g, x, channels, axes, draw)
        else:
            x, channels = draw(st.sampled_from([_matrix, _scaled]))(g, x, channels, rank, draw)
        x = g.op("Relu", x) if draw(st.integers(0, 5)) == 5 else x
    shape = ["N", width, *[SIZE] * axes] if axes else ["N", *[5] * (rank - 2), width]
    return _model(g, shape, x, len(shape))


@st.composite
def forks(draw: st.DrawFn) -> onnx.ModelProto:
    """Branches of one value that meet in Adds: convolutions of several sizes, norms, and the value itself."""
    g, axes = Graph(17, draw(st.integers(0, 2**16))), draw(st.sampled_from([1, 2, 2]))
    channels, stride = draw(st.sampled_from([2, 4])), draw(st.sampled_from([1, 1, 2]))
    group = draw(st.sampled_from([1, 1, 2, channels]))
    start = g.op("Relu", "x")
    ends = []
    for _ in range(draw(st.integers(2, 3))):
        kind = draw(st.sampled_from(["conv", "norm", "same", "low rank"]))
        if kind == "conv" or stride > 1:
            size, dilation = draw(st.sampled_from([1, 3, 3, 5])), draw(st.sampled_from([1, 1, 2]))
            w = g.weight(channels, channels // group, *[size] * axes, fan_in=channels * size**axes)
            moving = {"strides": [stride] * axes, "dilations": [dilation] * axes}
            made = g.op("Conv", start, w, pads=[dilation * (size // 2)] * 2 * axes, group=group, **moving)
            ends.append(norm(g, made, channels, axes, draw)[0] if draw(st.booleans()) else made)
        elif kind == "norm":
            ends.append(norm(g, start, channels, axes, draw)[0])
        elif kind == "low rank":
            down = g.op("Conv", start, g.weight(1, channels, *[1] * axes, fan_in=channels))
            ends.append(g.op("Conv", down, g.weight(channels, 1, *[1] * axes, fan_in=1)))
        else:
            ends.append(start)
    y = ends[0]
    for other in ends[1:]:
        y = g.op("Add", y, other)
    return _model(g, ["N", channels, *[SIZE] * axes], g.op("Relu", y), axes + 2)


def _model(g: Graph, shape: list[str | int], y: str, rank: int) -> onnx.ModelProto:
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info(y, TensorProto.FLOAT, [f"d{axis}" for axis in range(rank)])
    graph = helper.make_graph(g.nodes, "generated", [source], [result], g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)
