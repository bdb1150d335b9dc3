"""THE table of how each operator is quantized: one row an operator, and what follows from it for grids and weights.

The rows say what onnxruntime 1.32 runs on integers on a CPU (found by looking at the graphs that it makes of QDQ pairs).
A form says what `write.py` makes of a node:

  product   Σ weight · data (or data · data) in integers, then rounded to the grid of the output
  computes  a kernel of its own between the grids of its inputs and the grid of its output
  moves     only moves or picks entries: runs on the levels, so inputs and output share one grid
  clips     Relu and the like: clipping levels is exact, and nothing is left of it where the grid ends at the limits
  ramp      HardSigmoid, HardSwish: a clip of levels, read with a shifted zero (then a product with the input)
  affine    Add of one number, Mul by one above zero: the same levels, read with another zero or scale; nothing is rounded
  float     between DequantizeLinear and QuantizeLinear it would run in float, so it stays float; `why`

To add an operator, add its row. The weight and the axis of its channels are the Layer view's, never a row's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of, input_of
from onnxcompress.operators.layer import Layer

Form = Literal["product", "computes", "moves", "clips", "ramp", "affine", "float"]


@dataclass(frozen=True)
class Row:
    """How one operator is quantized.

    form      see above
    data      which inputs are activations; () means all
    fixed     (least, most) of an output that is known beforehand: Sigmoid lies in [0, 1)
    float_output  the kernel can hand its sum out in float, so the output needs no grid
    joins     lays its inputs together: those that nothing else reads share the grid of the output
    flat      an input this far from zero tells nothing: what it writes is all alike from there on
    dynamic   the kernel that runs it with grids found at run time; empty without
    unless    why this very node cannot, empty where it can
    case      the row that stands for this very node instead, by name; empty: this one
    why       for people: what the kernel is, or why it stays float
    """

    form: Form
    why: str
    data: tuple[int, ...] = (0,)
    fixed: tuple[float, float] | None = None
    float_output: bool = False
    joins: bool = False
    flat: float = np.inf
    dynamic: str = ""
    unless: Callable[[ir.Node], str] = lambda node: ""
    case: Callable[[ir.Node], str] = lambda node: ""


# -- conditions ----------------------------------------------------------------------------------------------------


def _conv(node: ir.Node) -> str:
    if constant_of(input_of(node, 1)) is None:
        return "its weight is computed"
    bias = input_of(node, 2)
    return "its bias is computed" if bias is not None and constant_of(bias) is None else ""


def _gemm(node: ir.Node) -> str:
    if constant_of(input_of(node, 1)) is None:
        return "its weight is computed"
    if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
        return "QGemm has no beta, and alpha only for the product"
    bias = input_of(node, 2)
    if bias is None:
        return ""
    values = constant_of(bias)
    if values is None:
        return "its bias is computed"
    return "its bias differs from row to row" if values.size not in (1, *values.shape[-1:]) else ""


def _matmul(node: ir.Node) -> str:
    return "its weight stands on the left" if constant_of(input_of(node, 0)) is not None else ""


def _limits(node: ir.Node) -> str:
    limits = [input_of(node, 1), input_of(node, 2)]
    return "its limits are computed" if any(v is not None and constant_of(v) is None for v in limits) else ""


def _two(node: ir.Node) -> str:
    return "" if len(node.inputs) == 2 else "the kernel takes two operands"


def _resize(node: ir.Node) -> str:
    mode = node.attributes.get_string("mode", "nearest")
    return (
        "" if mode == "nearest" else f"{mode} interpolation on bytes truncates and is nine times slower than in float"
    )


def _one_output(node: ir.Node) -> str:
    return "" if len(node.outputs) == 1 else "its indices are read too"


def _padding(node: ir.Node) -> str:
    value = input_of(node, 2)
    return "its padding value is computed" if value is not None and constant_of(value) is None else ""


def _activations(node: ir.Node) -> str:
    return "a table, not an activation, is read" if constant_of(input_of(node, 0)) is not None else ""


def number_of(node: ir.Node) -> float | None:
    """The one number that an Add or Mul takes beside an activation whose shape it leaves; None where there is none."""
    values = [constant_of(v) for v in node.inputs if v is not None]
    others = [v for v in node.inputs if v is not None and constant_of(v) is None]
    number = next((each for each in values if each is not None), None)
    if len(values) != 2 or len(others) != 1 or number is None or number.size != 1:
        return None
    rank = 0 if others[0].shape is None else len(others[0].shape)
    return float(number.reshape(())) if number.ndim <= rank and np.isfinite(number).all() else None


def _shift(node: ir.Node) -> str:
    return "" if number_of(node) is None else "Add, of a number"


def _factor(node: ir.Node) -> str:
    number = number_of(node)
    return "" if number is None or number < SMALLEST_FACTOR else "Mul, by a number"


# -- the table -----------------------------------------------------------------------------------------------------

SMALLEST_FACTOR = 2.0**-20
"""A Mul by less (or by less than zero, which turns the levels around) is computed."""

UNIT = (0.0, 255 / 256)
"""Sigmoid: scale 1/256, zero 0; the kernel's own convention. A one comes out as 255/256."""

