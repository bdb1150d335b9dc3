"""The table of operators: which grids go together, which ranges count, and what is refused with which words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.model import Model
from onnxcompress.model.edit import set_constant, walk
from onnxcompress.operators.layer import layers
from onnxcompress.passes.quantize.grid import grid_of
from onnxcompress.passes.quantize.ranges import COARSER, holding
from onnxcompress.passes.quantize.rows import ROWS, refusal, row_of, weight_axis
from onnxcompress.passes.quantize.shares import NEAR, Share, affine, ramp, shares
from onnxcompress.passes.quantize.write import WRITERS

from .calibrated import model_of


def ones(*shape: int) -> np.ndarray:
    return np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape) / 10


def all_shares(model: Model) -> list[Share]:
    graph = model.ir.graph
    return shares(model, {node.name or "" for node in graph if not refusal(node, {graph})})


def test_every_form_has_a_writer_and_every_row_a_reason() -> None:
    assert {row.form for row in ROWS.values()} == {*WRITERS, "float"}
    assert all(row.why for row in ROWS.values())


def test_clips_and_moves_share_and_the_clipped_range_counts() -> None:
    model = model_of(
        "agraph (float[1,4,6,6] x) => (float[n,c,h,w] y)"
        " { h = Conv(x, w)  r = Relu(h)  p = MaxPool<kernel_shape=[2,2]>(r)  y = Add(p, p) }",
        {"w": ones(4, 4, 3, 3)},
    )
    found = {share.values: share.ranges for share in all_shares(model)}
    assert found == {("x",): ("x",), ("h", "r", "p"): ("r",), ("y",): ("y",)}


def test_a_value_that_others_read_before_the_clip_counts_whole() -> None:
    model = model_of(
        "agraph (float[1,4,6,6] x) => (float[n,c,h,w] y) { h = Conv(x, w)  r = Relu(h)  y = Mul(h, r) }",
        {"w": ones(4, 4, 3, 3)},
    )
    assert Share(("h", "r"), ("h",)) in all_shares(model)


def test_fixed_ranges_go_with_what_moves_them() -> None:
    model = model_of(
        "agraph (float[1,4,6] x) => (float[n,c,l] y) { s = Sigmoid(x)  t = Transpose<perm=[0,2,1]>(s)  y = MatMul(x, t) }"
    )
    share = next(share for share in all_shares(model) if "s" in share.values)
    assert share.values == ("s", "t") and share.fixed == (0.0, 255 / 256)


def test_the_grid_of_hard_sigmoid_is_made_from_its_input() -> None:
    model = model_of("agraph (float[1,4] x) => (float[n,c] y) { h = HardSigmoid(x)  y = Mul(x, h) }")
    share = next(share for share in all_shares(model) if "h" in share.values)
    assert share.of == next(node.name for node in model.ir.graph if node.op_type == "HardSigmoid")


def test_numbers_added_and_multiplied_take_no_grid_of_their_own() -> None:
    """The grid of HardSwish holds what the Add makes zero of, in its own units; negative factors are computed."""
    model = model_of(
        "agraph (float[1,4,6,6] x) => (float[n,c,h,w] y, float[n,c,h,w] z)"
        " { h = Conv(x, w)  s = HardSwish(h)  m = Mul(s, a)  y = Add(b, m)  z = Mul(y, minus) }",
        {"w": ones(4, 4, 3, 3), "a": np.float32(0.5), "b": np.float32(-0.1), "minus": np.float32(-1)},
    )
    found = {share.values: share for share in all_shares(model)}
    forms = {node.outputs[0].name: row_of(node).form for node in model.ir.graph}
    assert forms == {"h": "product", "s": "ramp", "m": "affine", "y": "affine", "z": "computes"}
    assert found[("s",)].holds == pytest.approx(0.2)
    assert found[("h",)].limits == (-3.0, np.inf) and found[("h",)].holds is None
    of = {node.name: node.outputs[0].name for node in model.ir.graph}
    assert {values: of.get(share.of) for values, share in found.items() if share.of} == {("m",): "m", ("y",): "y"}


def test_a_number_that_widens_the_shape_is_no_number() -> None:
    model = model_of("agraph (float[4] x) => (float[1,4] y) { y = Add(x, b) }", {"b": ones(1, 1)})
    (node,) = [node for node in model.ir.graph if node.op_type == "Add"]
    assert row_of(node).form == "computes"


def test_the_limits_of_what_others_read_too_do_not_count() -> None:
    model = model_of(
        "agraph (float[1,4,6,6] x) => (float[n,c,h,w] y) { h = Conv(x, w)  s = HardSigmoid(h)  y = Mul(h, s) }",
        {"w": ones(4, 4, 3, 3)},
    )
    assert all(share.limits == (-np.inf, np.inf) for share in all_shares(model))


LINE = model_of(
    "agraph (float[4] x) => (float[n] y) { m = Mul(x, a)  y = Add(m, b) }", {"a": np.float32(2), "b": np.float32(1)}
)


@given(low=st.floats(-5, 0), high=st.floats(0.1, 20), number=st.floats(-3, 3), factor=st.floats(0.01, 4))
def test_levels_reread_are_the_sum(low: float, high: float, number: float, factor: float) -> None:
    """a·x + b of every level, within NEAR of a step; the grid that was made to hold -b/a is COARSER at most."""
    graph = LINE.ir.clone()
    set_constant(graph, "a", np.float32(factor))
    set_constant(graph, "b", np.float32(number))
    times, plus = graph.graph
    first = grid_of(low, high, "uint8", symmetric=False)
    grid = holding(first, -float(np.float32(number)) / float(np.float32(factor)), NEAR)
    assert float(grid.scale) <= (COARSER + 1e-3) * float(first.scale)
    scaled = affine(times, grid)
    assert scaled is not None
    moved = affine(plus, scaled)
    if moved is not None:
        levels = np.arange(256)
        wanted = factor * grid.values(levels).astype(np.float64) + number
        assert np.abs(moved.values(levels) - wanted).max() <= (NEAR + 1e-2) * float(moved.scale)


def test_the_sum_behind_a_matmul_is_its_bias() -> None:
    """The product itself has no grid, nor has the constant."""
    model = model_of(
        "agraph (float[2,3,16] x) => (float[n,m,o] y) { h = MatMul(x, w)  y = Add(h, b) }",
        {"w": ones(16, 5), "b": ones(5)},
    )
    assert [share.values for share in all_shares(model)] == [("x",), ("y",)]


REFUSED = {
    "computed weight": (
        "agraph (float[1,4,6,6] x, float[4,4,3,3] w) => (float[n,c,h,w] y) { y = Conv(x, w) }",
        {},
        "computed",
    ),
    "linear Resize": (
        'agraph (float[1,4,6,6] x) => (float[n,c,h,w] y) { y = Resize<mode="linear">(x, , s) }',
        {"s": np.array([1, 1, 2, 2], np.float32)},
        "linear",
    ),
    "LSTM": (
        "agraph (float[5,2,16] x) => (float[5,1,2,12] y) { y = LSTM<hidden_size=12>(x, w, r) }",
        {"w": ones(1, 48, 16), "r": ones(1, 48, 12)},
        "static",
    ),
    "integers": ("agraph (int64[4] x) => (int64[n] y) { y = Add(x, x) }", {}, "not float32"),
    "table": ("agraph (int64[4] x) => (float[n,m] y) { y = Gather(t, x) }", {"t": ones(8, 4)}, "table"),
    "unknown operator": ("agraph (float[4] x) => (float[n] y) { y = com.microsoft.QuickGelu(x) }", {}, "no row"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name: str) -> None:
    text, constants, words = REFUSED[name]
    model = model_of(text, constants)
    assert any(words in refusal(node, {model.ir.graph}) for node in model.ir.graph)


@pytest.mark.parametrize(
    ("text", "shape", "axis"),
    [
        ("y = Conv(x, w)", (6, 4, 3, 3), 0),
        ("y = Conv<group=4>(x, w)", (4, 1, 3, 3), 0),
        ("y = ConvTranspose(x, w)", (4, 6, 3, 3), 1),
        ("y = MatMul(x, w)", (6, 5), 1),
    ],
)
def test_the_axis_of_channels(text: str, shape: tuple[int, ...], axis: int) -> None:
    model = model_of(f"agraph (float[1,4,6,6] x) => (float[n,c,h,w] y) {{ {text} }}", {"w": ones(*shape)})
    (layer,) = layers(model)
    assert weight_axis(layer) == axis


@given(low=st.floats(-20, 0), high=st.floats(0.1, 20), alpha=st.floats(0.05, 1), beta=st.floats(-1, 2))
def test_ramp(low: float, high: float, alpha: float, beta: float) -> None:
    """Clipped levels read on the ramp's grid are clip(αx + β, 0, 1) within a step of it, for all levels."""
    model = model_of(
        f"agraph (float[4] x) => (float[n] y) {{ y = HardSigmoid<alpha={alpha:.4f}, beta={beta:.4f}>(x) }}"
    )
    node = next(node for node in walk(model.ir) if row_of(node).form == "ramp")
    grid = grid_of(low, high, "uint8", symmetric=False)
    found = ramp(node, grid)
    levels = np.arange(256)
    wanted = np.clip(round(alpha, 4) * grid.values(levels) + round(beta, 4), 0, 1)
    if found is None:
        assert -beta / alpha < low + 2 * float(grid.scale) or -beta / alpha > high - 2 * float(grid.scale)
        return
    slope, bottom, top = found
    got = slope.values(np.clip(levels, bottom, top))
    assert np.abs(got - wanted).max() <= 1.01 * float(slope.scale)
