"""Where an int8 file's time goes, and how near it comes to the peak: figures of rows, no clock."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from benchmarks import quantize_peak
from benchmarks.quantize_page import Row
from onnxcompress.runtime.profile import NodeTime
from onnxcompress.runtime.session import open_session

NODES = [
    NodeTime("QLinearConv", "a", 0.5, 50.0, "uint8"),
    NodeTime("QLinearAdd", "b", 0.2, 20.0, "uint8"),
    NodeTime("MaxPool", "c", 0.1, 10.0, "uint8"),
    NodeTime("MaxPool", "d", 0.1, 10.0, "float"),
    NodeTime("DequantizeLinear", "e", 0.08, 8.0, "float"),
    NodeTime("Relu", "f", 0.02, 2.0, "float"),
]


def test_every_node_has_one_kind() -> None:
    found = quantize_peak.times(NODES)
    assert found == pytest.approx({"products": 0.5, "integers": 0.3, "floats": 0.12, "conversions": 0.08})
    assert quantize_peak.held(NODES) == "QLinearAdd 20 %, MaxPool 20 %, DequantizeLinear 8 %"


def row(model: str, speed: float, conv: float) -> Row:
    figures = {"macs": 500_000_000, "conv": conv, **quantize_peak.times(NODES), "held": "x", "times_peak": 4.0}
    return Row(model, "ours", ms=10.0, speed=speed, **figures, dense=200.0, dense_fp32=50.0 / 1.25)  # type: ignore[arg-type]


def test_convolutional_models_fastest_first() -> None:
    rows = [row("slow", 2.0, 0.9), row("matrices", 3.0, 0.1), row("fast", 2.5, 1.0)]
    told, lines = quantize_peak.section(rows, "ours") or ("", [])
    assert "5.0 times" in told
    assert [line[:7] for line in lines] == [
        ["fast", "2.50", "62%", "50%", "100", "50%", "100%"],
        ["slow", "2.00", "50%", "40%", "100", "50%", "100%"],
    ]
    assert quantize_peak.section([Row("other", "ours")], "ours") is None


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
def test_the_dense_product_is_the_same_in_both_forms(kind: str) -> None:
    shape, size = {"MatMul": ((8, 64), (64, 8)), "Conv": ((1, 8, 6, 6), (8, 8, 3, 3))}[kind]
    feed = {"x": np.random.default_rng(0).uniform(-2, 2, shape).astype(np.float32)}
    exact, rounded = (
        open_session(onnx.load_from_string(made).SerializeToString()).run(feed)["y"]
        for made in (quantize_peak._product(kind, shape, size, form) for form in ("fp32", "int8"))
    )
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.99
