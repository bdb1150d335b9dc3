"""The other spelling of a quantized graph: QLinearConv and its kind instead of pairs around float operators.

Made from the graph of pairs that `write` wrote, so that both say the same: every node all of whose activations come out of
DequantizeLinear and whose one reader is QuantizeLinear becomes its kernel. What is left in pairs: a MatMul with a bias that
is not a Gemm, products that hand out floats, and operators without a kernel; onnxruntime treats those as in the other form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, input_of
from onnxcompress.passes.quantize.pen import MICROSOFT, Pen, instead, tidy

Inputs = list[ir.Value | None]
Kernel = tuple[str, str, Callable[[list[Inputs], Inputs], Inputs]]
"""Domain, operator, and its inputs from (levels, scale, zero) of each input and (scale, zero) of the output."""


def _in_turn(reads: list[Inputs], out: Inputs) -> Inputs:
    return [*chain.from_iterable(reads), *out]


def _conv(reads: list[Inputs], out: Inputs) -> Inputs:
    return [*reads[0], *reads[1], *out, *(part[0] for part in reads[2:])]


def _gemm(reads: list[Inputs], out: Inputs) -> Inputs:
    bias = reads[2][0] if len(reads) > 2 else None
    return [*reads[0], *reads[1], bias, *out]


def _concat(reads: list[Inputs], out: Inputs) -> Inputs:
    return [*out, *chain.from_iterable(reads)]


def _where(reads: list[Inputs], out: Inputs) -> Inputs:
    return [reads[0][0], *reads[1], *reads[2], *out]


KERNELS: Mapping[str, Kernel] = {
    "Conv": ("", "QLinearConv", _conv),
    "MatMul": ("", "QLinearMatMul", _in_turn),
    "Gemm": (MICROSOFT, "QGemm", _gemm),
    "Concat": (MICROSOFT, "QLinearConcat", _concat),
    "Where": (MICROSOFT, "QLinearWhere", _where),
    **{
        op: (MICROSOFT, f"QLinear{op}", _in_turn)
        for op in ("Add", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax")
    },
}

RAW = {("Where", 0)}
"""Inputs that are no numbers on a grid."""

IMPLIED = {"Gemm": {"beta"}, "GlobalAveragePool": set[str]()}
"""Attributes that the kernel does not know: one is what `write` takes alone."""


def as_operators(model: Model) -> Model:
    """The same integers with a kernel a node."""
    graph = model.ir.clone()
    pen = Pen(graph)
    for node in list(graph.graph):
        kernel = KERNELS.get(node.op_type) if not node.domain else None
        quantize = _only_rounded(node)
        if kernel is None or quantize is None:
            continue
        reads = [_parts(pen, node, index) for index in range(len(node.inputs))]
        if any(part is None for part in reads):
            continue
        domain, op, arranged = kernel
        out: Inputs = [_copy(pen, quantize, 1), _copy(pen, quantize, 2)]
        left_out = IMPLIED.get(node.op_type, set())
        attributes = {key: value.value for key, value in node.attributes.items() if key not in left_out}
        if op == "QLinearSoftmax":
            attributes["opset"] = graph.opset_imports[""]
        old = quantize.outputs[0]
        inputs = arranged([part for part in reads if part is not None], out)
        made = pen.node(op, inputs, f"{old.name}.made", before=node, domain=domain, attributes=attributes)
        instead(old, made)
    tidy(graph)
    return model.edited(graph)


def _only_rounded(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that alone reads the node's output."""
    output = node.outputs[0]
    users = [user for user, _ in output.uses()]
    alone = len(users) == 1 and not output.is_graph_output() and users[0].op_type == "QuantizeLinear"
    return users[0] if alone else None


def _parts(pen: Pen, node: ir.Node, index: int) -> Inputs | None:
    """Levels, scale and zero behind input `index`; the input itself where it is no number; None where it is not rounded."""
    value = input_of(node, index)
    made = None if value is None else value.producer()
    if (node.op_type, index) in RAW:
        return [value]
    if made is None or made.op_type != "DequantizeLinear":
        return None
    return [made.inputs[0], _copy(pen, made, 1), _copy(pen, made, 2)]


def _copy(pen: Pen, node: ir.Node, index: int) -> ir.Value:
    """A constant of its own for each reader."""
    value = node.inputs[index]
    values = constant_of(value)
    assert value is not None and values is not None
    return pen.constant(value.name or "", values)
