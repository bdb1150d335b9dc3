"""A graph's way from its parameters to the loss, as a message that onnxruntime-training's builder takes.

Only nodes that a gradient goes through are in it: what they read besides comes in as constants (shapes, axes) or inputs, so that the
builder need not know the operators there. Operators that it lacks are written in others; its answer meets ours by the names of values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import onnx
import onnx_ir as ir

from onnxcompress.errors import ModelError
from onnxcompress.training.builder.place import IR_VERSION, OPSETS
from onnxcompress.training.derivatives import COMPOSED, Site, captured, key_of
from onnxcompress.training.pen import SMALL, Pen, shape_of

Rewriting = Callable[[Pen, Site], ir.Value]
"""(op, at) -> the node's output in other operators."""


def sent(op: Pen, nodes: Sequence[ir.Node], loss: ir.Value, by: Sequence[ir.Value]) -> onnx.ModelProto:
    """The message. nodes: in order, those that depend on what trains. ModelError for what the builder does not read."""
    version = op.graph.opset_imports[""]
    if not OPSETS[0] <= version <= OPSETS[1]:
        raise ModelError(
            f"onnxruntime-training reads opset {OPSETS[0]} to {OPSETS[1]}, not {version}; take --gradients own"
        )
    made = ir.Model(
        ir.Graph([], [], nodes=[], name="forward", opset_imports={"": version, "com.microsoft": 1}),
        ir_version=min(op.graph.ir_version, IR_VERSION),
    )
    pen = Pen(made, prefix="!")
    there: dict[ir.Value, ir.Value] = {}
    for value in by:
        _known(pen, there, value)
    for node in _leading_to(loss, nodes):
        if captured(node) or any(attr.type == ir.AttributeType.GRAPH for attr in node.attributes.values()):
            raise ModelError(
                f"onnxruntime-training has no gradient for {node.op_type} {node.name!r}; take --gradients own"
            )
        _write(pen, there, node)
    made.graph.outputs.append(there[loss])
    return ir.to_proto(made)


