"""Blocks for images, sequences and vectors alike: everything that only needs to know which axis is the channels'."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from .graph import Flow, Graph, Operand, block, run_blocks, width

KINDS = ("image", "sequence", "vector")
MOST = 16
"""Channels: joins beyond it are skipped, so that a run takes milliseconds."""


def _hardswish(g: Graph, t: Flow) -> str:
    gate = g.op("Clip", g.op("Add", t.name, 3.0), 0.0, 6.0)
    return g.op("Div", g.op("Mul", t.name, gate), 6.0)


def _gelu(g: Graph, t: Flow) -> str:
    gate = g.op("Add", g.op("Erf", g.op("Div", t.name, 2**0.5)), 1.0)
    return g.op("Mul", g.op("Mul", t.name, gate), 0.5)


ACTIVATIONS: dict[str, Callable[[Graph, Flow], str]] = {
    **{
        name: lambda g, t, name=name: g.op(name, t.name)  # type: ignore[misc]
        for name in ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Elu", "Selu", "Softplus")
    },
    "Clip": lambda g, t: g.op("Clip", t.name, 0.0, 6.0),
    "PRelu": lambda g, t: g.op("PRelu", t.name, t.along(g.scale(t.channels) - np.float32(0.5))),
    "SiLU": lambda g, t: g.op("Mul", t.name, g.op("Sigmoid", t.name)),
    "Mish": lambda g, t: g.op("Mul", g.op("Tanh", g.op("Softplus", t.name)), t.name),
    "hardswish": _hardswish,
    "gelu": _gelu,
}


def linear(g: Graph, t: Flow, channels: int, bias: bool = True) -> Flow:
    """A layer over the channels that keeps the size: 1x1 convolution, MatMul + Add, or Gemm."""
    if t.kind == "image":
        w = g.weight(channels, t.channels, *[1] * len(t.size), fan_in=t.channels)
        return t.to(g.op("Conv", t.name, w, *[g.vector(channels)] * bias), channels)
    w = g.weight(t.channels, channels, fan_in=t.channels)
    if t.kind == "vector":
        return t.to(g.op("Gemm", t.name, np.ascontiguousarray(w.T), *[g.vector(channels)] * bias, transB=1), channels)
    y = g.op("MatMul", t.name, w)
    return t.to(g.op("Add", y, g.vector(channels)) if bias else y, channels)


@block(*KINDS)
def layer(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    return linear(g, t, width(draw), draw(st.booleans()))


@block(*KINDS)
def activation(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    return t.to(ACTIVATIONS[draw(st.sampled_from(list(ACTIVATIONS)))](g, t))


@block("image", "vector")
def batch_norm(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    c = t.channels
    return t.to(g.op("BatchNormalization", t.name, g.scale(c), g.vector(c), g.vector(c), g.scale(c)))


@block(*KINDS)
def channel_constants(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """An elementwise operator with one constant a channel, on either side."""
    op_type = draw(st.sampled_from(["Mul", "Add", "Sub", "Div", "Max", "Min"]))
    operands: list[Operand] = [t.name, t.along(g.scale(t.channels))]
    if op_type != "Div" and draw(st.booleans()):
        operands.reverse()
    return t.to(g.op(op_type, *operands))


@block(*KINDS)
def where_mask(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    mask = t.along(g.rng.random(t.channels) < 0.6)
    return t.to(g.op("Where", mask, t.name, g.op("Tanh", t.name)))


@block(*KINDS)
def wasteful_layer(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """A layer with a zero unit, a duplicate and a constant one, then Relu."""
    t = linear(g, t, draw(st.integers(4, 10)))
    matrix, bias = (tensor for tensor in g.initializers[-2:])
    rows, shift = _array(matrix), _array(bias)
    units = np.moveaxis(rows, 0 if t.kind != "sequence" else 1, 0)
    units[0], shift[0] = 0.0, 0.0
    units[2], shift[2] = units[1], shift[1]
    units[3] = 0.0
    for tensor, array in ((matrix, rows), (bias, shift)):
        tensor.raw_data = array.tobytes()
    return t.to(g.op("Relu", t.name))


def _array(tensor: object) -> np.ndarray:
    return np.frombuffer(tensor.raw_data, np.float32).reshape(tensor.dims).copy()  # type: ignore[attr-defined]


@block(*KINDS, inner=False)
def residual(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """x + branch(x), with a projection at the branch's end, on the skip, or on both."""
    branch = run_blocks(g, t, draw, 3, inside=True)
    if draw(st.booleans()):
        skip = linear(g, t, width(draw), bias=False)
        branch = linear(g, branch, skip.channels)
    else:
        skip, branch = t, linear(g, branch, t.channels)
    return skip.to(g.op(draw(st.sampled_from(["Add", "Sub"])), branch.name, skip.name))


