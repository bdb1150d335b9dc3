"""Writing a quantized graph: decisions in, a clone with QuantizeLinear / DequantizeLinear pairs out. Decides nothing.

What is read in float and in integers keeps both: `levels` of a value are the bytes, the value of its own name the floats.
Behind an integer node stand

    node ── y.exact ──▶ QuantizeLinear ── y.levels ──▶ DequantizeLinear ── y

so that y is, for whoever reads it by name, what the rounded model computes. Operators that move or clip entries run on the
levels themselves. Pairs that nobody reads are taken out at the end. Why each pattern is the one: rows.py.

Activations are uint8. On x86 onnxruntime turns int8 pairs into uint8 before it fuses, and cannot where an operator runs on
the levels between them: such a neighbour then stays in float.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableSequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import ModelError
from onnxcompress.model import Model
from onnxcompress.model.edit import LIKE, constant_of, input_of, set_constant, walk
from onnxcompress.model.wiring import drop_unread
from onnxcompress.operators.layer import Layer, by_node
from onnxcompress.passes.quantize.filled import fill
from onnxcompress.passes.quantize.grid import LEVELS, Grid, grid_of
from onnxcompress.passes.quantize.pen import Pen, Rounded
from onnxcompress.passes.quantize.rows import bias_adds, data_of, result_of, row_of
from onnxcompress.passes.quantize.shares import affine, ramp


def write(
    model: Model,
    nodes: Collection[str],
    grids: Mapping[str, Grid],
    weights: Mapping[str, Rounded],
    biases: Mapping[str, np.ndarray] | None = None,
) -> Model:
    """The model with `nodes` on static integer grids.

    nodes    names of nodes, of the main graph or of branches, for which `rows.refusal` says nothing
    grids    of every value that they read or write; values of one `rows.Share` on the same one. A constant operand that has
             none is put on the grid that spans it. A product with float_output may go without one for its output
    weights  initializer name -> its levels, for every weight of those nodes
    biases   initializer name -> new values, before all else

    ModelError where a grid or a weight that is needed is missing, or grids differ that must not.
    """
    graph = model.ir.clone()
    for name, values in (biases or {}).items():
        set_constant(graph, name, values)
    pen = Pairs(graph, grids, weights, by_node(model))
    chosen = [node for node in walk(graph) if node.name in nodes]
    absorbed = bias_adds(chosen, pen.layers)
    for node in chosen:
        if node not in absorbed:
            WRITERS[row_of(node).form](pen, node)
    for node in chosen:
        fill(pen, node)
    drop_unread(graph)
    return model.edited(graph)


# -- Q and DQ ------------------------------------------------------------------------------------------------------


Place = tuple[ir.Value, ir.Graph | None]


def _seen_from(table: Mapping[Place, ir.Value], value: ir.Value, node: ir.Node) -> ir.Value | None:
    """The form of a value that a node can read: bodies see what is made around them, and not what others hold."""
    return table.get((value, None)) or table.get((value, node.graph))  # type: ignore[arg-type]


@dataclass
class Pairs(Pen):
    """What was decided about a graph, and which of its values exist in which form so far.

    levels, floats  by value, and by the graph in which that form was made for a reader; None: where the value itself stands
    """

    grids: Mapping[str, Grid]
    weights: Mapping[str, Rounded]
    layers: Mapping[str, Layer]
    levels: dict[Place, ir.Value] = field(default_factory=dict)
    floats: dict[Place, ir.Value] = field(default_factory=dict)

    def grid(self, value: ir.Value, node: ir.Node) -> Grid:
        """The grid decided for a value."""
        found = self.grids.get(value.name or "")
        if found is None:
            raise ModelError(f"{node.name}: no grid for {value.name}; every value it reads or writes needs one")
        return found

    def quantize(self, value: ir.Value, name: str, grid: Grid, before: ir.Node | None = None) -> ir.Value:
        """value -> its levels."""
        inputs = [value, *self._scales(grid, name)]
        return self.node("QuantizeLinear", inputs, name, like=value, dtype=DTYPES[grid.kind], before=before)

    def dequantize(self, levels: ir.Value, name: str, grid: Grid, before: ir.Node | None = None) -> ir.Value:
        """Levels -> float."""
        inputs = [levels, *self._scales(grid, name)]
        axis = None if grid.axis is None else {"axis": grid.axis}
        return self.node("DequantizeLinear", inputs, name, like=levels, before=before, attributes=axis)

    def _scales(self, grid: Grid, name: str) -> list[ir.Value | None]:
        zero = np.asarray(grid.zero).astype(grid.kind)
        return [self.constant(f"{name}.scale", np.asarray(grid.scale, np.float32)), self.constant(f"{name}.zero", zero)]

    def levels_of(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """The levels of a value, made where it is first asked for."""
        found = _seen_from(self.levels, value, before)
        if found is not None:
            return found
        name = f"{value.name}.levels"
        if constant_of(value) is not None:
            grid = self.constant_grid(value)
            stored = grid.levels(constant_of(value)).astype(grid.kind)  # type: ignore[arg-type]
            self.levels[value, None] = self.constant(name, stored)
            return self.levels[value, None]
        made = self.quantize(value, self.free(name), self.grid(value, before), before)
        self.levels[value, before.graph] = made  # type: ignore[index]
        return made

    def float_of(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """The value as its levels say it, in float, in the graph of its reader: no kernel is fused across a body's border.

        Nor may a product there have an integer weight beside floats from outside: onnxruntime 1.32 does not load it.
        """
        found = _seen_from(self.floats, value, before)
        if found is None or (made := found.producer()) is None or made.graph is not before.graph:
            found = self.floats.get((value, before.graph))  # type: ignore[arg-type]
        if found is None:
            grid = self.constant_grid(value) if constant_of(value) is not None else self.grid(value, before)
            levels = self.levels_of(value, before)
            found = self.dequantize(levels, self.free(f"{value.name}.rounded"), grid, before)
            self.floats[value, before.graph] = found  # type: ignore[index]
        return found

    def constant_grid(self, value: ir.Value) -> Grid:
        """The grid of a constant operand: the one given, or the one that spans it."""
        given = self.grids.get(value.name or "")
        if given is not None:
            return given
        values = constant_of(value)
        assert values is not None
        return grid_of(values.min(initial=0.0), values.max(initial=0.0), "uint8", symmetric=False)

    def put(self, exact: ir.Value, grid: Grid) -> None:
        """Round what a node has just computed in float (a kernel fuses with this), and let all readers read the rounded."""
        name = exact.name or ""
        exact.name, exact.meta[LIKE] = f"{name}.exact", name
        levels = self.quantize(exact, f"{name}.levels", grid)
        _behind(exact, levels)
        self.show(exact, levels, grid, name)

    def put_levels(self, value: ir.Value, grid: Grid) -> None:
        """A node's output has become levels: type and name follow, and readers of floats get floats."""
        name = value.name or ""
        value.name, value.type, value.meta[LIKE] = f"{name}.levels", ir.TensorType(DTYPES[grid.kind]), name
        self.show(value, value, grid, name)

    def show(self, old: ir.Value, levels: ir.Value, grid: Grid, name: str) -> None:
        """Behind `levels` a DequantizeLinear called `name`, read by all who read `old` (but the rounding itself)."""
        rounding = levels.producer()
        readers = [(node, index) for node, index in old.uses() if node is not rounding]
        value = self.dequantize(levels, name, grid)
        _behind(levels, value)
        for node, index in readers:
            node.replace_input_with(index, value)
        outputs = written_to(old)
        for index, output in enumerate(outputs):
            if output is old:
                value.shape = old.shape
                outputs[index] = value
        self.levels[value, None], self.floats[value, None] = levels, value


