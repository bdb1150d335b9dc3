"""The writer: a chain of smaller layers in place of one, which keeps its name and what it writes.

The kernel's attributes are split by axis: each axis has its taps, stride, pads and dilation in the one part that covers it, and one
tap, stride 1 and no padding in all others, so that the chain meets borders as the layer did. The bias goes to the last part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import FILE_TYPE, constant_of, narrow_tensor, new_constant
from onnxcompress.operators.layer import RECURRENT, Layer
from onnxcompress.operators.view import sizes_of
from onnxcompress.passes.factorize.forms import Part, Shape
from onnxcompress.passes.factorize.forms.form import lengths
from onnxcompress.passes.refit.rows import on_left

BY_AXIS = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
"""Attribute of a convolution -> what it is along an axis that a part does not cover."""


def write(
    graph: ir.Model, layer: Layer, shape: Shape, name: str, parts: Sequence[Part], weights: Sequence[np.ndarray]
) -> None:
    """Put the chain in the place of the layer's node.

    name     of the form, for the names of what is new
    weights  of the parts, [outs, ins/groups, *kernel]; an order that changes nothing gets no node
    """
    node = next(each for each in graph.graph if each.name == layer.name)
    constants = [value for value in node.inputs if value is not None and constant_of(value) is not None]
    Chain(graph, layer, node, shape, name).write(
        [
            (part, weight)
            for part, weight in zip(parts, weights, strict=True)
            if not part.order or (weight != np.arange(len(weight))).any()
        ]
    )
    for value in constants:
        if not list(value.uses()):
            graph.graph.initializers.pop(value.name or "", None)


Piece = tuple[Part, np.ndarray]


@dataclass(frozen=True, eq=False)
class Chain:
    """Writes the nodes of one chain; name is the form's."""

    graph: ir.Model
    layer: Layer
    node: ir.Node
    shape: Shape
    name: str

    def write(self, pieces: Sequence[Piece]) -> None:
        """All of them, stage after stage; what the layer wrote is then written by the last one."""
        node = self.node
        fed = next(value for value in node.inputs if value is not None and value.name == self.layer.reads)
        if self.layer.op in RECURRENT:
            self._recurrent(pieces, fed)
            return
        first = 0
        while first < len(pieces):
            end = first + 1
            while end < len(pieces) and pieces[end][0].beside:
                end += 1
            made = [self._part(pieces, number, fed) for number in range(first, end)]
            last = made[0]
            if len(made) > 1:
                last = self._insert("Concat", [each.outputs[0] for each in made], {"axis": 1}, f"{first}.both")
                self._declare(
                    last.outputs[0], [part for part, _ in pieces[:end]], sum(p.outs for p, _ in pieces[first:end])
                )
            fed, first = last.outputs[0], end
        last.name = node.name
        _hand_over(self.graph, node, last)

    def _recurrent(self, pieces: Sequence[Piece], fed: ir.Value) -> None:
        """What is fed is squeezed by a product; the operator keeps its state, its gates and its name, and reads fewer inputs."""
        (part, first), (_, last) = pieces
        weight = self.graph.graph.initializers[self.layer.weight]
        squeeze = self._insert(
            "MatMul", [fed, _constant(self.graph, f"{weight.name}.{self.name}.0", first.T, weight)], {}, "0"
        )
        made = squeeze.outputs[0]
        made.type, read = fed.type, sizes_of(fed)
        made.shape = None if read is None else ir.Shape([*read[:-1], part.outs])
        rows = last.reshape(*weight.const_value.shape[:-1], part.outs)  # type: ignore[union-attr]
        self.node.replace_input_with(0, made)
        self.node.replace_input_with(1, _constant(self.graph, f"{weight.name}.{self.name}.1", rows, weight))

    def _part(self, pieces: Sequence[Piece], number: int, fed: ir.Value | None) -> ir.Node:
        """The node of one part."""
        part, weight = pieces[number]
        op, attributes = _kind(self.node, self.layer, self.shape, part, number == len(pieces) - 1)
        left = self.left
        if part.order:
            constant = new_constant(self.graph, f"{self.layer.weight}.order.{number}", weight.astype(np.int64))
        else:
            values = weight if left else _laid(op, self.layer, part, weight)
            before = self.graph.graph.initializers[self.layer.weight]
            constant = _constant(self.graph, f"{self.layer.weight}.{self.name}.{number}", values, before)
        both = [constant, fed] if left or (op == "Gather" and not part.order) else [fed, constant]
        made = self._insert(op, [*both, *self._bias(pieces, number)], attributes, f"{number}")
        self._declare(made.outputs[0], [each for each, _ in pieces[: number + 1]], part.outs)
        return made

    @property
    def left(self) -> bool:
        """Does the weight stand on the left of a product?"""
        return not self.shape.kernel and self.layer.op != "Gather" and on_left(self.node, self.layer)

    def _insert(self, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any], suffix: str) -> ir.Node:
        made = ir.node(op, inputs, attributes, name=f"{self.node.name}.{self.name}.{suffix}")
        made.outputs[0].name = f"{made.name}.out"
        self.graph.graph.insert_before(self.node, made)
        return made

    def _bias(self, pieces: Sequence[Piece], number: int) -> list[ir.Value | None]:
        """What the part adds: its share of the bias that the node reads, for channels that are put in these orders afterwards."""
        rest = list(self.node.inputs[2:])
        behind = pieces[number + 1 :]
        orders = [weight for part, weight in behind if part.order]
        later = any(not (part.order or part.beside) for part, _ in behind)
        if pieces[number][0].order or later or not rest or rest[0] is None:
            return []
        beside = [part for part, _ in behind if part.beside]
        outs = self.shape.groups * self.shape.outs
        place = np.arange(outs)
        for order in reversed(orders):
            place = place[np.argsort(order)]
        if not orders and pieces[number][0].outs == outs:
            return rest
        first = outs - sum(part.outs for part in beside) - pieces[number][0].outs
        return [self._taken(rest[0], place[first : first + pieces[number][0].outs], number)]

    def _taken(self, bias: ir.Value, places: np.ndarray, number: int) -> ir.Value:
        """Entries of the bias; by a node where it is computed."""
        values = constant_of(bias)
        if values is not None:
            return new_constant(self.graph, f"{bias.name}.ordered", np.ascontiguousarray(values[places]))
        places_of = new_constant(self.graph, f"{bias.name}.places", places.astype(np.int64))
        return self._insert("Gather", [bias, places_of], {"axis": 0}, f"{number}.bias").outputs[0]

    def _declare(self, value: ir.Value, parts: Sequence[Part], outs: int) -> None:
        """Type and shape of a value between two parts."""
        node, left = self.node, self.left
        fed = next(each for each in node.inputs if each is not None and each.name == self.layer.reads)
        read, written = sizes_of(fed), sizes_of(node.outputs[0])
        value.type = node.outputs[0].type
        if read is None or written is None:
            return
        if not self.shape.kernel:
            rows = read if self.layer.op == "Gather" else read[:-1]
            value.shape = ir.Shape([*read[:-2], outs, read[-1]] if left else [*rows, outs])
            return
        sizes = lengths(self.shape, parts, read[2:], written[2:])[-1]
        value.shape = ir.Shape([read[0], outs, *sizes])  # type: ignore[list-item]


