"""The door: reads a path, bytes, ModelProto or onnx_ir.Model, refuses what is damaged, and hands on a normalised Model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxcompress.errors import ModelError
from onnxcompress.files import inside
from onnxcompress.model.model import Model, Source
from onnxcompress.model.normalise import normalise
from onnxcompress.weights.beside import BESIDE, read_beside
from onnxcompress.weights.container import Container, is_packed
from onnxcompress.weights.filed import filed
from onnxcompress.weights.packed import whole

Loadable = str | Path | bytes | onnx.ModelProto | ir.Model | Model
"""Everything that the verbs accept as a model."""

MAXIMUM_IN_MEMORY = 1 << 31  # protobuf's own limit on one message


def load(model: Loadable) -> Model:
    """Read and normalise a model.

    Raises ModelError, in one line, for a missing, truncated or foreign file, missing external data, external data outside
    the model's folder, and a graph that breaks ONNX's own rules.
    """
    if isinstance(model, Model):
        return model
    beside: dict[str, ir.TensorProtocol] = {}
    if isinstance(model, str | Path) and not is_packed(model):
        proto, source, beside = _read_beside(Path(model))
    else:
        proto, source = read(model)
    outside = check_external(proto, source, beside)
    return normalise(proto, replace(source, size=source.size + outside), beside)


def _read_beside(path: Path) -> tuple[onnx.ModelProto, Source, dict[str, ir.TensorProtocol]]:
    """As `read`, with large weights apart: the message alone would hold them twice."""
    try:
        message, arrays, starts = read_beside(_readable(path))
        beside = {name: filed(path, starts[name], values, name) for name, values in arrays.items()}
    except (ValueError, IndexError):  # empty, truncated or foreign: protobuf says so
        message, beside = _contents(path), {}
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    return parse(message, str(path)), Source(str(path), path=path, size=path.stat().st_size), beside


def read(model: str | Path | bytes | onnx.ModelProto | ir.Model) -> tuple[onnx.ModelProto, Source]:
    """The protobuf message behind any accepted form, weights in external files not yet loaded."""
    if isinstance(model, onnx.ModelProto):
        data = model.SerializeToString()
        return model, Source("model", data=data, size=len(data))
    if isinstance(model, ir.Model):
        proto = ir.to_proto(model)
        data = proto.SerializeToString()
        return proto, Source(model.graph.name or "model", data=data, size=len(data))
    if isinstance(model, bytes):
        data = unpacked(model, "bytes") if is_packed(model) else model
        return parse(data, "bytes"), Source("bytes", data=data, size=len(model))
    path = Path(model)
    if is_packed(path):
        data = unpacked(path, str(path))
        return parse(data, str(path)), Source(str(path), path=path, data=data, size=path.stat().st_size)
    return parse(_contents(path), str(path)), Source(str(path), path=path, size=path.stat().st_size)


def unpacked(packed: Path | bytes, name: str) -> bytes:
    """The message in a packed file, external data in its place. ModelError where that is damaged, or over 2 GiB."""
    with Container(packed, name) as container:
        files = whole(container)
    data = bytes(files.pop(""))
    if not files:
        return data
    proto = parse(data, name)
    for tensor in tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.raw_data = _inside_of(files, tensor, name)
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return proto.SerializeToString()


def _inside_of(files: Mapping[str, bytearray], tensor: onnx.TensorProto, name: str) -> bytes:
    """A tensor's bytes in the files of external data."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file = files.get(entries.get("location", ""))
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", 0)) or len(file or b"") - offset
    except ValueError as error:
        raise ModelError(f"{name}: initializer {tensor.name!r} has an unreadable place: {entries}") from error
    if file is None or offset < 0 or length < 0 or offset + length > len(file):
        raise ModelError(
            f"{name}: initializer {tensor.name!r} reads {entries}, which is not in the packed file; pack it again"
        )
    return bytes(file[offset : offset + length])


def _readable(path: Path) -> Path:
    """ModelError where it is no file that fits in a message."""
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; name the .onnx file in it")
    if path.stat().st_size >= MAXIMUM_IN_MEMORY:
        raise ModelError(f"{path}: over 2 GiB in one file, more than protobuf reads; save it with external data")
    return path


def _contents(path: Path) -> bytes:
    try:
        return _readable(path).read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


def parse(data: bytes, name: str) -> onnx.ModelProto:
    """ONNX bytes to a message; raises ModelError for anything that is not a whole ONNX model."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{name}: not an ONNX model, or truncated; export it again") from error
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{name}: holds no graph; is this an ONNX model?")
    return proto


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor of a graph, its If and Loop bodies included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            for body in [*attribute.graphs, attribute.g]:
                yield from tensors(body)


def check_external(proto: onnx.ModelProto, source: Source, beside: Collection[str] = ()) -> int:
    """Bytes of external data. ModelError where it is missing, too short, or outside the model's folder.

    beside  initializers that have been read already
    """
    total = 0
    for tensor in tensors(proto.graph):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        read_already = tensor.name in beside and entries.get("location") == BESIDE
        if tensor.data_location != onnx.TensorProto.EXTERNAL or read_already:
            continue
        where = f"{source.name}: initializer {tensor.name!r}"
        if source.path is None:
            raise ModelError(f"{where} lies in an external file; give the model's path instead of its bytes")
        location = entries.get("location", "")
        file = inside(source.path.parent, location)
        if not file.is_file():
            raise ModelError(f"{where} reads {location!r}, which is missing; copy that file beside the model")
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", 0)) or file.stat().st_size - offset
        except ValueError as error:
            raise ModelError(f"{where} has an unreadable place in {location!r}: {entries}") from error
        if offset < 0 or length < 0 or offset + length > file.stat().st_size:
            raise ModelError(f"{where} needs bytes {offset} to {offset + length} of {location!r}, which is shorter")
        total += length
    return total
