"""The digits network as a list of rows, and the table of operators that trains and exports it, in numpy.

NETWORK is what the model is; OPS says for each operator how its parameters start, its forward and backward, and the
ONNX node that it becomes. Values are float32 [batch, height, width, channel].

    forward(row, parameters, inputs, training)      -> value, what backward needs
    backward(row, parameters, saved, gradient)      -> gradients of the inputs, gradients of the parameters
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray
Parameters = dict[str, Array]

BN_EPSILON, BN_MEMORY = 1e-5, 0.9


@dataclass(frozen=True)
class Row:
    """One value of the network: `name = op(inputs)`; `image` is the network's input."""

    name: str
    op: str
    inputs: tuple[str, ...]
    settings: dict[str, int] = field(default_factory=dict)


def conv_bn_relu(name: str, source: str, i: int, o: int, kernel: int = 3) -> list[Row]:
    """Convolution, BatchNorm, Relu; the result is `name_relu`."""
    return [
        Row(name, "conv", (source,), {"i": i, "o": o, "kernel": kernel}),
        Row(f"{name}_bn", "batch_norm", (name,), {"o": o}),
        Row(f"{name}_relu", "relu", (f"{name}_bn",)),
    ]


NETWORK: list[Row] = [
    *conv_bn_relu("stem", "image", 1, 32),
    # residual block
    *conv_bn_relu("residual1", "stem_relu", 32, 32),
    Row("residual2", "conv", ("residual1_relu",), {"i": 32, "o": 32, "kernel": 3}),
    Row("residual2_bn", "batch_norm", ("residual2",), {"o": 32}),
    Row("residual_sum", "add", ("residual2_bn", "stem_relu")),
    Row("residual_relu", "relu", ("residual_sum",)),
    # depthwise separable block, halves height and width
    Row("depthwise", "depthwise", ("residual_relu",), {"o": 32, "kernel": 3, "stride": 2}),
    Row("depthwise_bn", "batch_norm", ("depthwise",), {"o": 32}),
    Row("depthwise_relu", "relu", ("depthwise_bn",)),
    *conv_bn_relu("pointwise", "depthwise_relu", 32, 64, kernel=1),
    # squeeze-excite gate
    Row("squeeze", "mean", ("pointwise_relu",)),
    Row("reduce", "conv", ("squeeze",), {"i": 64, "o": 16, "kernel": 1, "bias": 1}),
    Row("reduce_relu", "relu", ("reduce",)),
    Row("expand", "conv", ("reduce_relu",), {"i": 16, "o": 64, "kernel": 1, "bias": 1}),
    Row("gate", "sigmoid", ("expand",)),
    Row("excited", "multiply", ("pointwise_relu", "gate")),
    # dense concat
    *conv_bn_relu("growth", "excited", 64, 32),
    Row("dense", "concat", ("excited", "growth_relu")),
    # head
    Row("pool", "mean", ("dense",)),
    Row("features", "flatten", ("pool",)),
    Row("hidden", "gemm", ("features",), {"i": 96, "o": 64}),
    Row("hidden_relu", "relu", ("hidden",)),
    Row("logits", "gemm", ("hidden_relu",), {"i": 64, "o": 10}),
]


def views(padded: Array, kernel: int, stride: int, size: int) -> list[Array]:
    """The kernel² shifted [n,size,size,c] views of a padded [n,h,w,c] that a convolution multiplies."""
    span = stride * (size - 1) + 1
    return [padded[:, r : r + span : stride, c : c + span : stride] for r in range(kernel) for c in range(kernel)]


