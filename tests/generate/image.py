"""Blocks for images of one to three dimensions."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from .any_kind import MOST, linear
from .graph import Flow, Graph, block, width


def _flat(t: Flow) -> bool:
    return len(t.size) == 2


def _shrinkable(t: Flow) -> bool:
    return min(t.size) >= 4 and all(entry % 2 == 0 for entry in t.size)


def _growable(t: Flow) -> bool:
    return max(t.size) <= 4


def _doubled(t: Flow) -> tuple[int, ...]:
    return tuple(2 * entry for entry in t.size)


def _halved(t: Flow) -> tuple[int, ...]:
    return tuple(entry // 2 for entry in t.size)


@block("image")
def conv(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    out, dilation, rank = width(draw), draw(st.integers(1, 2)), len(t.size)
    w = g.weight(out, t.channels, *[3] * rank, fan_in=t.channels * 3**rank)
    bias = [g.vector(out)] * draw(st.booleans())
    return t.to(g.op("Conv", t.name, w, *bias, pads=[dilation] * 2 * rank, dilations=[dilation] * rank), out)


@block("image", fits=_shrinkable, keeps=False)
def conv_stride(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    out, rank = width(draw), len(t.size)
    w = g.weight(out, t.channels, *[2] * rank, fan_in=t.channels * 2**rank)
    return t.to(g.op("Conv", t.name, w, g.vector(out), strides=[2] * rank), out, _halved(t))


@block("image", fits=_growable, keeps=False)
def conv_transpose(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    rank, depthwise = len(t.size), draw(st.booleans())
    out, group = (t.channels, t.channels) if depthwise else (width(draw), 1)
    w = g.weight(t.channels, out // group, *[2] * rank, fan_in=t.channels // group)
    return t.to(g.op("ConvTranspose", t.name, w, g.vector(out), strides=[2] * rank, group=group), out, _doubled(t))


@block("image", fits=lambda t: t.channels <= MOST // 2)
def depthwise(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    multiplier, rank = draw(st.integers(1, 2)), len(t.size)
    w = g.weight(multiplier * t.channels, 1, *[3] * rank, fan_in=3**rank)
    bias = [g.vector(len(w))] * draw(st.booleans())
    return t.to(g.op("Conv", t.name, w, *bias, pads=[1] * 2 * rank, group=t.channels), len(w))


@block("image", fits=lambda t: t.channels % 2 == 0)
def grouped(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    group = draw(st.sampled_from([n for n in (2, 3, 4) if t.channels % n == 0 and t.channels > n] or [2]))
    out, rank = group * draw(st.integers(1, 3)), len(t.size)
    w = g.weight(out, t.channels // group, *[1] * rank, fan_in=t.channels // group)
    return t.to(g.op("Conv", t.name, w, g.vector(out), group=group), out)


@block("image", fits=lambda t: t.channels % 2 == 0)
def channel_shuffle(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    rank = len(t.size)
    split = g.op("Reshape", t.name, [-1, 2, t.channels // 2, *t.size])
    swapped = g.op("Transpose", split, perm=[0, 2, 1, *range(3, 3 + rank)])
    return t.to(g.op("Reshape", swapped, [-1, t.channels, *t.size]))


@block("image")
def squeeze_excite(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    if draw(st.booleans()):
        pooled = g.op("GlobalAveragePool", t.name)
    else:
        pooled = g.reduce("ReduceMean", t.name, list(range(2, 2 + len(t.size))))
    s = linear(g, t.to(pooled), draw(st.integers(2, 4)))
    s = linear(g, s.to(g.op("Relu", s.name)), t.channels)
    gate = g.op(draw(st.sampled_from(["Sigmoid", "HardSigmoid"])), s.name)
    return t.to(g.op("Mul", t.name, gate))


@block("image")
def pool_same(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    op_type, rank = draw(st.sampled_from(["MaxPool", "AveragePool"])), len(t.size)
    counted = {"count_include_pad": 1} if op_type == "AveragePool" and draw(st.booleans()) else {}
    return t.to(g.op(op_type, t.name, kernel_shape=[3] * rank, pads=[1] * 2 * rank, **counted))


@block("image", fits=_shrinkable, keeps=False)
def pool_half(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    op_type, rank = draw(st.sampled_from(["MaxPool", "AveragePool"])), len(t.size)
    return t.to(g.op(op_type, t.name, kernel_shape=[2] * rank, strides=[2] * rank), size=_halved(t))


@block("image")
def global_context(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """A pooled vector spread over the image again, by broadcasting, Expand to a computed shape, or Tile."""
    pooled = g.op("GlobalAveragePool", t.name)
    way = draw(st.sampled_from(["broadcast", "expand", "tile"]))
    spread = {
        "broadcast": lambda: pooled,
        "expand": lambda: g.op("Expand", pooled, g.op("Shape", t.name)),
        "tile": lambda: g.op("Tile", pooled, [1, 1, *t.size]),
    }[way]()
    return t.to(g.op("Add", t.name, spread))


@block("image", fits=_growable, keeps=False)
def resize(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """Nearest or linear by scales, or to sizes of which the first two are computed from the input's shape."""
    mode = draw(st.sampled_from(["nearest", "linear"]))
    if draw(st.booleans()):
        scales = np.array([1, 1] + [2] * len(t.size), np.float32)
        return t.to(g.op("Resize", t.name, "", scales, mode=mode), size=_doubled(t))
    start = g.op("Slice", g.op("Shape", t.name), [0], [2])
    sizes = g.op("Concat", start, list(_doubled(t)), axis=0)
    return t.to(g.op("Resize", t.name, "", "", sizes, mode=mode), size=_doubled(t))


