"""Derivatives of pools."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.training.derivatives.site import Gradients, Rule, Site
from onnxcompress.training.derivatives.windows import window_of
from onnxcompress.training.lowering import Window, max_pool_grad, pool_grad
from onnxcompress.training.pen import Pen, element_of, shape_of


def _max_pool(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """dy at the place of each maximum, which MaxPool's second output tells."""
    if at.attribute("storage_order", 0):
        raise at.refused("storage_order is 1")
    if len(at.node.outputs) < 2:
        at.node.resize_outputs(2)
    if not at.node.outputs[1].name:
        at.node.outputs[1].name = f"{at.y.name}~indices"
        op.infer(at.node)
    return [max_pool_grad(op, dy, at.node.outputs[1], at.shape(0))]


def _average_pool(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """dy over the number of positions, spread over the window."""
    window = window_of(at, at.shape(0)[2:], at.attribute("kernel_shape", []))
    counts = _counts(window, at, shape_of(at.y)[2:]).astype(element_of(dy))
    return [pool_grad(op, dy, window, counts)]


def _counts(window: Window, at: Site, count: Sequence[int]) -> np.ndarray:
    """[*count]: what each window is divided by: taps inside the input, or also inside the pads that are declared."""
    rank = len(window.kernel)
    ends = at.attribute("pads", [0] * 2 * rank)[rank:]
    if at.attribute("auto_pad", "NOTSET") != "NOTSET":
        ends = window.ends
    with_pads = at.attribute("count_include_pad", 0)
    whole = np.ones(())
    for axis in range(rank):
        first, last = (
            (-window.begins[axis], window.extent[axis] + ends[axis]) if with_pads else (0, window.extent[axis])
        )
        starts = np.arange(count[axis]) * window.strides[axis] - window.begins[axis]
        places = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        inside = ((places >= first) & (places < last)).sum(1)
        whole = whole[..., None] * inside
    return whole


def _global_average(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    shape = at.shape(0)
    return [op.Expand(op.Mul(dy, 1.0 / prod(shape[2:])), list(shape))]


def _global_max(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """In equal parts to all that equal the maximum."""
    mask = op.Cast(op.Equal(at.x[0], at.y), to=dy.dtype)
    total = op.ReduceSum(mask, list(range(2, len(at.shape(0)))), keepdims=1)
    return [op.Mul(mask, op.Div(dy, total))]


POOLING: dict[str, Rule] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
}
