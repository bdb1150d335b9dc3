"""Matrices that are another one transposed: a tied embedding, which exporters write once with a Transpose, folded at the door."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of

SMALLEST = 1024
"""Bytes of a matrix below which the Transpose node would take as much room as it saves."""


def twins(graph: ir.Model) -> dict[str, str]:
    """Name of a matrix -> name of the first one that it is the transpose of, bit for bit.

    Tied weights are written once (save.py), and passes that change values change both alike, so that they stay tied.
    """
    by_shape: dict[tuple, list[tuple[str, np.ndarray]]] = {}
    found: dict[str, str] = {}
    for name, value in graph.graph.initializers.items():
        values = constant_of(value)
        if values is None or values.ndim != 2 or values.dtype.kind != "f" or values.nbytes < SMALLEST:
            continue
        others = by_shape.get((values.dtype, *values.shape[::-1]), ())
        twin = (
            None
            if value.is_graph_output()
            else next((one for one, each in others if _is_transpose(values, each)), None)
        )
        if twin is None:
            by_shape.setdefault((values.dtype, *values.shape), []).append((name, values))
        else:
            found[name] = twin
    return found


def _is_transpose(one: np.ndarray, other: np.ndarray) -> bool:
    """The first row tells most others apart without reading them whole."""
    return one[0].tobytes() == other[:, 0].tobytes() and one.tobytes() == other.T.tobytes()
