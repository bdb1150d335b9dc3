"""What the kernels of a quantized student ask of its weights while they train."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcompress.model import Model
from onnxcompress.operators.layer import Layer, all_layers
from onnxcompress.passes.quantize.grid import LEAST, MOST
from onnxcompress.passes.quantize.portable import Pairing, fits, pairing, safe_levels

Limit = Callable[[np.ndarray], np.ndarray]


def limits_of(student: Model) -> dict[str, Limit]:
    """Initializer of int8 levels -> real levels to safe ones, for each weight that saturates on no CPU now: so it stays."""
    found: dict[str, Limit] = {}
    for layer in all_layers(student):
        if layer.bits != 8 or layer.weight not in student.initializers:
            continue
        stored = student.array(layer.weight)
        if stored.dtype != np.int8:
            continue
        matrix = layer.matrix(stored)
        pairs = pairing(layer.op, matrix.shape, layer.groups)
        if pairs is not None and fits(matrix.reshape(len(matrix), -1), pairs):
            found[layer.weight] = _safe(layer, stored, pairs)
    return found


def _safe(layer: Layer, stored: np.ndarray, pairs: Pairing) -> Limit:
    def levels(real: np.ndarray) -> np.ndarray:
        matrix = layer.matrix(real)
        safe = safe_levels(matrix.reshape(len(matrix), -1), LEAST, MOST, pairs)
        return layer.stored(safe.reshape(matrix.shape), real)

    return levels
