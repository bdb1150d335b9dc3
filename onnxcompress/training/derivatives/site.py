"""Where a derivative is written: one node of the forward graph, with its shapes, attributes and constants at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import ModelError
from onnxcompress.model.edit import constant_of
from onnxcompress.training.pen import Pen, shape_of

Gradients = Sequence[ir.Value | None]
"""One for each input of the node, in its shape; None where none is wanted or none exists."""


@dataclass(frozen=True, eq=False)
class Site:
    """A node and which of its inputs want a gradient.

    reads  its inputs, and behind them what its bodies read from outside; `wanted` and gradients are in this order
    """

    node: ir.Node
    wanted: tuple[bool, ...]
    reads: tuple[ir.Value | None, ...] = ()

    @property
    def x(self) -> Sequence[ir.Value]:
        """Its inputs; rows only ask for those that the operator must have, or that `has` told of."""
        return self.node.inputs  # type: ignore[return-value]

    @property
    def y(self) -> ir.Value:
        """Its first output."""
        return self.node.outputs[0]

    def has(self, index: int) -> bool:
        """Is input `index` given?"""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def wants(self, index: int) -> bool:
        """Is a gradient of input `index` asked for?"""
        return index < len(self.wanted) and self.wanted[index]

    def shape(self, index: int) -> tuple[int, ...]:
        """Of input `index`."""
        return shape_of(self.x[index])

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute as Python's own value: int, float, str or list."""
        found = self.node.attributes.get(name)
        if found is None:
            return default
        value = found.value
        return list(value) if isinstance(value, tuple | list) else value

    def ints(self, index: int) -> list[int]:
        """A constant integer input; ModelError where it is computed from data."""
        values = constant_of(self.x[index])
        if values is None:
            raise self.refused(f"input {index} ({self.x[index].name!r}) is computed from the data")
        return [int(value) for value in values.reshape(-1)]

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute `axis`, not negative."""
        rank = len(self.shape(0)) if rank is None else rank
        return int(self.attribute("axis", default)) % max(rank, 1)

    def refused(self, why: str) -> ModelError:
        """The error of a case that the row does not cover."""
        return ModelError(
            f"{self.node.op_type} {self.node.name!r}: no gradient is known here: {why}; freeze what stands before it"
        )


Rule = Callable[[Pen, Site, ir.Value], Gradients]
"""A row for operators with one output that counts: (op, at, dy) -> a gradient for each input."""


SeveralRule = Callable[[Pen, Site, Sequence[ir.Value | None]], Gradients]
"""(op, at, the gradient of each output or None where it takes no part in the loss) -> a gradient for each input."""


def summed_to(op: Pen, dy: ir.Value, shape: Sequence[int]) -> ir.Value:
    """The gradient of an operand of this shape that was broadcast to dy's: sums over what was repeated."""
    given, shape = shape_of(dy), tuple(shape)
    if given == shape:
        return dy
    extra = len(given) - len(shape)
    axes = [a for a, size in enumerate(given) if a < extra or (shape[a - extra] == 1 and size != 1)]
    summed = op.ReduceSum(dy, axes, keepdims=1) if axes else dy
    return op.Reshape(summed, list(shape)) if shape_of(summed) != shape else summed


def zeros_like(op: Pen, value: ir.Value) -> ir.Value:
    """Zeros in its shape and type."""
    assert value.dtype is not None
    return op.constant(np.zeros(shape_of(value), value.dtype.numpy()))
