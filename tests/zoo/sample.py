"""A Sample: one small hand-made model as text, and what its channel analysis must find."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

Weight = tuple[int, ...] | list[int] | list[float] | float | np.ndarray
"""shape (random values) | 1-D constant | scalar | the array itself"""

NEWEST_IR = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


@dataclass(frozen=True, eq=False)
class Sample:
    """One model of the zoo.

    graph    ONNX text of the graph, without its name: `(inputs) => (outputs) { nodes }`
    weights  initializer name -> Weight; those of an If or Loop body under `inner`, by the body's name
    free     "w1 w3" -> number of units that all of these weights write, over all groups; None: at least one
    frozen   weight -> what freezes its output channels: an operator type, "output" or "input" (of the graph);
             "A|B" where several do, or where the door rewrites A as B
    inputs   initializers that are listed as graph inputs too (they have a default)
    """

    name: str
    graph: str
    weights: Mapping[str, Weight]
    free: Mapping[str, int | None] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)
    inner: Mapping[str, Mapping[str, Weight]] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    opset: int = 17
    domains: Sequence[str] = ()
    dtype: type = np.float32

    def __call__(self) -> onnx.ModelProto:
        """The model; the same bytes on every call."""
        opsets = ", ".join([f'"" : {self.opset}', *(f'"{domain}" : 1' for domain in self.domains)])
        header = f"<ir_version: {NEWEST_IR.get(self.opset, 8)}, opset_import: [{opsets}]>"
        model = onnx.parser.parse_model(f"{header} {self.name} {self.graph}")
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        _store(model.graph, self.weights, rng, self.dtype)
        for body in _bodies(model.graph):
            _store(body, self.inner.get(body.name, {}), rng, self.dtype)
        for tensor in model.graph.initializer:
            if tensor.name in self.inputs:
                model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        return model


def table(*samples: Sample) -> dict[str, Sample]:
    """Samples by name, in the order given."""
    return {sample.name: sample for sample in samples}


def values(name: str, weight: Weight, rng: np.random.Generator) -> np.ndarray:
    """The array of one Weight: variance 1 / fan-in for matrices and kernels; 1-D names that begin with
    `scale` or `var` lie in [0.5, 1.5]."""
    if not isinstance(weight, tuple):
        array = np.asarray(weight)
        return array.astype(np.float32) if array.dtype == np.float64 and not isinstance(weight, np.ndarray) else array
    if name.startswith(("scale", "var")):
        return rng.uniform(0.5, 1.5, weight)
    fan_in = np.prod(weight[1:]) if len(weight) > 2 else weight[0]
    return rng.standard_normal(weight) * (0.3 if len(weight) == 1 else fan_in**-0.5)


def _store(graph: onnx.GraphProto, weights: Mapping[str, Weight], rng: np.random.Generator, dtype: type) -> None:
    for name, weight in weights.items():
        array = values(name, weight, rng)
        # shape constants and Resize scales keep their type; whatever enters arithmetic has the model's
        keep = not np.issubdtype(array.dtype, np.floating) or isinstance(weight, list)
        graph.initializer.append(numpy_helper.from_array(array if keep else array.astype(dtype), name))


def _bodies(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += [attribute.g, *_bodies(attribute.g)]
    return found
