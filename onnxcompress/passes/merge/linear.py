"""Nodes that are linear in what they read, as maps: products with constant weights, scales and shifts of channels. And maps as nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import FILE_TYPE, coded_of, constant_of, input_of, narrow_tensor, new_constant
from onnxcompress.model.wiring import alone, bypass
from onnxcompress.operators.layer import layers_of
from onnxcompress.operators.view import rank_of, sizes_of
from onnxcompress.passes.merge.maps import Arrays, Map, Window, channelwise

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Linear:
    """Nodes of a graph that are one linear map.

    node    the product, or the one node that scales and shifts
    behind  the product's Add, where its bias is there; else None
    map     what they compute; its window's axes are those behind the channel
    """

    node: ir.Node
    behind: ir.Node | None
    map: Map
    reads: ir.Value

    @property
    def writes(self) -> ir.Value:
        """The value behind all of them."""
        return (self.node if self.behind is None else self.behind).outputs[0]

    @property
    def is_product(self) -> bool:
        """Has it a weight that is multiplied over channels?"""
        return self.node.op_type in PRODUCTS

    @property
    def nodes(self) -> list[ir.Node]:
        """In order of execution."""
        return [self.node] if self.behind is None else [self.node, self.behind]

    @property
    def axes(self) -> int:
        """Axes behind the channel."""
        return len(self.map.window.kernel)

    @property
    def numbers(self) -> int:
        """Parameters that go with these nodes: constants that nobody else reads."""
        constants = {value for node in self.nodes for value in node.inputs if constant_of(value) is not None}
        return sum(value.const_value.size for value in constants if value and value.const_value and alone(value))

    @property
    def macs(self) -> int:
        """Multiply-adds at one position; scales and shifts count none, here as everywhere."""
        return self.map.size if self.is_product else 0


# -- products ------------------------------------------------------------------------------------------------------


def product_of(node: ir.Node) -> Linear | None:
    """A product with a constant weight and a constant bias or none; None for anything else."""
    if node.domain or node.op_type not in PRODUCTS or len(node.inputs) < 2 or node.inputs[0] is None:
        return None
    found = [layer for layer in layers_of(node) if layer.bits is None]
    weight = node.inputs[1]
    values = constant_of(weight)
    if (
        len(found) != 1
        or weight is None
        or values is None
        or weight.name != found[0].weight
        or values.dtype.kind != "f"
    ):
        return None
    layer = found[0]
    matrices = "Conv" not in node.op_type
    if coded_of(weight) is not None or (matrices and values.ndim != 2):
        return None
    outs, ins = _channels(node, values, layer.groups)
    window = Window() if matrices else window_of(node, values.shape[2:])
    bias, behind = _bias(node, outs)
    if window is None or bias is None:
        return None

    def arrays() -> Arrays:
        return layer.matrix(values).astype(np.float64), np.broadcast_to(bias, (outs,)).astype(np.float64)

    spread = node.op_type == "ConvTranspose"
    return Linear(node, behind, Map(outs, ins, layer.groups, window, arrays, spread), node.inputs[0])


def _channels(node: ir.Node, values: np.ndarray, groups: int) -> tuple[int, int]:
    """Of what it writes and of what it reads."""
    first, second = values.shape[:2]
    if node.op_type == "ConvTranspose":
        return second * groups, first
    if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB")):
        return first, second * groups
    return second, first


def window_of(node: ir.Node, kernel: Sequence[int]) -> Window | None:
    """How a convolution moves; None where the padding depends on sizes that are not known."""
    axes = len(kernel)
    strides = tuple(node.attributes.get_ints("strides") or [1] * axes)
    dilations = tuple(node.attributes.get_ints("dilations") or [1] * axes)
    mode = node.attributes.get_string("auto_pad") or "NOTSET"
    pads = list(node.attributes.get_ints("pads") or [0] * 2 * axes)
    if node.op_type == "ConvTranspose":
        # what else sets its padding stays in its attributes, and is part of the window for comparison only
        ends = node.attributes.get_ints("output_padding") or [0] * axes
        plain = mode == "NOTSET" and node.attributes.get("output_shape") is None and not any(ends)
        return Window(tuple(kernel), strides, dilations, tuple(pads[:axes]), tuple(pads[axes:])) if plain else None
    if mode.startswith("SAME"):
        if any(stride > 1 for stride in strides):
            return None
        whole = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        less = [(both + (mode == "SAME_LOWER")) // 2 for both in whole]
        pads = [*less, *(both - begin for both, begin in zip(whole, less, strict=True))]
    elif mode == "VALID":
        pads = [0] * 2 * axes
    return Window(tuple(kernel), strides, dilations, tuple(pads[:axes]), tuple(pads[axes:]))


def _bias(node: ir.Node, outs: int) -> tuple[np.ndarray | None, ir.Node | None]:
    """The bias as something that broadcasts to [out], and the Add where it is; None for one that is computed."""
    own = input_of(node, 2)
    if own is not None:
        values = constant_of(own)
        fits = values is not None and values.size in (1, outs) and (values.ndim == 0 or values.shape[-1] == values.size)
        return (values.reshape(-1) if values is not None and fits else None), None
    user = next((user for user, _ in node.outputs[0].uses()), None)
    if node.op_type != "MatMul" or user is None or user.op_type != "Add" or not alone(node.outputs[0]):
        return np.zeros(1), None
    shift = _affine_arrays(user, 0, outs) if user.graph is node.graph else None
    return (np.zeros(1), None) if shift is None else (shift[1], user)


# -- scales and shifts of channels ---------------------------------------------------------------------------------


def norm_of(node: ir.Node, axes: int, channels: int) -> Arrays | None:
    """BatchNormalization: γ/√(σ²+ε) and β − μ·scale, along axis 1, for as many channels as it has."""
    parts = [constant_of(input_of(node, index)) for index in range(1, 5)]
    if any(part is None for part in parts) or len(node.outputs) > 1 or rank_of(node.outputs[0]) != axes + 2:
        return None
    gamma, beta, mean, var = (np.asarray(part, np.float64) for part in parts)
    scale = gamma / np.sqrt(var + (node.attributes.get_float("epsilon", 1e-5) or 0.0))
    return scale, beta - mean * scale


def _operand(node: ir.Node, axes: int, channels: int) -> np.ndarray | None:
    """[channels]: the one constant of a two-operand node, where it differs along the channels only."""
    found = [values for value in node.inputs if (values := constant_of(value)) is not None and values.dtype.kind == "f"]
    if len(node.inputs) != 2 or len(found) != 1:
        return None
    rank = rank_of(node.outputs[0])
    values = found[0]
    if values.ndim > axes + 1 and (rank is None or values.ndim > rank):
        return None
    place = values.ndim - axes - 1
    if any(size != 1 for number, size in enumerate(values.shape) if number != place) or values.size not in (
        1,
        channels,
    ):
        return None
    return np.broadcast_to(values.reshape(-1), (channels,)).astype(np.float64)


def _scale(node: ir.Node, axes: int, channels: int) -> Arrays | None:
    values = _operand(node, axes, channels)
    return None if values is None else (values, np.zeros(channels))


def _shift(node: ir.Node, axes: int, channels: int) -> Arrays | None:
    values = _operand(node, axes, channels)
    return None if values is None else (np.ones(channels), values)


def _less(node: ir.Node, axes: int, channels: int) -> Arrays | None:
    """x − c, and c − x."""
    values = _operand(node, axes, channels)
    if values is None:
        return None
    first = constant_of(node.inputs[0]) is None
    return (np.ones(channels), -values) if first else (-np.ones(channels), values)


def _part(node: ir.Node, axes: int, channels: int) -> Arrays | None:
    """x / c."""
    values = _operand(node, axes, channels)
    if (
        values is None
        or constant_of(node.inputs[0]) is not None
        or not (np.abs(values) > np.finfo(np.float32).tiny).all()
    ):
        return None
    return 1 / values, np.zeros(channels)


AFFINE: Mapping[str, Callable[[ir.Node, int, int], Arrays | None]] = {
    "BatchNormalization": norm_of,
    "Mul": _scale,
    "Div": _part,
    "Add": _shift,
    "Sub": _less,
}
"""Operator -> its scale and shift, [channels] each, given the number of axes behind the channel."""


def _affine_arrays(node: ir.Node, axes: int, channels: int) -> Arrays | None:
    if node.domain or node.op_type not in AFFINE:
        return None
    found = AFFINE[node.op_type](node, axes, channels)
    return found if found is not None and len(found[0]) == channels else None


def affine_of(node: ir.Node | None, axes: int, channels: int) -> Linear | None:
    """A scale and shift of the channels that have so many axes behind them."""
    found = None if node is None else _affine_arrays(node, axes, channels)
    reads = next((v for v in node.inputs if v is not None and constant_of(v) is None), None) if node else None
    if node is None or found is None or reads is None or sizes_of(reads) is None:
        return None
    return Linear(node, None, channelwise(*found, axes), reads)


def ending_in(value: ir.Value | None) -> Linear | None:
    """The product that gives this value, with the Add behind it where there is one."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type == "Add" and not node.domain:
        before = next((v for v in node.inputs if v is not None and constant_of(v) is None), None)
        node = None if before is None else before.producer()
    found = None if node is None else product_of(node)
    return found if found is not None and found.writes is value else None


