"""A graph with every shape fixed: what is computed from shapes alone becomes constants, and each value knows its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxcompress.errors import ModelError
from onnxcompress.model.edit import constant_of
from onnxcompress.training.counted import LOOPS
from onnxcompress.training.pen import SMALL, Pen, shape_of

ENDLESS = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
"""Operators that give something else each time."""


def fix(op: Pen, shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, np.ndarray] | None = None) -> None:
    """Give the graph's inputs these shapes, in place, and every value the shape that follows.

    known  inputs that have these values in every run, and may decide which branch of an If is left: a sampling rate
    ModelError where a shape depends on the data.
    """
    graph = op.graph.graph
    for value in graph.inputs:
        if value.name is not None and value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
        if known and value.name is not None and value.name in known:
            value.replace_all_uses_with(op.constant(known[value.name]))
    _fix_nodes(op, list(graph))
    common.RemoveUnusedNodesPass()(op.graph)


def _fix_nodes(op: Pen, nodes: Sequence[ir.Node]) -> None:
    for node in nodes:
        known = known_of(op, node)
        if known is not None:
            _becomes(op, node, known)
        elif node.op_type == "If" and not node.domain:
            _fix_branches(op, node)
        elif node.op_type in LOOPS and not node.domain:
            LOOPS[node.op_type](op, node, _fix_nodes)
        else:
            op.infer(node)


def known_of(op: Pen, node: ir.Node) -> list[np.ndarray] | None:
    """What a node computes from shapes and small constants alone; None where it reads data."""
    if node.op_type == "Shape" and not node.domain:
        sizes = np.array(shape_of(node.inputs[0]), np.int64)  # type: ignore[arg-type]
        return [sizes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(sizes))]]
    return _computed(op, node) if _known(node) else None


def _fix_branches(op: Pen, node: ir.Node) -> None:
    """Of an If by a condition that shapes decide only that branch is left; of any other both know their shapes."""
    condition = constant_of(node.inputs[0])
    if condition is not None:
        _opened(op, node, "then_branch" if condition.reshape(-1)[0] else "else_branch")
        return
    bodies = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for body in bodies:
        _fix_nodes(op.inside(body), list(body))
    for value, one, other in zip(node.outputs, bodies[0].outputs, bodies[1].outputs, strict=True):
        value.type = one.type
        value.shape = one.shape if one.shape == other.shape else None


def _opened(op: Pen, node: ir.Node, branch: str) -> None:
    """The nodes of one branch in place of the If."""
    body, graph = node.attributes[branch].as_graph(), node.graph
    assert graph is not None
    nodes, results = list(body), list(body.outputs)
    body.outputs[:] = []
    body.remove(nodes)
    for index, each in enumerate(nodes):
        each.name = f"{node.name}~{each.name or index}"
        for value in each.outputs:
            value.name = f"{node.name}~{value.name}" if value.name else value.name
    ends = [ir.node("Identity", [value], name=f"{node.name}~result{index}") for index, value in enumerate(results)]
    graph.insert_before(node, [*nodes, *ends])
    for old, end in zip(node.outputs, ends, strict=True):
        end.outputs[0].name, old.name = old.name, f"{old.name}~"
        old.replace_all_uses_with(end.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    _fix_nodes(op, [*nodes, *ends])


def _known(node: ir.Node) -> bool:
    """Are all its inputs small constants, and its outputs always the same?"""
    if (
        node.domain
        or node.op_type in ENDLESS
        or any(attr.type == ir.AttributeType.GRAPH for attr in node.attributes.values())
    ):
        return False
    constants = [value.const_value for value in node.inputs if value is not None]
    return all(each is not None and each.size <= SMALL for each in constants)


def _computed(op: Pen, node: ir.Node) -> list[np.ndarray]:
    """Its outputs, from its constant inputs."""
    from onnx.reference import ReferenceEvaluator  # 12 MB that few models need

    feeds = {v.name or "": v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None}
    try:
        found = ReferenceEvaluator(ir.to_proto(node), opsets=dict(op.graph.opset_imports)).run(None, feeds)
    except (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError) as error:
        raise ModelError(f"{node.op_type} {node.name!r}: a shape cannot be computed from constants: {error}") from error
    return [np.asarray(each) for each in found]


def _becomes(op: Pen, node: ir.Node, values: list[np.ndarray]) -> None:
    """The node's outputs are constants now."""
    for output, each in zip(node.outputs, values, strict=True):
        made = op.constant(each)
        if output.is_graph_output():
            made = op.Identity(made)
            made.name, output.name = output.name, f"{output.name}~"
        output.replace_all_uses_with(made, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
