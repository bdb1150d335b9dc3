"""Derivatives of lookups and their opposites: what was read at an index is added up there, what was written there is read.

Indices may be computed at run time. Sums go through ScatterElements along one axis, never ScatterND (lowering.py).
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.training.derivatives.site import Gradients, Rule, Site, zeros_like
from onnxcompress.training.lowering import scattered
from onnxcompress.training.pen import Pen, element_of, shape_of

FEW_ROWS = 128
"""Rows of a table up to which a product with ones adds up faster than ScatterElements: 128 rows, 4,096 lookups of 128 numbers 2.0 ms
against 4.8, 2 rows 0.1 against 0.8, 512 rows 11 against 3.3."""


def _gather(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Rows that were looked up add up where they came from: ScatterElements; one constant index: a Pad."""
    axis, shape = at.axis(0), at.shape(0)
    indices, picked = at.x[1], at.shape(1)
    flat = op.Reshape(dy, [*shape[:axis], prod(picked), *shape[axis + 1 :]])
    if indices.const_value is not None and prod(picked) == 1:
        place = at.ints(1)[0] % shape[axis]
        pads = [0] * (2 * len(shape))
        pads[axis], pads[axis + len(shape)] = place, shape[axis] - place - 1
        return [op.Pad(flat, pads), None]
    if axis == 0 and shape[0] <= FEW_ROWS:
        return [op.Reshape(_counted(op, flat, indices, shape[0]), list(shape)), None]
    return [scattered(op, flat, op.Cast(op.Reshape(indices, [-1]), to=ir.DataType.INT64), shape[axis], axis), None]


def _counted(op: Pen, rows: ir.Value, indices: ir.Value, size: int) -> ir.Value:
    """[size, ...]: sums of rows by index, as a product with a matrix that has a 1 where a row came from."""
    numbers = op.Mod(op.Cast(op.Reshape(indices, [1, -1]), to=ir.DataType.INT64), op.constant(np.array(size)))
    taken = op.Cast(op.Equal(op.constant(np.arange(size)[:, None]), numbers), to=rows.dtype)
    return op.MatMul(taken, op.Reshape(rows, [shape_of(rows)[0], -1]))  # type: ignore[no-any-return]


def _gather_elements(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    return [op.ScatterElements(_zeros(op, at.x[0]), at.x[1], dy, axis=at.axis(0), reduction="add"), None]


def _scatter_elements(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Overwritten: 0 there for the data; added: all of it. Where an index comes twice, one update wins and no row knows which."""
    found: list[ir.Value | None] = [None, None, None]
    axis, reduction = at.axis(0), _added(at)
    if at.wants(0):
        zeros = op.Expand(op.constant(np.zeros(1, element_of(dy))), list(at.shape(2)))
        found[0] = dy if reduction else op.ScatterElements(dy, at.x[1], zeros, axis=axis)
    if at.wants(2):
        found[2] = op.GatherElements(dy, at.x[1], axis=axis)
    return found


def _added(at: Site) -> bool:
    """Does a scatter add? Its other reductions are refused."""
    reduction = at.attribute("reduction", "none")
    if reduction not in ("none", "add"):
        raise at.refused(f"reduction {reduction!r}")
    return bool(reduction == "add")


def _rows(op: Pen, indices: ir.Value, shape: tuple[int, ...], batch: int = 0) -> tuple[ir.Value, int, list[int]]:
    """Tuples of indices [..., k] as numbers of rows, flat; how many rows there are; the shape of a row."""
    *places, depth = shape_of(indices)
    sizes = shape[batch : batch + depth]
    strides = [prod(sizes[axis + 1 :]) for axis in range(depth)]
    numbers = op.Mod(
        op.Cast(indices, to=ir.DataType.INT64), op.constant(np.array(sizes))
    )  # negative ones count from the end
    numbers = op.ReduceSum(op.Mul(numbers, op.constant(np.array(strides))), [-1], keepdims=0)
    if batch:
        count, each = prod(shape[:batch]), prod(sizes)
        first = np.arange(count).reshape(*shape[:batch], *[1] * (len(places) - batch)) * each
        numbers = op.Add(numbers, op.constant(first))
    return op.Reshape(numbers, [-1]), prod(shape[: batch + depth]), list(shape[batch + depth :])


def _gather_nd(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    shape = at.shape(0)
    numbers, count, row = _rows(op, at.x[1], shape, at.attribute("batch_dims", 0))
    flat = scattered(op, op.Reshape(dy, [-1, prod(row)]), numbers, count, 0)
    return [op.Reshape(flat, list(shape)), None]


def _scatter_nd(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """As ScatterElements, on whole rows."""
    shape, reduction = at.shape(0), _added(at)
    found: list[ir.Value | None] = [None, None, None]
    numbers, count, row = _rows(op, at.x[1], shape)
    flat = op.Reshape(dy, [count, prod(row)])
    if at.wants(0):
        found[0] = dy if reduction else op.Reshape(_without(op, flat, numbers), list(shape))
    if at.wants(2):
        found[2] = op.Reshape(op.Gather(flat, numbers), list(at.shape(2)))
    return found


def _without(op: Pen, flat: ir.Value, numbers: ir.Value) -> ir.Value:
    """0 in the rows of these numbers."""
    width = shape_of(flat)[1]
    zero = op.Expand(op.constant(np.zeros(1, element_of(flat))), [shape_of(numbers)[0], width])
    everywhere = op.Expand(op.Reshape(numbers, [-1, 1]), [shape_of(numbers)[0], width])
    return op.ScatterElements(flat, everywhere, zero, axis=0)  # type: ignore[no-any-return]


def _top_k(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Each dy at the place of its value, which the second output tells."""
    return [op.ScatterElements(_zeros(op, at.x[0]), at.node.outputs[1], dy, axis=at.axis(-1)), None]


def _max_unpool(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Indices count over the whole output."""
    flat = op.Gather(op.Reshape(dy, [-1]), op.Reshape(at.x[1], [-1]))
    return [op.Reshape(flat, list(at.shape(0))), *[None] * (len(at.x) - 1)]


def _zeros(op: Pen, value: ir.Value) -> ir.Value:
    """Zeros in its shape, made at run time: as a constant they would be as large as it."""
    shape = shape_of(value)
    if prod(shape) == 0:
        return zeros_like(op, value)
    return op.Expand(op.constant(np.zeros([1] * len(shape), element_of(value))), list(shape))  # type: ignore[no-any-return]


LOOKUPS: dict[str, Rule] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
    "MaxUnpool": _max_unpool,
}