# -- writing -------------------------------------------------------------------------------------------------------


def write(graph: ir.Model, host: Linear, new: Map, reads: ir.Value, last: ir.Value) -> None:
    """Make the host compute `new` of `reads`, in the place of the value `last`; what stood between is left to nobody."""
    before, writes = host.writes, WRITERS[host.node.op_type](graph, host, new)
    place = next(index for index, value in enumerate(host.node.inputs) if value is host.reads)
    if host.reads is not reads:
        host.node.replace_input_with(place, reads)
    if last is not before:
        node = last.producer()
        assert node is not None
        bypass(node, writes)


def _write_conv(graph: ir.Model, host: Linear, new: Map) -> ir.Value:
    weight, bias = new.arrays
    _give(graph, host.node, 1, _layout(host, new, weight))
    _own_bias(graph, host.node, bias)
    window, attributes = new.window, host.node.attributes
    attributes["group"] = ir.AttrInt64("group", new.groups)
    lists: dict[str, Sequence[int]] = {"kernel_shape": window.kernel}
    if not new.spread:
        attributes.pop("auto_pad", None)
        lists |= {"strides": window.strides, "dilations": window.dilations, "pads": (*window.begins, *window.ends)}
    for name, values in lists.items():
        attributes[name] = ir.AttrInt64s(name, list(values))
    return host.writes


