"""Scan, and Loop with a fixed number of steps, in a graph with fixed shapes: such a Loop is a Scan over its step numbers.

What a body reads of a step has a shape of its own, and no state may change its shape; a while loop stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import ModelError
from onnxcompress.model.edit import constant_of
from onnxcompress.training.pen import Pen, shape_of

Fix = Callable[[Pen, Sequence[ir.Node]], None]
"""fixed.fix_nodes."""


def listed(node: ir.Node, name: str, count: int) -> list[int]:
    """An attribute of Scan with a number for each input or output that is sliced; zeros where it is left out."""
    return list(node.attributes[name].as_ints()) if name in node.attributes else [0] * count


def fix_scan(op: Pen, node: ir.Node, fix: Fix) -> None:
    """Shapes of the body and of the outputs; ModelError where a state's changes from step to step."""
    body, reads = node.attributes["body"].as_graph(), node.attributes.get_int("num_scan_inputs", 0)
    states, sliced = len(node.inputs) - reads, list(node.inputs)[len(node.inputs) - reads :]
    steps = 0
    for inner, outer in zip(body.inputs[:states], node.inputs[:states], strict=True):
        _as(inner, outer, shape_of(outer))  # type: ignore[arg-type]
    for inner, outer, axis in zip(body.inputs[states:], sliced, listed(node, "scan_input_axes", reads), strict=True):
        sizes = list(shape_of(outer))  # type: ignore[arg-type]
        steps = sizes.pop(axis)
        _as(inner, outer, sizes)  # type: ignore[arg-type]
    fix(op.inside(body), list(body))
    for before, after in zip(body.inputs[:states], body.outputs[:states], strict=True):
        if shape_of(before) != shape_of(after):
            raise ModelError(
                f"{node.op_type} {node.name!r}: state {before.name!r} is {list(shape_of(before))} before a step and "
                f"{list(shape_of(after))} after it; a training step needs one shape: export the loop written out"
            )
    axes = listed(node, "scan_output_axes", len(node.outputs) - states)
    for number, (outer, inner) in enumerate(zip(node.outputs, body.outputs, strict=True)):
        sizes = list(shape_of(inner))
        if number >= states:
            axis = axes[number - states]
            sizes.insert(axis % (len(sizes) + 1), steps)
        _as(outer, inner, sizes)


def fix_loop(op: Pen, node: ir.Node, fix: Fix) -> None:
    """A Loop whose number of steps is known becomes a Scan; any other is left, its shapes found as far as ONNX says them."""
    body, count = node.attributes["body"].as_graph(), constant_of(node.inputs[0])
    tensors = all(isinstance(value.type, ir.TensorType) for value in node.inputs[2:] if value is not None)
    begun = node.inputs[1] is None or bool(np.all(constant_of(node.inputs[1]) == np.array(True)))
    if count is None or not tensors or not begun or not _goes_on(op, body):
        op.infer(node)
        if any(value.shape is None or not value.shape.is_static() for value in node.outputs):
            raise ModelError(
                f"Loop {node.name!r}: how often it runs depends on the data, and so do its outputs' shapes; export it with a fixed number "
                "of steps"
            )
        return
    body.inputs[:] = [*body.inputs[2:], body.inputs[0]]
    inner, seen = op.inside(body), set(body.inputs)
    ends = []
    for value in body.outputs[1:]:
        ends.append(value if value.producer() is not None and value not in seen else inner.Identity(value))
        seen.add(value)
    body.outputs[:] = ends
    numbers = op.constant(np.arange(int(count.reshape(-1)[0])))
    taken = ir.Attr("body", ir.AttributeType.GRAPH, body)
    made = ir.node(
        "Scan", [*node.inputs[2:], numbers], num_outputs=len(node.outputs), name=f"{node.name}~scan",
        attributes={"num_scan_inputs": 1},
    )  # fmt: skip
    node.attributes.pop("body")
    made.attributes["body"] = taken
    graph = node.graph
    assert graph is not None
    graph.insert_before(node, made)
    fix_scan(op, made, fix)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.name, old.name = old.name, f"{old.name}~"
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _goes_on(op: Pen, body: ir.Graph) -> bool:
    """Does the body say so in every step? Within it the condition holds, else it would not be run."""
    body.inputs[1].replace_all_uses_with(op.constant(np.array(True)), replace_graph_outputs=True)
    value = body.outputs[0]
    while (maker := value.producer()) is not None and maker.op_type in ("Identity", "Cast"):
        value = maker.inputs[0]  # type: ignore[assignment]
    said = constant_of(value)
    return said is not None and bool(said.all())


def _as(value: ir.Value, like: ir.Value, sizes: Sequence[int]) -> None:
    value.type = like.type if like.const_value is None else ir.TensorType(like.const_value.dtype)
    value.shape = ir.Shape(sizes)


LOOPS = {"Scan": fix_scan, "Loop": fix_loop}
"""Operator -> how it is fixed."""
