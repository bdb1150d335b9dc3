"""Operators that are others put together: each is written out once more in these, and the gradient goes back through that.

The operator itself stays in the graph with its own kernel; what it is made of is only computed for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.training.derivatives.site import Site
from onnxcompress.training.pen import Pen, element_of, shape_of

Composition = Callable[[Pen, Site], ir.Value | list[ir.Value | None]]
"""(op, at) -> the node's first output computed by operators that have rows, or a list of its outputs, None for one that is not."""


def _centred(op: Pen, x: ir.Value, axes: list[int], epsilon: float) -> ir.Value:
    """(x - mean) / sqrt(variance + epsilon), both over these axes."""
    centred = op.Sub(x, _mean(op, x, axes))
    variance = _mean(op, op.Mul(centred, centred), axes)
    return op.Mul(centred, op.Reciprocal(op.Sqrt(op.Add(variance, epsilon))))  # type: ignore[no-any-return]


def _mean(op: Pen, x: ir.Value, axes: list[int]) -> ir.Value:
    """ReduceMean, whose axes are an attribute or an input by opset."""
    count = prod(shape_of(x)[axis] for axis in axes)
    return op.Mul(op.ReduceSum(x, axes, keepdims=1), 1.0 / count)  # type: ignore[no-any-return]


def _by_channel(op: Pen, at: Site, index: int) -> ir.Value:
    """[c] beside [n, c, *spatial]."""
    return op.Reshape(at.x[index], [1, -1, *[1] * (len(at.shape(0)) - 2)])  # type: ignore[no-any-return]


def _instance(op: Pen, at: Site) -> ir.Value:
    normal = _centred(op, at.x[0], list(range(2, len(at.shape(0)))), at.attribute("epsilon", 1e-5))
    return op.Add(op.Mul(normal, _by_channel(op, at, 1)), _by_channel(op, at, 2))  # type: ignore[no-any-return]


def _group(op: Pen, at: Site) -> ir.Value:
    shape = at.shape(0)
    apart = op.Reshape(at.x[0], [shape[0], at.attribute("num_groups", 1), -1])
    normal = op.Reshape(_centred(op, apart, [2], at.attribute("epsilon", 1e-5)), list(shape))
    return op.Add(op.Mul(normal, _by_channel(op, at, 1)), _by_channel(op, at, 2))  # type: ignore[no-any-return]


def _root_mean_norm(op: Pen, at: Site) -> ir.Value:
    """x / sqrt(mean x² + epsilon) times scale; of SimplifiedLayerNormalization alike."""
    x, first = at.x[0], at.axis(-1)
    return root_mean_square(op, x, at.x[1], list(range(first, len(at.shape(0)))), at.attribute("epsilon", 1e-5))


def root_mean_square(op: Pen, x: ir.Value, scale: ir.Value, axes: list[int], epsilon: float) -> ir.Value:
    """scale x / sqrt(mean x² + epsilon), the mean over these axes."""
    root = op.Sqrt(op.Add(_mean(op, op.Mul(x, x), axes), epsilon))
    return op.Mul(op.Mul(x, op.Reciprocal(root)), scale)  # type: ignore[no-any-return]


def _lp(op: Pen, at: Site) -> ir.Value:
    axis = at.axis(-1)
    if at.attribute("p", 2) == 1:
        length = op.ReduceSum(op.Abs(at.x[0]), [axis], keepdims=1)
    else:
        length = op.Sqrt(op.ReduceSum(op.Mul(at.x[0], at.x[0]), [axis], keepdims=1))
    return op.Div(at.x[0], length)  # type: ignore[no-any-return]


