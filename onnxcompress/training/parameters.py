"""Which constants of a graph are parameters, and one flat buffer that holds them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from onnxcompress.errors import ModelError, SettingError, nearest
from onnxcompress.model import Model
from onnxcompress.model.edit import walk

WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "PRelu": (1,),
    "Gather": (0,),
}
"""Operator -> the inputs that hold weights, whatever their size."""

VECTORS = ("Add", "Sub", "Mul", "Div")
"""Operators whose constant is a weight where it holds more than one number: x / 6 of a hard-swish is none."""


def parameters_of(model: Model, frozen: Sequence[str] = ()) -> list[str]:
    """Names of the trainable constants of the main graph, in its order, without those that a pattern of `frozen` matches.

    A pattern stands for names of constants or of nodes, whose constants it freezes. SettingError for a pattern that matches
    nothing, ModelError where nothing is left to train.
    """
    readers: dict[str, list[str]] = {}
    for node in model.ir.graph:
        for index, value in enumerate(node.inputs):
            tensor = None if value is None else value.const_value
            if tensor is None or value is None or not value.name or value.name not in model.initializers or node.domain:
                continue
            weight = index in WEIGHTS.get(node.op_type, ()) or (node.op_type in VECTORS and tensor.size > 1)
            if weight and tensor.dtype.is_floating_point():
                readers.setdefault(value.name, []).append(node.name or "")
    known = {*readers, *(name for names in readers.values() for name in names)}
    for pattern in frozen:
        if not fnmatch.filter(known, pattern):
            raise SettingError(f"--freeze {pattern!r} matches no weight and no node; {nearest(pattern, known)}")
    left = [
        name
        for name, nodes in readers.items()
        if not any(fnmatch.fnmatchcase(each, pattern) for pattern in frozen for each in (name, *nodes))
    ]
    if not left:
        inside = any(node.graph is not model.ir.graph for node in walk(model.ir))
        raise ModelError(
            f"{model.source.name}: nothing in it can be trained: "
            + ("its weights lie in bodies or are not floats" if inside or not readers else "all weights are frozen")
        )
    return left


@dataclass(frozen=True)
class Layout:
    """Arrays end to end in one buffer of float32. shapes: by name, in order."""

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: Model, names: Sequence[str]) -> Layout:
        """Of these initializers."""
        return cls({name: tuple(model.array(name).shape) for name in names})

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Begin and end of each array."""
        ends = np.cumsum([prod(shape) for shape in self.shapes.values()]).tolist()
        return list(zip([0, *ends], ends, strict=False))

    @property
    def size(self) -> int:
        """Numbers in all."""
        return self.bounds[-1][1] if self.shapes else 0

    def views(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        """Each array as a view into the buffer."""
        places = zip(self.shapes.items(), self.bounds, strict=True)
        return {name: buffer[first:last].reshape(shape) for (name, shape), (first, last) in places}

    def gathered(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """A new buffer with copies of the arrays."""
        buffer = np.empty(self.size, np.float32)
        for name, view in self.views(buffer).items():
            view[...] = arrays[name]
        return buffer

    @property
    def matrices(self) -> np.ndarray:
        """[size]: 1 for entries of arrays with two axes or more that are longer than one, else 0: biases and norms do not decay."""
        mask = np.zeros(self.size, np.float32)
        for (first, last), shape in zip(self.bounds, self.shapes.values(), strict=True):
            mask[first:last] = sum(size > 1 for size in shape) > 1
        return mask
