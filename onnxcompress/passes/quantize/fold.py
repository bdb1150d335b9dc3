"""BatchNormalization folded into the layer before it: one scale and shift less for a grid to spoil.

onnxruntime does the same when it loads a file; a quantizer has to come first, since weights are scaled anew by it.
Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, input_of, new_constant, set_constant, walk
from onnxcompress.operators.layer import Layer, layers

BEFORE = ("Conv", "ConvTranspose", "Gemm")
"""Operators that can take a scale and a shift into weight and bias."""


def fold_batchnorm(model: Model) -> Model:
    """The model with every BatchNormalization behind a layer of its own folded into it; others stay. Sums in float64.

    The layer's output takes the name of the norm's. The model itself where there is nothing to fold.
    """
    graph = model.ir.clone()
    nodes = {node.name: node for node in walk(graph)}
    folded = [name for layer in layers(model) if (name := _fold(graph, nodes[layer.name], layer))]
    if not folded:
        return model
    for name in [name for name, value in graph.graph.initializers.items() if _unused(value)]:
        del graph.graph.initializers[name]
    return model.edited(graph)


def _fold(graph: ir.Model, node: ir.Node, layer: Layer) -> str:
    """Fold the norm behind one layer; its name, empty where there is none."""
    users = list(node.outputs[0].uses())
    weight, bias = input_of(node, 1), input_of(node, 2)
    if layer.op not in BEFORE or len(users) != 1 or node.outputs[0].is_graph_output() or weight is None:
        return ""
    norm = users[0][0]
    parameters = [constant_of(value) for value in norm.inputs[1:]]
    if norm.op_type != "BatchNormalization" or norm.domain or len(parameters) != 4 or users[0][1] != 0:
        return ""
    if norm.graph is not node.graph or any(
        len(list(value.uses())) > 1 for value in (weight, bias) if value is not None
    ):
        return ""
    values = constant_of(weight)
    if values is None or any(array is None for array in parameters) or (bias is not None and constant_of(bias) is None):
        return ""
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in parameters)
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    matrix = layer.matrix(values.astype(np.float64))
    if len(matrix) != len(scale):
        return ""
    shape = (-1,) + (1,) * (matrix.ndim - 1)
    set_constant(graph, weight.name or "", layer.stored(matrix * scale.reshape(shape), values))
    factor = node.attributes.get_float("beta", 1.0) if layer.op == "Gemm" else 1.0
    before = 0.0 if bias is None else factor * constant_of(bias).astype(np.float64)  # type: ignore[union-attr]
    _set_bias(graph, node, ((before - mean) * scale + beta).astype(values.dtype), layer)
    _take_place(node, norm)
    return norm.name or ""


def _set_bias(graph: ir.Model, node: ir.Node, values: np.ndarray, layer: Layer) -> None:
    node.attributes.pop("beta", None)
    node.resize_inputs(3)
    node.replace_input_with(2, new_constant(graph, f"{layer.weight}.bias", values))


def _take_place(node: ir.Node, norm: ir.Node) -> None:
    """`norm` goes, `node` answers in its name."""
    old, new = norm.outputs[0], node.outputs[0]
    name, shape, kind = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    assert norm.graph is not None
    norm.graph.remove(norm, safe=True)
    old.name = f"{name}.folded"
    new.name, new.shape, new.type = name, shape, kind


def _unused(value: ir.Value) -> bool:
    return not list(value.uses()) and not value.is_graph_output()