def _leading_to(loss: ir.Value, nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Those of the nodes that the loss depends on."""
    wanted, found = {loss}, []
    for node in reversed(nodes):
        if any(value in wanted for value in node.outputs):
            found.append(node)
            wanted.update(value for value in node.inputs if value is not None)
    return found[::-1]


def _known(pen: Pen, there: dict[ir.Value, ir.Value], value: ir.Value) -> ir.Value:
    """The value in the message: written before, a small constant, or an input."""
    if value not in there:
        tensor = value.const_value
        if tensor is not None and tensor.size <= SMALL:
            there[value] = pen.constant(tensor.numpy())
        else:
            shape = shape_of(value) if tensor is None else tuple(tensor.shape.numpy())
            dtype = value.dtype if tensor is None else tensor.dtype
            made = ir.val(value.name or "", dtype=dtype, shape=ir.Shape(shape))
            pen.graph.graph.inputs.append(made)
            there[value] = made
    return there[value]


def _write(pen: Pen, there: dict[ir.Value, ir.Value], node: ir.Node) -> None:
    reads = [None if value is None else _known(pen, there, value) for value in node.inputs]
    for index, value in enumerate(reads):
        if value is not None and value.const_value is None and value in reads[:index]:
            reads[index] = pen.Identity(value)  # the builder defines one gradient twice where a node reads x and x
    key = key_of(node)
    if key == "BatchNormalization" and "training_mode" in node.attributes and node.attributes["training_mode"].as_int():
        _training_norm(pen, there, node, reads)
        return
    rewriting = REWRITINGS.get(key) or COMPOSED.get(key)
    if rewriting is not None:
        copy = ir.node(node.op_type, reads, dict(node.attributes), domain=node.domain, num_outputs=len(node.outputs))
        for ours, theirs in zip(node.outputs, copy.outputs, strict=True):
            theirs.type, theirs.shape = ours.type, ours.shape
        given = rewriting(pen, Site(copy, (True,) * len(reads), tuple(reads)))
        outputs = given if isinstance(given, list) else [given]
        for index in range(len(reads)):
            copy.replace_input_with(index, None)
    else:
        count = max(len(node.outputs), DECLARED.get(key, 1))
        found = pen.node(node.op_type, reads, outputs=count, domain=node.domain, **dict(node.attributes))
        outputs = [found] if count == 1 else found
    for value, made in zip(node.outputs, outputs, strict=False):
        if value.name and made is not None:
            made.name = value.name
            there[value] = made


def _training_norm(pen: Pen, there: dict[ir.Value, ir.Value], node: ir.Node, reads: Sequence[ir.Value | None]) -> None:
    """The builder's own operator for it. Its fifth output, 1 / sqrt(var + eps), has our variance's name: `backward` makes it of that."""
    kept: Mapping[str, ir.Attr] = {
        n: a for n, a in node.attributes.items() if n in ("epsilon", "momentum", "training_mode")
    }
    made = ir.node("BatchNormInternal", reads, kept, domain="com.microsoft", num_outputs=5, name=pen.fresh())
    y, mean, var = node.outputs
    shapes = [shape_of(y), *[shape_of(mean)] * 4]
    names = [y.name, f"{made.name}.mean", f"{made.name}.var", mean.name, var.name]
    for value, shape, name in zip(made.outputs, shapes, names, strict=True):
        value.name, value.type, value.shape = name, y.type, ir.Shape(shape)
    pen.graph.graph.append(made)
    for ours, index in ((y, 0), (mean, 3), (var, 4)):
        there[ours] = made.outputs[index]


def _hard_sigmoid(op: Pen, at: Site) -> ir.Value:
    line = op.Add(op.Mul(at.x[0], at.attribute("alpha", 0.2)), at.attribute("beta", 0.5))
    return op.Clip(line, 0.0, 1.0)  # type: ignore[no-any-return]


def _hard_swish(op: Pen, at: Site) -> ir.Value:
    return op.Mul(at.x[0], op.Clip(op.Add(op.Mul(at.x[0], 1 / 6), 0.5), 0.0, 1.0))  # type: ignore[no-any-return]


def _prelu(op: Pen, at: Site) -> ir.Value:
    above = op.Relu(at.x[0])
    return op.Sub(above, op.Mul(at.x[1], op.Sub(above, at.x[0])))  # type: ignore[no-any-return]


def _inference_norm(op: Pen, at: Site) -> ir.Value:
    """(x - mean) scale / sqrt(var + eps) + bias."""
    x, scale, bias, mean, var = (each if i == 0 else op.Reshape(each, _lined(at)) for i, each in enumerate(at.x))
    over = op.Div(scale, op.Sqrt(op.Add(var, at.attribute("epsilon", 1e-5))))
    return op.Add(op.Mul(op.Sub(x, mean), over), bias)  # type: ignore[no-any-return]


def _lined(at: Site) -> list[int]:
    return [1, -1, *[1] * (len(at.shape(0)) - 2)]


def _softplus(op: Pen, at: Site) -> ir.Value:
    """log(1 + eˣ) = max(x, 0) - log(sigmoid(|x|))."""
    x = at.x[0]
    return op.Sub(op.Relu(x), op.Log(op.Sigmoid(op.Abs(x))))  # type: ignore[no-any-return]


def _elu(op: Pen, at: Site) -> ir.Value:
    """max(x, 0) + alpha (exp(min(x, 0)) - 1)."""
    above = op.Relu(at.x[0])
    below = op.Sub(op.Exp(op.Sub(at.x[0], above)), 1.0)
    return op.Add(above, op.Mul(below, at.attribute("alpha", 1.0)))  # type: ignore[no-any-return]


def _sum(op: Pen, at: Site) -> ir.Value:
    return reduce(op.Add, at.x)


REWRITINGS: Mapping[str, Rewriting] = {
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "PRelu": _prelu,
    "BatchNormalization": _inference_norm,
    "Softplus": _softplus,
    "Elu": _elu,
    "Sum": _sum,
}
"""Operators that the builder lacks, in others that it has; as are all of COMPOSED."""

DECLARED: Mapping[str, int] = {"LayerNormalization": 3, "MaxPool": 2}
"""How many outputs an operator must name before the builder takes it."""
