"""The writer: a chain of smaller layers in place of one, which keeps its name and what it writes.

The kernel's attributes are split by axis: each axis has its taps, stride, pads and dilation in the one part that covers it, and one
tap, stride 1 and no padding in all others, so that the chain meets borders as the layer did. The bias goes to the last part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import FILE_TYPE, constant_of, narrow_tensor, new_constant
from onnxcompress.operators.layer import Layer
from onnxcompress.operators.view import sizes_of
from onnxcompress.passes.factorize.forms import Part, Shape
from onnxcompress.passes.refit.rows import on_left

BY_AXIS = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
"""Attribute of a convolution -> what it is along an axis that a part does not cover."""


def write(
    graph: ir.Model, layer: Layer, shape: Shape, name: str, parts: Sequence[Part], weights: Sequence[np.ndarray]
) -> None:
    """Put the chain in the place of the layer's node.

    name     of the form, for the names of what is new      weights  of the parts, [outs, ins/groups, *kernel]
    """
    node = next(each for each in graph.graph if each.name == layer.name)
    place = next(i for i, value in enumerate(node.inputs) if value is not None and value.name == layer.weight)
    before = node.inputs[place]
    assert before is not None
    fed = node.inputs[next(i for i, value in enumerate(node.inputs) if value is not None and value.name == layer.reads)]
    constants = [value for value in node.inputs if value is not None and constant_of(value) is not None]
    left = not shape.kernel and on_left(node, layer)
    for number, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        last = number == len(parts) - 1
        op, attributes = _kind(node, layer, shape, part, last)
        if part.order:
            constant = new_constant(graph, f"{layer.weight}.order.{number}", weight.astype(np.int64))
        else:
            values = weight if left else _laid(op, layer, part, weight)
            constant = _constant(graph, f"{layer.weight}.{name}.{number}", values, before)
        behind = weights[number + 1 :]
        rest = (
            _biases(graph, node, behind) if all(each.order for each in parts[number + 1 :]) and not part.order else []
        )
        both = [constant, fed] if left else [fed, constant]
        made = ir.node(op, [*both, *rest], attributes, name=node.name if last else f"{node.name}.{name}.{number}")
        graph.graph.insert_before(node, made)
        if not last:
            fed = made.outputs[0]
            _declare(fed, f"{node.name}.{name}.{number}.out", node, shape, parts[: number + 1], left)
        else:
            _hand_over(graph, node, made)
    for value in constants:
        if not list(value.uses()):
            graph.graph.initializers.pop(value.name or "", None)


def _biases(graph: ir.Model, node: ir.Node, orders: Sequence[np.ndarray]) -> list[ir.Value | None]:
    """What the node reads beside its weight, for channels that are put in these orders afterwards."""
    rest = list(node.inputs[2:])
    values = constant_of(rest[0]) if rest else None
    if not orders or values is None or values.size == 1:
        return rest
    for order in reversed(orders):
        values = values[..., np.argsort(order)]
    return [new_constant(graph, f"{rest[0].name}.ordered", np.ascontiguousarray(values))]  # type: ignore[union-attr]


def _kind(node: ir.Node, layer: Layer, shape: Shape, part: Part, last: bool) -> tuple[str, dict[str, Any]]:
    """Operator and attributes of a part."""
    if part.order:
        return "Gather", {"axis": 1}
    if not shape.kernel:
        keeps = last and layer.op == "Gemm"
        return ("Gemm", {k: a.value for k, a in node.attributes.items()}) if keeps else ("MatMul", {})
    rank, given = len(shape.kernel), {key: each.value for key, each in node.attributes.items()}
    attributes: dict[str, Any] = {"kernel_shape": part.taps or shape.over(part.axes), "group": part.groups}
    for key, neutral in BY_AXIS.items():
        if key in given and (key != "output_padding" or part.axes):
            values = list(given[key])
            attributes[key] = [value if i % rank in part.axes else neutral for i, value in enumerate(values)]
    if part.taps and "pads" in attributes:
        steps = given.get("dilations", [1] * rank)
        less = [step * (size - taps) // 2 for step, size, taps in zip(steps, shape.kernel, part.taps, strict=True)]
        attributes["pads"] = [pad - cut for pad, cut in zip(attributes["pads"], [*less, *less], strict=True)]
    if "auto_pad" in given and part.axes:
        attributes["auto_pad"] = given["auto_pad"]
    return (layer.op if part.axes else "Conv"), attributes


def _laid(op: str, layer: Layer, part: Part, weight: np.ndarray) -> np.ndarray:
    """[outs, ins/groups, *kernel] in the layout of the operator that the part becomes."""
    if op == "ConvTranspose":
        split = weight.reshape(part.groups, part.outs // part.groups, *weight.shape[1:])
        return np.moveaxis(split, 1, 2).reshape(part.ins, part.outs // part.groups, *weight.shape[2:])
    turned = op == "MatMul" or (op == "Gemm" and layer.order == (1, 0))
    return weight.T if turned else weight


def _constant(graph: ir.Model, name: str, values: np.ndarray, before: ir.Value) -> ir.Value:
    """In the type of the layer's own weight, in memory and in the file."""
    tensor = before.const_value
    assert tensor is not None
    made = new_constant(graph, name, np.ascontiguousarray(values.astype(tensor.dtype.numpy())))
    if FILE_TYPE in tensor.meta:
        made.const_value = narrow_tensor(made.const_value.numpy(), tensor.meta[FILE_TYPE], made.name or "")  # type: ignore[union-attr]
    return made


def _declare(value: ir.Value, name: str, node: ir.Node, shape: Shape, parts: Sequence[Part], left: bool) -> None:
    """Name, type and shape of a value between two parts."""
    read, written = (sizes_of(each) for each in (node.inputs[int(left)], node.outputs[0]) if each is not None)
    value.name, value.type = name, node.outputs[0].type
    if read is None or written is None:
        return
    inner = parts[-1].outs
    if not shape.kernel:
        rows = [*read[:-2], inner, read[-1]] if left else [*read[:-1], inner]
        value.shape = ir.Shape(rows)
        return
    done = {axis for part in parts for axis in part.axes}
    value.shape = ir.Shape(
        [read[0], inner, *(written[2 + a] if a in done else read[2 + a] for a in range(len(shape.kernel)))]
    )


def _hand_over(graph: ir.Model, node: ir.Node, made: ir.Node) -> None:
    """The new node writes what the old one wrote, under its name."""
    old, new = node.outputs[0], made.outputs[0]
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    name = old.name
    graph.graph.remove(node, safe=True)
    old.name = None
    new.name = name
