"""Choosing on Gram matrices that say little."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import parser

from onnxcompress.passes import Prune
from onnxcompress.run import run

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
small (float[n,3,5,5] x) => (float[n,6,5,5] y) {
    a = Conv(x, w1, b1)  b = Relu(a)  c = Conv(b, w2, b2)  d = Relu(c)  y = Conv(d, w3)
}"""


def model_with_a_constant_value() -> onnx.ModelProto:
    """Three 1x1 convolutions; what the last one reads is b2 but for one part in 10⁸: constant in float32."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(16, 3, 1, 1)),
        "b1": rng.normal(size=16),
        "w2": 1e-8 * rng.normal(size=(16, 16, 1, 1)),
        "b2": rng.uniform(1, 2, 16),
        "w3": rng.normal(size=(6, 16, 1, 1)),
    }
    model = parser.parse_model(TEXT)
    for name, values in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return model


def test_a_value_that_never_changes_stops_no_choice() -> None:
    data = {"x": np.random.default_rng(1).normal(size=(40, 3, 5, 5)).astype(np.float32)}
    result = run(model_with_a_constant_value(), [Prune(criterion="backward", amount=0.5)], data)
    assert {decision["group"]: len(decision["cut"]) for decision in result.plan.decisions} == {"w1": 8, "w2": 8}
