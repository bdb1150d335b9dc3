"""Slopes of operators of one operand, by the operand x and the result y."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import numpy as np
import onnx_ir as ir

from onnxcompress.training.derivatives.site import Gradients, Rule, Site
from onnxcompress.training.lowering import step
from onnxcompress.training.pen import Pen, element_of

Slope = Callable[[Pen, Site, ir.Value, ir.Value], ir.Value]
"""(op, at, x, y) -> dy/dx, elementwise."""


def unary(slope: Slope) -> Rule:
    def row(op: Pen, at: Site, dy: ir.Value) -> Gradients:
        return [op.Mul(dy, slope(op, at, at.x[0], at.y))]

    return row


def _between(op: Pen, y: ir.Value) -> ir.Value:
    """1 where 0 < y < 1."""
    return step(op, op.Mul(y, op.Sub(1.0, y)))


def _hard_sigmoid(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    return op.Mul(_between(op, y), at.attribute("alpha", 0.2))  # type: ignore[no-any-return]


def _hard_swish(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    gate = op.HardSigmoid(x, alpha=1 / 6, beta=0.5)
    return op.Add(gate, op.Mul(op.Mul(x, 1 / 6), _between(op, gate)))  # type: ignore[no-any-return]


def _leaky(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    alpha = at.attribute("alpha", 0.01)
    return op.Add(op.Mul(step(op, x), 1 - alpha), alpha)  # type: ignore[no-any-return]


def _elu(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    """1 above zero, else y + alpha."""
    alpha, above = at.attribute("alpha", 1.0), step(op, x)
    below = op.Mul(op.Sub(1.0, above), op.Add(y, alpha))
    return op.Add(above, below)  # type: ignore[no-any-return]


def _erf(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    return op.Mul(op.Exp(op.Neg(op.Mul(x, x))), 2 / sqrt(pi))  # type: ignore[no-any-return]


def _gelu(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    """Φ(x) + x φ(x); of the approximation by tanh, with u = c (x + 0.044715 x³): (1 + t + x (1 - t²) u') / 2."""
    if at.attribute("approximate", "none") == "tanh":
        c, square = sqrt(2 / pi), op.Mul(x, x)
        t = op.Tanh(op.Mul(op.Mul(x, op.Add(op.Mul(square, 0.044715), 1.0)), c))
        inner = op.Mul(op.Add(op.Mul(square, 3 * 0.044715), 1.0), c)
        bend = op.Mul(op.Mul(x, op.Sub(1.0, op.Mul(t, t))), inner)
        return op.Mul(op.Add(op.Add(t, 1.0), bend), 0.5)  # type: ignore[no-any-return]
    normal = op.Mul(op.Add(op.Erf(op.Mul(x, sqrt(0.5))), 1.0), 0.5)
    density = op.Mul(op.Exp(op.Mul(op.Mul(x, x), -0.5)), 1 / sqrt(2 * pi))
    return op.Add(normal, op.Mul(x, density))  # type: ignore[no-any-return]


def _selu(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    """gamma above zero, else y + gamma alpha."""
    alpha, gamma = at.attribute("alpha", 1.67326319217681884765625), at.attribute("gamma", 1.05070102214813232421875)
    above = step(op, x)
    below = op.Mul(op.Sub(1.0, above), op.Add(y, alpha * gamma))
    return op.Add(op.Mul(above, gamma), below)  # type: ignore[no-any-return]


def _celu(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    """1 above zero, else y / alpha + 1."""
    above = step(op, x)
    below = op.Add(op.Mul(y, 1 / at.attribute("alpha", 1.0)), 1.0)
    return op.Add(above, op.Mul(op.Sub(1.0, above), below))  # type: ignore[no-any-return]


def _mish(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    """y = x t with t = tanh(softplus(x)): t + x (1 - t²) sigmoid(x)."""
    t = op.Tanh(op.Softplus(x))
    return op.Add(t, op.Mul(op.Mul(x, op.Sub(1.0, op.Mul(t, t))), op.Sigmoid(x)))  # type: ignore[no-any-return]


def _swish(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    """y = x s with s = sigmoid(alpha x): s + alpha y (1 - s)."""
    alpha = at.attribute("alpha", 1.702 if at.node.domain else 1.0)
    s = op.Sigmoid(x if alpha == 1.0 else op.Mul(x, alpha))
    bend = op.Mul(y, op.Sub(1.0, s))
    return op.Add(s, bend if alpha == 1.0 else op.Mul(bend, alpha))  # type: ignore[no-any-return]


def _softsign(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    r = op.Reciprocal(op.Add(op.Abs(x), 1.0))
    return op.Mul(r, r)  # type: ignore[no-any-return]


def _root_of(op: Pen, x: ir.Value, sign: float, constant: float) -> ir.Value:
    """1 / sqrt(sign x² + constant)."""
    return op.Reciprocal(op.Sqrt(op.Add(op.Mul(op.Mul(x, x), sign), constant)))  # type: ignore[no-any-return]


def _outside(op: Pen, at: Site, x: ir.Value, y: ir.Value) -> ir.Value:
    """Shrink: 1 where |x| > lambd."""
    return step(op, op.Sub(op.Abs(x), at.attribute("lambd", 0.5)))


SLOPES: dict[str, Slope] = {
    "Relu": lambda op, at, x, y: step(op, y),
    "LeakyRelu": _leaky,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Sigmoid": lambda op, at, x, y: op.Mul(y, op.Sub(1.0, y)),
    "Softplus": lambda op, at, x, y: op.Sigmoid(x),
    "Tanh": lambda op, at, x, y: op.Sub(1.0, op.Mul(y, y)),
    "Erf": _erf,
    "Gelu": _gelu,
    "Exp": lambda op, at, x, y: y,
    "Log": lambda op, at, x, y: op.Reciprocal(x),
    "Sqrt": lambda op, at, x, y: op.Div(0.5, y),
    "Reciprocal": lambda op, at, x, y: op.Neg(op.Mul(y, y)),
    "Neg": lambda op, at, x, y: op.constant(np.array(-1, element_of(y))),
    "Abs": lambda op, at, x, y: op.Sign(x),
    "Selu": _selu,
    "Celu": _celu,
    "Mish": _mish,
    "Swish": _swish,
    "com.microsoft.QuickGelu": _swish,
    "com.microsoft.Gelu": _gelu,
    "Softsign": _softsign,
    "ThresholdedRelu": lambda op, at, x, y: step(op, op.Sub(x, at.attribute("alpha", 1.0))),
    "Shrink": _outside,
    "Sin": lambda op, at, x, y: op.Cos(x),
    "Cos": lambda op, at, x, y: op.Neg(op.Sin(x)),
    "Tan": lambda op, at, x, y: op.Add(op.Mul(y, y), 1.0),
    "Asin": lambda op, at, x, y: _root_of(op, x, -1.0, 1.0),
    "Acos": lambda op, at, x, y: op.Neg(_root_of(op, x, -1.0, 1.0)),
    "Atan": lambda op, at, x, y: op.Reciprocal(op.Add(op.Mul(x, x), 1.0)),
    "Sinh": lambda op, at, x, y: op.Cosh(x),
    "Cosh": lambda op, at, x, y: op.Sinh(x),
    "Asinh": lambda op, at, x, y: _root_of(op, x, 1.0, 1.0),
    "Acosh": lambda op, at, x, y: _root_of(op, x, 1.0, -1.0),
    "Atanh": lambda op, at, x, y: op.Reciprocal(op.Sub(1.0, op.Mul(x, x))),
}
"""Operator -> dy/dx. At a kink: the slope on the side of zero (Relu at 0: 0)."""
