"""Which values stand on one grid."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.evidence.kinds import Range
from onnxcompress.evidence.need import Need
from onnxcompress.passes.quantize.grids import grids_of
from onnxcompress.passes.quantize.rows import SURE
from onnxcompress.passes.quantize.shares import shares

from .calibrated import model_of

WEIGHTS = {name: np.ones((4, 4, 1, 1), np.float32) for name in ("v", "w")}

LAID: dict[str, tuple[str, set[str], tuple[str, ...]]] = {
    "read by nothing else": ("a = Conv(x, v)  b = Conv(x, w)  j = Concat<axis=1>(a, b)", {"a", "b"}, ("j",)),
    "clipped alike": (
        "a = Conv(x, v)  p = Relu(a)  b = Conv(x, w)  q = Relu(b)  j = Concat<axis=1>(p, q)",
        {"a", "b", "p", "q"},
        ("j",),
    ),
    "one clipped: its grid has to begin at zero": (
        "a = Conv(x, v)  p = Relu(a)  b = Conv(x, w)  j = Concat<axis=1>(p, b)",
        {"b"},
        ("j",),
    ),
    "one read by another node too": (
        "a = Conv(x, v)  b = Conv(a, w)  j = Concat<axis=1>(a, b)",
        {"b"},
        ("j",),
    ),
    "one a Sigmoid, whose kernel knows its grid": (
        "a = Conv(x, v)  p = Sigmoid(a)  b = Conv(x, w)  j = Concat<axis=1>(p, b)",
        {"b"},
        ("j",),
    ),
    "clipped behind": (
        "a = Conv(x, v)  b = Conv(x, w)  c = Concat<axis=1>(a, b)  j = Relu(c)",
        {"a", "b", "c"},
        ("j",),
    ),
}


@pytest.mark.parametrize("name", LAID)
def test_what_is_laid_together_shares_a_grid_where_nobody_misses_its_own(name: str) -> None:
    text, same, ranges = LAID[name]
    model = model_of(f"agraph (float[2,4,5,5] x) => (float[n,c,h,w] y) {{ {text}  y = Conv(j, t) }}",
                     {**WEIGHTS, "t": np.ones((2, 8, 1, 1), np.float32)})  # fmt: skip
    nodes = {node.name or "" for node in model.ir.graph}
    (share,) = (each for each in shares(model, nodes) if "j" in each.values)
    assert set(share.values) == {*same, "j"} and share.ranges == ranges


@pytest.mark.parametrize(
    ("text", "flat"),
    [
        ("h = Conv(x, v)  y = Sigmoid(h)", SURE),
        ("h = Conv(x, v)  m = DepthToSpace<blocksize=2>(h)  y = Sigmoid(m)", SURE),
        ("h = Conv(x, v)  s = Sigmoid(h)  y = Mul(s, h)", np.inf),
        ("h = Conv(x, v)  y = Relu(h)", np.inf),
    ],
)
def test_how_far_a_sigmoid_looks(text: str, flat: float) -> None:
    """What lies beyond makes no grid coarser, unless somebody else reads it."""
    model = model_of(f"agraph (float[2,4,5,5] x) => (float[n,c,h,w] y) {{ {text} }}", {"v": WEIGHTS["v"]})
    (share,) = (each for each in shares(model, {model.ir.graph.node(0).name or ""}) if "h" in each.values)
    assert share.flat == flat


def test_a_grid_goes_no_further_than_its_sigmoid_looks() -> None:
    model = model_of(
        "agraph (float[2,4,5,5] x) => (float[n,c,h,w] y) { h = Conv(x, v)  y = Sigmoid(h) }", {"v": WEIGHTS["v"]}
    )
    name = model.ir.graph.node(0).name or ""
    seen = {Need("range", "h", 0): Range(-90.0, 60.0), Need("range", "x", 0): Range(-90.0, 60.0)}
    grids = grids_of(model, {name}, seen, "minmax", percentile=100.0, ends=False)
    assert float(grids["h"].scale) == pytest.approx(2 * SURE / 255) and float(grids["x"].scale) == pytest.approx(
        150 / 255
    )
