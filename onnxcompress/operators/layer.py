"""The Layer view: a weighted node with its weight as [out, in/groups, *kernel], whatever the operator's own layout, and its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, input_of, walk
from onnxcompress.operators.notation import Axis, Signature, parse
from onnxcompress.operators.signatures import case_of
from onnxcompress.operators.stored import KERNELS, held, of_kernel, table_of
from onnxcompress.operators.view import View, sizes_of

Shapes = Mapping[str, tuple[int, ...]]
"""Value name -> shape, as seen when the model ran."""


RECURRENT = ("LSTM", "GRU", "RNN", "com.microsoft.DynamicQuantizeLSTM")


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight of one node.

    name        the node's
    op          operator type
    weight      the initializer, and the order of its axes in the view: out axes first, then in, then kernel
    outs, ins   how many of these are out and in axes
    bias        the initializer added by the node itself or by an Add behind it; None without
    reads, writes   value names
    repeats     for the ConvTranspose layout [(G i), o, *k]: the number of groups, else 1
    groups      of a convolution
    bits        of a stored weight where the node reads integers, or floats made of them (stored.py); None: it reads the
                initializer itself
    shape       of a weight with `bits`, whatever the shape of the integers
    """

    name: str
    op: str
    weight: str
    order: tuple[int, ...]
    outs: int
    ins: int
    bias: str | None
    reads: str
    writes: str
    groups: int = 1
    repeats: int = 1
    bits: int | None = None
    shape: tuple[int, ...] = ()

    @property
    def channel_axis(self) -> int:
        """Of what it reads and writes."""
        return 1 if "Conv" in self.op else -1

    def matrix(self, values: np.ndarray) -> np.ndarray:
        """Stored values -> [out, in/groups, *kernel]."""
        if self.repeats > 1:
            per = values.shape[0] // self.repeats
            split = values.reshape(self.repeats, per, *values.shape[1:])
            return np.moveaxis(split, 1, 2).reshape(-1, per, *values.shape[2:])
        moved = values.transpose(self.order)
        out, rest = moved.shape[: self.outs], moved.shape[self.outs + self.ins :]
        return moved.reshape(prod(out), prod(moved.shape[self.outs : self.outs + self.ins]), *rest)

    def stored(self, matrix: np.ndarray, like: np.ndarray) -> np.ndarray:
        """[out, in/groups, *kernel] -> the layout of `like`."""
        if self.repeats > 1:
            split = matrix.reshape(self.repeats, -1, matrix.shape[1], *matrix.shape[2:])
            return np.moveaxis(split, 2, 1).reshape(like.shape)
        shape = [like.shape[axis] for axis in self.order]
        return matrix.reshape(shape).transpose(np.argsort(self.order))

    def positions(self, shapes: Shapes) -> int | None:
        """How often each weight is multiplied in one run: output positions (input positions for ConvTranspose)."""
        if "Gather" in self.op:
            return 0
        value = shapes.get(self.reads if self.op in ("ConvTranspose", *RECURRENT) else self.writes)
        if value is None:
            return None
        if self.op in ("Conv", "ConvTranspose", "com.microsoft.FusedConv", "QLinearConv"):
            return value[0] * prod(value[2:])
        if self.op in RECURRENT:
            return value[0] * value[1]
        read = shapes.get(self.reads)
        if read is not None and not self.ins and len(read) > 1:  # the weight stands on the left: columns are multiplied
            return prod(read[:-2]) * read[-1]
        return None if read is None else prod(read[:-1])


def layers(model: Model) -> list[Layer]:
    """Every weight that a row of the signature table calls `w` or `r`, in order of execution; passes may rewrite these."""
    return [layer for layer in all_layers(model) if layer.bits is None]


def by_node(model: Model) -> dict[str, Layer]:
    """Node -> its layer; the last of its weights where it has several (LSTM)."""
    return model.remember("layers by node", lambda model: {layer.name: layer for layer in layers(model)})


def all_layers(model: Model) -> list[Layer]:
    """`layers`, and those whose weight is stored as integers (stored.py): these are counted and shown, not edited."""
    return model.remember("layers", _layers)


def _layers(model: Model) -> list[Layer]:
    return [layer for node in walk(model.ir) for layer in layers_of(node)]


