"""Measuring inside the run: onnxruntime reduces a value where it stands, and the few numbers that a kind needs leave the graph.

A value that is read in numpy has to leave the run whole: it is kept until the run ends, takes fresh memory each time, and of a
network of images that is 100 MB a sample. Reduced inside it is freed like any other value as the run goes on. Means are in
float32 here, over one batch; batches are added up in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.evidence.kinds import Mean, Range, Reach
from onnxcompress.model.edit import new_constant

AXES_ARE_AN_INPUT = 18
"""Opset from which ReduceMax, ReduceMin and ReduceMean take their axes as an input."""


@dataclass(eq=False)
class Taps:
    """A graph under edit: new nodes that reduce its values."""

    graph: ir.Model
    made: int = 0

    def node(self, op: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Value:
        """A new node at the end of the graph."""
        name = f"onnxcompress.inside.{self.made}"
        self.made += 1
        node = ir.node(op, inputs, attributes, name=name)
        node.outputs[0].name = name
        self.graph.graph.append(node)
        return node.outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        """A constant [n] int64."""
        self.made += 1
        return new_constant(self.graph, f"onnxcompress.inside.{self.made}.ints", np.array(numbers, np.int64))

    def reduce(self, op: str, value: ir.Value, axes: Sequence[int] | None = None) -> ir.Value:
        """ReduceMax, ReduceMin or ReduceMean over these axes, or all; none is left of them."""
        if axes is None:
            return self.node(op, [value], keepdims=0)
        if not axes:
            return self.node("Identity", [value])
        if self.graph.opset_imports.get("", 0) >= AXES_ARE_AN_INPUT:
            return self.node(op, [value, self.ints(*axes)], keepdims=0)
        return self.node(op, [value], axes=list(axes), keepdims=0)


@dataclass(frozen=True)
class Inside:
    """taps  (Taps, value, its rank, channel axis) -> what leaves the graph in its place
    read  (these arrays of one batch) -> the result of the kind"""

    taps: Callable[[Taps, ir.Value, int, int], list[ir.Value]]
    read: Callable[[Sequence[np.ndarray]], Any]


def _others(rank: int, axis: int) -> list[int]:
    return [each for each in range(rank) if each != axis]


def _ends(taps: Taps, value: ir.Value, rank: int, axis: int) -> list[ir.Value]:
    """NaN may pass by a minimum and a maximum, not by a mean."""
    return [taps.reduce(op, value) for op in ("ReduceMin", "ReduceMax", "ReduceMean")]


def _range(arrays: Sequence[np.ndarray]) -> Range:
    return Range(float(arrays[0]), float(arrays[1]))


def _mean_taps(taps: Taps, value: ir.Value, rank: int, axis: int) -> list[ir.Value]:
    return [taps.reduce("ReduceMean", value, _others(rank, axis)), taps.node("Size", [value])]


def _mean(arrays: Sequence[np.ndarray]) -> Mean:
    mean, size = arrays
    count = int(size) / len(mean)
    return Mean(count, mean.astype(np.float64) * count)


def _reach_taps(taps: Taps, value: ir.Value, rank: int, axis: int) -> list[ir.Value]:
    others = _others(rank, axis)
    square = taps.reduce("ReduceMean", taps.node("Mul", [value, value]), others)
    low, high = (taps.reduce(op, value, others) for op in ("ReduceMin", "ReduceMax"))
    return [low, high, square, taps.node("Size", [value])]


def _reach(arrays: Sequence[np.ndarray]) -> Reach:
    low, high, square, size = arrays
    count = int(size) / len(low)
    return Reach(count, square.astype(np.float64) * count, low.astype(np.float64), high.astype(np.float64))


INSIDE: Mapping[str, Inside] = {
    "range": Inside(_ends, _range),
    "mean": Inside(_mean_taps, _mean),
    "reach": Inside(_reach_taps, _reach),
}
"""Kind -> how it is measured inside the run. The others read whole values."""
