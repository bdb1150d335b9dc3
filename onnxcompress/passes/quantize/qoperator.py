"""The other spelling of a quantized graph: QLinearConv and its kind instead of pairs around float operators.

Made from the graph of pairs that `write` wrote, so that both say the same: a node all of whose activations come out of
DequantizeLinear becomes its kernel, either between levels (one QuantizeLinear reads it) or, for products, from levels to
floats. What is left in pairs: operators without a kernel of their own, which move or clip entries on levels as they stand.

The same integers are summed with onnxruntime's graph optimisations and without; QDQ needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import numpy as np
import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, input_of, walk
from onnxcompress.model.wiring import drop_unread
from onnxcompress.passes.quantize.pen import MICROSOFT, Pen, instead

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


def _to_float(reads: list[Inputs], bias: Inputs) -> Inputs:
    (x, x_scale, x_zero), (w, w_scale, w_zero) = reads[:2]
    return [x, w, x_scale, w_scale, x_zero, w_zero, *bias]


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
"""From levels to levels."""

TO_FLOAT: Mapping[str, Kernel] = {
    "MatMul": (MICROSOFT, "MatMulIntegerToFloat", _to_float),
    "Gemm": (MICROSOFT, "QGemm", _gemm),
}
"""From levels to floats; a float bias takes the place of (scale, zero)."""

RAW = {("Where", 0)}
"""Inputs that are no numbers on a grid."""

IMPLIED = {"Gemm": {"beta"}, "GlobalAveragePool": set[str]()}
"""Attributes that the kernel does not know: one is what `write` takes alone."""


def as_operators(model: Model) -> Model:
    """The same integers with a kernel a node."""
    graph = model.ir.clone()
    pen = Pen(graph)
    for node in list(walk(graph)):
        if node.domain or node.graph is None or not (node.op_type in KERNELS or node.op_type in TO_FLOAT):
            continue
        reads = [_parts(pen, node, index) for index in range(len(node.inputs))]
        known = [part for part in reads if part is not None]
        quantize, owner, bias = _only_rounded(node), *_biased(pen, node)
        if len(known) < len(reads):
            continue
        if quantize is not None and node.op_type in KERNELS:
            out: Inputs = [_copy(pen, quantize, 1), _copy(pen, quantize, 2)]
            _spell(pen, node, quantize, KERNELS[node.op_type], known, out)
        elif node.op_type in TO_FLOAT:
            _spell(pen, node, owner, TO_FLOAT[node.op_type], known, bias)
    drop_unread(graph)
    return model.edited(graph)


def _spell(pen: Pen, node: ir.Node, last: ir.Node, kernel: Kernel, reads: list[Inputs], out: Inputs) -> None:
    """One kernel for what stands from `node` to `last`."""
    domain, op, arranged = kernel
    left_out = IMPLIED.get(node.op_type, set())
    attributes = {key: value.value for key, value in node.attributes.items() if key not in left_out}
    if op == "QLinearSoftmax":
        attributes["opset"] = pen.graph.graph.opset_imports[""]
    old = last.outputs[0]
    made = pen.node(op, arranged(reads, out), f"{old.name}.made", before=last, domain=domain, attributes=attributes)
    made.producer().name = node.name  # type: ignore[union-attr]
    instead(old, made)


def _only_rounded(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that alone reads the node's output."""
    user = _only_reader(node)
    return user if user is not None and user.op_type == "QuantizeLinear" else None


def _only_reader(node: ir.Node) -> ir.Node | None:
    output = node.outputs[0]
    users = [user for user, _ in output.uses()]
    return users[0] if len(users) == 1 and not output.is_graph_output() else None


def _biased(pen: Pen, node: ir.Node) -> tuple[ir.Node, Inputs]:
    """The Add behind a MatMul that adds a bias out of int32 levels, and that bias in float; else the node itself."""
    add = _only_reader(node) if node.op_type == "MatMul" else None
    if add is None or add.op_type != "Add":
        return node, []
    other = next((value for value in add.inputs if value is not node.outputs[0]), None)
    made = None if other is None else other.producer()
    levels = constant_of(input_of(made, 0)) if made is not None and made.op_type == "DequantizeLinear" else None
    if made is None or levels is None or levels.dtype != np.int32:
        return node, []
    scale = np.asarray(constant_of(input_of(made, 1)))
    floats = (levels.astype(np.float32) * scale.astype(np.float32)).reshape(-1)
    return add, [pen.constant(f"{made.outputs[0].name}.float", floats)]


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