DTYPES = {
    "uint8": ir.DataType.UINT8,
    "int8": ir.DataType.INT8,
    "uint16": ir.DataType.UINT16,
    "int16": ir.DataType.INT16,
    "int32": ir.DataType.INT32,
}


def written_to(value: ir.Value) -> MutableSequence[ir.Value]:
    """The outputs of the graph in which a value is computed."""
    made = value.producer()
    assert made is not None and isinstance(made.graph, ir.Graph)
    return made.graph.outputs


def _behind(value: ir.Value, made: ir.Value) -> None:
    """Put the node of `made` just behind the one of `value`."""
    producer, node = value.producer(), made.producer()
    assert producer is not None and node is not None and isinstance(producer.graph, ir.Graph)
    producer.graph.insert_after(producer, node)


# -- one writer a form ---------------------------------------------------------------------------------------------


def _product(pen: Pairs, node: ir.Node) -> None:
    """DQ(x) · DQ(w) + DQ(int32 b) -> Q."""
    layer = pen.layers.get(node.name or "")
    reads = data_of(node)
    result = result_of(node, layer)
    for index, value in enumerate(node.inputs):
        if value is not None and value in reads:
            node.replace_input_with(index, pen.float_of(value, node))
    if layer is not None:
        source = pen.grid(reads[0], node)
        weight = _weight(pen, layer, source, node)
        _bias(pen, node, layer, source, weight, result)
    grid = pen.grids.get(result.name or "")
    if grid is None and not row_of(node).float_output:
        pen.grid(result, node)
    if grid is not None:
        pen.put(result, grid)