def _kind(node: ir.Node, layer: Layer, shape: Shape, part: Part, last: bool) -> tuple[str, dict[str, Any]]:
    """Operator and attributes of a part."""
    if part.order:
        return "Gather", {"axis": 1}
    if not shape.kernel:
        if layer.op == "Gather" and not last:
            return "Gather", {"axis": 0}
        keeps = last and layer.op == "Gemm"
        return ("Gemm", {k: a.value for k, a in node.attributes.items()}) if keeps else ("MatMul", {})
    rank, given = len(shape.kernel), {key: each.value for key, each in node.attributes.items()}
    attributes: dict[str, Any] = {"kernel_shape": part.kernel(shape), "group": part.groups}
    if part.window is not None:
        pads = (*part.window.begins, *part.window.ends)
        return "Conv", {**attributes, "strides": part.window.strides, "dilations": part.window.dilations, "pads": pads}
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
    turned = op in ("MatMul", "Gather") or (op == "Gemm" and layer.order == (1, 0))
    return weight.T if turned else weight


def _constant(graph: ir.Model, name: str, values: np.ndarray, before: ir.Value) -> ir.Value:
    """In the type of the layer's own weight, in memory and in the file."""
    tensor = before.const_value
    assert tensor is not None
    made = new_constant(graph, name, np.ascontiguousarray(values.astype(tensor.dtype.numpy())))
    if FILE_TYPE in tensor.meta:
        made.const_value = narrow_tensor(made.const_value.numpy(), tensor.meta[FILE_TYPE], made.name or "")  # type: ignore[union-attr]
    return made


def _hand_over(graph: ir.Model, node: ir.Node, made: ir.Node) -> None:
    """The new node writes what the old one wrote, under its name."""
    old, new = node.outputs[0], made.outputs[0]
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    name = old.name
    graph.graph.remove(node, safe=True)
    old.name = None
    new.name = name
