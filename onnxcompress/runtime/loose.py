"""A graph for onnxruntime without a copy of its weights: the message without them, and beside it the arrays themselves.

A message with all weights is made, parsed and freed again for every session, and each step holds a copy: of a file of 575 MB
that was 2.3 GB and a second. Sessions of graphs that share tensors share their memory here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

SMALLEST = 1024
"""Bytes from which on a constant stands beside the message: smaller ones are shapes and the like, which onnxruntime folds."""

TYPES = {
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT16,
    ir.DataType.UINT16,
}
"""Element types of weights that numpy and onnxruntime lay out alike. Others stay in the message: 32 and 64 bits may be shapes."""

ELSEWHERE = "beside the message"


@dataclass(frozen=True, eq=False)
class Loose:
    """message  of the graph, in which large constants have a type and a shape only      arrays  these constants, by name"""

    message: bytes
    arrays: Mapping[str, np.ndarray]


def loose(graph: ir.Model) -> Loose:
    """The graph, of any size, for `open_session`; its arrays are those of the graph, not copies, and must not be written to."""
    arrays = {
        name: np.require(tensor.numpy(), requirements=["C", "A"])
        for name, value in graph.graph.initializers.items()
        if (tensor := value.const_value) is not None
        and tensor.dtype in TYPES
        and tensor.nbytes >= SMALLEST
        and any(node.graph is graph.graph for node, _ in value.uses())  # onnxruntime does not look for others
    }
    with _without(graph, arrays):
        return Loose(ir.to_proto(graph).SerializeToString(), arrays)


def loose_message(message: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> Loose:
    """A message whose graph lacks these constants, with them; `message` is written to."""
    read = {name for node in message.graph.node for name in node.input}
    arrays = {}
    for name, values in constants.items():
        dtype = ir.DataType.from_numpy(values.dtype)
        if name in read and dtype in TYPES and values.nbytes >= SMALLEST:
            arrays[name] = np.require(values, requirements=["C", "A"])
            stub = onnx.TensorProto(name=name, data_type=int(dtype), dims=values.shape)
            stub.data_location = onnx.TensorProto.EXTERNAL
            stub.external_data.add(key="location", value=ELSEWHERE)
            message.graph.initializer.append(stub)
        else:
            message.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Loose(message.SerializeToString(), arrays)


@contextmanager
def _without(graph: ir.Model, arrays: Mapping[str, np.ndarray]) -> Iterator[None]:
    """The graph while these constants are names of data elsewhere and all others are in memory: cheaper than a clone."""
    values = graph.graph.initializers
    held = {name: value.const_value for name, value in values.items() if value.const_value is not None}
    try:
        for name, tensor in held.items():
            if name in arrays:
                values[name].const_value = ir.ExternalTensor(
                    ELSEWHERE,
                    0,
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=name,
                    base_dir="",
                )
            elif isinstance(tensor, ir.ExternalTensor):
                values[name].const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=name)
        yield
    finally:
        for name, tensor in held.items():
            values[name].const_value = tensor
