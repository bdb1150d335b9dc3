"""Our derivative table: a row an operator, a small function that writes gradient nodes in standard operators.

A row is checked against finite differences in float64 (tests/training/test_derivatives.py), each trap of the lowering by a test
of its own.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxcompress.training.derivatives.branches import branches, captured
from onnxcompress.training.derivatives.composed import COMPOSED as WRITTEN_OUT
from onnxcompress.training.derivatives.composed import Composition
from onnxcompress.training.derivatives.einsum import EINSUM
from onnxcompress.training.derivatives.elementwise import ELEMENTWISE
from onnxcompress.training.derivatives.fused import FUSED
from onnxcompress.training.derivatives.layout import LAYOUT, split
from onnxcompress.training.derivatives.linear import LINEAR
from onnxcompress.training.derivatives.lookups import LOOKUPS
from onnxcompress.training.derivatives.loops import scans
from onnxcompress.training.derivatives.normalization import NORMALIZATION
from onnxcompress.training.derivatives.pooling import POOLING
from onnxcompress.training.derivatives.recurrent import RECURRENT
from onnxcompress.training.derivatives.reductions import REDUCTIONS
from onnxcompress.training.derivatives.site import Rule, SeveralRule, Site

DERIVATIVES: dict[str, Rule] = {
    **ELEMENTWISE,
    **LINEAR,
    **EINSUM,
    **POOLING,
    **NORMALIZATION,
    **LAYOUT,
    **LOOKUPS,
    **REDUCTIONS,
}
"""Operator -> row, for those with one output that counts; COMPOSED: those written out in others first."""

COMPOSED: dict[str, Composition] = {**WRITTEN_OUT, **FUSED}
"""Operator -> what it is made of."""

SEVERAL: dict[str, SeveralRule] = {"Split": split, **RECURRENT}
"""Operator -> row, for those with several outputs that count."""

WITH_BODIES = {"If": branches, "Scan": scans}
"""Operator -> row, for those whose bodies are gone back through by the caller's `backward`."""

FLAT = frozenset(
    (
        *("And", "ArgMax", "ArgMin", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        *("Ceil", "ConstantOfShape", "Equal", "EyeLike", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "IsInf"),
        *("IsNaN", "Less", "LessOrEqual", "Multinomial", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Round", "Shape", "Sign"),
        *("Size", "Xor"),
    )
)
"""Operators whose outputs do not change with small changes of any input: no gradient goes through them."""

REFUSED = {
    "Loop": "how often it runs, or what it keeps, depends on the data; export it with a fixed number of steps",
    "QuantizeLinear": "rounding has no slope; only whole pairs of QuantizeLinear and DequantizeLinear train",
    "DequantizeLinear": "its integers cannot be trained; only whole pairs of QuantizeLinear and DequantizeLinear train",
}
"""Operators that are known and left out, and why."""


def key_of(node: ir.Node) -> str:
    """Under which name the tables know it."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def covered(key: str) -> bool:
    """Is there a row of any kind?"""
    return key in DERIVATIVES or key in COMPOSED or key in SEVERAL or key in WITH_BODIES or key in FLAT


__all__ = [
    "COMPOSED",
    "DERIVATIVES",
    "FLAT",
    "REFUSED",
    "SEVERAL",
    "WITH_BODIES",
    "Site",
    "captured",
    "covered",
    "key_of",
]
