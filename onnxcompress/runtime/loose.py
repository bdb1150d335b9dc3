"""A graph for onnxruntime without a copy of its weights: the message without them, and beside it the arrays themselves.

A message with all weights is made, parsed and freed again for every session, and each step holds a copy: of a file of 575 MB
that was 2.3 GB and a second. None of it happens here, but onnxruntime copies each array that it is given as a constant into the session
that it makes: sessions of graphs that share tensors share their memory only where these are fed (`as_inputs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.weights.beside import BESIDE, TYPES, standing_beside

SMALLEST = 1024
"""Bytes from which on a constant stands beside the message: smaller ones are shapes and the like, which onnxruntime folds."""


@dataclass(frozen=True, eq=False)
class Loose:
    """message  of the graph, in which large constants have a type and a shape only      arrays  these constants, by name"""

    message: bytes
    arrays: Mapping[str, np.ndarray]


def loose(graph: ir.Model, more: Callable[[onnx.GraphProto], None] | None = None) -> Loose:
    """The graph, of any size, for `open_session`; its arrays are those of the graph, not copies, and must not be written to.

    more  writes to the message before it is one: nodes at the end, other outputs; a clone of the graph would take longer
    """
    beside = _beside(graph)
    arrays = {name: np.require(tensor.numpy(), requirements=["C", "A"]) for name, tensor in beside.items()}
    with standing_beside(graph, beside):
        message = ir.to_proto(graph)
    if more is not None:
        more(message.graph)
    return Loose(message.SerializeToString(), arrays)


def bare(graph: ir.Model) -> onnx.ModelProto:
    """The message of `loose`, and nobody asks for the arrays."""
    with standing_beside(graph, _beside(graph)):
        return ir.to_proto(graph)


def _beside(graph: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The constants that stand beside the message."""
    return {
        name: tensor
        for name, value in graph.graph.initializers.items()
        if (tensor := value.const_value) is not None
        and tensor.dtype in TYPES
        and tensor.nbytes >= SMALLEST
        and any(node.graph is graph.graph for node, _ in value.uses())  # onnxruntime does not look for others
    }


TAKES_ANY = {"Conv", "ConvTranspose", "Gather", "Gemm", "GRU", "LSTM", "MatMul", "RNN"}
"""Operators whose kernels do not ask that a weight be constant."""

LEAST_FED = 1 << 16
"""Bytes of a weight that is worth feeding: a session holds a copy of every constant, and none of what it is fed."""


def as_inputs(model: Loose) -> tuple[Loose, dict[str, np.ndarray]]:
    """The graph with its large weights among the inputs, and these: to be fed at each run."""
    message = onnx.load_from_string(model.message)
    graph = message.graph
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type if not node.domain else "")
    shown = {value.name for value in graph.output}
    fed = {
        name: values
        for name, values in model.arrays.items()
        if values.nbytes >= LEAST_FED and values.dtype == np.float32 and name not in shown
        and readers.get(name, {""}) <= TAKES_ANY
    }  # fmt: skip
    defaults = {value.name for value in graph.input}  # of old files: their inputs name constants too
    for tensor in [each for each in graph.initializer if each.name in fed]:
        if tensor.name not in defaults:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        graph.initializer.remove(tensor)
    rest = {name: values for name, values in model.arrays.items() if name not in fed}
    return Loose(message.SerializeToString(), rest), fed


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
            stub.external_data.add(key="location", value=BESIDE)
            message.graph.initializer.append(stub)
        else:
            message.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Loose(message.SerializeToString(), arrays)