def pad(x: Array, kernel: int) -> Array:
    """x [n,h,w,c] with zeros around it, so that stride 1 keeps its size."""
    edge = (kernel // 2, kernel // 2)
    return np.pad(x, ((0, 0), edge, edge, (0, 0)))


def unpad(x: Array, kernel: int) -> Array:
    edge = kernel // 2
    return x[:, edge : x.shape[1] - edge, edge : x.shape[2] - edge]


def conv_forward(row: Row, p: Parameters, inputs: list[Array], training: bool) -> tuple[Array, Any]:
    """y[n,s,o] = sum over i, kernel of x[n,i,s+k] w[k,i,o], as one matrix product; stride 1."""
    (x,) = inputs
    size = x.shape[1]
    columns = np.concatenate(views(pad(x, row.settings["kernel"]), row.settings["kernel"], 1, size), axis=-1)
    flat = columns.reshape(-1, columns.shape[-1])
    y = flat @ p["weight"].reshape(flat.shape[1], -1)
    return (y + p.get("bias", np.float32(0))).reshape(*x.shape[:3], -1), (flat, x.shape)


def conv_backward(row: Row, p: Parameters, saved: Any, gradient: Array) -> tuple[list[Array], Parameters]:
    flat, shape = saved
    kernel = row.settings["kernel"]
    dy = gradient.reshape(flat.shape[0], -1)
    columns = (dy @ p["weight"].reshape(flat.shape[1], -1).T).reshape(*shape[:3], kernel * kernel, shape[3])
    dx = pad(np.zeros(shape, dy.dtype), kernel)
    for at, view in enumerate(views(dx, kernel, 1, shape[1])):
        view += columns[:, :, :, at]
    grads = {"weight": (flat.T @ dy).reshape(p["weight"].shape)}
    return [unpad(dx, kernel)], grads | ({"bias": dy.sum(0)} if "bias" in p else {})


def depthwise_forward(row: Row, p: Parameters, inputs: list[Array], training: bool) -> tuple[Array, Any]:
    """y[n,s,c] = sum over kernel of x[n,stride*s+k,c] w[k,c]."""
    (x,) = inputs
    kernel, stride = row.settings["kernel"], row.settings["stride"]
    padded = pad(x, kernel)
    taps = p["weight"].reshape(kernel * kernel, -1)
    y = np.zeros((*x.shape[:1], x.shape[1] // stride, x.shape[2] // stride, x.shape[3]), x.dtype)
    for view, tap in zip(views(padded, kernel, stride, y.shape[1]), taps, strict=True):
        y += view * tap
    return y, padded


def depthwise_backward(row: Row, p: Parameters, padded: Any, gradient: Array) -> tuple[list[Array], Parameters]:
    kernel, stride = row.settings["kernel"], row.settings["stride"]
    dx = np.zeros_like(padded)
    inputs = views(padded, kernel, stride, gradient.shape[1])
    taps = p["weight"].reshape(kernel * kernel, -1)
    for view, tap in zip(views(dx, kernel, stride, gradient.shape[1]), taps, strict=True):
        view += gradient * tap
    weight = np.stack([(v * gradient).sum((0, 1, 2)) for v in inputs]).reshape(p["weight"].shape)
    return [unpad(dx, kernel)], {"weight": weight}


def batch_norm_forward(row: Row, p: Parameters, inputs: list[Array], training: bool) -> tuple[Array, Any]:
    """Normalise by the batch while training (and let mean, var follow it), by mean, var afterwards."""
    (x,) = inputs
    mean, var = p["mean"], p["var"]
    if training:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        p["mean"] += (1 - BN_MEMORY) * (mean - p["mean"])
        p["var"] += (1 - BN_MEMORY) * (var - p["var"])
    inverse = 1 / np.sqrt(var + np.float32(BN_EPSILON))
    normal = (x - mean) * inverse
    return normal * p["scale"] + p["bias"], (normal, inverse)


def batch_norm_backward(row: Row, p: Parameters, saved: Any, gradient: Array) -> tuple[list[Array], Parameters]:
    normal, inverse = saved
    axes = (0, 1, 2)
    dx = gradient - gradient.mean(axes) - normal * (gradient * normal).mean(axes)
    return [dx * (p["scale"] * inverse)], {"scale": (gradient * normal).sum(axes), "bias": gradient.sum(axes)}


def gemm_forward(row: Row, p: Parameters, inputs: list[Array], training: bool) -> tuple[Array, Any]:
    """y[n,o] = x[n,i] w[i,o] + b[o]."""
    return inputs[0] @ p["weight"] + p["bias"], inputs[0]


def gemm_backward(row: Row, p: Parameters, x: Any, gradient: Array) -> tuple[list[Array], Parameters]:
    return [gradient @ p["weight"].T], {"weight": x.T @ gradient, "bias": gradient.sum(0)}


# Operators without parameters: forward on the inputs, backward from (inputs, value, gradient) to the inputs' gradients.
PLAIN: dict[str, tuple[Callable[..., Array], Callable[..., list[Array]]]] = {
    "relu": (lambda x: np.maximum(x, 0), lambda xs, y, g: [g * (y > 0)]),
    "sigmoid": (lambda x: (1 + np.tanh(x / 2)) / 2, lambda xs, y, g: [g * y * (1 - y)]),
    "add": (lambda a, b: a + b, lambda xs, y, g: [g, g]),
    "multiply": (lambda x, gate: x * gate, lambda xs, y, g: [g * xs[1], (g * xs[0]).sum((1, 2), keepdims=True)]),
    "concat": (
        lambda a, b: np.concatenate([a, b], axis=-1),
        lambda xs, y, g: np.split(g, [xs[0].shape[-1]], axis=-1),
    ),
    "mean": (
        lambda x: x.mean((1, 2), keepdims=True),
        lambda xs, y, g: [np.broadcast_to(g / (xs[0].shape[1] * xs[0].shape[2]), xs[0].shape)],
    ),
    "flatten": (lambda x: x.reshape(len(x), -1), lambda xs, y, g: [g.reshape(xs[0].shape)]),
}


def he(rng: np.random.Generator, *shape: int) -> Array:
    """Normal weights whose variance is 2 / fan-in (He et al., ICCV 2015, arXiv:1502.01852); last axis = outputs."""
    return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)


def zeros(n: int) -> Array:
    return np.zeros(n, np.float32)


def conv_start(rng: np.random.Generator, s: dict[str, int]) -> Parameters:
    bias = {"bias": zeros(s["o"])} if s.get("bias") else {}
    return {"weight": he(rng, s["kernel"], s["kernel"], s["i"], s["o"])} | bias


def depthwise_start(rng: np.random.Generator, s: dict[str, int]) -> Parameters:
    return {"weight": he(rng, s["kernel"], s["kernel"], s["o"])}


def batch_norm_start(rng: np.random.Generator, s: dict[str, int]) -> Parameters:
    one = np.ones(s["o"], np.float32)
    return {"scale": one.copy(), "bias": zeros(s["o"]), "mean": zeros(s["o"]), "var": one.copy()}


def gemm_start(rng: np.random.Generator, s: dict[str, int]) -> Parameters:
    return {"weight": he(rng, s["i"], s["o"]), "bias": zeros(s["o"])}


def conv_attributes(s: dict[str, int]) -> dict[str, Any]:
    kernel, edge = s["kernel"], s["kernel"] // 2
    return {"kernel_shape": [kernel] * 2, "pads": [edge] * 4, "strides": [s.get("stride", 1)] * 2}


@dataclass(frozen=True)
class Op:
    """An operator: its starting parameters, its two directions and the ONNX node that it becomes."""

    onnx: str
    forward: Callable[[Row, Parameters, list[Array], bool], tuple[Array, Any]]
    backward: Callable[[Row, Parameters, Any, Array], tuple[list[Array], Parameters]]
    start: Callable[[np.random.Generator, dict[str, int]], Parameters] = lambda rng, s: {}
    attributes: Callable[[dict[str, int]], dict[str, Any]] = lambda s: {}
    weight_axes: tuple[int, ...] | None = None  # order in which ONNX wants the axes of `weight`


def plain(kind: str, onnx_name: str, **attributes: Any) -> Op:
    """The entry of an operator without parameters."""
    ahead, back = PLAIN[kind]

    def forward(row: Row, p: Parameters, inputs: list[Array], training: bool) -> tuple[Array, Any]:
        value = ahead(*inputs)
        return value, (inputs, value)

    def backward(row: Row, p: Parameters, saved: Any, gradient: Array) -> tuple[list[Array], Parameters]:
        return back(*saved, gradient), {}

    return Op(onnx_name, forward, backward, attributes=lambda s: attributes)


OPS: dict[str, Op] = {
    "conv": Op("Conv", conv_forward, conv_backward, conv_start, conv_attributes, (3, 2, 0, 1)),
    "depthwise": Op(
        "Conv",
        depthwise_forward,
        depthwise_backward,
        depthwise_start,
        lambda s: conv_attributes(s) | {"group": s["o"]},
        (2, 0, 1),
    ),
    "batch_norm": Op(
        "BatchNormalization",
        batch_norm_forward,
        batch_norm_backward,
        batch_norm_start,
        lambda s: {"epsilon": BN_EPSILON, "momentum": BN_MEMORY},
    ),
    "gemm": Op("Gemm", gemm_forward, gemm_backward, gemm_start, lambda s: {"transB": 1}, (1, 0)),
    "relu": plain("relu", "Relu"),
    "sigmoid": plain("sigmoid", "Sigmoid"),
    "add": plain("add", "Add"),
    "multiply": plain("multiply", "Mul"),
    "concat": plain("concat", "Concat", axis=1),
    "mean": plain("mean", "GlobalAveragePool"),
    "flatten": plain("flatten", "Flatten", axis=1),
}


def forward(parameters: dict[str, Parameters], image: Array, training: bool) -> tuple[Array, dict[str, Any]]:
    """Logits [n,10] of image [n,8,8,1], and what backward needs of each row."""
    values, saved = {"image": image}, {}
    for row in NETWORK:
        inputs = [values[name] for name in row.inputs]
        values[row.name], saved[row.name] = OPS[row.op].forward(row, parameters[row.name], inputs, training)
    return values["logits"], saved


def backward(parameters: dict[str, Parameters], saved: dict[str, Any], gradient: Array) -> dict[str, Parameters]:
    """Gradients of all parameters, from the gradient of the logits; a value read twice adds up its gradients."""
    flowing: dict[str, Array] = {"logits": gradient}
    grads: dict[str, Parameters] = {}
    for row in reversed(NETWORK):
        inputs, grads[row.name] = OPS[row.op].backward(row, parameters[row.name], saved[row.name], flowing[row.name])
        for name, piece in zip(row.inputs, inputs, strict=True):
            flowing[name] = flowing[name] + piece if name in flowing else piece
    return grads
