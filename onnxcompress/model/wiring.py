"""How nodes are replaced and left out: a value keeps its name where it still exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from onnxcompress.model.edit import walk

Step = tuple[str, list[ir.Value | None], Mapping[str, Any]]
"""Operator, inputs, attributes of a new node; None as an input stands for the output of the step before."""


def alone(value: ir.Value) -> bool:
    """Read by one node, and no output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def replaced(node: ir.Node, steps: list[Step]) -> None:
    """A chain of new nodes for a node. The last takes its name and output's."""
    old, made, last = node.outputs[0], None, None
    assert isinstance(node.graph, ir.Graph)
    for number, (op, inputs, attributes) in enumerate(steps):
        final = number == len(steps) - 1
        fed = [made if value is None else value for value in inputs]
        last = ir.node(op, fed, attributes, name=node.name if final else f"{node.name}.{op}")
        made = last.outputs[0]
        made.type = old.type
        made.name = f"{node.name}.{op}"
        node.graph.insert_before(node, last)
    assert made is not None
    made.shape = old.shape
    old.replace_all_uses_with(made, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    made.name = old.name


def bypass(node: ir.Node, value: ir.Value) -> None:
    """`value` takes the place and the name of the node's output."""
    old = node.outputs[0]
    assert isinstance(node.graph, ir.Graph)
    value.shape, value.type = old.shape, old.type
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    value.name = old.name


def drop_unread(graph: ir.Model) -> None:
    """Nodes of the main graph and constants that nothing reads any more go."""
    for node in reversed(list(walk(graph))):
        if node.graph is graph.graph and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.graph.remove(node, safe=True)
    for name, value in list(graph.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.graph.initializers[name]
