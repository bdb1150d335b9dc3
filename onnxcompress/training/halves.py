"""Graphs that compute in half precision train in float32: their weights would be lost in rounding, updates first of all.

    input, FLOAT16     ──▶ input, then Cast to float32 for all who read it
    constant, FLOAT16  ──▶ the same numbers in float32
    Cast to FLOAT16    ──▶ Cast to float32

Micikevicius et al., ICLR 2018, arXiv:1710.03740, keep such master weights too. What is trained is written back in the file's type.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, walk

NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
TYPED = {"Cast": "to", "RandomNormal": "dtype", "RandomUniform": "dtype", "EyeLike": "dtype", "Bernoulli": "dtype"}
"""Operator -> the attribute that names the type of what it gives."""


def widened(model: Model) -> Model:
    """The same model in float32; itself where nothing in it is narrower."""
    nodes = list(walk(model.ir))
    values = [value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None]
    if not any(value.dtype in NARROW for value in values):
        return model
    graph = model.ir.clone()
    for value in graph.graph.inputs:
        if value.dtype in NARROW:
            _cast(graph, value)
    for node in walk(graph):
        _typed(node)
        for each in (*node.inputs, *node.outputs):
            if each is not None and each.dtype in NARROW and not each.is_graph_input():
                _widen(each)
    return model.edited(graph)


def _cast(graph: ir.Model, value: ir.Value) -> None:
    """All who read the input read it in float32."""
    node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}.wide")
    made = node.outputs[0]
    made.name, made.type, made.shape = f"{value.name}.wide", ir.TensorType(ir.DataType.FLOAT), value.shape
    value.replace_all_uses_with(made)
    node.replace_input_with(0, value)
    graph.graph.insert_before(graph.graph[0], node)


def _typed(node: ir.Node) -> None:
    """A node that names the narrow type, in an attribute or in the value that it spreads."""
    name = TYPED.get(node.op_type)
    if name is not None and node.attributes.get_int(name, 0) in [int(each) for each in NARROW]:
        node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    spread = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and spread is not None and spread.as_tensor().dtype in NARROW:
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(spread.as_tensor().numpy().astype(np.float32)))


def _widen(value: ir.Value) -> None:
    stored = constant_of(value)
    if stored is not None:
        value.const_value = ir.Tensor(stored.astype(np.float32), name=value.name)
    value.type = ir.TensorType(ir.DataType.FLOAT)
