"""Reverse mode: from a loss back through the graph, a row of the derivative table a node."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import ModelError, nearest
from onnxcompress.training.derivatives import (
    COMPOSED,
    DERIVATIVES,
    FLAT,
    REFUSED,
    SEVERAL,
    WITH_BODIES,
    Site,
    captured,
    covered,
    key_of,
)
from onnxcompress.training.derivatives.site import Gradients, zeros_like
from onnxcompress.training.pen import Pen, element_of, is_float, shape_of


def differentiate(op: Pen, loss: ir.Value, by: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Write the gradient of a scalar loss by each of the values; zeros where the loss does not depend on one.

    The graph's nodes must be in order, with shapes (pen.py). ModelError for an operator without a row, by name, with what to do.
    """
    nodes = list(op.graph.graph)
    if loss not in moving(nodes, by, op.stops):
        raise ModelError(f"the loss does not depend on any of the {len(by)} trained parameters; train others")
    start = {loss: op.constant(np.ones(shape_of(loss), element_of(loss)))}
    found = backward(op, nodes, start, by)
    return {value: zeros_like(op, value) if dy is None else dy for value, dy in found.items()}


def backward(
    op: Pen, nodes: Sequence[ir.Node], start: Mapping[ir.Value, ir.Value], by: Sequence[ir.Value]
) -> dict[ir.Value, ir.Value | None]:
    """From gradients of some values back through the nodes to those in `by`; None for one that they do not depend on."""
    reached = moving(nodes, by, op.stops)
    gathered = {value: [dy] for value, dy in start.items()}
    for node in reversed(nodes):
        dys = [_summed(op, gathered, y) for y in node.outputs]
        if any(dy is not None for dy in dys) and any(x in reached for x in _reads(node)):
            _back(op, node, dys, reached, gathered)
    return {value: _summed(op, gathered, value) for value in by}


def refusals(nodes: Iterable[ir.Node]) -> dict[str, str]:
    """Operator -> why no gradient goes through it, of those among the nodes that the table does not cover."""
    found = {}
    for key in map(key_of, nodes):
        if not covered(key):
            found[key] = REFUSED.get(key, "it has no row in the derivative table")
    return found


def moving(nodes: Sequence[ir.Node], by: Collection[ir.Value], stops: Collection[ir.Value]) -> set[ir.Value]:
    """Values of floats that depend on those in `by`."""
    found = set(by)
    for node in nodes:
        if node.op_type not in FLAT and any(value in found for value in _reads(node)):
            found.update(value for value in node.outputs if is_float(value) and value not in stops)
    return found


def _reads(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """Its inputs, and what its bodies read."""
    return (*node.inputs, *captured(node))


def _summed(op: Pen, gathered: dict[ir.Value, list[ir.Value]], value: ir.Value) -> ir.Value | None:
    """The gradient of a value: the sum over all who read it."""
    parts = gathered.get(value)
    if not parts:
        return None
    if len(parts) > 1:
        total = parts[0]
        for part in parts[1:]:
            total = op.Add(total, part)
        gathered[value] = [total]
    return gathered[value][0]


def _back(
    op: Pen,
    node: ir.Node,
    dys: list[ir.Value | None],
    reached: Collection[ir.Value],
    gathered: dict[ir.Value, list[ir.Value]],
) -> None:
    """The gradients of one node's inputs, added to what is gathered."""
    reads = _reads(node)
    at = Site(node, tuple(value is not None and value in reached for value in reads), reads)
    for index, (value, found) in enumerate(zip(reads, _gradients(op, at, dys), strict=False)):
        if value is None or found is None or not at.wants(index):
            continue
        if shape_of(found) != shape_of(value):
            raise ModelError(
                f"{node.op_type} {node.name!r}: the gradient of input {index} has shape {list(shape_of(found))}, the "
                f"input {list(shape_of(value))}; report this as a fault of the derivative table"
            )
        gathered.setdefault(value, []).append(found)


def _gradients(op: Pen, at: Site, dys: list[ir.Value | None]) -> Gradients:
    key = key_of(at.node)
    if key in SEVERAL:
        return SEVERAL[key](op, at, dys)
    if key in WITH_BODIES:
        return WITH_BODIES[key](op, at, dys, backward)
    why = refusals([at.node]).get(key)
    if why is not None:
        close = f"; {nearest(key, DERIVATIVES)}" if key not in REFUSED else ""
        raise ModelError(f"{key} {at.node.name!r}: no gradient goes through it: {why}{close}; freeze what it reads")
    if key in COMPOSED:
        return _through(op, at, dys)
    dy = dys[0]
    if dy is None or any(other is not None for other in dys[1:]):
        raise at.refused("another output than the first takes part in the loss")
    return DERIVATIVES[key](op, at, dy)


def _through(op: Pen, at: Site, dys: Sequence[ir.Value | None]) -> Gradients:
    """Back through what the node is made of. A value that it reads twice gets its whole gradient at the first place."""
    with op.written() as nodes:
        made = COMPOSED[key_of(at.node)](op, at)
    ys = made if isinstance(made, list) else [made]
    start = {y: dy for y, dy in zip(ys, dys, strict=False) if y is not None and dy is not None}
    if len(start) < sum(dy is not None for dy in dys):
        raise at.refused("an output that has no row takes part in the loss")
    by = dict.fromkeys(value for index, value in enumerate(at.node.inputs) if value is not None and at.wants(index))
    found = backward(op, nodes, start, list(by))
    return [None if value is None else found.pop(value, None) for value in at.node.inputs]
