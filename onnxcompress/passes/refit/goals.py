"""What a layer should put out: the original's values at the channels that are left, batch by batch.

Behind a residual addition the goal is what the sum lacks, so that errors of the shortcut are made up for as well: the
multi-branch enhancement of He, Zhang, Sun, ICCV 2017, arXiv:1707.06168.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxcompress.evidence.paired import Pair
from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of
from onnxcompress.operators.layer import Layer


def goals(model: Model, node: ir.Node, value: str, pair: Pair) -> Iterator[np.ndarray]:
    """For each batch what `value`, which `node` writes (or an Add of its bias), should be."""
    residual = _residual(node, model, pair)
    if residual is None:
        return kept(model, value, pair)
    total, other, scale, shift = residual
    return _lacking(kept(model, total, pair), iter(pair.read(other)), scale, shift)


def kept(model: Model, value: str, pair: Pair) -> Iterator[np.ndarray]:
    """The original's value, at the indices that the current one still has."""
    origin = model.origin.get(value)
    for array in pair.target(value if origin is None else origin.name):
        for axis, indices in (origin.kept if origin is not None else {}).items():
            array = np.take(array, indices, axis=axis)
        yield array


def untouched(model: Model, layer: Layer, pair: Pair) -> np.ndarray | None:
    """The original's weight as a matrix, at the indices that the layer still has; None where it has no such weight."""
    origin = model.origin.get(layer.weight)
    stored = pair.original.constants.get(layer.weight if origin is None else origin.name)
    if stored is None:
        return None
    array = stored
    for axis, indices in (origin.kept if origin is not None else {}).items():
        array = np.take(array, indices, axis=axis)
    return layer.matrix(array).astype(np.float64) if array.shape == model.array(layer.weight).shape else None


def _lacking(
    wanted: Iterator[np.ndarray], others: Iterator[np.ndarray], scale: np.ndarray, shift: np.ndarray
) -> Iterator[np.ndarray]:
    """What `scale` and `shift` along axis 1 turn into the difference of both."""
    for y, z in zip(wanted, others, strict=True):
        lacking = y.astype(np.float64) - z
        shape = [1, -1] + [1] * (lacking.ndim - 2)
        yield (lacking - shift.reshape(shape)) / scale.reshape(shape)


def _residual(node: ir.Node, model: Model, pair: Pair) -> tuple[str, str, np.ndarray, np.ndarray] | None:
    """Sum behind a convolution (through BatchNormalization) whose other operand is known: names of both, scale and shift between."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return None
    value, scale, shift = node.outputs[0], np.ones(1), np.zeros(1)
    user = only_user(value)
    if user is not None and user.op_type == "BatchNormalization":
        gamma, beta, mean, var = (
            pair.constant(v.name or "").astype(np.float64) for v in user.inputs[1:5] if v is not None
        )
        scale = gamma / np.sqrt(var + user.attributes.get_float("epsilon", 1e-5))
        shift = beta - mean * scale
        value, user = user.outputs[0], only_user(user.outputs[0])
    if user is None or user.op_type != "Add" or user.domain or np.abs(scale).min() < 1e-6 * np.abs(scale).max():
        return None
    other = next((operand for operand in user.inputs if operand is not value), None)
    if other is None or constant_of(other) is not None or not pair.has(other.name or ""):
        return None
    same = other.shape is not None and value.shape is not None and len(other.shape) == len(value.shape)
    if not same or other.shape[1] != value.shape[1] or pair.read(other.name or "")[0].ndim < 3:  # type: ignore[index]
        return None
    return user.outputs[0].name or "", other.name or "", scale, shift


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value; None where there are several, or where it is an output of the graph."""
    users = list(value.uses())
    return users[0][0] if len(users) == 1 and not value.is_graph_output() else None
