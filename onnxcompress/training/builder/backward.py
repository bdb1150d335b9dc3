"""The builder's answer in operators of the stock onnxruntime: its own operators by rows of `LOWERED`, all others as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import pi, sqrt
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.training.builder.forward import sent
from onnxcompress.training.builder.place import ask
from onnxcompress.training.derivatives import DERIVATIVES, Site
from onnxcompress.training.derivatives.site import summed_to, zeros_like
from onnxcompress.training.fixed import known_of
from onnxcompress.training.lowering import batch_norm_grad, max_pool_grad, relu_grad, step
from onnxcompress.training.pen import Pen, element_of, shape_of
from onnxcompress.training.reverse import moving


@dataclass(frozen=True, eq=False)
class Met:
    """A node of the builder's.

    x      its inputs        attributes  of the operator that it is the gradient of
    wants  which outputs it names            like  the value whose gradient its first output is, where that is known
    """

    op_type: str
    x: Sequence[ir.Value]
    attributes: Mapping[str, ir.Attr]
    wants: tuple[bool, ...]
    like: ir.Value | None


Lowering = Callable[[Pen, Met], Sequence[ir.Value | None]]
"""(op, met) -> its outputs."""


def built(op: Pen, loss: ir.Value, by: Sequence[ir.Value], folder: Path) -> dict[ir.Value, ir.Value]:
    """As `reverse.differentiate`, by the builder that lies in this folder."""
    nodes = list(op.graph.graph)
    reached = moving(nodes, by, op.stops)
    if loss not in reached:
        raise ModelError(f"the loss does not depend on any of the {len(by)} trained parameters; train others")
    way = [node for node in nodes if any(value in reached for value in node.outputs)]
    for node in way:
        _declare(op, node)
    depends = _trained_on(way, loss, by)
    answer = ask(folder, sent(op, way, loss, depends), str(loss.name), [str(value.name) for value in depends])
    known = {str(value.name): value for node in nodes for value in node.outputs if value.name}
    known |= {str(value.name): value for value in (*op.graph.graph.inputs, *op.graph.graph.initializers.values())}
    values = dict(known)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in answer.graph.initializer}
    for node in answer.graph.node:
        if not all(name in values for name in node.output if name):
            _replay(op, node, values, constants, known)
    return {value: values.get(f"{value.name}_grad") or zeros_like(op, value) for value in by}


def _trained_on(way: Sequence[ir.Node], loss: ir.Value, by: Sequence[ir.Value]) -> list[ir.Value]:
    """Those that the loss depends on: the builder refuses others."""
    wanted = {loss}
    for node in reversed(way):
        if any(value in wanted for value in node.outputs):
            wanted.update(value for value in node.inputs if value is not None)
    return [value for value in by if value in wanted]


def _declare(op: Pen, node: ir.Node) -> None:
    """MaxPool tells its indices, from which its gradient is made."""
    if node.op_type == "MaxPool" and not node.domain and (len(node.outputs) < 2 or not node.outputs[1].name):
        node.resize_outputs(2)
        node.outputs[1].name = f"{node.outputs[0].name}~indices"
        op.infer(node)


def _replay(
    op: Pen,
    node: onnx.NodeProto,
    values: dict[str, ir.Value],
    constants: Mapping[str, np.ndarray],
    known: Mapping[str, ir.Value],
) -> None:
    """Write one node of the answer, lowered."""
    for name in filter(None, node.input):
        if name not in values:
            values[name] = op.constant(constants[name])
    reads = [values[name] if name else None for name in node.input]
    attributes = {attr.name: ir.serde.deserialize_attribute(attr) for attr in node.attribute}
    if node.op_type in LOWERED:
        like = known.get(node.output[0].partition("_grad")[0])
        met = Met(node.op_type, reads, attributes, tuple(map(bool, node.output)), like)  # type: ignore[arg-type]
        found = LOWERED[node.op_type](op, met)
    elif node.domain in ("", "ai.onnx") or node.op_type == "FusedMatMul":
        found = _as_it_is(op, node, reads, attributes)
    else:
        raise ModelError(f"{node.op_type} of onnxruntime-training has no lowering; choose --gradients own")
    for name, value in zip(node.output, found, strict=False):
        if name and value is not None:
            values.setdefault(name, value)


def _as_it_is(
    op: Pen, node: onnx.NodeProto, reads: Sequence[ir.Value | None], attributes: Mapping[str, ir.Attr]
) -> Sequence[ir.Value]:
    made = op.node(node.op_type, reads, outputs=len(node.output), domain=node.domain, **attributes)
    outputs: list[ir.Value] = [made] if len(node.output) == 1 else made
    producer = outputs[0].producer()
    assert producer is not None
    values = known_of(op, producer)
    if values is None:
        return outputs
    op.graph.graph.remove(producer, safe=True)
    return [op.constant(each) for each in values]


def _row(forward: str, order: Sequence[int | None], dy: int = 0) -> Lowering:
    """The row of the derivative table for `forward`, whose inputs are those of the met node in this order; None: a value like the
    one whose gradient is asked for, of which the row reads the shape alone."""

    def lowered(op: Pen, met: Met) -> Sequence[ir.Value | None]:
        reads = [met.like if index is None else met.x[index] for index in order if index is None or index < len(met.x)]
        if forward in BIASES and len(met.wants) > 2:
            reads.append(op.constant(np.zeros(BIASES[forward](met), element_of(met.x[2]))))
        return through(op, forward, reads, met.x[dy], met.attributes, met.wants)

    return lowered


def _groups(met: Met) -> int:
    return met.attributes["group"].as_int() if "group" in met.attributes else 1


BIASES: Mapping[str, Callable[[Met], tuple[int, ...]]] = {
    "Conv": lambda met: shape_of(met.x[2])[:1],
    "ConvTranspose": lambda met: (shape_of(met.x[2])[1] * _groups(met),),
    "LayerNormalization": lambda met: shape_of(met.x[2]),
}
"""Shape of the bias, which the builder's operators do not read but give a gradient of."""


