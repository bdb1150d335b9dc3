"""The Model: the normalised graph, where it came from and what its tensors stand for. Frozen: an edit makes a clone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from onnx_ir import Model as Graph
from onnx_ir import Shape, Value

from onnxcompress.model.edit import set_constant
from onnxcompress.model.fingerprint import fingerprint

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """What was read: a name for messages, the path where there is one, the ONNX bytes where that is no ONNX file, and the bytes on disk."""

    name: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)
    size: int = 0

    @property
    def runnable(self) -> Path | bytes:
        """The original, for a session: a path where external data may lie beside it, else bytes (of a packed file too)."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        return self.path


@dataclass(frozen=True)
class Origin:
    """What a tensor now stands for: tensor `name` of the original, with only the given indices of each listed axis left."""

    name: str
    kept: Mapping[int, np.ndarray] = field(default_factory=dict)

    def cut(self, axis: int, keep: np.ndarray) -> Origin:
        """The origin after indices `keep` of the current axis were kept."""
        before = self.kept.get(axis)
        return replace(self, kept={**self.kept, axis: keep if before is None else before[keep]})


@dataclass(frozen=True, eq=False)
class Model:
    """A normalised ONNX graph.

    ir       the graph; nobody edits it after the door, passes clone it (tensors are shared)
    source   the file or bytes that the user gave
    origin   value name -> what it stands for in the model that the user gave; absent means itself, whole
    declared shapes of the inputs and outputs as the source declares them; inference may know better, but the file keeps them
    notes    what the door saw and could not do, for the report
    """

    ir: Graph
    source: Source
    origin: Mapping[str, Origin] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    declared: Mapping[str, Shape | None] = field(default_factory=dict)
    _memory: dict[str, Any] = field(default_factory=dict, repr=False)

    def remember(self, key: str, compute: Callable[[Model], T]) -> T:
        """`compute(self)`, computed once for this model: layers, channels, costs."""
        if key not in self._memory:
            self._memory[key] = compute(self)
        return self._memory[key]

    def edited(self, graph: Graph, origin: Mapping[str, Origin] | None = None) -> Model:
        """The Model around an edited clone of this one's graph."""
        return Model(graph, self.source, self.origin if origin is None else origin, self.notes, self.declared)

    def with_constants(self, values: Mapping[str, np.ndarray]) -> Model:
        """The Model with new values of these initializers; itself where there are none."""
        if not values:
            return self
        graph = self.ir.clone()
        for name, array in values.items():
            set_constant(graph, name, array)
        return self.edited(graph)

    def as_original(self) -> Model:
        """The same graph as its own original: for walks whose goal is this model, cut already, and not the one that it was cut from."""
        return self.edited(self.ir, origin={})

    @property
    def initializers(self) -> Mapping[str, Value]:
        """Every constant tensor by name; the door lifted those of If and Loop bodies to the main graph."""
        return self.ir.graph.initializers

    def array(self, name: str) -> np.ndarray:
        """The stored values of one constant tensor, in its own type."""
        tensor = self.ir.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the normalised graph, weights included; a plan carries it."""
        return fingerprint(self.ir)

    @cached_property
    def serialized(self) -> bytes:
        """The normalised graph as ONNX bytes. Raises ModelError over 2 GiB: such a model is saved with external data instead."""
        from onnxcompress.model.save import to_bytes

        return to_bytes(self.ir)
