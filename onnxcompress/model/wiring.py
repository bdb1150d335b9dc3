"""How nodes are replaced and left out: a value keeps its name where it still exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

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
    """Nodes that nothing reads any more, of bodies too, and constants go; so do optional outputs that nothing reads."""
    for node in reversed(list(walk(graph))):
        if not isinstance(node.graph, ir.Graph):
            continue
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            node.graph.remove(node, safe=True)
        elif node.inputs and node.inputs[-1] is None:
            node.resize_inputs(
                max((place for place, value in enumerate(node.inputs, 1) if value is not None), default=0)
            )
    for name, value in list(graph.graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.graph.initializers[name]
    if any(
        map(_has_spare_outputs, walk(graph))
    ):  # the library's pass asks ONNX's table of operators at every node: 6 MB
        common.RemoveUnusedNodesPass()(graph)


def _has_spare_outputs(node: ir.Node) -> bool:
    spare = len(node.outputs) > 1 and any(v.name and not v.uses() and not v.is_graph_output() for v in node.outputs)
    return spare or (node.op_type == "BatchNormalization" and "training_mode" in node.attributes)