SURE = 14.0
"""Log odds of one in a million, below which no comparison tells probabilities apart."""

MOVES = Row("moves", "entries are moved or picked, whatever their type")
TABLE_LOOKUP = "a table of 256 entries"
NO_KERNEL = "no integer kernel: it would run in float between two conversions"

ROWS: Mapping[str, Row] = {
    "Conv": Row(
        "product",
        "QLinearConv, any rank and grouping; the output must be on a grid. Depthwise, 0.5 to 1 times fp32",
        unless=_conv,
    ),
    "Gemm": Row("product", "QGemm", float_output=True, dynamic="MatMulInteger", unless=_gemm),
    "MatMul": Row(
        "product",
        "QLinearMatMul, MatMulIntegerToFloat without a grid for the output",
        data=(0, 1),
        float_output=True,
        dynamic="DynamicQuantizeMatMul",
        unless=_matmul,
    ),
    "Add": Row("computes", "QLinearAdd, each operand on its own grid", data=(), unless=_two, case=_shift),
    "Add, of a number": Row("affine", "the same levels, read with another zero", data=()),
    "Mul": Row(
        "computes",
        "QLinearMul, each operand on its own grid; alone 0.6 to 0.7 times fp32",
        data=(),
        unless=_two,
        case=_factor,
    ),
    "Mul, by a number": Row("affine", "the same levels, read with another scale", data=()),
    "Concat": Row(
        "computes", "QLinearConcat; a plain copy where all grids are the same, twice as fast", data=(), joins=True
    ),
    "Where": Row("computes", "QLinearWhere", data=(1, 2)),
    "AveragePool": Row("computes", "QLinearAveragePool, a seventh of fp32's speed: only between products does it pay"),
    "GlobalAveragePool": Row("computes", "QLinearGlobalAveragePool"),
    "LeakyRelu": Row("computes", f"QLinearLeakyRelu, {TABLE_LOOKUP}"),
    "Sigmoid": Row("computes", f"QLinearSigmoid, {TABLE_LOOKUP}", fixed=UNIT, flat=SURE),
    "Softmax": Row(
        "float",
        "what masks add takes its whole grid: one attention took 22 dB down to 3; and QLinearSoftmax is 0.2 to 0.5 times fp32",
    ),
    "Relu": Row("clips", "folded into what writes its input where the grid begins at zero"),
    "Clip": Row("clips", "folded into what writes its input where the grid ends at the limits", unless=_limits),
    "HardSigmoid": Row("ramp", "levels are clipped and read with another zero"),
    "HardSwish": Row("ramp", "QLinearMul of the input and its clipped levels: twice as fast as in float"),
    "MaxPool": Row(
        "moves",
        "picks bytes; ten times slower than fp32 where no product before it gives channels last",
        unless=_one_output,
    ),
    "ReduceMax": Row("moves", "picks bytes"),
    "ReduceMin": Row("moves", "picks bytes"),
    "Pad": Row("moves", "bytes are padded with the level of the padding value", unless=_padding),
    "Resize": Row("moves", "bytes are repeated", unless=_resize),
    "Gather": Row("moves", "bytes are picked", unless=_activations),
    "GatherND": Row("moves", "bytes are picked", unless=_activations),
    "GatherElements": Row("moves", "bytes are picked", unless=_activations),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Slice", "Split"), MOVES),
    **dict.fromkeys(("Expand", "Tile", "DepthToSpace", "SpaceToDepth"), MOVES),
    "ConvTranspose": Row("float", "onnxruntime has no integer ConvTranspose"),
    "LSTM": Row("float", "static grids have no kernel", dynamic="DynamicQuantizeLSTM"),
    "GRU": Row("float", "onnxruntime has no integer GRU"),
    "RNN": Row("float", "onnxruntime has no integer RNN"),
    "Einsum": Row("float", NO_KERNEL),
    "LayerNormalization": Row("float", "sums of squares need more than 8 bits, and there is no kernel"),
    "Pow": Row("float", "squares need more than 8 bits, and there is no kernel"),
    **dict.fromkeys(
        (
            *("Sub", "Div", "Max", "Min", "Sum", "Mean", "PRelu", "Elu", "Selu", "Celu", "Tanh", "Gelu", "Erf", "Exp"),
            *("Sqrt", "Abs", "Neg", "Softplus", "Mish", "ReduceMean", "ReduceSum", "GlobalMaxPool", "LpPool", "Log"),
            *("InstanceNormalization", "GroupNormalization", "LogSoftmax", "BatchNormalization", "RMSNormalization"),
        ),
        Row("float", NO_KERNEL),
    ),
}

