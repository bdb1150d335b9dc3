"""Bounds hold: whatever is fed, no value leaves its interval."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from generate import feeds, models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo import ZOO

from onnxcompress.evidence.expose import exposed
from onnxcompress.model import load
from onnxcompress.passes.prune.bounds import ROWS, Bound, bounds
from onnxcompress.runtime.session import open_session

HALF_PRECISION = {"float16", "cast_fp16"}


def _check(proto: onnx.ModelProto, seed: int) -> int:
    """Every bounded value lies within its bound; how many there are."""
    model, inputs = load(proto), feeds(proto, seed)
    found = bounds(model)
    seen = exposed(model, list(found))
    for name, y in open_session(seen.model).run(inputs).items() if seen.outputs else ():
        y = y.astype(np.float64)
        slack = 1e-5 * max(1.0, np.abs(y).max(initial=0))
        assert (y >= found[name].low - slack).all() and (y <= found[name].high + slack).all(), name
    return len(seen.outputs)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in HALF_PRECISION])
def test_bounds_hold_on_the_zoo(name: str) -> None:
    _check(ZOO[name](), 0)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(proto=models(), seed=st.integers(0, 99))
def test_bounds_hold_on_generated_models(proto: onnx.ModelProto, seed: int) -> None:
    _check(proto, seed)


def test_the_zoo_has_values_that_are_bounded() -> None:
    assert _check(ZOO["conv_chain"](), 0) >= 4


@pytest.mark.parametrize("op", ["HardSwish", "Swish", "Gelu", "Abs"])
def test_a_valley_reaches_down_to_its_bottom_and_no_further(op: str) -> None:
    x = np.linspace(-8, 8, 4001)
    node, ends = ir.node(op, [ir.val("x")]), np.array
    y = ROWS[op](node, [Bound(x, x)])
    assert np.array_equal(y.low, y.high)
    for low, high in ((-8.0, 8.0), (-8.0, -4.0), (1.0, 3.0), (-1.0, 0.5)):
        found = ROWS[op](node, [Bound(ends(low), ends(high))])
        inside = y.low[(x >= low) & (x <= high)]
        assert found.low == pytest.approx(inside.min(), abs=1e-5) and found.high == pytest.approx(
            inside.max(), abs=1e-5
        )
