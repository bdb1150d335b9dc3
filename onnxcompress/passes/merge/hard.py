"""The hard activations that exporters write in pieces: one node each, before their sixths and threes are taken for scales and shifts.

clip(x + 3, 0, 6) / 6        HardSigmoid with α = 1/6, β = 1/2
x · clip(x + 3, 0, 6) / 6    HardSwish, whatever is divided first
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxcompress.model.edit import constant_of, input_of
from onnxcompress.model.wiring import alone, replaced

GATE: dict[str, Any] = {"alpha": 1 / 6, "beta": 0.5}


def as_hard(graph: ir.Model, node: ir.Node) -> None:
    """Put the one node in the place of the last of its pieces."""
    found = hard_of(node)
    if found is not None:
        op, source = found
        replaced(node, [(op, [source], GATE if op == "HardSigmoid" else {})])


def hard_of(node: ir.Node) -> tuple[str, ir.Value] | None:
    """What the last piece of such an activation stands for, and what that reads."""
    if node.domain or node.op_type not in ("Mul", "Div"):
        return None
    sixth = _sixth(node)
    source = None if sixth is None else _gate(sixth)
    if source is not None:
        return "HardSigmoid", source
    if sixth is not None and (product := sixth.producer()) is not None and product.op_type == "Mul" and alone(sixth):
        gated = [value for value, other in _both_ways(product) if value is not None and _gate(other) is value]
    elif node.op_type == "Mul":
        gated = [value for value, other in _both_ways(node) if value is not None and _is_gate(other, value)]
    else:
        gated = []
    return ("HardSwish", gated[0]) if gated else None


def _both_ways(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    one, other = node.inputs[0], node.inputs[1]
    return [(one, other), (other, one)]


def _is_gate(value: ir.Value | None, source: ir.Value) -> bool:
    """Is it the HardSigmoid of the source that makes a HardSwish?"""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "HardSigmoid" or node.inputs[0] is not source:
        return False
    alpha, beta = node.attributes.get_float("alpha", 0.2) or 0.0, node.attributes.get_float("beta", 0.5)
    return abs(alpha - 1 / 6) < 1e-6 and beta == 0.5


def _sixth(node: ir.Node) -> ir.Value | None:
    """What the node divides by six."""
    for value, other in _both_ways(node)[: 1 if node.op_type == "Div" else 2]:
        number = _number(other)
        if number is not None and abs(number - (6 if node.op_type == "Div" else 1 / 6)) < 1e-6:
            return value
    return None


def _gate(value: ir.Value | None) -> ir.Value | None:
    """x, where the value is Clip(x + 3, 0, 6)."""
    clip = None if value is None else value.producer()
    if clip is None or clip.op_type != "Clip" or clip.domain:
        return None
    if _number(input_of(clip, 1)) != 0.0 or _number(input_of(clip, 2)) != 6.0:
        return None
    add = clip.inputs[0].producer() if clip.inputs[0] is not None else None
    if add is None or add.op_type != "Add" or add.domain:
        return None
    return next((x for x, three in _both_ways(add) if _number(three) == 3.0), None)


def _number(value: ir.Value | None) -> float | None:
    values = constant_of(value)
    return float(values.reshape(())) if values is not None and values.size == 1 and values.dtype.kind == "f" else None