@block(*KINDS, inner=False)
def concat_branches(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """Two or three branches end to end; the first may be the input itself."""
    parts = [t] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(2 - len(parts), 2))):
        branch = run_blocks(g, t, draw, 2, inside=True)
        if sum(part.channels for part in parts) + branch.channels <= MOST:
            parts.append(branch)
    parts = parts or [t]
    joined = g.op(
        "Concat",
        *[part.name for part in parts],
        axis=draw(st.sampled_from([t.axis, -1 - len(t.size)])) if t.kind == "image" else t.axis,
    )
    return t.to(joined, sum(part.channels for part in parts))


@block(*KINDS, inner=False)
def gated(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """branch(x) * sigmoid(branch'(x))."""
    value, gate = linear(g, t, width(draw)), run_blocks(g, t, draw, 2, inside=True)
    gate = linear(g, gate, value.channels)
    return value.to(g.op("Mul", value.name, g.op("Sigmoid", gate.name)))


@block(*KINDS, fits=lambda t: t.channels >= 3)
def split_join(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """Split in two; one part is transformed; joined in swapped order."""
    first = draw(st.integers(1, t.channels - 1))
    a, b = g.ops(2, "Split", t.name, [first, t.channels - first], axis=t.axis)
    return t.to(g.op("Concat", g.op("Sigmoid", b), g.op("Relu", a), axis=t.axis))


@block(*KINDS, fits=lambda t: t.channels % 2 == 0 and t.channels >= 4)
def glu(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """Half of the channels gates the other half."""
    half = t.channels // 2
    a, b = g.ops(2, "Split", t.name, [half, half], axis=t.axis)
    return t.to(g.op("Mul", a, g.op("Sigmoid", b)), half)


@block(*KINDS, fits=lambda t: t.channels >= 4)
def slice_channels(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    start = draw(st.integers(0, t.channels - 3))
    step = draw(st.integers(1, 2))
    kept = len(range(start, t.channels, step))
    return t.to(g.op("Slice", t.name, [start], [2**31 - 1], [t.axis], [step]), kept)


@block(*KINDS)
def gather_channels(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """A constant permutation, or a choice with repeats."""
    order = g.rng.permutation(t.channels)
    if draw(st.booleans()):
        order = g.rng.integers(0, t.channels, t.channels)
    return t.to(g.op("Gather", t.name, order.tolist(), axis=t.axis))


@block(*KINDS, fits=lambda t: t.channels <= 6)
def tile_channels(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    repeats = [1] * len(t.shape)
    repeats[t.axis] = 2
    return t.to(g.op("Tile", t.name, repeats), 2 * t.channels)


@block(*KINDS)
def pad_channels(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    pads = np.zeros((2, len(t.shape)), np.int64)
    pads[:, t.axis] = before, after
    return t.to(g.op("Pad", t.name, pads.ravel().tolist()), t.channels + before + after)


@block(*KINDS)
def softmax_channels(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    return t.to(g.op("Mul", t.name, g.op("Softmax", t.name, axis=t.axis)))


@block(*KINDS)
def reduce_channels(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """Minus the mean, the largest or a share of the sum over the channels."""
    op_type = draw(st.sampled_from(["ReduceMean", "ReduceMax", "ReduceSum"]))
    if op_type == "ReduceSum":
        reduced = g.op("Mul", g.op("ReduceSum", t.name, [t.axis]), 0.1)
    else:
        reduced = g.reduce(op_type, t.name, [t.axis])
    return t.to(g.op("Sub", t.name, reduced))


@block(*KINDS, fits=lambda t: t.channels % 2 == 0)
def maxout(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """The larger of each two neighbouring channels, by Reshape and ReduceMax."""
    half, axis = t.channels // 2, t.axis
    shape = [-1, *t.shape[1:axis], half, 2, *t.shape[axis + 1 :]]
    pairs = g.op("Reshape", t.name, [int(entry) for entry in shape])
    return t.to(g.reduce("ReduceMax", pairs, [axis + 1], keepdims=0), half)
