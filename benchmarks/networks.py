"""Small networks as ONNX graphs with random weights: what the benchmarks of training start from, without a framework.

Weights are drawn as He et al., ICCV 2015, arXiv:1502.01852 (normal, variance 2 / fan in), of heads with variance 1 / fan in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 17, 8


class Net:
    """A graph under construction; each method adds nodes behind `value` and returns the name of what they give."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 7])
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        """One node of one output, called as the node."""
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        """An initializer."""
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def integers(self, name: str, values: list[int]) -> str:
        """An initializer of int64: a shape, axes."""
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def conv(self, value: str, name: str, ins: int, outs: int, kernel: int, *, stride: int = 1, pad: int = 0) -> str:
        """Convolution with a bias."""
        spread = np.sqrt(2 / (ins * kernel**2))
        weight = self.constant(f"{name}.weight", spread * self.rng.normal(size=(outs, ins, kernel, kernel)))
        bias = self.constant(f"{name}.bias", np.zeros(outs))
        return self.node("Conv", value, weight, bias, name=name, strides=[stride] * 2, pads=[pad] * 4)

    def normed(
        self, value: str, name: str, ins: int, outs: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> str:
        """Convolution without a bias, padded to keep the size, and BatchNormalization."""
        spread, more = np.sqrt(2 * groups / (ins * kernel**2)), {} if groups == 1 else {"group": groups}
        weight = self.constant(f"{name}.weight", spread * self.rng.normal(size=(outs, ins // groups, kernel, kernel)))
        found = self.node("Conv", value, weight, name=name, strides=[stride] * 2, pads=[kernel // 2] * 4, **more)
        start = {"scale": np.ones(outs), "shift": np.zeros(outs), "mean": np.zeros(outs), "var": np.ones(outs)}
        parts = [self.constant(f"{name}.norm.{part}", values) for part, values in start.items()]
        return self.node("BatchNormalization", found, *parts, name=f"{name}.norm")

    def dense(self, value: str, name: str, ins: int, outs: int, *, gain: float = 2.0) -> str:
        """Fully connected, with a bias."""
        weight = self.constant(f"{name}.weight", np.sqrt(gain / ins) * self.rng.normal(size=(ins, outs)))
        return self.node("Gemm", value, weight, self.constant(f"{name}.bias", np.zeros(outs)), name=name)

    def linear(self, value: str, name: str, ins: int, outs: int) -> str:
        """Of the last axis, with a bias that is not zero: an Add of zeros would be taken out; variance 1 / fan in."""
        weight = self.constant(f"{name}.weight", np.sqrt(1 / ins) * self.rng.normal(size=(ins, outs)))
        bias = self.constant(f"{name}.bias", 0.02 * self.rng.normal(size=outs))
        return self.node("Add", self.node("MatMul", value, weight), bias)

    def layer_norm(self, value: str, name: str, width: int) -> str:
        """Over the last axis."""
        scale, shift = self.constant(f"{name}.scale", np.ones(width)), self.constant(f"{name}.shift", np.zeros(width))
        return self.node("LayerNormalization", value, scale, shift, name=name, axis=-1)

    def residual(self, value: str, name: str, ins: int, outs: int, stride: int) -> str:
        """Two convolutions of 3x3 beside nothing, or beside a convolution where the width changes."""
        inner = self.node("Relu", self.normed(value, f"{name}.one", ins, outs, 3, stride=stride))
        inner = self.normed(inner, f"{name}.two", outs, outs, 3)
        beside = value if outs == ins else self.normed(value, f"{name}.short", ins, outs, 1, stride=stride)
        return self.node("Relu", self.node("Add", inner, beside), name=f"{name}.out")

    def built(self, shape: tuple[int, ...], classes: int, *, opset: int = OPSET) -> onnx.ModelProto:
        """The model: x [N, *shape] -> logits [N, classes], the last node."""
        last = self.nodes[-1]
        last.output[0] = "logits"
        graph = helper.make_graph(
            self.nodes, "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
            self.weights,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR)


def resnet8(shape: tuple[int, int, int], width: int, seed: int, classes: int = 10) -> onnx.ModelProto:
    """Three residual blocks of width, 2 width, 4 width channels. He et al., CVPR 2016, arXiv:1512.03385, of n = 1, with a convolution
    where a block changes its width."""
    return _residual_net(shape, [width, 2 * width, 4 * width], seed, classes)


def resnet20(shape: tuple[int, int, int], width: int, seed: int, classes: int = 10) -> onnx.ModelProto:
    """The same of n = 3: three blocks of each width."""
    return _residual_net(shape, [outs for outs in (width, 2 * width, 4 * width) for _ in range(3)], seed, classes)


def _residual_net(shape: tuple[int, int, int], widths: list[int], seed: int, classes: int) -> onnx.ModelProto:
    net, before = Net(seed), widths[0]
    value = net.node("Relu", net.normed("x", "stem", shape[0], before, 3))
    for number, outs in enumerate(widths):
        value = net.residual(value, f"block{number}", before, outs, 1 + (outs != before))
        before = outs
    pooled = net.node("Flatten", net.node("GlobalAveragePool", value), name="embedding")
    net.dense(pooled, "head", before, classes, gain=1.0)
    return net.built(shape, classes)


INVERTED = ((16, 1, 1), (24, 6, 2), (24, 6, 1), (32, 6, 2), (32, 6, 1), (64, 6, 2), (64, 6, 1))
"""Width, expansion and stride of each block of `mobile`."""


def mobile(shape: tuple[int, int, int], seed: int, classes: int = 10) -> onnx.ModelProto:
    """Seven inverted residual blocks: wide, depthwise, narrow. Sandler et al., CVPR 2018, arXiv:1801.04381."""
    net, before = Net(seed), 16
    net.constant("low", np.zeros(()))
    net.constant("high", np.full((), 6))

    def bent(value: str) -> str:
        return net.node("Clip", value, "low", "high")

    value = bent(net.normed("x", "stem", shape[0], before, 3))
    for number, (outs, expansion, stride) in enumerate(INVERTED):
        name, wide = f"block{number}", before * expansion
        inner = bent(net.normed(value, f"{name}.wide", before, wide, 1)) if expansion > 1 else value
        inner = bent(net.normed(inner, f"{name}.deep", wide, wide, 3, stride=stride, groups=wide))
        inner = net.normed(inner, f"{name}.narrow", wide, outs, 1)
        value = net.node("Add", inner, value) if outs == before and stride == 1 else inner
        before = outs
    value = bent(net.normed(value, "last", before, 128, 1))
    net.dense(net.node("Flatten", net.node("GlobalAveragePool", value)), "head", 128, classes, gain=1.0)
    return net.built(shape, classes)


def transformer(
    length: int, width: int, seed: int, *, layers: int = 2, heads: int = 4, classes: int = 10
) -> onnx.ModelProto:
    """Encoder layers with four times wider inner layers of GELU, norms behind the sums; the mean of places decides.

    Vaswani et al., NeurIPS 2017, arXiv:1706.03762.
    """
    net, size = Net(seed), width // heads
    net.integers("apart", [0, length, heads, size])
    net.integers("together", [0, length, width])
    net.constant("scale", np.array(size**-0.5))
    value = net.node("Add", "x", net.constant("places", 0.02 * net.rng.normal(size=(length, width))))
    for number in range(layers):
        name = f"layer{number}"
        parts = [net.linear(value, f"{name}.{part}", width, width) for part in ("query", "key", "value")]
        q, k, v = (
            net.node("Transpose", net.node("Reshape", part, "apart"), perm=perm)
            for part, perm in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        seen = net.node("Softmax", net.node("Mul", net.node("MatMul", q, k), "scale"), axis=-1)
        seen = net.node("Transpose", net.node("MatMul", seen, v), perm=[0, 2, 1, 3])
        seen = net.linear(net.node("Reshape", seen, "together"), f"{name}.out", width, width)
        value = net.layer_norm(net.node("Add", value, seen), f"{name}.first", width)
        inner = net.node("Gelu", net.linear(value, f"{name}.up", width, 4 * width))
        value = net.layer_norm(
            net.node("Add", value, net.linear(inner, f"{name}.down", 4 * width, width)), f"{name}.second", width
        )
    net.dense(net.node("ReduceMean", value, net.integers("axes", [1]), keepdims=0), "head", width, classes, gain=1.0)
    return net.built((length, width), classes, opset=20)


def lenet300(seed: int) -> onnx.ModelProto:
    """LeNet-300-100: two hidden layers, 266,610 weights. LeCun et al., Proc. IEEE 1998."""
    net = Net(seed)
    value = net.node("Flatten", "x")
    value = net.node("Relu", net.dense(value, "one", 784, 300))
    value = net.node("Relu", net.dense(value, "two", 300, 100))
    net.dense(value, "head", 100, 10, gain=1.0)
    return net.built((1, 28, 28), 10)


def lenet5(seed: int) -> onnx.ModelProto:
    """LeNet-5 as Caffe has it, 431,080 weights: 20 and 50 maps of 5x5, 500 hidden units."""
    net = Net(seed)
    value = net.node("MaxPool", net.conv("x", "one", 1, 20, 5), kernel_shape=[2, 2], strides=[2, 2])
    value = net.node("MaxPool", net.conv(value, "two", 20, 50, 5), kernel_shape=[2, 2], strides=[2, 2])
    value = net.node("Relu", net.dense(net.node("Flatten", value), "three", 800, 500))
    net.dense(value, "head", 500, 10, gain=1.0)
    return net.built((1, 28, 28), 10)


LENETS: dict[str, Callable[[int], onnx.ModelProto]] = {"LeNet-300-100": lenet300, "LeNet-5": lenet5}
"""Deep Compression's networks on MNIST, by name."""