def _write_matrix(graph: ir.Model, host: Linear, new: Map) -> ir.Value:
    node, (weight, bias) = host.node, new.arrays
    _give(graph, node, 1, _layout(host, new, weight))
    if node.op_type == "MatMul" and host.behind is None and bias.any() and rank_of(node.inputs[0]) == 2:
        node.op_type = "Gemm"
    if node.op_type == "Gemm":
        _own_bias(graph, node, bias)
        return node.outputs[0]
    add = host.behind
    if add is None and bias.any():
        add = _add_behind(node, graph, bias)
    elif add is not None:
        place = next(index for index, value in enumerate(add.inputs) if constant_of(value) is not None)
        _give(graph, add, place, bias)
    return node.outputs[0] if add is None else add.outputs[0]


def _add_behind(node: ir.Node, graph: ir.Model, bias: np.ndarray) -> ir.Node:
    made = node.outputs[0]
    assert isinstance(node.graph, ir.Graph) and made.dtype is not None
    constant = new_constant(graph, f"{node.name}.bias", bias.astype(made.dtype.numpy()))
    add = ir.node("Add", [None, constant], name=f"{node.name}.bias")
    out = add.outputs[0]
    out.shape, out.type = made.shape, made.type
    made.replace_all_uses_with(out, replace_graph_outputs=True)
    made.name, out.name = f"{made.name}.product", made.name
    add.replace_input_with(0, made)
    node.graph.insert_after(node, add)
    return add


def _write_norm(graph: ir.Model, host: Linear, new: Map) -> ir.Value:
    weight, bias = new.arrays
    node = host.node
    count, epsilon = new.outs, node.attributes.get_float("epsilon", 1e-5) or 0.0
    for index, values in enumerate((weight.reshape(-1), bias, np.zeros(count), np.full(count, 1 - epsilon)), 1):
        _give(graph, node, index, values)
    return node.outputs[0]


def _write_operand(graph: ir.Model, host: Linear, new: Map) -> ir.Value:
    """Mul or Add: the one of both that the map has."""
    weight, bias = new.arrays
    node = host.node
    values = weight.reshape(-1) if node.op_type == "Mul" else bias
    place = next(index for index, value in enumerate(node.inputs) if constant_of(value) is not None)
    shaped = values[:1].reshape(()) if (values == values[0]).all() else values.reshape(-1, *[1] * host.axes)
    _give(graph, node, place, shaped)
    return node.outputs[0]


WRITERS: Mapping[str, Callable[[ir.Model, Linear, Map], ir.Value]] = {
    "Conv": _write_conv,
    "ConvTranspose": _write_conv,
    "Gemm": _write_matrix,
    "MatMul": _write_matrix,
    "BatchNormalization": _write_norm,
    "Mul": _write_operand,
    "Add": _write_operand,
}
"""Operator -> how it takes a map; each returns the value that is now the result."""


def _layout(host: Linear, new: Map, weight: np.ndarray) -> np.ndarray:
    """[out, in/groups, *kernel] as the host stores it."""
    if host.node.op_type == "ConvTranspose":
        grouped = weight.reshape(new.groups, -1, *weight.shape[1:])
        return np.moveaxis(grouped, 1, 2).reshape(new.ins, new.outs // new.groups, *new.window.kernel)
    straight = host.node.op_type == "Conv" or host.node.attributes.get_int("transB")
    return weight if straight else weight.T


def _own_bias(graph: ir.Model, node: ir.Node, bias: np.ndarray) -> None:
    if input_of(node, 2) is not None or bias.any():
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        _give(graph, node, 2, bias)


def _give(graph: ir.Model, node: ir.Node, index: int, values: np.ndarray) -> None:
    """A constant of its own for input `index`, in the type of the one before.

    It never takes the old name: later repair looks up by it what a weight was in the original.
    """
    old = input_of(node, index)
    like = old if old is not None else node.inputs[1]
    assert like is not None and like.const_value is not None
    dtype = like.const_value.dtype.numpy()
    base = f"{like.name}.bias" if old is None else (like.name or "").removesuffix(".merged") + ".merged"
    value = new_constant(graph, base, np.ascontiguousarray(values.astype(dtype)))
    if FILE_TYPE in like.const_value.meta:
        value.const_value = narrow_tensor(value.const_value.numpy(), like.const_value.meta[FILE_TYPE], value.name or "")  # type: ignore[union-attr]
    node.replace_input_with(index, value)


def positions(window: Window) -> int:
    """Positions that are read for each that is written."""
    return prod(window.strides)
