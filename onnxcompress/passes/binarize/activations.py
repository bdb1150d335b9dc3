"""Signs of activations, written into the graph: x becomes sign(x) · mean |x| over the channels at each position.

XNOR-Net (Rastegari et al. 2016, arXiv:1603.05279, section 3.2) takes the mean over channels and then over the window of the kernel;
here it stays at each position, so that padding, strides and groups need no second convolution: for 1x1 kernels and matrix products
it is the same. Zero stays zero, as ONNX's Sign has it: what Relu has silenced keeps silent.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import new_constant
from onnxcompress.operators.layer import Layer

ENDING = ".signs"
"""Of the name of a value that holds signs."""


def put_signs(graph: ir.Model, node: ir.Node, layer: Layer) -> None:
    """Let `node` read signs in place of `layer.reads`; nodes that read the same value share them."""
    place, read = next((n, v) for n, v in enumerate(node.inputs) if v is not None and v.name == layer.reads)
    users = (output for user, _ in read.uses() for output in user.outputs)
    factors = (output for each in users for user, _ in each.uses() for output in user.outputs)
    made = next((each for each in factors if each.name == read.name + ENDING), None)  # type: ignore[operator]
    node.replace_input_with(place, made or _signs(graph, node, read, layer.channel_axis))


def _signs(graph: ir.Model, before: ir.Node, read: ir.Value, axis: int) -> ir.Value:
    name = f"{read.name}{ENDING}"
    axes: list[ir.Value] = []
    kept: dict[str, int | list[int]] = {"keepdims": 1, "axes": [axis]}
    if graph.opset_imports[""] >= 18:  # from there on axes are an input
        axes, kept = [new_constant(graph, f"{name}.axes", np.array([axis], np.int64))], {"keepdims": 1}
    sign = ir.node("Sign", [read], name=f"{name}.sign")
    size = ir.node("Abs", [read], name=f"{name}.size")
    mean = ir.node("ReduceMean", [size.outputs[0], *axes], kept, name=f"{name}.mean")
    signs = ir.node("Mul", [sign.outputs[0], mean.outputs[0]], name=name)
    for each in (sign, size, mean, signs):
        each.outputs[0].name, each.outputs[0].type = each.name, read.type
        each.outputs[0].shape = None if each is mean else read.shape
    assert before.graph is not None
    before.graph.insert_before(before, [sign, size, mean, signs])
    return signs.outputs[0]