def _weight(pen: Pairs, layer: Layer, source: Grid, node: ir.Node) -> Grid:
    """One quantized copy of a weight and one DequantizeLinear, however many nodes read it; the grid."""
    stored = pen.weights.get(layer.weight)
    if stored is None:
        raise ModelError(f"{layer.name}: no levels for its weight {layer.weight}; give them")
    name = layer.weight
    bias = None if layer.bias is None else pen.graph.graph.initializers[layer.bias]
    wider = _room_for_bias(stored, constant_of(bias), source)
    if wider is not stored:
        stored, name = wider, f"{layer.weight}.{layer.name}"
    value = pen.graph.graph.initializers[layer.weight]
    rounded = _seen_from(pen.floats, value, node)
    if wider is not pen.weights[layer.weight] or rounded is None:
        levels = pen.constant(f"{name}.levels", stored.levels.astype(stored.grid.kind, copy=False))
        rounded = pen.dequantize(levels, pen.free(f"{name}.rounded"), stored.grid, node)
        if name == layer.weight:
            pen.floats[value, node.graph] = rounded  # type: ignore[index]
    node.replace_input_with(list(node.inputs).index(value), rounded)
    return stored.grid


BIAS_LIMIT = 2.0**30
"""Half of int32: the other half is for the sum that the bias is added to."""


def _room_for_bias(stored: Rounded, bias: np.ndarray | None, source: Grid) -> Rounded:
    """The weight on coarser scales where a bias would not fit 32 bits in steps of s_x·s_w: beside it the products are nothing."""
    if bias is None:
        return stored
    grid = stored.grid
    size = np.abs(bias.reshape(-1).astype(np.float64))
    size = np.broadcast_to(size, grid.scale.shape) if grid.axis is not None else size.max(initial=0.0)
    least = size / (BIAS_LIMIT * float(source.scale))
    if not (least > grid.scale).any():
        return stored
    wider = Grid(np.maximum(grid.scale, least.astype(np.float32)), grid.zero, grid.kind, grid.axis, grid.low, grid.high)
    return Rounded(wider.levels(grid.values(stored.levels)), wider)


def _bias(pen: Pairs, node: ir.Node, layer: Layer, source: Grid, weight: Grid, result: ir.Value) -> None:
    """The bias as int32 with scale s_x·s_w and zero 0, one entry an output channel, where the kernel wants it."""
    if layer.bias is None:
        return
    owner = result.producer()
    assert owner is not None
    value = pen.graph.graph.initializers[layer.bias]
    values = constant_of(value)
    assert values is not None
    scale = (source.scale * weight.scale).astype(np.float32)
    count = values.size if weight.axis is None else weight.scale.size
    flat = np.broadcast_to(values.reshape(-1), (count,))
    grid = Grid(scale, np.zeros(scale.shape, np.int64), "int32", None if weight.axis is None else 0, *LEVELS["int32"])
    steps = np.rint(flat.astype(np.float64) / scale)
    stored = np.clip(steps, *LEVELS["int32"]).astype(np.int32)
    levels = pen.constant(f"{layer.bias}.levels", stored)
    rounded = pen.dequantize(levels, f"{layer.bias}.rounded", grid, owner)
    owner.replace_input_with(list(owner.inputs).index(value), rounded)


def _computes(pen: Pairs, node: ir.Node) -> None:
    """DQ of every operand -> kernel -> Q."""
    reads = data_of(node)
    for index, value in enumerate(node.inputs):
        if value is not None and value in reads:
            node.replace_input_with(index, pen.float_of(value, node))
    pen.put(node.outputs[0], pen.grid(node.outputs[0], node))


