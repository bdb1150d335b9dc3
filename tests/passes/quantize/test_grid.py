"""Grids: they round as onnxruntime's QuantizeLinear does, always hold zero, and err by half a step at most."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.passes.quantize.grid import LEVELS, Grid, Kind, grid_of
from onnxcompress.runtime.session import open_session

EIGHT: tuple[tuple[Kind, bool], ...] = (("uint8", False), ("uint8", True), ("int8", False), ("int8", True))
FORMS: tuple[tuple[Kind, bool], ...] = (*EIGHT, ("uint4", False), ("int4", True), ("int16", True), ("uint16", False))

ends = st.floats(-1e5, 1e5).filter(lambda end: end == 0 or abs(end) > 1e-20)


def by_onnxruntime(grid: Grid, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels, and what they stand for."""
    axis = "" if grid.axis is None else f"<axis={grid.axis}>"
    shape = ",".join(map(str, x.shape))
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[{shape}] x) => ({grid.kind}[{shape}] q, float[{shape}] y) {{
            q = QuantizeLinear{axis}(x, scale, zero)  y = DequantizeLinear{axis}(q, scale, zero) }}"""
    )
    stored = {"scale": grid.scale, "zero": grid.zero.astype(grid.kind)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in stored.items())
    found = open_session(model.SerializeToString(), optimise=False).run({"x": x})
    return found["q"], found["y"]


@pytest.mark.parametrize("form", EIGHT)
def test_levels_and_values_are_those_of_onnxruntime(form: tuple[Kind, bool]) -> None:
    """Ties, both ends and what lies beyond them included, bit for bit; one scale, and one a channel."""
    (kind, symmetric), rng = form, np.random.default_rng(0)
    for low, high, axis in ((-1.3, 2.7, None), (0.0, 6.0, None), (-rng.random(5), 3 * rng.random(5), 1)):
        grid = grid_of(low, high, kind, symmetric=symmetric, axis=axis)
        ties = (np.arange(-300, 300)[:, None] + 0.5) * np.ones(5)
        scale = grid.scale if axis is None else grid.scale[None]
        x = np.concatenate([4 * rng.standard_normal((500, 5)), ties * scale]).astype(np.float32)
        levels, values = by_onnxruntime(grid, x)
        if kind == "int8" and symmetric:  # the level without an opposite is not used
            assert grid.levels(x).min() == -127
            levels, values = np.maximum(levels, -127), np.maximum(values, -127 * grid.scale)
        assert np.array_equal(grid.levels(x), levels)
        assert np.array_equal(grid.rounded(x), values)


@given(low=ends, high=ends, form=st.sampled_from(FORMS))
def test_zero_is_exact_and_errors_are_half_a_step(low: float, high: float, form: tuple[Kind, bool]) -> None:
    kind, symmetric = form
    low, high = min(low, high), max(low, high)
    grid = grid_of(low, high, kind, symmetric=symmetric)
    assert grid.rounded(np.zeros(1, np.float32))[0] == 0
    assert LEVELS[kind][0] <= grid.low <= grid.zero <= grid.high <= LEVELS[kind][1]
    x = np.linspace(min(low, 0), max(high, 0), 101).astype(np.float32)
    # asymmetric: moving zero onto a level may cut half a step off one end
    allowed = (0.5 if symmetric else 1.0) * float(grid.scale) * (1 + 1e-4) + 1e-6 * max(-low, high)
    assert np.abs(grid.rounded(x).astype(np.float64) - x).max() <= allowed


@given(top=st.floats(1e-10, 1e10), form=st.sampled_from([form for form in FORMS if form[1]]))
def test_symmetric_grids_hold_the_opposite_of_every_number(top: float, form: tuple[Kind, bool]) -> None:
    grid = grid_of(-top, top, form[0], symmetric=True)
    x = np.linspace(-0.99 * top, 0.99 * top, 64).astype(np.float32)
    assert np.array_equal(grid.rounded(-x), -grid.rounded(x))


def test_nothing_but_zeros_has_a_scale() -> None:
    for kind, symmetric in FORMS:
        grid = grid_of(0.0, 0.0, kind, symmetric=symmetric)
        assert grid.scale > 0 and grid.rounded(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def test_fewer_levels_where_a_limit_asks_for_it() -> None:
    grid = grid_of(-1.0, 1.0, "int8", symmetric=True, levels=(-64, 63))
    assert grid.levels(np.float32([-9, 9])).tolist() == [-64, 63]
    assert grid.scale == np.float32(1 / 63)
