"""What tells one normalised graph from another: SHA-256 of all that it computes with, read where it lies instead of from a file's bytes."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import bodies_of, walk

_SEEN: WeakKeyDictionary[ir.TensorProtocol, bytes] = WeakKeyDictionary()
"""Tensor -> digest of its content: clones share tensors, and nobody writes to one."""


def fingerprint(graph: ir.Model) -> str:
    """Hex digest of constants, nodes, inputs, outputs and opsets; names count, since plans find weights and nodes by them."""
    digest = hashlib.sha256()
    for name, value in graph.graph.initializers.items():
        assert value.const_value is not None
        digest.update(f"{name} {value.const_value.dtype} {list(value.const_value.shape)}".encode())
        digest.update(_digest(value.const_value))
    for node in walk(graph):
        settings = [_setting(node.attributes[name]) for name in sorted(node.attributes)]
        digest.update(
            f"{node.domain} {node.op_type} {node.name} {_names(node.inputs)} {_names(node.outputs)} {settings}".encode()
        )
    shown = [(value.name, str(value.type), str(value.shape)) for value in (*graph.graph.inputs, *graph.graph.outputs)]
    digest.update(f"{shown} {sorted(graph.opset_imports.items())}".encode())
    return digest.hexdigest()


def _digest(tensor: ir.TensorProtocol) -> bytes:
    if tensor not in _SEEN:
        _SEEN[tensor] = hashlib.sha256(_content(tensor)).digest()
    return _SEEN[tensor]


def _content(tensor: ir.TensorProtocol) -> bytes | memoryview:
    values = np.ascontiguousarray(tensor.numpy())
    return repr(values.tolist()).encode() if values.dtype.kind == "O" else values.reshape(-1).view(np.uint8).data


def _names(values: object) -> list[str | None]:
    return [value if value is None else value.name for value in values]  # type: ignore[attr-defined]


def _setting(attribute: ir.Attr) -> object:
    """Name and value of one attribute; of a body its ends, since `walk` shows its nodes."""
    bodies = [(_names(body.inputs), _names(body.outputs)) for body in bodies_of(attribute)]
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.name, bytes(_content(attribute.as_tensor()))
    return attribute.name, bodies or attribute.value
