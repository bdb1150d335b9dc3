"""Random inputs for any of the small models of the tests."""

from __future__ import annotations

import numpy as np
import onnx

SYMBOLIC = 6
"""Size of a symbolic axis that is not the batch."""
TOKENS = 4
"""Integer inputs lie in [0, TOKENS): every vocabulary of the tests is at least that large."""


def feeds(model: onnx.ModelProto, seed: int, batch: int = 2) -> dict[str, np.ndarray]:
    """Input name -> array, standard normal; an axis called N, or nameless and first, has `batch` entries and any other
    symbol SYMBOLIC. Inputs with a default (initializers) are left out."""
    rng = np.random.default_rng(seed)
    defaults = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: _array(value.type.tensor_type, rng, batch)
        for value in model.graph.input
        if value.name not in defaults
    }


def _array(kind: onnx.TypeProto.Tensor, rng: np.random.Generator, batch: int) -> np.ndarray:
    shape = [
        axis.dim_value or (batch if axis.dim_param == "N" or (i == 0 and not axis.dim_param) else SYMBOLIC)
        for i, axis in enumerate(kind.shape.dim)
    ]
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2 if dtype == np.bool_ else TOKENS, shape).astype(dtype)
