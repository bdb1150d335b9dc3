"""`models()`: an input, blocks, bridges between kinds of tensor, more blocks, a head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from . import any_kind, image, tokens
from .any_kind import linear
from .graph import Flow, Graph, run_blocks

TABLES = (any_kind, image, tokens)
"""The modules that fill BLOCKS."""
VOCABULARY = 7
SIZES = ((4, 4), (8, 8), (8,), (4, 4, 4))
LENGTH = 5

PATHS = (
    ("image",),
    ("vector",),
    ("sequence",),
    ("tokens",),
    ("image", "vector"),
    ("sequence", "vector"),
    ("tokens", "vector"),
    ("image", "sequence"),
    ("image", "sequence", "vector"),
    ("sequence", "image"),
)
"""Kinds of tensor that a model goes through; `tokens` are integers that become a sequence by an embedding."""


def _flatten_dynamic(g: Graph, t: Flow) -> str:
    batch = g.op("Unsqueeze", g.op("Gather", g.op("Shape", t.name), np.array(0)), [0])
    return g.op("Reshape", t.name, g.op("Concat", batch, [-1], axis=0))


def _positions(t: Flow) -> int:
    return t.channels * int(np.prod(t.size))


Bridge = Callable[[Graph, Flow], Flow]
BRIDGES: dict[tuple[str, str], list[Bridge]] = {
    ("image", "vector"): [
        lambda g, t: t.to(g.op("Flatten", g.op("GlobalAveragePool", t.name)), size=(), kind="vector"),
        lambda g, t: t.to(g.op("Flatten", t.name), _positions(t), (), "vector"),
        lambda g, t: t.to(g.op("Reshape", t.name, [-1, _positions(t)]), _positions(t), (), "vector"),
        lambda g, t: t.to(_flatten_dynamic(g, t), _positions(t), (), "vector"),
        lambda g, t: t.to(g.reduce("ReduceMax", t.name, list(range(2, 2 + len(t.size))), 0), size=(), kind="vector"),
    ],
    ("image", "sequence"): [
        lambda g, t: t.to(
            g.op("Transpose", g.op("Reshape", t.name, [0, t.channels, -1]), perm=[0, 2, 1]),
            size=(int(np.prod(t.size)),),
            kind="sequence",
        ),
    ],
    ("sequence", "vector"): [
        lambda g, t: t.to(g.reduce("ReduceMean", t.name, [1], 0), size=(), kind="vector"),
        lambda g, t: t.to(g.op("Gather", t.name, np.array(-1), axis=1), size=(), kind="vector"),
        lambda g, t: t.to(g.op("Flatten", t.name), _positions(t), (), "vector"),
    ],
    ("sequence", "image"): [lambda g, t: t.to(g.op("Transpose", t.name, perm=[0, 2, 1]), kind="image")],
}


def start(g: Graph, kind: str, draw: st.DrawFn) -> tuple[onnx.ValueInfoProto, Flow]:
    """The graph's input and the first tensor; a layer follows, since the input's own channels are fixed."""
    if kind == "tokens":
        source = helper.make_tensor_value_info("x", TensorProto.INT64, ["N", LENGTH])
        channels = draw(st.integers(2, 8))
        table = g.weight(VOCABULARY, channels, fan_in=1)
        return source, Flow(g.op("Gather", table, "x"), "sequence", channels, (LENGTH,))
    size = {"image": draw(st.sampled_from(SIZES)) if kind == "image" else (), "sequence": (LENGTH,), "vector": ()}[kind]
    t = Flow("x", kind, draw(st.integers(2, 4)), size)
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, t.shape)
    return source, linear(g, t, draw(st.integers(2, 8)))


@st.composite
def models(draw: st.DrawFn, most: int = 6) -> onnx.ModelProto:
    """A valid model with one input `x` (batch N), one or two outputs, activations near one, weights from a drawn seed.

    most    blocks for each kind of tensor on the model's path
    """
    g = Graph(draw(st.integers(17, 21)), draw(st.integers(0, 2**16)))
    path = draw(st.sampled_from(PATHS))
    source, t = start(g, path[0], draw)
    t = run_blocks(g, t, draw, most)
    for kind in path[1:]:
        t = draw(st.sampled_from(BRIDGES[t.kind, kind]))(g, t)
        t = linear(g, t, draw(st.integers(2, 8))) if t.channels > any_kind.MOST else t
        t = run_blocks(g, t, draw, most)
    results = [t] if draw(st.integers(0, 7)) == 7 else []
    head = linear(g, t, draw(st.integers(2, 5)))
    if draw(st.booleans()):
        head = head.to(g.op("Softmax", head.name, axis=head.axis))
    return g.model(source, [head, *results])
