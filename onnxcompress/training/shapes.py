"""Shapes that ONNX's inference does not tell: operators of onnxruntime's own, and functions that it does not look into."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

Shape = list[int | None]
Told = Callable[[ir.Node], Shape | None]
"""A node -> the shape of its first output, which has the type of its first input; None where an input's is not known."""


def _of(node: ir.Node, index: int) -> Shape | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def _first(node: ir.Node) -> Shape | None:
    return _of(node, 0)


def _fused_matmul(node: ir.Node) -> Shape | None:
    """MatMul of operands whose last two axes are swapped where transA or transB say so."""
    given = [_of(node, 0), _of(node, 1)]
    for index, name in enumerate(("transA", "transB")):
        shape = given[index]
        if shape is None:
            return None
        if node.attributes.get_int(name, 0) and len(shape) > 1:
            given[index] = [*shape[:-2], shape[-1], shape[-2]]
    a, b = given
    assert a is not None and b is not None
    lead = np.broadcast_shapes(*(tuple(int(size or 1) for size in each[:-2]) for each in (a, b)))
    return [*lead, *([a[-2]] if len(a) > 1 else []), *([b[-1]] if len(b) > 1 else [])]


def _attention(node: ir.Node) -> Shape | None:
    """[n, l, hidden of the values], from a weight [i, (q k v)]."""
    x, weight = _of(node, 0), _of(node, 1)
    if x is None or weight is None or weight[1] is None:
        return None
    sizes = node.attributes["qkv_hidden_sizes"].as_ints() if "qkv_hidden_sizes" in node.attributes else None
    return [*x[:2], sizes[2] if sizes else weight[1] // 3]


def _multi_head(node: ir.Node) -> Shape | None:
    query, values = _of(node, 0), _of(node, 2)
    return None if query is None or values is None else [*query[:2], values[-1]]


TOLD: dict[str, Told] = {
    **dict.fromkeys(("GroupNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization"), _first),
    **dict.fromkeys((f"com.microsoft.{name}" for name in ("Gelu", "QuickGelu", "FastGelu", "BiasGelu")), _first),
    **dict.fromkeys(
        (f"com.microsoft.Skip{name}LayerNormalization" for name in ("", "Simplified")),
        _first,
    ),
    "com.microsoft.FusedMatMul": _fused_matmul,
    "com.microsoft.Attention": _attention,
    "com.microsoft.MultiHeadAttention": _multi_head,
}
"""Operator -> how its first output's shape follows."""

ALIKE = {"com.microsoft.FusedConv": "Conv"}
"""Operator -> the one of ONNX that has the same inputs, attributes and shapes."""
