"""pack, unpack and load_packed: a model as one small file (weights/container.py), the same bytes again, and a session from it directly."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from onnxcompress.compare import json_safe
from onnxcompress.errors import ModelError, SettingError
from onnxcompress.files import check_output, inside, write_atomic, write_atomic_together
from onnxcompress.model import Loadable, Model
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.runtime.session import handed_session
from onnxcompress.weights.container import Container, is_packed
from onnxcompress.weights.handed import loadable
from onnxcompress.weights.packed import Packed, Packer, contents, whole

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Line:
    """A tensor in the report; many small ones of a type, and the graph, have one line together.

    values, bits   how many, and bits that each takes in the container, its share of the table included
    entropy        Shannon's, of its symbols, bits a value; None for dense floats
    gzip, zstd     bits a value of the same bytes in gzip -9 and zstd -19, where they were asked for
    """

    name: str
    type: str
    shape: tuple[int, ...]
    values: int
    before: int
    after: int
    bits: float
    entropy: float | None
    gzip: float | None
    zstd: float | None
    form: str


@dataclass(frozen=True)
class Packing:
    """What `pack` did.

    before, after   bytes of the model with its external data, and of the container
    coder           of what is coded by its frequencies: ans or huffman
    bits, entropy   of all tensors that are symbols, bits a value, together; None where there are none
    """

    model: str
    output: str
    coder: str
    before: int
    after: int
    bits: float | None
    entropy: float | None
    lines: tuple[Line, ...]

    @property
    def headline(self) -> str:
        """The first line."""
        share = self.after / max(self.before, 1)
        size, unit = (1e6, "MB") if self.before >= 1e6 else (1e3, "kB")
        return f"{self.model}: {self.before / size:.2f} {unit} packed into {self.after / size:.2f} {unit}, {share:.3f} of it"

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return json_safe({**vars(self), "lines": [vars(line) for line in self.lines], "headline": self.headline})  # type: ignore[no-any-return]


def pack(
    model: Loadable, output: str | Path, *, entropy: str = "ans", peers: bool = False, progress: Progress | None = None
) -> Packing:
    """Write a model as one packed file, from which `unpack` makes the same bytes again.

    model     path (external data beside it goes along), bytes, onnx.ModelProto, onnx_ir.Model or Model
    entropy   "ans" or "huffman"
    peers     also measure gzip -9 and zstd -19 of every tensor, which takes far longer than packing

    ModelError where the model is no ONNX file, or packed already; SettingError where the output cannot be written or is the model itself.
    """
    path = Path(model) if isinstance(model, str | Path) else None
    check_output(output, [path] if path is not None and path.exists() else [])
    if is_packed(path if path is not None else model):
        raise ModelError(f"{path or 'bytes'}: is packed already; unpack it first to pack it anew")
    report = None if progress is None else lambda done, total: progress(done, total, "pack")
    packer = Packer(entropy, peers=peers, progress=report)
    given = path if path is not None else _bytes(model)
    write_atomic(output, packer.pieces(given))
    lines = tuple(_line(each) for each in packer.report)
    coded = [line for line in lines if line.entropy is not None]
    values = sum(line.values for line in coded)
    return Packing(
        model=str(path or "model"),
        output=str(output),
        coder=entropy,
        before=sum(each.bytes for each in packer.report) + packer.repeated,
        after=Path(output).stat().st_size,
        bits=8 * sum(line.after for line in coded) / values if values else None,
        entropy=sum((line.entropy or 0.0) * line.values for line in coded) / values if values else None,
        lines=lines,
    )


def _bytes(model: Any) -> bytes:
    """A model in memory as ONNX bytes."""
    if isinstance(model, bytes):
        return model
    if isinstance(model, Model):
        return to_bytes(finished(model))
    return model.SerializeToString(deterministic=True) if isinstance(model, onnx.ModelProto) else to_bytes(model)


def _line(one: Packed) -> Line:
    values = one.bytes // one.width
    each = 8 / max(values, 1)
    kind = onnx.TensorProto.DataType.Name(one.dtype).lower() if one.dtype in onnx.TensorProto.DataType.values() else "?"
    return Line(
        name=one.name if one.dtype or one.tensors == 1 else f"{one.tensors} {one.name}",
        type=kind if one.dtype else "",
        shape=one.shape,
        values=values,
        before=one.bytes,
        after=one.stored,
        bits=one.stored * each,
        entropy=one.entropy,
        gzip=None if one.gzip is None else one.gzip * each,
        zstd=None if one.zstd is None else one.zstd * each,
        form=one.form,
    )


def unpack(packed: str | Path, output: str | Path) -> list[Path]:
    """Write the model that was packed, byte for byte, with the files of its external data beside it; all files or none.

    Returns the paths that were written, the model's first. ModelError where the file is damaged or not packed; SettingError where
    the output cannot be written, is the packed file, or a file of external data is there already.
    """
    source, target = Path(packed), Path(output)
    check_output(target, [source] if source.exists() else [])
    with Container(source) as container:
        names = [member.name for member in container.members]
        paths = [target, *(_beside(target, name, container) for name in names[1:])]
        if len({str(path.resolve()) for path in paths}) < len(paths):
            raise ModelError(f"{container.name}: holds two files of one name; pack the model again")
        total, free = sum(member.size for member in container.members), shutil.disk_usage(target.parent or ".").free
        if total > free:
            raise SettingError(
                f"{target}: {total / 1e6:.0f} MB do not fit into {free / 1e6:.0f} MB that are free; choose another disk"
            )
        pieces: Iterator[tuple[str, Iterator[memoryview]]] = contents(container)
        write_atomic_together({path: _next(pieces) for path in paths})
    return paths


def _beside(target: Path, name: str, container: Container) -> Path:
    """Where a file of external data goes: never over one that is there."""
    if not name:
        raise ModelError(f"{container.name}: holds two models; pack the model again")
    path = inside(target.parent, name)
    if path.exists():
        raise SettingError(
            f"{path}: the model reads its weights from a file of this name, and one is there; unpack into an empty folder"
        )
    return path


def _next(pieces: Iterator[tuple[str, Iterator[memoryview]]]) -> Iterator[Any]:
    """The pieces of the next file, opened when they are asked for: files follow each other."""
    yield from next(pieces)[1]


def load_packed(
    packed: str | Path | bytes,
    options: onnxruntime.SessionOptions | None = None,
    providers: list[Any] | None = None,
) -> onnxruntime.InferenceSession:
    """An InferenceSession of a packed model: weights are decoded one by one and handed to onnxruntime, which shares them.

    options, providers   onnxruntime's; providers default to the CPU

    ModelError where the file is damaged or not packed, or onnxruntime does not load what it holds.
    """
    given = packed if isinstance(packed, bytes) else Path(packed)
    with Container(given) as container:
        if len(container.members) == 1:
            message, arrays = loadable(container)
            try:
                return handed_session(message, arrays, options, providers, name=container.name)
            except (
                ModelError
            ):  # an initializer that only the bodies of If and Loop read is not looked for beside the message
                del arrays
                return handed_session(bytes(whole(container)[""]), {}, options, providers, name=container.name)
    if isinstance(packed, bytes):
        raise ModelError(
            "bytes: the model has external data, which needs files; write them to a file and give its path"
        )
    with tempfile.TemporaryDirectory(prefix="onnxcompress-", ignore_cleanup_errors=True) as folder:
        return handed_session(unpack(packed, Path(folder) / "model.onnx")[0], {}, options, providers, name=str(packed))
