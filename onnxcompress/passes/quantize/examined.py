"""A quantized file, whoever wrote it, as it stands and as onnxruntime runs it: what faults are looked for in."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.data import Data, open_data
from onnxcompress.errors import DataError, ModelError
from onnxcompress.model.edit import constant_of
from onnxcompress.model.native import first_line
from onnxcompress.passes.quantize.unfused import graphs_of
from onnxcompress.runtime.session import open_session

INTEGER = re.compile(
    r"\b(QLinear|QGemm|MatMulInteger|ConvInteger|DynamicQuantize|MatMulNBits|QuantizeLinear|DequantizeLinear)"
)
"""Operators of quantized files, by their beginnings."""

SAMPLES = 8
"""On which two CPUs are compared."""


@dataclass(frozen=True, eq=False)
class Examined:
    """A file and what onnxruntime makes of it on this CPU."""

    proto: onnx.ModelProto
    runnable: Path | bytes
    name: str
    data: Any = None
    seed: int = 0

    @cached_property
    def loaded(self) -> tuple[onnx.ModelProto | None, str]:
        """The graph that is executed, and no error; or None and the reason."""
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
            target = Path(folder) / "optimised.onnx"
            try:
                open_session(self.runnable, name=self.name, optimised_to=target)
            except ModelError as error:
                return None, str(error)
            return onnx.load(target), ""

    @cached_property
    def graph(self) -> ir.Model:
        """The file as onnx-ir reads it, every constant of it whole."""
        try:
            graph = ir.from_proto(self.proto)
            if isinstance(self.runnable, Path):
                ir.external_data.set_base_dir(graph.graph, self.runnable.parent)
            for each in [graph.graph, *graph.graph.subgraphs()]:
                for value in each.initializers.values():
                    constant_of(value)
        except (ir.serde.SerdeError, ValueError, TypeError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise ModelError(f"{self.name}: not a legal ONNX graph: {first_line(cause)}") from error
        return graph

    @cached_property
    def feeds(self) -> Data:
        """What it is run on."""
        session = open_session(self.runnable, name=self.name)
        return open_data(
            self.data, session.inputs, seed=self.seed, samples=SAMPLES, limit=SAMPLES, session=session, images=None
        )

    @cached_property
    def stuck(self) -> str:
        """Why it loads and does not run; empty where it does, or where made-up inputs may be to blame."""
        if self.loaded[0] is None:
            return ""
        try:
            open_session(self.runnable, name=self.name).run(next(iter(self.feeds.batches(1))))
        except (DataError, ModelError) as error:
            if self.data is not None and isinstance(error, DataError):
                raise
            return str(error) if self.data is not None or INTEGER.search(str(error)) else ""
        return ""

    @property
    def executed(self) -> Iterable[onnx.NodeProto]:
        """Nodes as onnxruntime executes them, those of bodies too."""
        graph = self.loaded[0]
        return [] if graph is None else [node for each in graphs_of(graph.graph) for node in each.node]

    @cached_property
    def given(self) -> list[onnx.NodeProto]:
        """Nodes as the file has them, those of bodies too."""
        return [node for each in graphs_of(self.proto.graph) for node in each.node]

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """Stored tensors by name, those of bodies too."""
        return {tensor.name: tensor for each in graphs_of(self.proto.graph) for tensor in each.initializer} | {
            node.output[0]: attribute.t
            for node in self.given
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        }

    @cached_property
    def opset(self) -> int:
        """Of the standard operators."""
        return next((each.version for each in self.proto.opset_import if each.domain in ("", "ai.onnx")), 1)

    def values(self, name: str) -> np.ndarray | None:
        """A constant's values; None where it is computed or lies in an external file."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        try:
            return onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{self.name}: tensor {name!r} does not hold what its shape says; export it again"
            ) from error
