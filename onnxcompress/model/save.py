"""A Model to bytes and to disk: checked, vectors merged again, written whole or not at all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx import checker

from onnxcompress.errors import ModelError
from onnxcompress.files import check_output, write_atomic, write_atomic_together
from onnxcompress.model.edit import FILE_TYPE, coded_of, new_constant
from onnxcompress.model.model import Model
from onnxcompress.model.native import check_message, first_line, raised
from onnxcompress.model.twins import twins
from onnxcompress.model.wiring import drop_unread
from onnxcompress.weights.beside import LEAST_BESIDE, TYPES, standing_beside, together
from onnxcompress.weights.coded import Coded, recoded
from onnxcompress.weights.container import SUFFIX
from onnxcompress.weights.forms import FORMS, chosen_together, write_all
from onnxcompress.weights.packed import Packer
from onnxcompress.weights.pen import Pen

LARGEST_MESSAGE = (1 << 31) - (1 << 20)
"""protobuf's limit on one message, less some room for the graph."""


def to_bytes(graph: ir.Model, metadata: Mapping[str, str] | None = None) -> bytes:
    """ONNX bytes of a graph with all its weights inside; metadata: keys and values for the file's metadata_props."""
    total = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    if total > LARGEST_MESSAGE:
        raise ModelError(f"{total / 1e9:.1f} GB of weights do not fit in one ONNX message; save it to a path")
    return b"".join(pieces(graph, metadata))


def size_of(graph: ir.Model) -> int:
    """Bytes of the file."""
    return sum(map(len, pieces(graph)))


