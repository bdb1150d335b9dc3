"""Derivatives of operators that work element by element, with broadcasting where there are two operands or more."""

from __future__ import annotations

import onnx_ir as ir

from onnxcompress.model.edit import constant_of
from onnxcompress.training.derivatives.site import Gradients, Rule, Site, summed_to
from onnxcompress.training.derivatives.slopes import SLOPES, unary
from onnxcompress.training.lowering import beyond, step
from onnxcompress.training.pen import Pen, is_float


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
    for place, side in ((1, 1), (2, -1)):  # not a step of the product: of two tiny numbers it would be 0
        if at.has(place):
            dy = op.Mul(dy, beyond(op, at.y, at.x[place], side))
    return [dy, None, None]


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


def _mean(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    return _sum(op, at, op.Mul(dy, 1.0 / len(at.x)))


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
    **{name: unary(slope) for name, slope in SLOPES.items()},
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
    "Mean": _mean,
    "Where": _where,
    "Cast": _cast,
    "CastLike": lambda op, at, dy: [op.Cast(dy, to=at.x[0].dtype), None],
}
