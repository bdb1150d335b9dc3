"""A weight to levels: shapes and layouts, one scale or one a channel, a bias that keeps the mean output."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.evidence.kinds import KINDS, Moments
from onnxcompress.model import Model
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.passes.quantize.levels import leveled, pairs_of
from onnxcompress.passes.quantize.portable import fits

from .calibrated import model_of

CASES = {
    "Conv": ("float[2,6,5,5] x", "Conv(x, w, b)", (8, 6, 3, 3), (8,)),
    "grouped": ("float[2,6,5,5] x", "Conv <group = 3> (x, w, b)", (9, 2, 3, 3), (9,)),
    "depthwise": ("float[2,6,5,5] x", "Conv <group = 6> (x, w, b)", (6, 1, 3, 3), (6,)),
    "Gemm": ("float[4,7] x", "Gemm(x, w, b)", (7, 5), (5,)),
    "Gemm transposed": ("float[4,7] x", "Gemm <transB = 1> (x, w, b)", (5, 7), (5,)),
}


def drawn(case: str) -> tuple[Model, Layer, np.ndarray]:
    """A model of one layer with heavy-tailed weights, and inputs far from zero mean."""
    source, call, shape, bias = CASES[case]
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_t(4, shape).astype(np.float32), "b": rng.standard_normal(bias).astype(np.float32)}
    model = model_of(f"agraph ({source}) => (float[M] y) {{ y = {call} }}", constants)
    shape = (64, 7) if "Gemm" in case else (16, 6, 5, 5)
    return model, layers(model)[0], rng.uniform(0.5, 2, shape).astype(np.float32)


def seen_of(x: np.ndarray) -> Moments:
    """Moments along the channels."""
    rows = np.moveaxis(x, 1, -1)
    return KINDS["moments"].measure(rows.reshape(-1, rows.shape[-1]), 1.0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("portable", [True, False])
def test_levels_lie_as_the_weight_does_and_stand_for_it(case: str, portable: bool) -> None:
    model, layer, _ = drawn(case)
    found = leveled(model, layer, portable=portable, seen=None)
    stored = model.array(layer.weight)
    assert found.levels.shape == stored.shape and found.bias is None
    error = ((found.grid.values(found.levels) - stored) ** 2).sum()
    assert found.sqnr_db == pytest.approx(10 * np.log10((stored**2).sum() / error), abs=0.01)
    assert found.sqnr_db > 30
    matrix = layer.matrix(found.levels)
    assert fits(matrix.reshape(len(matrix), -1), pairs_of(layer, matrix, portable))
    assert found.grid.scale.shape == (len(matrix),)


@pytest.mark.parametrize("case", CASES)
def test_the_bias_keeps_the_mean_output(case: str) -> None:
    model, layer, x = drawn(case)
    found = leveled(model, layer, portable=True, seen=seen_of(x))
    assert found.bias is not None
    matrix = layer.matrix(model.array(layer.weight)).astype(float)
    error = layer.matrix(found.grid.values(found.levels)) - matrix
    kernel = int(np.prod(matrix.shape[2:]))
    mean = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]).mean(axis=0).reshape(layer.groups, -1)
    met = np.repeat(np.repeat(mean, kernel, axis=1), len(matrix) // layer.groups, axis=0)
    off = (error.reshape(len(matrix), -1) * met).sum(axis=1)
    np.testing.assert_allclose(found.bias - model.array("b"), -off, atol=1e-5)
    assert np.abs(off).max() > 1e-4


def test_what_portability_costs_is_told() -> None:
    model, layer, _ = drawn("Gemm")
    assert leveled(model, layer, portable=False, seen=None).cost_db == 0
    assert leveled(model, layer, portable=True, seen=None).cost_db > 0
