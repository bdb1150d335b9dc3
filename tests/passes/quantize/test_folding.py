"""Folding: the same function, fewer operators without an integer kernel, the same values by name."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.model.spec import violations
from onnxcompress.operators.layer import layers
from onnxcompress.passes.quantize.folding import folded

from .calibrated import Arrays, feeds_of, model_of, run

rng = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / 3).astype(np.float32)


IMAGE = "float[2,8,6,6] x"
CONV = {"w": normal(6, 8, 3, 3), "b": normal(6)}


def one(op: str, result: str = "float[n,c,h,w] y") -> str:
    return f"agraph ({IMAGE}) => ({result}) {{ y = {op} }}"


FOLDED: dict[str, tuple[str, Arrays, set[str]]] = {
    "norm behind a convolution": (
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Conv(x, w)  y = BatchNormalization(h, g, d, m, v) }}",
        {"w": normal(6, 8, 3, 3), "g": normal(6), "d": normal(6), "m": normal(6), "v": normal(6) ** 2 + 0.1},
        {"Conv"},
    ),
    "scale and shift behind it": (
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Conv(x, w, b)  g = Mul(h, s)  y = Add(g, t) }}",
        {**CONV, "s": normal(6, 1, 1), "t": normal(1)},
        {"Conv"},
    ),
    "norm behind ConvTranspose": (
        f"agraph ({IMAGE}) => (float[n,c,h,w] y)"
        " { h = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)  y = BatchNormalization(h, g, d, m, v) }",
        {"w": normal(8, 6, 3, 3), "g": normal(6), "d": normal(6), "m": normal(6), "v": normal(6) ** 2 + 0.1},
        {"ConvTranspose"},
    ),
    "norm behind Relu": (
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Relu(x)  y = BatchNormalization(h, g, d, m, v) }}",
        {"g": normal(8), "d": normal(8), "m": normal(8), "v": normal(8) ** 2 + 0.1},
        {"Relu", "Conv"},
    ),
    "norm behind MatMul": (
        "agraph (float[3,8] x) => (float[n,o] y) { h = MatMul(x, w)  y = BatchNormalization(h, g, d, m, v) }",
        {"w": normal(8, 5), "g": normal(5), "d": normal(5), "m": normal(5), "v": normal(5) ** 2 + 0.1},
        {"Gemm"},
    ),
    "hard swish in pieces": (
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ t = Add(x, c3)  k = Clip(t, c0, c6)  p = Mul(x, k)  y = Div(p, c6d) }}",
        {"c3": np.float32(3), "c0": np.float32(0), "c6": np.float32(6), "c6d": np.float32(6)},
        {"HardSwish"},
    ),
    "local response": (
        one("LRN<size=5, alpha=0.5, beta=0.75, bias=2.0>(x)"),
        {},
        {"Mul", "Pad", "Slice", "Sum", "Sqrt", "Div"},
    ),
    "local response of a power that roots do not give": (one("LRN<size=3, beta=0.6>(x)"), {}, {"LRN"}),
    "a sum of two": (
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Relu(x)  y = Sum(x, h) }}",
        {},
        {"Relu", "Add"},
    ),
    "mean over positions": (
        one("ReduceMean<axes=[2,3], keepdims=0>(x)", "float[n,c] y"),
        {},
        {"GlobalAveragePool", "Squeeze"},
    ),
    "kernel as wide as the stride": (
        one("ConvTranspose<strides=[2,2]>(x, w, b)"),
        {"w": normal(8, 3, 2, 2), "b": normal(3)},
        {"Conv", "DepthToSpace"},
    ),
    "difference and quotient": (
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Sub(x, a)  y = Div(h, b) }}",
        {"a": normal(8, 1, 1), "b": normal(8, 1, 1) + 2},
        {"Add", "Mul"},
    ),
    "a shift that differs by position stays": (
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Conv(x, w)  y = Add(h, t) }}",
        {"w": normal(6, 8, 3, 3), "t": normal(4, 4)},
        {"Conv", "Add"},
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folding_is_the_same_function(name: str) -> None:
    text, constants, left = FOLDED[name]
    model = model_of(text, constants)
    same = folded(model)
    assert {node.op_type for node in same.ir.graph} == left
    assert not violations(same)
    assert same.ir.graph.outputs[0].name == "y"
    feed = feeds_of(model)[0]
    wanted, got = run(model, feed)["y"], run(same, feed)["y"]
    assert np.abs(wanted - got).max() <= 1e-5 * max(np.abs(wanted).max(), 1)
    assert folded(same).serialized == same.serialized


def test_weights_in_pieces_inside_a_body() -> None:
    """A recurrent weight that a body joins and lifts by an axis is a weight after folding."""
    model = model_of(
        "agraph (bool c, float[5,2,16] x) => (float[5,1,2,12] y)"
        " { y = If (c) <then_branch = t () => (float[5,1,2,12] p)"
        " { j = Concat<axis=0>(w1, w2)  u = Unsqueeze(j, a)  v = Unsqueeze(r, a)  p = LSTM<hidden_size=12>(x, u, v) },"
        " else_branch = e () => (float[5,1,2,12] q) { q = LSTM<hidden_size=12>(x, w3, v3) }> }",
        {
            **{"w1": normal(24, 16), "w2": normal(24, 16), "r": normal(48, 12), "a": np.array([0])},
            **{"w3": normal(1, 48, 16), "v3": normal(1, 48, 12)},
        },
    )
    same = folded(model)
    assert len(layers(model)) == 2 and len(layers(same)) == 4
    assert not violations(same)
    for feed in feeds_of(model):
        assert np.array_equal(run(model, feed)["y"], run(same, feed)["y"])


def test_folding_leaves_a_shared_weight_to_the_other() -> None:
    """Two readers of a weight, a norm behind one of them."""
    model = model_of(
        f"agraph ({IMAGE}) => (float[n,c,h,w] y, float[n,c,h,w] z)"
        " { h = Conv(x, w)  y = BatchNormalization(h, g, d, m, v)  z = Conv(x, w) }",
        {**FOLDED["norm behind a convolution"][1]},
    )
    feed = feeds_of(model)[0]
    wanted, got = run(model, feed), run(folded(model), feed)
    assert all(np.abs(wanted[name] - got[name]).max() <= 1e-5 for name in wanted)
