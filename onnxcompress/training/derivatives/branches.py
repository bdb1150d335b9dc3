"""Derivative of If: an If by the same condition, whose branches compute theirs again and go back through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxcompress.model.edit import bodies_of
from onnxcompress.training.derivatives.site import Gradients, Site, zeros_like
from onnxcompress.training.pen import Pen, shape_of

Backward = Callable[
    [Pen, Sequence[ir.Node], Mapping[ir.Value, ir.Value], Sequence[ir.Value]], dict[ir.Value, ir.Value | None]
]
"""reverse.backward."""


def captured(node: ir.Node) -> list[ir.Value]:
    """Values from outside that the bodies of a node read, in order."""
    found: dict[ir.Value, None] = {}
    for attribute in node.attributes.values():
        for body in bodies_of(attribute):
            made = {*body.inputs, *(value for each in body for value in each.outputs)}
            read = [value for each in body for value in (*each.inputs, *captured(each)) if value is not None]
            found.update(dict.fromkeys(value for value in (*read, *body.outputs) if value not in made))
    return list(found)


def branches(op: Pen, at: Site, dys: Sequence[ir.Value | None], backward: Backward) -> Gradients:
    """One gradient for each value of `at.reads`; where a branch does not read it, zeros."""
    wanted = [value for index, value in enumerate(at.reads) if value is not None and at.wants(index)]
    held = dict[str, Any]()
    for name in ("then_branch", "else_branch"):
        body = at.node.attributes[name].as_graph().clone(allow_outer_scope_values=True)
        inner, nodes = op.inside(body), list(body)
        start = {y: dy for y, dy in zip(body.outputs, dys, strict=True) if dy is not None}
        found = backward(inner, nodes, start, wanted)
        given = [zeros_like(op, value) if found[value] is None else found[value] for value in wanted]
        body.outputs[:] = [inner.Identity(each) for each in given]
        held[name] = body
    shapes = [(value.dtype, shape_of(value)) for value in wanted]
    made = dict(zip(wanted, op.holder("If", [at.x[0]], shapes, **held), strict=True))
    return [None if value is None else made.get(value) for value in at.reads]
