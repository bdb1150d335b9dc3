"""Small models by hand: the parts of which published blocks are made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from generate import Graph
from onnx import helper, numpy_helper

SIZE = 9


class Made(Graph):
    """A graph whose input is x [N, channels, 9, 9], or [N, channels] without axes."""

    def __init__(self, channels: int, axes: int = 2, dtype: type = np.float32) -> None:
        super().__init__(17, channels)
        self.channels, self.axes, self.dtype = channels, axes, dtype
        self.width = {"x": channels}

    def _name(self, operand):  # type: ignore[no-untyped-def]
        if not isinstance(operand, np.ndarray) or operand.dtype != np.float32:
            return super()._name(operand)
        name = f"w_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(operand.astype(self.dtype), name))
        return name

    def conv(
        self,
        x: str,
        out: int,
        kernel: int | tuple[int, ...],
        *,
        pads: int | tuple[int, ...] = 0,
        stride: int = 1,
        group: int = 1,
        cut: int = 0,
    ) -> str:
        """`cut`: padding of that size at all ends of what is read, by a kernel that is so much wider."""
        sizes = (kernel,) * self.axes if isinstance(kernel, int) else kernel
        ends = (pads,) * self.axes if isinstance(pads, int) else pads
        w = self.weight(out, self.width[x] // group, *sizes, fan_in=self.width[x] * int(np.prod(sizes)))
        made = self.op("Conv", x, w, strides=[stride] * self.axes, pads=[*ends, *ends], group=group)
        self.width[made] = out
        return self.op("Pad", made, [0, 0, *[cut] * self.axes] * 2) if cut else made

    def norm(self, x: str, channels: int) -> str:
        made = self.op(
            "BatchNormalization",
            x,
            self.scale(channels),
            self.vector(channels),
            self.vector(channels),
            self.scale(channels),
        )
        self.width[made] = channels
        return made

    def matmul(self, x: str, width: int, out: int) -> str:
        return self.op("MatMul", x, self.weight(width, out, fan_in=width))

    def mul(self, x: str, factor: float | np.ndarray) -> str:
        return self.op("Mul", x, factor)

    def add(self, one: str, other: str) -> str:
        self.width[made := self.op("Add", one, other)] = self.width.get(one, 0)
        return made

    def concat(self, *values: str) -> str:
        self.width[made := self.op("Concat", *values, axis=1)] = sum(self.width[value] for value in values)
        return made

    def model(self, x: str, last: Callable[[Graph, str], str]) -> onnx.ModelProto:  # type: ignore[override]
        y = last(self, x)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        source = helper.make_tensor_value_info("x", kind, ["N", self.channels, *[SIZE] * self.axes])
        result = helper.make_tensor_value_info(y, kind, [f"d{axis}" for axis in range(self.axes + 2)])
        graph = helper.make_graph(self.nodes, "made", [source], [result], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def relu(g: Graph, x: str) -> str:
    """What nothing is merged through."""
    return g.op("Relu", x)
