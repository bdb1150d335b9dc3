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

    def conv(self, value: str, name: str, ins: int, outs: int, kernel: int, *, stride: int = 1, pad: int = 0) -> str:
        """Convolution with a bias."""
        spread = np.sqrt(2 / (ins * kernel**2))
        weight = self.constant(f"{name}.weight", spread * self.rng.normal(size=(outs, ins, kernel, kernel)))
        bias = self.constant(f"{name}.bias", np.zeros(outs))
        return self.node("Conv", value, weight, bias, name=name, strides=[stride] * 2, pads=[pad] * 4)

    def normed(self, value: str, name: str, ins: int, outs: int, kernel: int, *, stride: int = 1) -> str:
        """Convolution without a bias, padded to keep the size, and BatchNormalization."""
        spread = np.sqrt(2 / (ins * kernel**2))
        weight = self.constant(f"{name}.weight", spread * self.rng.normal(size=(outs, ins, kernel, kernel)))
        found = self.node("Conv", value, weight, name=name, strides=[stride] * 2, pads=[kernel // 2] * 4)
        start = {"scale": np.ones(outs), "shift": np.zeros(outs), "mean": np.zeros(outs), "var": np.ones(outs)}
        parts = [self.constant(f"{name}.norm.{part}", values) for part, values in start.items()]
        return self.node("BatchNormalization", found, *parts, name=f"{name}.norm")

    def dense(self, value: str, name: str, ins: int, outs: int, *, gain: float = 2.0) -> str:
        """Fully connected, with a bias."""
        weight = self.constant(f"{name}.weight", np.sqrt(gain / ins) * self.rng.normal(size=(ins, outs)))
        return self.node("Gemm", value, weight, self.constant(f"{name}.bias", np.zeros(outs)), name=name)

    def built(self, shape: tuple[int, ...], classes: int) -> onnx.ModelProto:
        """The model: x [N, *shape] -> logits [N, classes], the last node."""
        last = self.nodes[-1]
        last.output[0] = "logits"
        graph = helper.make_graph(
            self.nodes, "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
            self.weights,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def resnet8(shape: tuple[int, int, int], width: int, seed: int, classes: int = 10) -> onnx.ModelProto:
    """Three residual blocks of width, 2 width, 4 width channels. He et al., CVPR 2016, arXiv:1512.03385, of n = 1, with a convolution
    where a block changes its width."""
    net = Net(seed)
    value = net.node("Relu", net.normed("x", "stem", shape[0], width, 3))
    before = width
    for number, outs in enumerate((width, 2 * width, 4 * width)):
        stride, name = 1 + (outs != before), f"block{number}"
        inner = net.node("Relu", net.normed(value, f"{name}.one", before, outs, 3, stride=stride))
        inner = net.normed(inner, f"{name}.two", outs, outs, 3)
        beside = value if outs == before else net.normed(value, f"{name}.short", before, outs, 1, stride=stride)
        value = net.node("Relu", net.node("Add", inner, beside), name=f"{name}.out")
        before = outs
    pooled = net.node("Flatten", net.node("GlobalAveragePool", value), name="embedding")
    net.dense(pooled, "head", before, classes, gain=1.0)
    return net.built(shape, classes)


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
