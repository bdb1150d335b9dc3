"""What the blocks build with: a growing graph, the tensor that it has reached, and the table of blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Operand = str | np.ndarray | list[int] | float
"""tensor name | initializer | int64 vector | float scalar"""
NEWEST_IR = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


@dataclass(frozen=True)
class Flow:
    """The tensor that the next block continues.

    `image` [N, channels, *size] of one to three dimensions | `sequence` [N, *size, channels], one size | `vector`
    [N, channels]
    """

    name: str
    kind: str
    channels: int
    size: tuple[int, ...] = ()

    @property
    def shape(self) -> list[str | int]:
        return ["N", self.channels, *self.size] if self.kind == "image" else ["N", *self.size, self.channels]

    @property
    def axis(self) -> int:
        """Of the channels."""
        return 1 if self.kind == "image" else 1 + len(self.size)

    def along(self, vector: np.ndarray) -> np.ndarray:
        """A vector of one value a channel, shaped to broadcast against this tensor."""
        return vector.reshape(-1, *[1] * len(self.size)) if self.kind == "image" else vector

    def to(self, name: str, channels: int | None = None, size: tuple[int, ...] | None = None, kind: str = "") -> Flow:
        return replace(
            self,
            name=name,
            channels=channels or self.channels,
            kind=kind or self.kind,
            size=self.size if size is None else size,
        )


class Graph:
    """Nodes and initializers so far; `rng` draws the weights, so that hypothesis shrinks structure and not values."""

    def __init__(self, opset: int, seed: int) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def op(self, op_type: str, *operands: Operand, **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        return self.ops(1, op_type, *operands, **attributes)[0]

    def ops(self, outputs: int, op_type: str, *operands: Operand, **attributes: Any) -> list[str]:
        """Append a node with several outputs; returns their names."""
        names = [f"{op_type.lower()}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        inputs = [self._name(operand) for operand in operands]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=f"node_{len(self.nodes)}", **attributes))
        return names

    def reduce(self, op_type: str, x: str, axes: list[int], keepdims: int = 1) -> str:
        """ReduceMean or ReduceMax: their axes became an input in opset 18."""
        if self.opset >= 18:
            return self.op(op_type, x, axes, keepdims=keepdims)
        return self.op(op_type, x, axes=axes, keepdims=keepdims)

    def weight(self, *shape: int, fan_in: int) -> np.ndarray:
        """Normal values that keep activations near one: variance 1.5 / fan_in."""
        return self.rng.standard_normal(shape).astype(np.float32) * np.float32((1.5 / fan_in) ** 0.5)

    def vector(self, size: int) -> np.ndarray:
        """A bias or shift: normal, deviation 0.3."""
        return self.rng.standard_normal(size).astype(np.float32) * np.float32(0.3)

    def scale(self, size: int) -> np.ndarray:
        """A scale or variance: uniform in [0.5, 1.5]."""
        return self.rng.uniform(0.5, 1.5, size).astype(np.float32)

    def model(self, source: onnx.ValueInfoProto, results: list[Flow]) -> onnx.ModelProto:
        outputs = [helper.make_tensor_value_info(flow.name, TensorProto.FLOAT, flow.shape) for flow in results]
        graph = helper.make_graph(self.nodes, "generated", [source], outputs, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=NEWEST_IR[self.opset])

    def _name(self, operand: Operand) -> str:
        if isinstance(operand, str):
            return operand
        array = np.array(operand, np.int64) if isinstance(operand, list) else np.asarray(operand)
        name = f"{'w' if array.ndim > 1 else 'c'}_{len(self.initializers)}"
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        self.initializers.append(numpy_helper.from_array(array, name))
        return name


Build = Callable[[Graph, Flow, st.DrawFn], Flow]


@dataclass(frozen=True)
class Block:
    """A step of a model.

    fits   where it can stand (elsewhere it is skipped)
    keeps  it leaves the size alone
    inner  it may stand inside a branch
    """

    build: Build
    fits: Callable[[Flow], bool]
    keeps: bool
    inner: bool


BLOCKS: dict[str, dict[str, Block]] = {"image": {}, "sequence": {}, "vector": {}}
"""kind of tensor -> block name -> Block, simplest first: hypothesis shrinks towards the front"""


def block(
    *kinds: str, fits: Callable[[Flow], bool] = lambda t: True, keeps: bool = True, inner: bool = True
) -> Callable[[Build], Build]:
    """Enter a function into BLOCKS under its own name, for each of `kinds`."""

    def enter(build: Build) -> Build:
        for kind in kinds:
            BLOCKS[kind][build.__name__] = Block(build, fits, keeps, inner)
        return build

    return enter


def run_blocks(g: Graph, t: Flow, draw: st.DrawFn, most: int, inside: bool = False) -> Flow:
    """Up to `most` drawn blocks, those that fit; `inside` a branch only such as keep the size."""
    names = [name for name, b in BLOCKS[t.kind].items() if not inside or (b.keeps and b.inner)]
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=most)):
        chosen = BLOCKS[t.kind][name]
        t = chosen.build(g, t, draw) if chosen.fits(t) else t
    return t


def width(draw: st.DrawFn) -> int:
    """A number of channels."""
    return draw(st.integers(2, 12))