def _moves(pen: Pairs, node: ir.Node) -> None:
    """The node itself, on levels."""
    value = node.inputs[0]
    assert value is not None
    grid = _shared(pen, node, value)
    padding = input_of(node, 2) if node.op_type == "Pad" else None
    node.replace_input_with(0, pen.levels_of(value, node))
    if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
        number = np.zeros((), np.float32) if padding is None else constant_of(padding)
        level = grid.levels(np.asarray(number, np.float32).reshape(())).astype(grid.kind)
        node.resize_inputs(max(3, len(node.inputs)))
        node.replace_input_with(2, pen.constant(f"{node.name}.padding", level))
    for output in node.outputs:
        pen.put_levels(output, grid)


def _shared(pen: Pairs, node: ir.Node, value: ir.Value) -> Grid:
    """The one grid of what a node reads and writes."""
    grid = pen.grid(value, node)
    for output in node.outputs:
        other = pen.grid(output, node)
        if other is not grid and (other.scale != grid.scale or other.zero != grid.zero or other.kind != grid.kind):
            raise ModelError(f"{node.name}: {value.name} and {output.name} must be on one grid; give both the same")
    return grid


def _clips(pen: Pairs, node: ir.Node) -> None:
    """Rounding is monotone, so clipping levels at the rounded limits is exact; limits at or beyond the ends do nothing."""
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    grid = _shared(pen, node, value)
    limits = [np.zeros(()), None] if node.op_type == "Relu" else [constant_of(input_of(node, i)) for i in (1, 2)]
    low, high = (None if limit is None else int(grid.levels(np.asarray(limit).reshape(()))) for limit in limits)
    low = None if low is None or low <= grid.low else low
    high = None if high is None or high >= grid.high else high
    levels = pen.levels_of(value, node)
    if low is not None or high is not None:
        levels = _clip_levels(pen, levels, grid, f"{output.name}.levels", low, high, node)
    pen.show(output, levels, grid, output.name or "")
    node.graph.remove(node, safe=True)  # type: ignore[union-attr]


def _clip_levels(
    pen: Pairs, levels: ir.Value, grid: Grid, name: str, low: int | None, high: int | None, before: ir.Node
) -> ir.Value:
    ends = [
        None if end is None else pen.constant(f"{name}.{side}", np.asarray(end).astype(grid.kind))
        for side, end in (("low", low), ("high", high))
    ]
    return pen.node("Clip", [levels, *ends], name, like=levels, dtype=DTYPES[grid.kind], before=before)


def _ramp(pen: Pairs, node: ir.Node) -> None:
    """HardSigmoid: clipped levels, read with another zero. HardSwish: the input times that."""
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    grid = pen.grid(value, node)
    found = ramp(node, grid)
    if found is None:  # the ramp begins outside the grid: correct, but in float between Q and DQ
        _computes(pen, node)
        return
    slope, low, high = found
    name = output.name or ""
    clip = _clip_levels(pen, pen.levels_of(value, node), grid, f"{node.name}.clipped", low, high, node)
    if node.op_type == "HardSigmoid":
        pen.show(output, clip, slope, name)
    else:
        gate = pen.dequantize(clip, f"{node.name}.gate", slope, node)
        exact = pen.node("Mul", [pen.float_of(value, node), gate], f"{name}.exact", like=output, before=node)
        own = pen.grid(output, node)
        pen.show(output, pen.quantize(exact, f"{name}.levels", own, node), own, name)
    node.graph.remove(node, safe=True)  # type: ignore[union-attr]


def _affine(pen: Pairs, node: ir.Node) -> None:
    """Nothing is left of it: the levels of its input, read on another grid."""
    value, output = next(v for v in data_of(node) if constant_of(v) is None), node.outputs[0]
    found = affine(node, pen.grid(value, node))
    if found is None:  # the new zero is no level
        _computes(pen, node)
        return
    pen.show(output, pen.levels_of(value, node), found, output.name or "")
    node.graph.remove(node, safe=True)  # type: ignore[union-attr]


WRITERS: Mapping[str, Callable[[Pairs, ir.Node], None]] = {
    "product": _product,
    "computes": _computes,
    "moves": _moves,
    "clips": _clips,
    "ramp": _ramp,
    "affine": _affine,
}
