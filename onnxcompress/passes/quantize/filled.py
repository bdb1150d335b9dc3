"""A fourth channel of zeros for convolutions that read three, such as pictures.

onnxruntime gathers the windows of an integer convolution by bytes, and its products take four at a time: 3 x 3 windows of three
channels are copied in 9s, of four in words. One level more a position, times zero: the sums are the same to the bit. Alone, with
the Pad, on an input of 224²: 3 x 3 at stride 2 to 16, 32 and 64 channels 1.44, 1.54 and 1.67 times as fast, at stride 1 2.0 times, 7 x 7
1.2 times, and 11 x 11 .94 times.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of
from onnxcompress.passes.quantize.pen import Pen
from onnxcompress.passes.quantize.portable import Pairing, pairing

THREE = 3
LARGEST = 49
"""Positions of a window, up to which it was faster."""


def reads_four(op: str, shape: tuple[int, ...], groups: int) -> bool:
    """Will a layer of this weight, [out, in/groups, *kernel], read a fourth channel once it is written?"""
    return op == "Conv" and len(shape) == 4 and shape[1] == THREE and groups == 1 and prod(shape[2:]) <= LARGEST


def pairs_written(op: str, shape: tuple[int, ...], groups: int) -> Pairing | None:
    """`pairing` of a weight as it will be written: beside a fourth channel two of three are a pair, and the third stands alone."""
    if not reads_four(op, shape, groups):
        return pairing(op, shape, groups)
    wider = pairing(op, (shape[0], THREE + 1, *shape[2:]), groups)
    width = prod(shape[1:])
    assert wider is not None and wider.columns is not None
    return Pairing(wider.columns[(wider.columns < width).all(axis=1)], wider.most[:width])


def fill(pen: Pen, node: ir.Node) -> None:
    """Let the node read four channels, where it is a convolution on integers that reads three; nothing of others."""
    if node.op_type != "Conv" or node.domain:
        return
    data, weight = (_pair(value) for value in node.inputs[:2])
    if data is None or weight is None:
        return
    values, zero = constant_of(weight[0]), constant_of(weight[2])
    if values is None or zero is None or zero.any() or constant_of(data[0]) is not None:
        return
    if not reads_four("Conv", values.shape, node.attributes.get_int("group", 1) or 1):
        return
    levels, name = data[0], pen.free(f"{data[0].name}.filled")
    pads = pen.constant(f"{name}.pads", np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64))
    nothing = pen.constant(f"{name}.nothing", np.asarray(constant_of(data[2])))
    padded = pen.node("Pad", [levels, pads, nothing], name, dtype=levels.dtype or ir.DataType.UINT8, before=node)
    padded.shape = None if levels.shape is None else ir.Shape([levels.shape[0], THREE + 1, *levels.shape[2:]])
    wider = pen.constant(f"{weight[0].name}.filled", np.pad(values, ((0, 0), (0, 1), (0, 0), (0, 0))))
    for index, (stored, (_, scale, zeros)) in enumerate(((padded, data), (wider, weight))):
        stem, factors = pen.free(f"{stored.name}.rounded"), np.asarray(constant_of(scale))
        inputs = [
            stored,
            pen.constant(f"{stem}.scale", factors),
            pen.constant(f"{stem}.zero", np.asarray(constant_of(zeros))),
        ]
        axis = {"axis": 0} if factors.ndim else None
        made = pen.node("DequantizeLinear", list(inputs), stem, like=stored, before=node, attributes=axis)
        node.replace_input_with(index, made)


def _pair(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Levels, scale and zero of a value that a DequantizeLinear with constants of both makes."""
    made = None if value is None else value.producer()
    if made is None or made.op_type != "DequantizeLinear" or made.domain or len(made.inputs) != 3:
        return None
    levels, scale, zero = made.inputs
    if levels is None or scale is None or zero is None or constant_of(scale) is None or constant_of(zero) is None:
        return None
    return levels, scale, zero
