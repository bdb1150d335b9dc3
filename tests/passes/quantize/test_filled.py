"""A fourth channel of zeros: the same answers to the bit, and only where three are read in small windows."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.model.spec import violations
from onnxcompress.passes.quantize import write

from .calibrated import decided, feeds_of, model_of, run


@pytest.mark.parametrize(
    ("channels", "size", "group", "wide"), [(3, 3, 1, 4), (3, 9, 1, 3), (3, 3, 3, 1), (4, 3, 1, 4)]
)
def test_a_picture_gets_a_fourth_channel(
    monkeypatch: pytest.MonkeyPatch, channels: int, size: int, group: int, wide: int
) -> None:
    weight = np.random.default_rng(1).standard_normal((6, channels // group, size, size)).astype(np.float32)
    model = model_of(
        f"agraph (float[2,{channels},12,12] x) => (float[n,c,h,w] y) {{ a = Conv<group={group}>(x, v, b)  y = Relu(a) }}",
        {"v": weight, "b": np.arange(6, dtype=np.float32)},
    )
    feed = feeds_of(model)[0]
    decisions = decided(model, [feed])
    made = write.write(model, *decisions)
    monkeypatch.setattr(write, "fill", lambda pen, node: None)
    plain = write.write(model, *decisions)
    shapes = [made.array(name).shape for name in made.initializers if made.array(name).ndim == 4]
    assert not violations(made)
    assert shapes == [(6, wide, size, size)]
    assert np.array_equal(run(made, feed)["y"], run(plain, feed)["y"])