UNKNOWN = Row("float", "no row says how to quantize it")

IN_BODY = "it lies in the body of a Loop or Scan, whose activations nobody has seen"

NOT_TAKEN = "it lies in a branch of an If that no calibration sample takes"


def row_of(node: ir.Node) -> Row:
    """The row of a node's operator; UNKNOWN where there is none."""
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    row = ROWS.get(op, UNKNOWN)
    return ROWS.get(row.case(node), row)


def refusal(node: ir.Node, graphs: Collection[ir.Graph]) -> str:
    """Why a node cannot run on static grids; empty where it can.

    graphs  of which runs over data see values
    """
    row = row_of(node)
    if row.form == "float":
        return row.why
    if node.graph not in graphs:
        return IN_BODY
    why = row.unless(node)
    if why:
        return why
    reads = [v for v in data_of(node) if constant_of(v) is None]
    if not reads:
        return "it reads constants only"
    other = next((v for v in (*reads, node.outputs[0]) if v.dtype not in (None, ir.DataType.FLOAT)), None)
    return "" if other is None else f"{other.name} is {other.dtype.name.lower()}, not float32"  # type: ignore[union-attr]


# -- what a node reads and writes ----------------------------------------------------------------------------------


def data_of(node: ir.Node) -> list[ir.Value]:
    """The activations that a row names, constants among them (an Add of a constant); a product's weight is none."""
    row = row_of(node)
    indices = row.data or range(len(node.inputs))
    found = [value for index in indices if (value := input_of(node, index)) is not None]
    return [v for v in found if constant_of(v) is None] if row.form == "product" else found


def result_of(node: ir.Node, layer: Layer | None) -> ir.Value:
    """The value that a node leaves: behind the Add of its bias for a MatMul that has one."""
    if node.op_type == "MatMul" and layer is not None and layer.bias is not None:
        return next(iter(node.outputs[0].uses()))[0].outputs[0]
    return node.outputs[0]


def bias_adds(chosen: Iterable[ir.Node], weighted: Mapping[str, Layer]) -> set[ir.Node]:
    """The Add nodes that are the biases of the MatMul nodes among `chosen`: those do their work."""
    results = ((node, result_of(node, weighted.get(node.name or ""))) for node in chosen)
    return {made for node, value in results if (made := value.producer()) is not None and made is not node}


def weight_axis(layer: Layer) -> int | None:
    """The axis of the stored weight along which every output channel has a scale of its own; None: one scale for all."""
    return layer.order[0] if layer.outs == 1 and layer.repeats == 1 else None
