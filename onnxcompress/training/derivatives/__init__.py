"""Our derivative table: a row an operator, a small function that writes gradient nodes in standard operators.

A row is checked against finite differences in float64 (tests/training/test_derivatives.py), each trap of the lowering by a test
of its own.
"""

from __future__ import annotations

from onnxcompress.training.derivatives.elementwise import ELEMENTWISE
from onnxcompress.training.derivatives.layout import LAYOUT, split
from onnxcompress.training.derivatives.linear import LINEAR
from onnxcompress.training.derivatives.normalization import NORMALIZATION
from onnxcompress.training.derivatives.pooling import POOLING
from onnxcompress.training.derivatives.site import Rule, Site

DERIVATIVES: dict[str, Rule] = {**ELEMENTWISE, **LINEAR, **POOLING, **NORMALIZATION, **LAYOUT}
"""Operator -> row, for those with one output that counts. Split, with several: `split`."""

FLAT = frozenset(
    (
        *("Shape", "Size", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or", "Xor"),
        *(
            "IsNaN",
            "IsInf",
            "ArgMax",
            "ArgMin",
            "NonZero",
            "Range",
            "ConstantOfShape",
            "Floor",
            "Ceil",
            "Round",
            "Sign",
        ),
        *("OneHot", "EyeLike", "RandomNormal", "RandomUniform"),
    )
)
"""Operators whose outputs do not change with small changes of any input: no gradient goes through them."""

REFUSED = {
    "LSTM": "recurrent layers have no row yet",
    "GRU": "recurrent layers have no row yet",
    "RNN": "recurrent layers have no row yet",
    "If": "bodies are not differentiated",
    "Loop": "bodies are not differentiated",
    "Scan": "bodies are not differentiated",
    "QuantizeLinear": "rounding has no slope; train first, quantize then",
    "DequantizeLinear": "its integers cannot be trained; train first, quantize then",
}
"""Operators that are known and left out, and why."""

__all__ = ["DERIVATIVES", "FLAT", "REFUSED", "Rule", "Site", "split"]