def through(
    op: Pen,
    forward: str,
    reads: Sequence[ir.Value | None],
    dy: ir.Value,
    attributes: Mapping[str, ir.Attr],
    wants: Sequence[bool],
) -> Sequence[ir.Value | None]:
    """The row's gradients of a node that stands in no graph."""
    node = ir.node(forward, reads, dict(attributes), name=op.fresh())
    node.outputs[0].name = f"{node.name}.0"
    op.infer(node)
    found = list(DERIVATIVES[forward](op, Site(node, (*wants, *[False] * len(reads))), dy))
    for index in range(len(reads)):
        node.replace_input_with(index, None)
    return found


def _shaped(forward: str, order: Sequence[int], shape: int, dy: int) -> Lowering:
    """As `_row`, where the forward operator's data come in by their shape alone."""

    def lowered(op: Pen, met: Met) -> Sequence[ir.Value | None]:
        sizes = met.x[shape].const_value
        if sizes is None:
            raise ModelError(f"{met.op_type} of onnxruntime-training: its shape depends on the data")
        data = ir.val(op.fresh(), dtype=met.x[dy].dtype, shape=ir.Shape([int(size) for size in sizes.numpy()]))
        reads = [data, *(met.x[index] for index in order if index < len(met.x))]
        return through(op, forward, reads, met.x[dy], met.attributes, (True,))[:1]

    return lowered


def _scale(op: Pen, met: Met) -> Sequence[ir.Value | None]:
    x, factor = met.x
    factor = op.Reshape(op.Cast(factor, to=x.dtype), np.zeros(0, np.int64))
    down = "scale_down" in met.attributes and met.attributes["scale_down"].as_int()
    return [op.Div(x, factor) if down else op.Mul(x, factor)]