def _local_response(op: Pen, at: Site) -> ir.Value:
    """x / (bias + alpha / size Σ x²)^beta, the sum over `size` channels around each."""
    x, size, shape = at.x[0], at.attribute("size", 1), at.shape(0)
    before = (size - 1) // 2
    near = np.subtract.outer(np.arange(shape[1]), np.arange(shape[1]))  # place of the sum - channel
    band = ((-(size - 1 - before) <= near) & (near <= before)).astype(element_of(x))
    squares = op.Reshape(op.Mul(x, x), [shape[0], shape[1], -1])
    sums = op.Reshape(op.MatMul(op.constant(band), squares), list(shape))
    base = op.Add(op.Mul(sums, at.attribute("alpha", 1e-4) / size), at.attribute("bias", 1.0))
    return op.Mul(x, op.Pow(base, -at.attribute("beta", 0.75)))  # type: ignore[no-any-return]


def _mean_variance(op: Pen, at: Site) -> ir.Value:
    axes = [axis % len(at.shape(0)) for axis in at.attribute("axes", [0, 2, 3])]
    centred = op.Sub(at.x[0], _mean(op, at.x[0], axes))
    spread = op.Sqrt(_mean(op, op.Mul(centred, centred), axes))
    return op.Div(centred, op.Add(spread, 1e-9))  # type: ignore[no-any-return]


def _to_space(op: Pen, at: Site) -> ir.Value:
    (n, c, h, w), by = at.shape(0), at.attribute("blocksize", 1)
    if at.attribute("mode", "DCR") == "DCR":
        apart, order = [n, by, by, c // by**2, h, w], [0, 3, 4, 1, 5, 2]
    else:
        apart, order = [n, c // by**2, by, by, h, w], [0, 1, 4, 2, 5, 3]
    turned = op.Transpose(op.Reshape(at.x[0], apart), perm=order)
    return op.Reshape(turned, [n, c // by**2, h * by, w * by])  # type: ignore[no-any-return]


def _to_depth(op: Pen, at: Site) -> ir.Value:
    (n, c, h, w), by = at.shape(0), at.attribute("blocksize", 1)
    apart = op.Reshape(at.x[0], [n, c, h // by, by, w // by, by])
    return op.Reshape(op.Transpose(apart, perm=[0, 3, 5, 1, 2, 4]), [n, c * by**2, h // by, w // by])  # type: ignore[no-any-return]


def _modulo(op: Pen, at: Site) -> ir.Value:
    """a - b times the whole part of a / b, which is flat."""
    a, b = at.x
    quotient = op.Div(a, b)
    whole = op.Mul(op.Sign(quotient), op.Floor(op.Abs(quotient))) if at.attribute("fmod", 0) else op.Floor(quotient)
    return op.Sub(a, op.Mul(b, whole))  # type: ignore[no-any-return]


def _global_lp(op: Pen, at: Site) -> ir.Value:
    p = float(at.attribute("p", 2))
    total = op.ReduceSum(op.Pow(op.Abs(at.x[0]), p), list(range(2, len(at.shape(0)))), keepdims=1)
    return op.Pow(total, 1 / p)  # type: ignore[no-any-return]


def _lp_pool(op: Pen, at: Site) -> ir.Value:
    """The average of |x|^p over the window, pads counted, times its size."""
    p, kernel = float(at.attribute("p", 2)), at.attribute("kernel_shape", [])
    names = ("kernel_shape", "strides", "pads", "auto_pad", "dilations", "ceil_mode")
    given = {name: at.attribute(name, None) for name in names if name in at.node.attributes}
    if given.get("ceil_mode"):
        raise at.refused("ceil_mode is 1")
    mean = op.AveragePool(op.Pow(op.Abs(at.x[0]), p), count_include_pad=1, **given)
    return op.Pow(op.Mul(mean, float(prod(kernel))), 1 / p)  # type: ignore[no-any-return]


COMPOSED: dict[str, Composition] = {
    "InstanceNormalization": _instance,
    "GroupNormalization": _group,
    "RMSNormalization": _root_mean_norm,
    "SimplifiedLayerNormalization": _root_mean_norm,
    "LpNormalization": _lp,
    "LRN": _local_response,
    "MeanVarianceNormalization": _mean_variance,
    "DepthToSpace": _to_space,
    "SpaceToDepth": _to_depth,
    "Mod": _modulo,
    "GlobalLpPool": _global_lp,
    "LpPool": _lp_pool,
}
