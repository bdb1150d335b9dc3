"""Derivatives of operators that work element by element, with broadcasting where there are two operands."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of
from onnxcompress.training.derivatives.site import Gradients, Rule, Site, summed_to
from onnxcompress.training.lowering import step
from onnxcompress.training.pen import Pen, element_of, is_float

Slope = Callable[[Pen, Site, ir.Value, ir.Value], ir.Value]
"""(op, at, x, y) -> dy/dx, elementwise."""


def _unary(slope: Slope) -> Rule:
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
}
"""Operator -> dy/dx. At a kink: the slope on the side of zero (Relu at 0: 0)."""


def _add(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    return [summed_to(op, dy, at.shape(i)) if at.wants(i) else None for i in range(2)]


def _sub(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    right = op.Neg(summed_to(op, dy, at.shape(1))) if at.wants(1) else None
    return [summed_to(op, dy, at.shape(0)) if at.wants(0) else None, right]


def _mul(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    a, b = at.x
    return [
        summed_to(op, op.Mul(dy, b), at.shape(0)) if at.wants(0) else None,
        summed_to(op, op.Mul(dy, a), at.shape(1)) if at.wants(1) else None,
    ]


def _div(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """a/b: dy/b and -y dy/b."""
    over = op.Div(dy, at.x[1])
    right = op.Neg(summed_to(op, op.Mul(over, at.y), at.shape(1))) if at.wants(1) else None
    return [summed_to(op, over, at.shape(0)) if at.wants(0) else None, right]


def _pow(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """p x^(p-1), and y log x where the exponent trains (x > 0)."""
    x, power = at.x[0], at.x[1]
    given: list[ir.Value | None] = [None, None]
    if at.wants(0):
        number = constant_of(power)
        if number is not None and number.size == 1 and float(number.reshape(-1)[0]) == 2.0:
            slope = op.Mul(x, 2.0)
        else:
            exponent = power if is_float(power) and power.dtype == x.dtype else op.Cast(power, to=x.dtype)
            slope = op.Mul(op.Pow(x, op.Sub(exponent, 1.0)), exponent)
        given[0] = summed_to(op, op.Mul(dy, slope), at.shape(0))
    if at.wants(1):
        given[1] = summed_to(op, op.Mul(dy, op.Mul(at.y, op.Log(x))), at.shape(1))
    return given


def _clip(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """dy where low < y < high. Limits that train are refused."""
    if at.wants(1) or at.wants(2):
        raise at.refused("its limits are trained")
    inside = [op.Sub(at.y, at.x[1])] if at.has(1) else []
    inside += [op.Sub(at.x[2], at.y)] if at.has(2) else []
    if not inside:
        return [dy, None, None]
    masks = [step(op, each) for each in inside]  # not a step of the product: of two tiny numbers it would be 0
    mask = op.Mul(*masks) if len(masks) == 2 else masks[0]
    return [op.Mul(dy, mask), None, None]


def _prelu(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """x > 0: dy; else slope dy, and x dy for the slope."""
    x, slope = at.x
    above = step(op, x)
    below = op.Mul(dy, op.Sub(1.0, above))
    return [
        op.Add(op.Mul(dy, above), op.Mul(below, slope)) if at.wants(0) else None,
        summed_to(op, op.Mul(below, x), at.shape(1)) if at.wants(1) else None,
    ]


def _extreme(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Max and Min of any number of operands: dy goes to those that equal the result, in equal parts."""
    masks = [op.Cast(op.Equal(each, at.y), to=dy.dtype) for each in at.x]
    total = masks[0]
    for mask in masks[1:]:
        total = op.Add(total, mask)
    share = op.Div(dy, total)
    return [summed_to(op, op.Mul(share, mask), at.shape(i)) if at.wants(i) else None for i, mask in enumerate(masks)]


def _sum(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    return [summed_to(op, dy, at.shape(i)) if at.wants(i) else None for i in range(len(at.x))]


def _where(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Where the condition holds dy goes to the second operand, else to the third."""
    chosen = op.Mul(dy, op.Cast(at.x[0], to=dy.dtype))
    return [
        None,
        summed_to(op, chosen, at.shape(1)) if at.wants(1) else None,
        summed_to(op, op.Sub(dy, chosen), at.shape(2)) if at.wants(2) else None,
    ]


def _cast(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    return [op.Cast(dy, to=at.x[0].dtype)]


ELEMENTWISE: dict[str, Rule] = {
    **{name: _unary(slope) for name, slope in SLOPES.items()},
    "Identity": lambda op, at, dy: [dy],
    "Dropout": lambda op, at, dy: [dy],  # in inference, as exporters leave it
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Pow": _pow,
    "Clip": _clip,
    "PRelu": _prelu,
    "Max": _extreme,
    "Min": _extreme,
    "Sum": _sum,
    "Where": _where,
    "Cast": _cast,
}
