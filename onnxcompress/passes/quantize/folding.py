"""Exact rewrites before quantization: what can be a weight is one, and operators without an integer kernel become others that have one.

  a constant turned or joined (in a body)            a constant: recurrent weights are exported in pieces
  norm, scale or shift of channels behind a product  into its weight and bias   (the grid must see the weights that run)
  BatchNormalization behind anything else            1x1 depthwise Conv         (an integer kernel with an int32 shift)
  x · clip(x + 3, 0, 6) / 6 in pieces                HardSwish, HardSigmoid     (ranges of the pieces need no grids)
  Sub, Div of a constant, Sum of two                 Add, Mul                   (QLinearAdd and QLinearMul are all there is)
  LRN                                                sums, roots and a quotient (its kernel takes more time than all integers)
  ReduceMean over all positions                      GlobalAveragePool
  ConvTranspose whose kernel is its stride           1x1 Conv, DepthToSpace     (windows do not overlap)

Every rewrite gives the same function within float rounding; a value keeps its name where it still exists.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.edit import axes_of, constant_of, input_of, new_constant, walk
from onnxcompress.model.wiring import Step, alone, drop_unread, replaced
from onnxcompress.operators.view import rank_of
from onnxcompress.passes.merge.hard import as_hard
from onnxcompress.passes.merge.linear import norm_of, write
from onnxcompress.passes.merge.maps import chained
from onnxcompress.passes.merge.response import as_roots
from onnxcompress.passes.merge.rules import into_product


def folded(model: Model) -> Model:
    """The same function with as little beside products as can be; idempotent. Bodies of If and Loop included."""
    graph = model.ir.clone()
    for rewrite in (_as_constant, as_hard, as_roots, _as_pool, _as_add, _as_add_or_mul, _as_pixels):
        for node in list(walk(graph)):
            rewrite(graph, node)
    for node in list(walk(graph)):
        _into_product(graph, node)
    for node in list(walk(graph)):
        _as_depthwise(graph, node)
    drop_unread(graph)
    return model.edited(graph)


# -- into the product before ---------------------------------------------------------------------------------------


def _into_product(graph: ir.Model, node: ir.Node) -> None:
    """Fold a scale and shift of channels into the product that alone feeds it, by the rule of merge; weights keep their names."""
    pair = into_product(node)
    if pair is None or not pair[0].is_product or not alone(pair[0].writes) or pair[0].node.graph is not node.graph:
        return
    product, affine = pair
    new = chained(product.map, affine.map)
    if isinstance(new, str):
        return
    names = [value.name if value is not None else None for value in product.node.inputs[1:]]
    write(graph, product, new, product.reads, affine.writes)
    for index, name in enumerate(names, 1):
        if name is not None:
            _named(graph, product.node.inputs[index], name)


def _named(graph: ir.Model, value: ir.Value | None, name: str) -> None:
    """The constant takes back a name that nobody else has any more: users name weights to keep."""
    held = graph.graph.initializers
    if value is None or value.name == name or (name in held and held[name].uses()):
        return
    held.pop(name, None)
    value = held.pop(value.name or "")
    value.name = name
    assert value.const_value is not None
    value.const_value.name = name
    graph.graph.register_initializer(value)


# -- into another operator -----------------------------------------------------------------------------------------


TURNED = {"Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


def _as_constant(graph: ir.Model, node: ir.Node) -> None:
    """What only turns or joins floats that never change; the door folds it in the main graph, not in bodies."""
    if node.domain or node.op_type not in TURNED or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return
    values = {value.name or "": constant_of(value) for value in node.inputs if value is not None}
    first = next(iter(values.values()), None)
    if first is None or first.dtype.kind != "f" or any(each is None for each in values.values()):
        return
    from onnx.reference import ReferenceEvaluator  # 12 MB that few models need

    evaluator = ReferenceEvaluator(ir.to_proto(node), opsets={"": graph.opset_imports[""]})
    (result,) = evaluator.run(None, values)
    name = node.outputs[0].name or ""
    node.outputs[0].replace_all_uses_with(new_constant(graph, name, np.ascontiguousarray(result)))
    assert isinstance(node.graph, ir.Graph)
    node.graph.remove(node, safe=True)


def _as_depthwise(graph: ir.Model, node: ir.Node) -> None:
    """BatchNormalization that has no product before it: a 1x1 convolution a channel."""
    rank = rank_of(node.outputs[0])
    if node.op_type != "BatchNormalization" or node.domain or rank is None or rank < 3:
        return
    affine = norm_of(node, rank - 2, 0)
    if affine is None:
        return
    scale, shift = (each.astype(np.float32) for each in affine)
    weight = new_constant(graph, f"{node.name}.weight", scale.reshape(-1, *[1] * (rank - 1)))
    bias = new_constant(graph, f"{node.name}.bias", shift)
    attributes = {"group": len(scale), "kernel_shape": [1] * (rank - 2)}
    replaced(node, [("Conv", [node.inputs[0], weight, bias], attributes)])


def _as_add(graph: ir.Model, node: ir.Node) -> None:
    """A Sum of two."""
    if node.op_type == "Sum" and not node.domain and len(node.inputs) == 2:
        replaced(node, [("Add", list(node.inputs), {})])


def _as_add_or_mul(graph: ir.Model, node: ir.Node) -> None:
    """x − c is x + (−c), x / c is x · (1/c)."""
    values = constant_of(input_of(node, 1)) if node.op_type in ("Sub", "Div") and not node.domain else None
    if values is None or values.dtype.kind != "f" or constant_of(node.inputs[0]) is not None:
        return
    if node.op_type == "Div" and not (np.abs(values) > np.finfo(values.dtype).tiny).all():
        return
    op, new = ("Add", -values) if node.op_type == "Sub" else ("Mul", (1 / values.astype(np.float64)))
    constant = new_constant(graph, f"{node.name}.constant", np.asarray(new.astype(values.dtype)))
    replaced(node, [(op, [node.inputs[0], constant], {})])


def _as_pool(graph: ir.Model, node: ir.Node) -> None:
    """The mean over all axes behind the channel."""
    value = input_of(node, 0)
    rank = rank_of(value) if node.op_type == "ReduceMean" and not node.domain else None
    if rank is None or rank < 3 or value is None or value.dtype != ir.DataType.FLOAT:
        return
    axes = axes_of(node, rank)
    if axes is None or sorted(axes) != list(range(2, rank)):
        return
    steps: list[Step] = [("GlobalAveragePool", [value], {})]
    if not node.attributes.get_int("keepdims", 1):
        gone = new_constant(graph, f"{node.name}.axes", np.arange(2, rank, dtype=np.int64))
        steps.append(("Squeeze", [None, gone], {}))
    replaced(node, steps)


def _as_pixels(graph: ir.Model, node: ir.Node) -> None:
    """y[o, s·h + i, s·w + j] = Σ x[c, h, w] · w[c, o, i, j]: a 1x1 convolution to (i, j, o), and DepthToSpace."""
    values = constant_of(input_of(node, 1)) if node.op_type == "ConvTranspose" and not node.domain else None
    if values is None or values.ndim != 4 or node.attributes.get_int("group", 1) != 1:
        return
    size = values.shape[2]
    strides = node.attributes.get_ints("strides") or [1, 1]
    idle = {"pads": {0}, "output_padding": {0}, "dilations": {1}}
    if size == 1 or values.shape[3] != size or list(strides) != [size, size]:
        return
    if any(set(node.attributes.get_ints(name) or allowed) - allowed for name, allowed in idle.items()):
        return
    if node.attributes.get("output_shape") is not None or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return
    bias = input_of(node, 2)
    if bias is not None and constant_of(bias) is None:
        return
    matrix = values.transpose(2, 3, 1, 0).reshape(-1, values.shape[0], 1, 1)
    stem = node.inputs[1].name  # type: ignore[union-attr]
    inputs = [node.inputs[0], new_constant(graph, f"{stem}.pixels", np.ascontiguousarray(matrix))]
    if bias is not None:
        repeated = np.tile(constant_of(bias), size * size)  # type: ignore[arg-type]
        inputs.append(new_constant(graph, f"{bias.name}.pixels", repeated))
    replaced(node, [("Conv", inputs, {"kernel_shape": [1, 1]}), ("DepthToSpace", [None], {"blocksize": size})])