@block("image", fits=lambda t: max(t.size) <= 6, keeps=False)
def pad_spatial(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    mode, rank = draw(st.sampled_from(["constant", "edge", "reflect"])), len(t.size)
    pads = [0, 0] + [1] * rank
    return t.to(g.op("Pad", t.name, pads * 2, mode=mode), size=tuple(entry + 2 for entry in t.size))


@block("image", fits=lambda t: _flat(t) and _shrinkable(t) and 4 * t.channels <= MOST, keeps=False)
def space_to_depth(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    return t.to(g.op("SpaceToDepth", t.name, blocksize=2), 4 * t.channels, _halved(t))


@block("image", fits=lambda t: _flat(t) and _growable(t), keeps=False)
def depth_to_space(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    t = linear(g, t, 4 * draw(st.integers(1, 3)))
    mode = draw(st.sampled_from(["DCR", "CRD"]))
    return t.to(g.op("DepthToSpace", t.name, blocksize=2, mode=mode), t.channels // 4, _doubled(t))


@block("image")
def channels_last(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """There and back again; in between a bias and, if drawn, a LayerNormalization over the channels."""
    rank = len(t.size)
    last = g.op("Transpose", t.name, perm=[0, *range(2, 2 + rank), 1])
    last = g.op("Add", last, g.vector(t.channels))
    if draw(st.booleans()):
        last = g.op("LayerNormalization", last, g.scale(t.channels), g.vector(t.channels), axis=-1)
    return t.to(g.op("Transpose", last, perm=[0, 1 + rank, *range(1, 1 + rank)]))


@block("image")
def instance_norm(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    return t.to(g.op("InstanceNormalization", t.name, g.scale(t.channels), g.vector(t.channels)))


@block("image", fits=lambda t: t.channels % 2 == 0)
def group_norm(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """The operator where the opset has it (21), else Reshape, InstanceNormalization, Reshape, Mul, Add."""
    if g.opset >= 21 and draw(st.booleans()):
        return t.to(g.op("GroupNormalization", t.name, g.scale(t.channels), g.vector(t.channels), num_groups=2))
    rows = g.op("Reshape", t.name, [0, 2, -1])
    unit = g.op("InstanceNormalization", rows, np.ones(2, np.float32), np.zeros(2, np.float32))
    back = g.op("Reshape", unit, g.op("Shape", t.name))
    scaled = g.op("Mul", back, t.along(g.scale(t.channels)))
    return t.to(g.op("Add", scaled, t.along(g.vector(t.channels))))


@block("image")
def spatial_gate(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """A map with one channel, made by a convolution, multiplies all channels."""
    gate = linear(g, t, 1)
    return t.to(g.op("Mul", t.name, g.op("Sigmoid", gate.name)))
