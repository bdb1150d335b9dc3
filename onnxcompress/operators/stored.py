"""Weights that a file holds as integers: behind a DequantizeLinear, behind nodes that rebuild the floats, or in a kernel of integers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxcompress.model.edit import constant_of, input_of

REBUILDING = {"Mul", "Sub", "Cast", "Reshape", "Concat", "BitShift"}
"""What stands between constant integers and the floats that a node reads."""

MICROSOFT = "com.microsoft."

KERNELS: dict[str, dict[int, tuple[int, ...]]] = {
    "QLinearConv": {3: ()},
    "QLinearMatMul": {3: (1, 0)},
    "MatMulInteger": {1: (1, 0)},
    MICROSOFT + "QGemm": {3: (1, 0)},
    MICROSOFT + "MatMulIntegerToFloat": {1: (1, 0)},
    MICROSOFT + "MatMulNBits": {1: (0, 1)},
    MICROSOFT + "DynamicQuantizeLSTM": {1: (0, 2, 1), 2: (0, 2, 1)},
}
"""Operator -> input that is a weight -> its axes as [out, in]; (): as they stand, [out, in, *kernel]."""


OF_TWO = (1, 2, 4, 5, 6, 7)
ON_LEVELS = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (1, 2)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul"), OF_TWO),
    **{f"QLinear{op}": (1, 2, 3, 4) for op in ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax")},
    "QLinearConcat": tuple(index for index in range(3 * 256) if index % 3 != 2),
    "QLinearWhere": (2, 3, 5, 6, 7, 8),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
}
SCALES = {
    **ON_LEVELS,
    "MatMulNBits": (2, 3),
    "GatherBlockQuantized": (2, 3),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
}
"""Operator -> inputs that say how integers are to be read: scales and zeros. The other integer inputs of ON_LEVELS are levels."""


@dataclass(frozen=True, eq=False)
class Held:
    """levels: the initializer; bits of one; shape of the weight that they stand for."""

    levels: ir.Value
    bits: int
    shape: tuple[int, ...]


def held(value: ir.Value | None) -> Held | None:
    """The integers from which a float value is made, where nothing else goes into it; None for any other value."""
    made = None if value is None else value.producer()
    if value is None or made is None or made.domain:
        return None
    if made.op_type == "DequantizeLinear":
        stored = _constant_behind(made.inputs[0])
        values = constant_of(stored)
        if stored is None or values is None:
            return None
        return Held(stored, _bits(stored), values.shape if stored is made.inputs[0] else values.shape[::-1])
    if made.op_type not in ("Mul", "Reshape") or value.shape is None or not value.shape.is_static():
        return None
    levels, half = _rebuilt_from(made)
    if levels is None:
        return None
    return Held(levels, 4 if half else _bits(levels), tuple(value.shape.numpy()))


def of_kernel(node: ir.Node, index: int) -> Held | None:
    """The integers that a row of KERNELS names."""
    value = _constant_behind(input_of(node, index))
    levels = constant_of(value)
    if value is None or levels is None or levels.dtype.kind not in "iu":
        return None
    sizes = [node.attributes.get_int(name, 0) for name in ("N", "K")]
    if node.op_type == "MatMulNBits":
        return Held(value, node.attributes.get_int("bits", 4), (sizes[0] or 0, sizes[1] or 0))
    order = KERNELS[_name(node)][index]
    return Held(value, _bits(value), levels.shape) if levels.ndim == len(order) or not order else None


def _constant_behind(value: ir.Value | None) -> ir.Value | None:
    """Levels of a tied matrix that are turned (2-D), or laid out otherwise, for a second reader: the constant itself."""
    made = None if value is None else value.producer()
    moved = made is not None and not made.domain and made.op_type in ("Transpose", "Reshape")
    return made.inputs[0] if moved and constant_of(made.inputs[0]) is not None else value  # type: ignore[union-attr]


def is_level(value: ir.Value) -> bool:
    """Does a constant hold the integers that some node reads by their scale?"""
    return any(index not in ON_LEVELS.get(node.op_type, (index,)) for node, index in value.uses())


def is_scale(value: ir.Value) -> bool:
    """Does a float constant only say how integers are to be read: scales, zeros, what is taken off levels?"""
    return bool(value.uses()) and all(_scales(node, index) for node, index in value.uses())


def _scales(node: ir.Node, index: int) -> bool:
    if node.op_type in SCALES:
        return index in SCALES[node.op_type]
    if node.op_type == "Gather":
        return index == 0 and bool(node.outputs[0].uses()) and is_scale(node.outputs[0])
    if node.op_type not in ("Mul", "Sub"):
        return False
    other = input_of(node, 1 - index)
    made = None if other is None else other.producer()
    return made is not None and (made.op_type == "DynamicQuantizeLinear" or _integers_behind(made))


def _integers_behind(made: ir.Node) -> bool:
    """Does it hand on a Cast of constant integers, of rows of them, or of sums of their products?"""
    while made.op_type in ("Reshape", "Sub"):
        before = made.inputs[0].producer() if made.inputs[0] is not None else None
        if before is None:
            return False
        made = before
    if made.op_type != "Cast" or made.inputs[0] is None:
        return False
    levels = made.inputs[0]
    source = levels.producer()
    if source is None:
        return _is_integer(levels)
    if source.op_type == "Concat":
        return all(v is not None and (p := v.producer()) is not None and p.op_type == "BitShift" for v in source.inputs)
    return source.op_type == "MatMulInteger" or (source.op_type == "Gather" and _is_integer(source.inputs[0]))


def table_of(node: ir.Node) -> Held | None:
    """The integers from which a node picks rows of an embedding."""
    table = input_of(node, 0)
    levels = constant_of(table)
    if (
        table is None
        or levels is None
        or levels.ndim != 2
        or levels.dtype.kind not in "iu"
        or levels.dtype.itemsize > 1
    ):
        return None
    if node.op_type == "GatherBlockQuantized":
        bits = node.attributes.get_int("bits", 4)
        return Held(table, bits, (levels.shape[0], levels.shape[1] * _bits(table) // bits))
    picks = node.op_type == "Gather" and any(reader.op_type == "Cast" for reader, _ in node.outputs[0].uses())
    return Held(table, _bits(table), levels.shape) if picks else None


def _rebuilt_from(node: ir.Node) -> tuple[ir.Value | None, bool]:
    """The one constant of integers behind a Mul, and whether halves of bytes are taken out of it."""
    pending, found, half = [node], [], False
    while pending:
        each = pending.pop()
        half |= each.op_type == "BitShift"
        for value in each.inputs if each.op_type == "Concat" else each.inputs[:1]:
            made = None if value is None else value.producer()
            if made is not None and (made.domain or made.op_type not in REBUILDING):
                return None, False
            if made is not None:
                pending.append(made)
            elif value is not None and _is_integer(value):
                found.append(value)
            else:
                return None, False
    return (found[0], half) if found else (None, False)


def _is_integer(value: ir.Value | None) -> bool:
    levels = constant_of(value)
    return levels is not None and levels.dtype.kind in "iu" and levels.dtype.itemsize == 1


def _bits(value: ir.Value) -> int:
    return 8 if value.dtype is None else int(8 * value.dtype.itemsize)


def _name(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type
