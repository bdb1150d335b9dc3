"""A quantized model that takes and gives levels in place of floats."""

from __future__ import annotations

import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of
from onnxcompress.model.wiring import drop_unread


def integer_ends(model: Model) -> tuple[Model, tuple[str, ...]]:
    """Levels at the model's own inputs and outputs: the first QuantizeLinear and the last DequantizeLinear are left out.

    The second: what a caller must now do himself, or why a float stays one, a sentence an input or output.
    """
    graph, told = model.ir.clone(), []
    for value in graph.graph.inputs:
        readers = [node for node, _ in value.uses()]
        if [node.op_type for node in readers] == ["QuantizeLinear"]:
            (quantize,) = readers
            told.append(f"feed {value.name!r} as {_step(quantize)}")
            value.type = quantize.outputs[0].type
            quantize.outputs[0].replace_all_uses_with(value)
            graph.graph.remove(quantize, safe=True)
        elif readers and value.dtype == ir.DataType.FLOAT:
            who = ", ".join(dict.fromkeys(f"{node.op_type} {node.name}" for node in readers))
            told.append(f"{value.name!r} stays float: {who} reads it so")
    for index, value in enumerate(graph.graph.outputs):
        made = value.producer()
        levels, name = (made.inputs[0], value.name) if made is not None and made.inputs else (None, value.name)
        if made is not None and made.op_type == "DequantizeLinear" and _alone(levels):
            assert levels is not None
            told.append(f"read {name!r} as {_step(made)}")
            value.name, levels.name, levels.shape = f"{name}.rounded", name, value.shape
            graph.graph.outputs[index] = levels
        elif made is not None and value.dtype == ir.DataType.FLOAT:
            told.append(f"{name!r} stays float: {made.op_type} {made.name} writes it so")
    drop_unread(graph)
    return model.edited(graph), tuple(told)


def _alone(levels: ir.Value | None) -> bool:
    """Can levels take the place of an output?"""
    return levels is not None and levels.producer() is not None and not levels.is_graph_output()


def _step(node: ir.Node) -> str:
    """The grid of a QuantizeLinear or DequantizeLinear, for people."""
    scale, zero = constant_of(node.inputs[1]), constant_of(node.inputs[2])
    assert scale is not None and zero is not None
    return f"(level - {int(zero)}) * {float(scale):.8g}, {zero.dtype}"
