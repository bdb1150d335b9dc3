"""Blocks for sequences and vectors: normalizations, attention, feed-forward, recurrence."""

from __future__ import annotations

from hypothesis import strategies as st

from .any_kind import ACTIVATIONS, linear
from .graph import Flow, Graph, block, width


@block("sequence", "vector")
def layer_norm(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """As an operator, or as ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add."""
    scale, shift = g.scale(t.channels), g.vector(t.channels)
    if draw(st.booleans()):
        return t.to(g.op("LayerNormalization", t.name, scale, shift, axis=-1))
    centred = g.op("Sub", t.name, g.reduce("ReduceMean", t.name, [-1]))
    variance = g.reduce("ReduceMean", g.op("Pow", centred, 2.0), [-1])
    unit = g.op("Div", centred, g.op("Sqrt", g.op("Add", variance, 1e-3)))
    return t.to(g.op("Add", g.op("Mul", unit, scale), shift))


@block("sequence", "vector")
def rms_norm(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    power = g.reduce("ReduceMean", g.op("Mul", t.name, t.name), [-1])
    unit = g.op("Div", t.name, g.op("Sqrt", g.op("Add", power, 1e-3)))
    return t.to(g.op("Mul", g.scale(t.channels), unit))


@block("sequence", "vector")
def feed_forward(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """x + W2 act(W1 x), or the gated form with one fused projection that is split."""
    hidden = width(draw)
    if draw(st.booleans()):
        h = linear(g, t, 2 * hidden)
        a, b = g.ops(2, "Split", h.name, [hidden, hidden], axis=-1)
        h = h.to(g.op("Mul", g.op("Mul", a, g.op("Sigmoid", a)), b), hidden)
    else:
        h = linear(g, t, hidden)
        h = h.to(ACTIVATIONS[draw(st.sampled_from(["Relu", "gelu"]))](g, h))
    return t.to(g.op("Add", t.name, linear(g, h, t.channels).name))


@block("sequence")
def position_embedding(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    return t.to(g.op("Add", t.name, g.weight(*t.size, t.channels, fan_in=10)))


@block("sequence", "vector")
def tied_projection(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """One initializer read twice: x W, then back through its transpose."""
    w = g.weight(t.channels, width(draw), fan_in=t.channels)
    name = g.op("Identity", w)
    h = g.op("Tanh", g.op("MatMul", t.name, name))
    return t.to(g.op("MatMul", h, g.op("Transpose", name, perm=[1, 0])))


@block("sequence")
def conv_tokens(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    out = width(draw)
    w = g.weight(out, t.channels, 3, fan_in=3 * t.channels)
    y = g.op("Conv", g.op("Transpose", t.name, perm=[0, 2, 1]), w, g.vector(out), pads=[1, 1])
    return t.to(g.op("Transpose", y, perm=[0, 2, 1]), out)


@block("sequence")
def einsum_layer(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    out = width(draw)
    w = g.weight(out, t.channels, fan_in=t.channels)
    return t.to(g.op("Einsum", t.name, w, equation="bli,oi->blo"), out)


def _projections(g: Graph, t: Flow, heads: int, dim: int, draw: st.DrawFn) -> list[str]:
    """q, k, v as [N, heads, L, dim]: three layers, or one whose result is taken apart in one of three ways."""
    (length,), inner = t.size, heads * dim
    way = draw(st.sampled_from(["separate", "dynamic", "last", "gather", "split"]))
    if way in ("gather", "split"):
        fused = g.op("Reshape", linear(g, t, 3 * inner).name, [-1, length, 3, heads, dim])
        turned = g.op("Transpose", fused, perm=[2, 0, 3, 1, 4])
        if way == "gather":
            return [g.op("Gather", turned, g.op("Squeeze", [i], [0]), axis=0) for i in range(3)]
        return [g.op("Squeeze", part, [0]) for part in g.ops(3, "Split", turned, [1, 1, 1], axis=0)]
    if way == "last":
        parts = g.ops(3, "Split", linear(g, t, 3 * inner).name, [inner] * 3, axis=2)
    else:
        parts = [linear(g, t, inner).name for _ in range(3)]
    return [g.op("Transpose", _heads(g, part, heads, dim, way), perm=[0, 2, 1, 3]) for part in parts]


def _heads(g: Graph, x: str, heads: int, dim: int, way: str) -> str:
    """[N, L, heads dim] -> [N, L, heads, dim], by constants or by a chain that reads N and L from the shape."""
    if way != "dynamic":
        return g.op("Reshape", x, [0, 0, heads, dim])
    start = g.op("Slice", g.op("Shape", x), [0], [2])
    return g.op("Reshape", x, g.op("Concat", start, [heads], [dim], axis=0))


@block("sequence")
def attention(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """x + W softmax(q kᵀ / √dim) v, with one to three heads."""
    heads, dim = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    q, k, v = _projections(g, t, heads, dim, draw)
    scores = g.op("Mul", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), dim**-0.5)
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    merged = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, heads * dim])
    out = linear(g, t.to(merged, heads * dim), t.channels)
    return t.to(g.op("Add", t.name, out.name))


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@block("sequence")
def recurrent(g: Graph, t: Flow, draw: st.DrawFn) -> Flow:
    """LSTM, GRU or RNN in one or two directions, over [L, N, channels]."""
    op_type = draw(st.sampled_from(list(GATES)))
    hidden, two = draw(st.integers(2, 5)), draw(st.booleans())
    rows, ways = GATES[op_type] * hidden, 1 + two
    y = g.op(
        op_type,
        g.op("Transpose", t.name, perm=[1, 0, 2]),
        g.weight(ways, rows, t.channels, fan_in=t.channels),
        g.weight(ways, rows, hidden, fan_in=hidden),
        g.weight(ways, 2 * rows, fan_in=10),
        hidden_size=hidden,
        direction="bidirectional" if two else "forward",
        **_reset(op_type),
    )
    if not two:
        return t.to(g.op("Transpose", g.op("Squeeze", y, [1]), perm=[1, 0, 2]), hidden)
    turned = g.op("Transpose", y, perm=[2, 0, 1, 3])
    return t.to(g.op("Reshape", turned, [0, 0, 2 * hidden]), 2 * hidden)


def _reset(op_type: str) -> dict[str, int]:
    """PyTorch's GRU applies the reset gate after the product; exporters say so."""
    return {"linear_before_reset": 1} if op_type == "GRU" else {}