def layers_of(node: ir.Node) -> list[Layer]:
    """The layers of one node: mostly none or one, two of an LSTM."""
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if op in KERNELS:
        return _of_kernel(node, op)
    if "Gather" in op:
        return _embedding(node)
    case = case_of(View(node))
    if case is None:
        return []
    signature = parse(case.signature)
    found = []
    for index, term in enumerate(signature.inputs):
        value, integers = input_of(node, index), held(input_of(node, index))
        values = constant_of(value)
        shape = integers.shape if integers is not None else None if values is None else values.shape
        places = term.expand(len(shape)) if shape is not None else None
        value = value if integers is None else integers.levels
        if term.name not in ("w", "r") or value is None or places is None:
            continue
        outs, ins, kernel = _kinds(places, signature, index)
        found.append(
            Layer(
                name=node.name or "",
                op=op,
                weight=value.name or "",
                order=(*outs, *ins, *kernel),
                outs=len(outs),
                ins=len(ins),
                bias=_bias(node, signature),
                reads=_read(node, index),
                writes=node.outputs[0].name or "",
                groups=node.attributes.get_int("group", 1) if "Conv" in op else 1,
                repeats=node.attributes.get_int("group", 1) if op == "ConvTranspose" else 1,
                bits=None if integers is None else integers.bits,
                shape=() if integers is None else integers.shape,
            )
        )
    return found


def _of_kernel(node: ir.Node, op: str) -> list[Layer]:
    """Weights of an operator that multiplies integers."""
    found = []
    for index, order in KERNELS[op].items():
        integers = of_kernel(node, index)
        if integers is not None:
            names = (
                integers.levels.name or "",
                order or tuple(range(len(integers.shape))),
                max(len(order) - 1, 1),
                1,
                None,
                _read(node, index),
                node.outputs[0].name,
            )
            groups = node.attributes.get_int("group", 1)
            found.append(Layer(node.name or "", op, *names, groups, bits=integers.bits, shape=integers.shape))  # type: ignore[arg-type]
    return found


def _kinds(places: tuple[Axis, ...], signature: Signature, index: int) -> tuple[list[int], list[int], list[int]]:
    """The weight's axes: those that an output has, those that data has, and the rest (kernel)."""
    fed = {
        factor
        for number, term in enumerate(signature.inputs)
        if number != index
        for axis in term.axes
        for factor in axis.factors
        if term.name == "x"
    }
    shown = {factor for term in signature.outputs for axis in term.axes for factor in axis.factors}
    outs: list[int] = []
    ins: list[int] = []
    kernel: list[int] = []
    for number, place in enumerate(places):
        letter = place.letter or (place.factors[0] if place.factors else "1")
        if letter == "1" or (letter in fed and letter not in shown):
            ins.append(number)
        elif letter in shown:
            (ins if outs and letter == places[outs[-1]].letter else outs).append(number)
        else:
            kernel.append(number)
    return outs, ins, kernel


def _embedding(node: ir.Node) -> list[Layer]:
    """Gather from a constant matrix by computed numbers: [width, rows]."""
    integers = table_of(node)
    if integers is not None and constant_of(node.inputs[1]) is None:
        ends = (node.inputs[1].name or "", node.outputs[0].name or "")  # type: ignore[union-attr]
        table, bits, shape = integers.levels.name or "", integers.bits, integers.shape
        return [Layer(node.name or "", "Gather", table, (1, 0), 1, 1, None, *ends, bits=bits, shape=shape)]
    if node.domain or node.op_type != "Gather":
        return []
    value, values = node.inputs[0], constant_of(node.inputs[0])
    if (
        value is None
        or values is None
        or values.ndim != 2
        or values.dtype.kind != "f"
        or constant_of(node.inputs[1]) is not None
    ):
        return []
    axis = node.attributes.get_int("axis", 0) % 2
    names = (node.inputs[1].name or "", node.outputs[0].name or "")  # type: ignore[union-attr]
    return [Layer(node.name or "", "Gather", value.name or "", (1 - axis, axis), 1, 1, None, *names)]


def _read(node: ir.Node, weight: int) -> str:
    return next(
        (
            v.name or ""
            for number, v in enumerate(node.inputs)
            if number != weight and v is not None and constant_of(v) is None
        ),
        "",
    )


def _bias(node: ir.Node, signature: Signature) -> str | None:
    """The node's own bias, or the constant vector that the one Add behind it adds along the last axis."""
    for index, term in enumerate(signature.inputs):
        value = input_of(node, index)
        if term.name == "b" and value is not None and constant_of(value) is not None:
            return value.name
    users = list(node.outputs[0].uses())
    if node.op_type != "MatMul" or len(users) != 1 or users[0][0].op_type != "Add":
        return None
    other = users[0][0].inputs[1 - users[0][1]]
    values = constant_of(other)
    sizes = sizes_of(node.outputs[0])
    if other is None or values is None or values.ndim < 1 or sizes is None or values.size != sizes[-1]:
        return None
    return other.name if values.shape[-1] == values.size else None