def pieces(graph: ir.Model, metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """ONNX bytes of a graph with all its weights inside, from where these lie."""
    return _in_pieces(graph, metadata, check=False)


def _in_pieces(graph: ir.Model, metadata: Mapping[str, str] | None, check: bool) -> Iterator[bytes | memoryview]:
    """`pieces`, of a graph that passes ONNX's checker where that is asked for."""
    arrays = _apart(graph)
    with standing_beside(graph, arrays):
        proto = _message(graph, metadata)
    data = proto.SerializeToString(deterministic=True)
    if check:
        _check(proto, arrays)
    return together(data, arrays)


def _apart(graph: ir.Model) -> dict[str, np.ndarray]:
    """Large constants that are values and nothing else."""
    return {
        name: tensor.numpy()
        for name, value in graph.graph.initializers.items()
        if (tensor := value.const_value) is not None
        and tensor.dtype in TYPES
        and tensor.nbytes >= LEAST_BESIDE
        and not tensor.doc_string
        and not tensor.metadata_props
    }


def _check(proto: onnx.ModelProto, apart: Collection[str]) -> None:
    """ONNX's checker on a message whose large constants it takes for inputs, since it would parse a copy of each; `proto` is written to."""
    for tensor in [each for each in proto.graph.initializer if each.name in apart]:
        proto.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        proto.graph.initializer.remove(tensor)
    check_message(proto)


def _message(graph: ir.Model, metadata: Mapping[str, str] | None) -> onnx.ModelProto:
    proto = ir.to_proto(graph)
    if metadata:
        onnx.helper.set_model_props(proto, {**graph.metadata_props, **metadata})
    return proto


def finished(model: Model) -> ir.Model:
    """A clone as it goes to disk: equal constants merged, nothing unused, IR version and opset as they were. Not to be edited."""
    return model.remember("finished", _finished)


def _finished(model: Model) -> ir.Model:
    graph = model.ir.clone()
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if (name := value.name or "") in model.declared:
            value.shape = model.declared[name]
    common.DeduplicateHashedInitializersPass()(graph)
    drop_unread(graph)
    common.RemoveUnusedOpsetsPass()(graph)
    _transposed_once(graph)
    graph = _coded(graph)
    _narrowed(graph)
    return graph


def _coded(graph: ir.Model) -> ir.Model:
    """Values that were coded go to the file as symbols, where they still are in their books and that is smaller."""
    found = {
        name: coded for name, value in graph.graph.initializers.items() if (coded := written_as(value)) is not None
    }
    opset = max((FORMS[each.form].opset for each in found.values() if each.form in FORMS), default=0)
    if opset > graph.opset_imports[""]:
        graph = raised(graph, opset)
    pen = Pen(graph.graph)
    found = {name: coded for name, coded in found.items() if name in graph.graph.initializers}
    for name, made in write_all(pen, found, chosen_together(found, graph.opset_imports[""])).items():
        value = graph.graph.initializers.pop(name)
        value.replace_all_uses_with(made)
        made.name, made.type, made.shape = name, value.type, value.shape
    pen.finish()
    return graph


def written_as(value: ir.Value) -> Coded | None:
    """How a value is coded now: as it was, or with the symbols that edits have left; None where it is dense."""
    before = coded_of(value)
    if before is None or value.const_value is None or value.is_graph_output():
        return None
    return recoded(value.const_value.numpy(), before)


def _narrowed(graph: ir.Model) -> None:
    """Values that came in a narrower type go back to the file in it, behind a Cast, which onnxruntime folds when it loads the file."""
    for value in list(graph.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or FILE_TYPE not in tensor.meta or value.is_graph_output():
            continue
        narrow = tensor.meta[FILE_TYPE]
        stored = new_constant(graph, f"{value.name}.{narrow.name.lower()}", tensor.numpy().astype(narrow.numpy()))
        node = ir.node("Cast", [stored], {"to": tensor.dtype}, name=f"{value.name}.widened")
        value.replace_all_uses_with(node.outputs[0])
        graph.graph.initializers.pop(value.name or "")
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = value.name, value.type, value.shape
        graph.graph.insert_before(graph.graph[0], node)


def _transposed_once(graph: ir.Model) -> None:
    """A matrix that is another one transposed becomes a Transpose of it. onnxruntime folds the node again when it loads the file."""
    for name, first in twins(graph).items():
        value, twin = graph.graph.initializers[name], graph.graph.initializers[first]
        node = ir.node("Transpose", [twin], {"perm": [1, 0]}, name=f"{name}.transposed")
        value.replace_all_uses_with(node.outputs[0])
        graph.graph.initializers.pop(name)
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, value.type, value.shape
        graph.graph.insert_before(graph.graph[0], node)


def save(model: Model, path: str | Path, metadata: dict[str, str] | None = None) -> Path:
    """Write the model, the whole file or nothing; over 2 GB the weights go to `<name>.data` beside it.

    metadata  keys and values for the file's metadata_props
    Raises ModelError when the graph does not pass ONNX's checker, SettingError when the path is the source or cannot be written.
    """
    path = Path(path)
    check_output(path, [model.source.path] if model.source.path else [])
    graph = finished(model)
    total = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    if total > LARGEST_MESSAGE:
        return _save_external(graph.clone(), path, metadata)
    try:
        made = _in_pieces(graph, metadata, check=True)
    except (checker.ValidationError, ValueError) as error:
        raise ModelError(f"{path}: the result is not legal ONNX: {first_line(error)}") from error
    write_atomic(path, Packer().pieces(b"".join(made)) if path.suffix == SUFFIX else made)
    return path


def _save_external(graph: ir.Model, path: Path, metadata: Mapping[str, str] | None) -> Path:
    """The message, and beside it one data file with every tensor; both appear or neither."""
    data_path = path.with_name(path.name + ".data")
    tensors = [v.const_value for v in graph.graph.initializers.values() if v.const_value is not None]
    offset = 0
    for tensor, value in zip(tensors, list(graph.graph.initializers.values()), strict=True):
        value.const_value = ir.ExternalTensor(
            data_path.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.numpy().shape),
            name=value.name or "",
            base_dir=path.parent,
        )
        offset += tensor.nbytes
    message = _message(graph, metadata).SerializeToString(deterministic=True)
    write_atomic_together({data_path: (tensor.tobytes() for tensor in tensors), path: message})
    return path
