"""Writing integer weights where activations have no static grid: found at run time ("dynamic"), or float ("weights").

| form    | operator             | written as                                      | times fp32, one thread, VNNI   |
|---------|----------------------|-------------------------------------------------|--------------------------------|
| dynamic | MatMul, Gemm         | DynamicQuantizeLinear (one for all readers of a | 1.6 (1x384x384), 2.6           |
|         |                      | value), MatMulInteger, Cast, Mul                | (1x768x3072), 3.0 (32x768x768) |
| dynamic | LSTM                 | DynamicQuantizeLSTM                             | 2.8 (256 units), 1.5 (64)      |
| weights | MatMul, in blocks    | MatMulNBits                                     | 1x768x3072: 4 bits 5, 8 bits 4 |
| weights | MatMul, by channel   | DequantizeLinear, which becomes MatMulNBits     | 1x768x3072: 2.4                |
| weights | embedding            | Gather of levels and of scales, Mul             | 0.7 (11 microseconds in fp32)  |
| weights | embedding, in blocks | GatherBlockQuantized                            | 4 bits 0.3 (64 for 17 us)      |
| weights | all others           | Cast, Mul: folded when loaded, smaller on disk  | 1.0                            |

A DequantizeLinear before a Conv would run each time. GRU and RNN have no integer kernel. Nodes in bodies are written too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import ModelError
from onnxcompress.model import Model
from onnxcompress.model.edit import LIKE, constant_of, input_of, walk
from onnxcompress.model.wiring import drop_unread
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.passes.quantize.blocks import Blocks, packed, rebuilt, tied
from onnxcompress.passes.quantize.pen import MICROSOFT, Pen, Rounded, instead
from onnxcompress.passes.quantize.rows import row_of
from onnxcompress.passes.quantize.write import DTYPES

Form = Literal["dynamic", "weights"]
INT8_SUMS = 4
"""accuracy_level of MatMulNBits: activations rounded to int8 a block, as fast as it gets; level 0 sums in float, slower than fp32."""


def write_weights(model: Model, forms: Mapping[str, Form], weights: Mapping[str, Rounded | Blocks]) -> Model:
    """The model with the weights of these nodes as integers.

    forms    node name -> "dynamic" or "weights"
    weights  initializer -> its levels. Blocks ([out, in] of the Layer view) for MatMul and embeddings in the form "weights"

    ModelError where a weight is missing, or a node has no such form.
    """
    graph = model.ir.clone()
    pen = Codes(graph, weights)
    found: dict[str, list[Layer]] = {}
    for layer in layers(model):
        found.setdefault(layer.name, []).append(layer)
    for node in list(walk(graph)):
        form = forms.get(node.name or "")
        if form is None:
            continue
        its = found.get(node.name or "", [])
        if not its or any(layer.weight not in weights for layer in its):
            raise ModelError(f"{node.name}: no levels for its weight; give them, or leave the node in float")
        if form == "weights":
            _decoded(pen, node, its)
        elif row_of(node).dynamic == "" or any(isinstance(weights[layer.weight], Blocks) for layer in its):
            raise ModelError(
                f"{node.name}: {node.op_type} has no dynamic form with these levels; use the form 'weights'"
            )
        elif node.op_type == "LSTM":
            _lstm(pen, node)
        else:
            _integer_product(pen, node, its[0])
    drop_unread(graph)
    return model.edited(graph)


@dataclass
class Codes(Pen):
    """The levels, and what several nodes share: decoded weights, matrices of levels (turned or not), rounded inputs."""

    weights: Mapping[str, Rounded | Blocks]
    decoded: dict[str, ir.Value] = field(default_factory=dict)
    matrices: dict[tuple[str, bool], ir.Value] = field(default_factory=dict)
    rounded: dict[tuple[ir.Value, object], ir.Node] = field(default_factory=dict)
    tables: list[tuple[ir.Value, np.ndarray]] = field(default_factory=list)

    def table(self, name: str, levels: np.ndarray) -> ir.Value:
        """The levels of an embedding, from which a product may read too."""
        value = self.constant(f"{name}.levels", levels)
        self.tables.append((value, levels))
        return value

    def matrix(self, before: ir.Node, name: str, levels: np.ndarray) -> ir.Value:
        """The levels of a matrix: a constant, or those of the embedding that it is tied to, as it lies or turned.

        onnxruntime folds that when it loads the file, and runs it as fast: 18.5 ms either way with 4 bits, 10.6 with 8
        (20,000 rows of 384), at 0.57 and 0.51 of the bytes.
        """
        for value, other in self.tables:
            how = tied(levels, other)
            if how:
                parts: list[ir.Value | None] = [value]
                if how == "Reshape":
                    parts.append(self.constant(f"{name}.shape", np.array(levels.shape, np.int64)))
                dtype = ir.DataType.from_numpy(levels.dtype)
                made = self.node(how, parts, self.free(f"{name}.levels"), dtype=dtype, before=before)
                made.shape = ir.Shape(levels.shape)
                return made
        return self.constant(f"{name}.levels", levels)

    def by_channel(self, name: str) -> Rounded:
        """The levels of a weight that is on one grid."""
        stored = self.weights[name]
        assert isinstance(stored, Rounded)
        return stored

    def step(self, before: ir.Node, op: str, inputs: list[ir.Value | None], stem: str, **attributes: int) -> ir.Value:
        """One float step just before a node."""
        return self.node(op, inputs, self.free(f"{stem}.{op.lower()}"), before=before, attributes=dict(attributes))


# -- dynamic -------------------------------------------------------------------------------------------------------


def _integer_product(pen: Codes, node: ir.Node, layer: Layer) -> None:
    """y = (xq − z_x) · wq, times s_x · s_w, plus the bias: onnxruntime fuses all of it."""
    value = node.inputs[0]
    stored = pen.by_channel(layer.weight)
    if value is None or node.inputs[1] is None or node.inputs[1].name != layer.weight or stored.levels.ndim != 2:
        raise ModelError(f"{node.name}: its weight is not a matrix on the right; use the form 'weights'")
    if not (node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0):
        raise ModelError(f"{node.name}: alpha and beta are not one; use the form 'weights'")
    stem, grid = node.name or "", stored.grid
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    if (layer.weight, turned) not in pen.matrices:
        matrix = stored.levels.T if turned else stored.levels
        pen.matrices[layer.weight, turned] = pen.constant(f"{layer.weight}.levels", matrix.astype(grid.kind))
    place = (value, node.graph)  # a body cannot be read from outside
    if place not in pen.rounded:
        pen.rounded[place] = _round_now(pen, node, value)
    rounded, scale, zero = pen.rounded[place].outputs
    parts: list[ir.Value | None] = [rounded, pen.matrices[layer.weight, turned], zero]
    if np.any(grid.zero):
        parts.append(pen.constant(f"{layer.weight}.zero", np.asarray(grid.zero).astype(grid.kind)))
    sums = pen.step(node, "MatMulInteger", parts, stem)
    sums.type = ir.TensorType(ir.DataType.INT32)
    floats = pen.step(node, "Cast", [sums], stem, to=ir.DataType.FLOAT)
    steps = pen.constant(f"{layer.weight}.scale", np.asarray(grid.scale, np.float32))
    both = pen.step(node, "Mul", [scale, steps], f"{stem}.scale")
    result = pen.step(node, "Mul", [floats, both], stem)
    bias = input_of(node, 2)
    if bias is not None:
        result = pen.step(node, "Add", [result, bias], stem)
    instead(node.outputs[0], result)


def _round_now(pen: Codes, node: ir.Node, value: ir.Value) -> ir.Node:
    """DynamicQuantizeLinear: uint8 levels, scale and zero of a whole tensor."""
    made = ir.node(
        "DynamicQuantizeLinear", [value], num_outputs=3, name=pen.free(f"{value.name}.DynamicQuantizeLinear")
    )
    kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    for output, name, kind in zip(made.outputs, ("levels", "scale", "zero"), kinds, strict=True):
        output.name, output.type = f"{made.name}.{name}", ir.TensorType(kind)
    made.outputs[0].shape = value.shape
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_before(node, made)
    return made


def _lstm(pen: Codes, node: ir.Node) -> None:
    """DynamicQuantizeLSTM: weights [D, in, 4h], a scale a gate row [D, 4h]; all other inputs and outputs as they were."""
    if node.attributes.get_int("layout", 0) == 1:
        raise ModelError(f"{node.name}: layout is 1, the kernel takes 0; use the form 'weights'")
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
    tail: list[ir.Value | None] = []
    for index in (1, 2):
        name = node.inputs[index].name or ""  # type: ignore[union-attr]
        stored = pen.by_channel(name)
        levels, grid = stored.levels.transpose(0, 2, 1), stored.grid
        if grid.axis not in (1, None):
            raise ModelError(f"{node.name}: scales go along the gate rows, axis 1, not {grid.axis}")
        shape = (len(levels), levels.shape[2]) if grid.axis == 1 else (len(levels),)
        inputs[index] = pen.constant(f"{name}.levels", levels.astype(grid.kind))
        tail.append(pen.constant(f"{name}.scale", np.broadcast_to(grid.scale, shape).astype(np.float32)))
        tail.append(pen.constant(f"{name}.zero", np.broadcast_to(grid.zero, shape).astype(grid.kind)))
    attributes = {key: value for key, value in node.attributes.items() if key != "layout"}
    made = ir.Node(
        MICROSOFT, "DynamicQuantizeLSTM", [*inputs, *tail], attributes.values(), num_outputs=len(node.outputs)
    )
    pen.graph.graph.opset_imports.setdefault(MICROSOFT, 1)
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_before(node, made)
    made.name = node.name
    for new, old in zip(made.outputs, node.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = old.name
    node.graph.remove(node, safe=True)


# -- weight-only ---------------------------------------------------------------------------------------------------


def _decoded(pen: Codes, node: ir.Node, its: list[Layer]) -> None:
    """The node reads its weights out of levels."""
    for layer in its:
        stored = pen.weights[layer.weight]
        if layer.op == "Gather" and node.attributes.get_int("axis", 0) == 0:
            (_gather_blocks if isinstance(stored, Blocks) else _gather)(pen, node, layer)
        elif isinstance(stored, Blocks):
            if layer.op != "MatMul" or layer.order != (1, 0) or node.inputs[0] is None:
                raise ModelError(
                    f"{node.name}: blocks are for a matrix on the right of MatMul, and rows of an embedding"
                )
            _block_product(pen, node, layer, stored)
        else:
            index = next(i for i, value in enumerate(node.inputs) if value is not None and value.name == layer.weight)
            if layer.weight not in pen.decoded:
                pen.decoded[layer.weight] = _decode(pen, layer, stored)
            node.replace_input_with(index, pen.decoded[layer.weight])


def _decode(pen: Codes, layer: Layer, stored: Rounded) -> ir.Value:
    """Levels -> the weight, at the head of the graph, where bodies see it too."""
    grid, name = stored.grid, layer.weight
    if layer.op != "MatMul" or stored.levels.ndim != 2:
        return rebuilt(pen, name, stored, stored.levels.shape)
    head = pen.graph.graph[0]
    levels = pen.matrix(head, name, stored.levels.astype(grid.kind))
    scale = pen.constant(f"{name}.scale", np.asarray(grid.scale, np.float32))
    zero = pen.constant(f"{name}.zero", np.asarray(grid.zero).astype(grid.kind))
    axis = {} if grid.axis is None else {"axis": grid.axis}
    result = pen.step(head, "DequantizeLinear", [levels, scale, zero], name, **axis)
    result.shape = ir.Shape(stored.levels.shape)
    return result


def _block_product(pen: Codes, node: ir.Node, layer: Layer, stored: Blocks) -> None:
    """MatMulNBits, with the bias of the Add behind it."""
    out, size = stored.levels.shape
    owner = node if layer.bias is None else next(iter(node.outputs[0].uses()))[0]
    levels = packed(stored).reshape(out, -1, stored.block * stored.bits // 8)
    inputs: list[ir.Value | None] = [
        node.inputs[0],
        pen.matrix(owner, layer.weight, levels),
        pen.constant(f"{layer.weight}.scale", stored.scale),
    ]
    if layer.bias is not None:
        bias = np.asarray(constant_of(pen.graph.graph.initializers[layer.bias]))
        inputs += [None, None, pen.constant(f"{layer.bias}.flat", bias.reshape(-1))]
    sizes = {"K": size, "N": out, "bits": stored.bits, "block_size": stored.block, "accuracy_level": INT8_SUMS}
    name = f"{node.name}.blocks"
    made = pen.node("MatMulNBits", inputs, name, before=owner, domain=MICROSOFT, attributes=sizes)
    instead(owner.outputs[0], made)
    if owner is not node and isinstance(node.graph, ir.Graph):
        node.graph.remove(node, safe=True)


def _gather(pen: Codes, node: ir.Node, layer: Layer) -> None:
    """Rows of levels, times the scales of these rows or of the columns."""
    stored = pen.by_channel(layer.weight)
    grid, stem, index = stored.grid, node.name or "", node.inputs[1]
    along: tuple[int, ...] = () if grid.axis is None else (-1, 1) if grid.axis == 0 else (-1,)

    def part(name: str, values: np.ndarray) -> ir.Value:
        value = pen.constant(f"{layer.weight}.{name}", np.asarray(values, np.float32).reshape(along))
        return pen.step(node, "Gather", [value, index], f"{stem}.{name}") if grid.axis == 0 else value

    levels = pen.table(layer.weight, stored.levels.astype(grid.kind))
    result = pen.step(node, "Gather", [levels, index], f"{stem}.levels")
    result.type, result.meta[LIKE] = ir.TensorType(DTYPES[grid.kind]), node.outputs[0].name
    result = pen.step(node, "Cast", [result], stem, to=ir.DataType.FLOAT)
    if np.any(grid.zero):
        result = pen.step(node, "Sub", [result, part("zero", grid.zero)], stem)
    instead(node.outputs[0], pen.step(node, "Mul", [result, part("scale", grid.scale)], stem))


def _gather_blocks(pen: Codes, node: ir.Node, layer: Layer) -> None:
    """GatherBlockQuantized: [rows, width], blocks along the width."""
    stored = pen.weights[layer.weight]
    assert isinstance(stored, Blocks)
    rows, blocks = stored.scale.shape
    half = 2 ** (stored.bits - 1)
    zeros = np.full((rows, blocks), half) if stored.bits == 8 else np.full((rows, (blocks + 1) // 2), half * 17)
    inputs: list[ir.Value | None] = [
        pen.table(layer.weight, packed(stored)),
        node.inputs[1],
        pen.constant(f"{layer.weight}.scale", stored.scale),
        pen.constant(f"{layer.weight}.zero", zeros.astype(np.uint8)),
    ]
    sizes = {"bits": stored.bits, "block_size": stored.block, "gather_axis": 0, "quantize_axis": 1}
    name = f"{node.name}.blocks"
    made = pen.node("GatherBlockQuantized", inputs, name, before=node, domain=MICROSOFT, attributes=sizes)
    instead(node.outputs[0], made)
