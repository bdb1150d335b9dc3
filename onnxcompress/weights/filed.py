"""Large constants that a file holds too: they are let go of where nobody needs them soon, and read again where somebody does.

A model that was made of another one, and that one itself, would stand in memory side by side until the end: twice the file.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import ModelError

LEAST_LET_GO = 1 << 20
"""Bytes of a constant that is worth reading again."""


class Values:
    """The values of one tensor, in memory until they are let go of; then read from the file, and held by whoever asked."""

    def __init__(self, path: Path, start: int, values: np.ndarray) -> None:
        self._path, self._start, self._shape, self._dtype = path, start, values.shape, values.dtype
        self._stamp = _stamp(path)
        self._held: np.ndarray | None = values
        self._seen = weakref.ref(values)

    def __call__(self) -> ir.Tensor:
        """Raises ModelError where the file has changed, or is gone."""
        values = self._seen()
        if values is None:
            values = self._read()
            self._seen = weakref.ref(values)
        return ir.Tensor(values)

    def let_go(self) -> None:
        """Hold them no longer."""
        self._held = None

    def _read(self) -> np.ndarray:
        values = np.empty(self._shape, self._dtype)
        try:
            same = _stamp(self._path) == self._stamp
            with self._path.open("rb") as file:
                file.seek(self._start)
                whole = file.readinto(values.reshape(-1).view(np.uint8).data) == values.nbytes
        except OSError as error:
            raise ModelError(f"{self._path}: cannot be read again: {error.strerror}; leave it where it is") from error
        if not (same and whole):
            raise ModelError(f"{self._path}: it has changed since it was loaded; run again")
        return values


def _stamp(path: Path) -> tuple[int, int]:
    told = path.stat()
    return told.st_size, told.st_mtime_ns


def filed(path: Path, start: int, values: np.ndarray, name: str) -> ir.TensorProtocol:
    """A tensor whose values lie at `start` of a file; small ones are plain tensors."""
    if values.nbytes < LEAST_LET_GO:
        return ir.Tensor(values, name=name)
    return ir.LazyTensor(
        Values(path, start, values), ir.DataType.from_numpy(values.dtype), ir.Shape(values.shape), name=name
    )


def let_go(tensor: ir.TensorProtocol | None) -> None:
    """Where a file holds the values of a tensor, memory need not."""
    if isinstance(tensor, ir.LazyTensor) and isinstance(tensor.raw, Values):
        tensor.raw.let_go()


def let_go_of_all(graph: ir.Model, but: ir.Model) -> None:
    """The constants of a graph, those that another one has too excepted."""
    kept = {id(value.const_value) for value in but.graph.initializers.values()}
    for value in graph.graph.initializers.values():
        if id(value.const_value) not in kept:
            let_go(value.const_value)
