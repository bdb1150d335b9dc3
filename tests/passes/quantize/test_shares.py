"""Which values stand on one grid."""

from __future__ import annotations

import numpy as np
import pytest

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
