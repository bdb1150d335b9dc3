"""Three layers, of which the middle one writes one channel a thousand times as large as all others; the last evens it out."""

from __future__ import annotations

import numpy as np

from onnxcompress.model import Model

from .calibrated import model_of

WIDTH = 16


def outlier_model(factor: float = 1000.0) -> Model:
    """x [n, 16] -> first -> second -> third -> y [n, 16]."""
    rng = np.random.default_rng(0)
    one, two, three = (rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 4 for _ in range(3))
    two[:, 0] *= factor
    three[0] /= factor
    text = """agraph (float[n,16] x) => (float[n,16] y) {
        [first] a = Gemm(x, w1, b)
        [bend] h = Relu(a)
        [second] c = Gemm(h, w2, b)
        [bend2] k = Relu(c)
        [third] y = Gemm(k, w3, b)
    }"""
    return model_of(text, {"w1": one, "w2": two, "w3": three, "b": np.zeros(WIDTH, np.float32)})


def samples(count: int = 200) -> dict[str, np.ndarray]:
    """Normal numbers."""
    return {"x": np.random.default_rng(1).standard_normal((count, WIDTH)).astype(np.float32)}
