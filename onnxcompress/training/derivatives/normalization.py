"""Derivatives of normalizations and of Softmax."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.training.derivatives.site import Gradients, Rule, Site, summed_to
from onnxcompress.training.lowering import along_channels, batch_norm_grad
from onnxcompress.training.pen import Pen, element_of


def _batch_normalization(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """y = scale (x - m) r + bias by channel, r = 1 / sqrt(v + eps). Training form: see lowering.

    Inference form, m and v constants:  dx = scale r dy, dscale = r Σ(dy (x - m)), dbias = Σdy
    """
    epsilon = at.attribute("epsilon", 1e-5)
    x, scale = at.x[0], at.x[1]
    if at.attribute("training_mode", 0):
        return [*batch_norm_grad(op, dy, x, scale, at.node.outputs[1], at.node.outputs[2], epsilon), None, None]
    if at.wants(3) or at.wants(4):
        raise at.refused("its statistics are trained")
    rank = len(at.shape(0))
    axes = [0, *range(2, rank)]
    r = op.Reciprocal(op.Sqrt(op.Add(at.x[4], epsilon)))
    found: list[ir.Value | None] = [None] * 5
    if at.wants(0):
        found[0] = op.Mul(dy, along_channels(op, op.Mul(scale, r), rank))
    if at.wants(1):
        centred = op.Sub(x, along_channels(op, at.x[3], rank))
        found[1] = op.Mul(op.ReduceSum(op.Mul(dy, centred), axes, keepdims=0), r)
    if at.wants(2):
        found[2] = op.ReduceSum(dy, axes, keepdims=0)
    return found


def _layer_normalization(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """With n = (x - mean) r over the last axes and g = dy scale: dx = r (g - mean(g) - n mean(g n)).

    mean and r are computed again here: onnxruntime's outputs of them are float32 whatever the input is.
    """
    x, shape = at.x[0], at.shape(0)
    first = at.axis(-1)
    axes, count = list(range(first, len(shape))), float(prod(shape[first:]))

    def mean(values: ir.Value) -> ir.Value:
        return op.Mul(op.ReduceSum(values, axes, keepdims=1), 1 / count)  # type: ignore[no-any-return]

    centred = op.Sub(x, mean(x))
    variance = mean(op.Mul(centred, centred))
    r = op.Reciprocal(op.Sqrt(op.Add(variance, at.attribute("epsilon", 1e-5))))
    normal = op.Mul(centred, r)
    g = op.Mul(dy, at.x[1])
    found: list[ir.Value | None] = [None, None, None]
    if at.wants(0):
        found[0] = op.Mul(r, op.Sub(op.Sub(g, mean(g)), op.Mul(normal, mean(op.Mul(g, normal)))))
    if at.wants(1):
        found[1] = summed_to(op, op.Mul(dy, normal), at.shape(1))
    if at.wants(2):
        found[2] = summed_to(op, dy, at.shape(2))
    return found[: len(at.x)]


def _softmax(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """y (dy - Σ dy y)."""
    axis = at.axis(-1)
    inner = op.ReduceSum(op.Mul(dy, at.y), [axis], keepdims=1)
    return [op.Mul(at.y, op.Sub(dy, inner))]


def _log_softmax(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """dy - softmax Σ dy."""
    total = op.ReduceSum(dy, [at.axis(-1)], keepdims=1)
    return [op.Sub(dy, op.Mul(op.Exp(at.y), total))]


def training_form(op: Pen, node: ir.Node, number: int) -> tuple[ir.Value, ir.Value]:
    """Put an inference BatchNormalization in training form: it normalises by its batch. Returns mean and variance of the batch.

    onnxruntime's kernel writes its new statistics into the arrays that came in as old ones, where other readers of these then see
    them: the inputs become buffers of this node's own, made in each run, and momentum 0 makes the outputs the batch's. What a
    buffer holds is multiplied by 0; it differs from buffer to buffer (`number`, of the node in its graph), since onnxruntime
    makes one node of two that compute the same, and mean and variance would then lie in one array.
    """
    scale = node.inputs[1]
    assert scale is not None
    for index in (3, 4):
        other = op.constant(np.array(2 * number + index, element_of(scale)))
        made = ir.node("Add", [scale, other], name=f"{node.name}~buffer{index}")
        made.outputs[0].name = made.name
        op.infer(made)
        op.graph.graph.insert_before(node, made)
        node.replace_input_with(index, made.outputs[0])
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    node.attributes["momentum"] = ir.AttrFloat32("momentum", 0.0)
    node.resize_outputs(3)
    for index, what in ((1, "mean"), (2, "var")):
        node.outputs[index].name = f"{node.name}~{what}"
    op.infer(node)
    return node.outputs[1], node.outputs[2]


def unbiased(var: np.ndarray, count: int) -> np.ndarray:
    """The running variance that frameworks keep, from the variance of a batch of `count` values a channel."""
    return var * (count / max(count - 1, 1))


NORMALIZATION: dict[str, Rule] = {
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
}
