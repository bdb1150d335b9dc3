"""Derivatives of reductions: dy, back in the shape that keeps the reduced axes, times the slope by each entry."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import onnx_ir as ir

from onnxcompress.model.edit import axes_of
from onnxcompress.training.derivatives.site import Gradients, Rule, Site
from onnxcompress.training.pen import Pen


def _kept(at: Site) -> tuple[list[int], list[int]]:
    """Axes that a reduction sums over, and the shape of its output with these as 1."""
    shape = at.shape(0)
    axes = axes_of(at.node, len(shape))
    if axes is None:
        raise at.refused("its axes are computed")
    if not axes and not at.attribute("noop_with_empty_axes", 0):
        axes = list(range(len(shape)))
    return axes, [1 if axis in axes else size for axis, size in enumerate(shape)]


def _scaled(scale: Callable[[int], float]) -> Rule:
    """Sums times `scale` of how many entries each is of."""

    def row(op: Pen, at: Site, dy: ir.Value) -> Gradients:
        axes, kept = _kept(at)
        by = scale(prod(at.shape(0)[axis] for axis in axes))
        dy = op.Reshape(dy if by == 1.0 else op.Mul(dy, by), kept)
        return [op.Expand(dy, list(at.shape(0)))]

    return row


def _extreme(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """In equal parts to all that equal the extreme."""
    axes, kept = _kept(at)
    mask = op.Cast(op.Equal(at.x[0], op.Reshape(at.y, kept)), to=dy.dtype)
    share = op.Div(op.Reshape(dy, kept), op.ReduceSum(mask, axes, keepdims=1))
    return [op.Mul(mask, share)]


Slope = Callable[[Pen, ir.Value, ir.Value], ir.Value]
"""(op, x, y with the reduced axes kept) -> dy/dx, in a shape that broadcasts to x's."""


def _sloped(slope: Slope) -> Rule:
    def row(op: Pen, at: Site, dy: ir.Value) -> Gradients:
        _, kept = _kept(at)
        by = slope(op, at.x[0], op.Reshape(at.y, kept))
        return [op.Expand(op.Mul(op.Reshape(dy, kept), by), list(at.shape(0)))]

    return row


def _product(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """The product of all others: y / x, which has no value where an entry is 0."""
    _, kept = _kept(at)
    return [op.Div(op.Mul(op.Reshape(dy, kept), op.Reshape(at.y, kept)), at.x[0])]


REDUCTIONS: dict[str, Rule] = {
    "ReduceSum": _scaled(lambda count: 1.0),
    "ReduceMean": _scaled(lambda count: 1.0 / count),
    "ReduceMax": _extreme,
    "ReduceMin": _extreme,
    "ReduceProd": _product,
    "ReduceL1": _sloped(lambda op, x, y: op.Sign(x)),
    "ReduceL2": _sloped(lambda op, x, y: op.Div(x, y)),
    "ReduceSumSquare": _sloped(lambda op, x, y: op.Mul(x, 2.0)),
    "ReduceLogSum": _sloped(lambda op, x, y: op.Exp(op.Neg(y))),
    "ReduceLogSumExp": _sloped(lambda op, x, y: op.Exp(op.Sub(x, y))),
}
