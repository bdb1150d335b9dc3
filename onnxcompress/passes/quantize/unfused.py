"""Which nodes of a quantized file run in float all the same, in the graph that onnxruntime makes of it, and why.

A node runs on integers where everything it reads comes from DequantizeLinear, everything that reads it is QuantizeLinear, and
its kernel has these types. REASONS is what is missing where it does not, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import onnx

INTEGER_FORM = {
    *("Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "MaxPool"),
    *("Sigmoid", "LeakyRelu", "Softmax", "Where"),
}
"""Operators that onnxruntime has an integer kernel for: left in float between DequantizeLinear and QuantizeLinear they cost time."""

PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
"""Which of these are a loss wherever they read levels: their weights are integers."""

KEPT = {op: slice(0, 2) if op in PRODUCTS else slice(1 if op == "Where" else 0, None) for op in INTEGER_FORM}
"""Operator -> the inputs that must be levels: a float bias becomes integers by itself, a condition is none."""

HANDED, TAKEN, CHANNELS, MIXED, TYPES = REASONS = {
    "hand their result on in float": "quantize the output of a node too, or none of its inputs",
    "take an input in float": "quantize all inputs of a node, or none of them",
    "read activations with a scale a channel": "give every activation one scale",
    "have int8 and uint8 operands": "use uint8 for every activation",
    "have no integer kernel for their types": "use uint8 activations, int8 weights, and biases in int32 with scale x · w",
}


def graphs_of(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """A graph and every body in it, each behind the one that holds it."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            bodies = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            found += [each for body in bodies for each in graphs_of(body)]
    return found


@dataclass(frozen=True, eq=False)
class Executed:
    """One graph as onnxruntime executes it: the main one, or a body.

    around  constants that it sees beside its own
    """

    graph: onnx.GraphProto
    around: Mapping[str, onnx.TensorProto] = field(default_factory=dict)

    def in_float(self) -> dict[str, list[onnx.NodeProto]]:
        """Key of REASONS -> nodes that read levels and run in float; those where floats begin are none."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            rounded = any(each.op_type == "QuantizeLinear" for each in self._behind(node))
            if (
                node.op_type in INTEGER_FORM
                and not node.domain.startswith("com.microsoft")
                and any(self._converts(name) for name in node.input)
                and (node.op_type in PRODUCTS or rounded)
            ):
                found.setdefault(self._why(node), []).append(node)
        return found

    @cached_property
    def _made(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.graph.node for name in node.output}

    @cached_property
    def _readers(self) -> dict[str, list[onnx.NodeProto]]:
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def _stored(self) -> dict[str, onnx.TensorProto]:
        return {**self.around, **{tensor.name: tensor for tensor in self.graph.initializer}}

    def _behind(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        return (each for name in node.output for each in self._readers.get(name, []))

    def _converts(self, name: str) -> bool:
        return name in self._made and self._made[name].op_type == "DequantizeLinear"

    def _why(self, node: onnx.NodeProto) -> str:
        behind = list(self._behind(node))
        if not behind or any(each.op_type != "QuantizeLinear" for each in behind):
            return HANDED
        data = [name for name in node.input[KEPT[node.op_type]] if name]
        if not all(self._converts(name) for name in data):
            return TAKEN
        fed = map(self._made.__getitem__, data)
        ends = [each for each in fed if node.op_type not in PRODUCTS or each.input[0] not in self._stored] + behind
        if any(prod(self._stored[each.input[1]].dims) > 1 for each in ends if each.input[1] in self._stored):
            return CHANNELS
        types = {
            self._stored[each.input[2]].data_type for each in ends if each.input[2:3] and each.input[2] in self._stored
        }
        return MIXED if len(types) > 1 else TYPES
