"""Which float weights a graph holds, who reads each, and in which form all of these can take it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.edit import FILE_TYPE, constant_of, input_of, walk
from onnxcompress.operators.cost import PRODUCTS
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.passes.quantize.blocks import Blocks
from onnxcompress.passes.quantize.pen import Rounded
from onnxcompress.passes.quantize.rows import row_of

Form = Literal["dynamic", "run", "load"]
Stored = Rounded | Blocks

MOVING = {"Unsqueeze", "Squeeze", "Reshape", "Slice", "Transpose", "Concat", "Split", "Identity", "Flatten"}
"""What exporters put between a weight and its layer, mostly in bodies of If and Loop, where nothing is folded for them."""

WEIGHTED = {*PRODUCTS, "Einsum"}

NARROW = 8
"""Columns below which an embedding stays float: each row's scale would weigh as much as its entries."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One float constant that layers read.

    name    of the initializer                 op      of its first layer
    layer   the view of it; None where its readers get it reshaped, or joined with others
    nodes   that read it                       form    the furthest from float that all readers can take
    bytes   that it takes in the file     inside  one of them lies in the body of an If or Loop
    """

    name: str
    op: str
    layer: Layer | None
    nodes: tuple[str, ...]
    form: Form
    bytes: int
    inside: bool = False


def weights_of(
    model: Model, kept: Collection[str], *, dynamic: str, decode: str, smallest: int
) -> tuple[list[Weight], dict[str, str]]:
    """The weights that can become integers, in order of the graph; and why others cannot.

    kept      nodes whose weights stay        dynamic  "none", "recurrent" or "all"
    decode    "load": no reader multiplies integers, but for the dynamic ones
    smallest  bytes below which a weight is not even named
    """
    by_weight: dict[str, list[Layer]] = {}
    for layer in layers(model):
        by_weight.setdefault(layer.weight, []).append(layer)
    nodes = {node.name or "": node for node in walk(model.ir)}
    found, refused = [], {}
    for name, value in _in_order(model):
        its = by_weight.get(name, [])
        array = model.array(name)
        size = _file_bytes(value, array)
        readers = tuple(dict.fromkeys(node.name or "" for node, _ in value.uses()))
        if array.dtype.kind != "f" or array.ndim < 2 or size < smallest or not readers:
            continue
        op = its[0].op if its else _reached(value)
        if op is None:
            continue
        why = _refusal(value, array, its, readers, kept)
        if why:
            refused[name] = why
            continue
        form = _form([(each, nodes[each.name]) for each in its], len(list(value.uses())), dynamic, decode)
        inside = any(node.graph is not model.ir.graph for node, _ in value.uses())
        found.append(Weight(name, op, its[0] if its else None, readers, form, size, inside))
    return found, refused


def _in_order(model: Model) -> Iterator[tuple[str, ir.Value]]:
    """Initializers, in the order in which they are first read."""
    seen = set()
    for node in walk(model.ir):
        for value in node.inputs:
            name = "" if value is None else value.name or ""
            if value is not None and name in model.initializers and name not in seen:
                seen.add(name)
                yield name, value


def _file_bytes(value: ir.Value, array: np.ndarray) -> int:
    tensor = value.const_value
    narrow = None if tensor is None else tensor.meta.get(FILE_TYPE)
    return int(array.size * narrow.itemsize) if narrow is not None else array.nbytes


def _refusal(
    value: ir.Value, array: np.ndarray, its: list[Layer], readers: tuple[str, ...], kept: Collection[str]
) -> str:
    """Why a weight stays float; empty where it need not."""
    if any(name in kept for name in readers):
        return "it was to be kept"
    if array.dtype != np.float32:
        return f"it is {array.dtype.name}, not float32"
    if value.is_graph_output() or value.is_graph_input():
        return "it is an input or output of the graph"
    if not np.isfinite(array).all():
        return "it holds NaN or Inf"
    if its and its[0].op == "Gather" and (array.shape[1] < NARROW or _scales_of_levels(value)):
        return (
            "rows so narrow have no room for scales" if array.shape[1] < NARROW else "it holds the scales of integers"
        )
    return ""


def _scales_of_levels(value: ir.Value) -> bool:
    """Are rows picked from it together with rows of integers?"""
    for node, _ in value.uses():
        for other, _ in node.inputs[1].uses():  # type: ignore[union-attr]
            levels = constant_of(input_of(other, 0)) if other.op_type == "Gather" else None
            if levels is not None and levels.dtype.kind in "iu" and levels.ndim == 2:
                return True
    return False


def _reached(value: ir.Value) -> str | None:
    """The operator of the layer to which it comes through operators that only move entries."""
    pending, seen = [value], set()
    while pending:
        each = pending.pop()
        for node, _ in each.uses():
            if node.op_type in WEIGHTED and each is not value:  # read as it is, it is a bias or a state
                return node.op_type
            if node.op_type in MOVING and node not in seen:
                seen.add(node)
                pending.extend(node.outputs)
    return None


# -- forms -------------------------------------------------------------------------------------------------------------


def _form(its: list[tuple[Layer, ir.Node]], uses: int, dynamic: str, decode: str) -> Form:
    """What all readers of a weight can take; each of them must be a layer."""
    if not its or len(its) != uses:
        return "load"
    if all(_dynamic(layer, node, dynamic) for layer, node in its):
        return "dynamic"
    return "run" if all(_read_as_integers(layer, node, decode) for layer, node in its) else "load"


def _dynamic(layer: Layer, node: ir.Node, wanted: str) -> bool:
    """Has the operator a kernel with grids found at run time, for this very node, and is it asked for?"""
    if wanted == "none" or not row_of(node).dynamic or (wanted == "recurrent" and layer.op != "LSTM"):
        return False
    if layer.op == "LSTM":
        return node.attributes.get_int("layout", 0) == 0
    return (
        len(layer.order) == 2 and node.inputs[1] is not None and _right(layer, node) and not row_of(node).unless(node)
    )


def _right(layer: Layer, node: ir.Node) -> bool:
    """Is the weight the second operand?"""
    second = input_of(node, 1)
    return second is not None and second.name == layer.weight


def _read_as_integers(layer: Layer, node: ir.Node, decode: str) -> bool:
    """Picking integers saves memory and costs microseconds, so that it is done either way."""
    if layer.op == "Gather":
        return node.attributes.get_int("axis", 0) == 0
    return decode == "run" and layer.op == "MatMul" and layer.order == (1, 0) and _right(layer, node)