def _softmax(op: Pen, met: Met) -> Sequence[ir.Value | None]:
    dy, y = met.x
    inner = op.ReduceSum(op.Mul(dy, y), [met.attributes["axis"].as_int()], keepdims=1)
    return [op.Mul(y, op.Sub(dy, inner))]


def _log_softmax(op: Pen, met: Met) -> Sequence[ir.Value | None]:
    dy, y = met.x
    return [op.Sub(dy, op.Mul(op.Exp(y), op.ReduceSum(dy, [met.attributes["axis"].as_int()], keepdims=1)))]


def _gelu(op: Pen, met: Met) -> Sequence[ir.Value | None]:
    """dy (Φ(x) + x φ(x))."""
    dy, x = met.x
    below = op.Mul(op.Add(op.Erf(op.Mul(x, 1 / sqrt(2))), 1.0), 0.5)
    density = op.Mul(op.Exp(op.Mul(op.Mul(x, x), -0.5)), 1 / sqrt(2 * pi))
    return [op.Mul(dy, op.Add(below, op.Mul(x, density)))]


def _leaky(op: Pen, met: Met) -> Sequence[ir.Value | None]:
    dy, y = met.x
    alpha = met.attributes["alpha"].as_float()
    return [op.Mul(dy, op.Add(op.Mul(step(op, y), 1 - alpha), alpha))]


def _div(op: Pen, met: Met) -> Sequence[ir.Value | None]:
    """dy / b and -dy a / b², summed over what was broadcast."""
    dy, a, b = met.x
    over = op.Div(dy, b)
    left = summed_to(op, over, shape_of(a)) if met.wants[0] else None
    right = op.Neg(summed_to(op, op.Mul(over, op.Div(a, b)), shape_of(b))) if len(met.wants) > 1 else None
    return [left, right]


def _norm(op: Pen, met: Met) -> Sequence[ir.Value | None]:
    """Its inputs are dy, x, scale, and the mean and variance of the batch (forward.py)."""
    dy, x, scale, mean, var = met.x
    return batch_norm_grad(op, dy, x, scale, mean, var, met.attributes["epsilon"].as_float())


def _max_pool(op: Pen, met: Met) -> Sequence[ir.Value | None]:
    producer = met.x[1].producer()
    assert producer is not None
    assert producer.inputs[0] is not None
    return [max_pool_grad(op, met.x[0], met.x[1], shape_of(producer.inputs[0]))]


LOWERED: Mapping[str, Lowering] = {
    "ReluGrad": lambda op, met: [relu_grad(op, met.x[0], met.x[1])],
    "SigmoidGrad": lambda op, met: [op.Mul(met.x[0], op.Mul(met.x[1], op.Sub(1.0, met.x[1])))],
    "TanhGrad": lambda op, met: [op.Mul(met.x[0], op.Sub(1.0, op.Mul(met.x[1], met.x[1])))],
    "GeluGrad": _gelu,
    "LeakyReluGrad": _leaky,
    "SoftmaxGrad_13": _softmax,
    "LogSoftmaxGrad_13": _log_softmax,
    "Scale": _scale,
    "ConvGrad": _row("Conv", (1, 2)),
    "ConvTransposeGrad": _row("ConvTranspose", (1, 2)),
    "AveragePoolGrad": _row("AveragePool", (None,)),
    "DivGrad": _div,
    "BatchNormInternal": lambda op, met: [],  # ours has written what is read of it
    "ResizeGrad": _row("Resize", (1, 2, 3)),
    "LayerNormalizationGrad": _row("LayerNormalization", (1, 2)),
    "MaxPoolGrad": _max_pool,
    "BatchNormalizationGrad": _norm,
    "GatherGrad": _shaped("Gather", (1,), 0, 2),
    "GatherElementsGrad": _shaped("GatherElements", (2,), 1, 0),
    "GatherNDGrad": _shaped("GatherND", (1,), 0, 2),
    "SliceGrad": _shaped("Slice", (2, 3, 4, 5), 1, 0),
}
"""Operator of the builder -> what it becomes."""
