"""Exact rewrites before quantization: what can be a weight is one, and operators without an integer kernel become others that have one.

  a constant turned or joined (in a body)            a constant: recurrent weights are exported in pieces
  norm, scale or shift of channels behind a product  into its weight and bias   (the grid must see the weights that run)
  BatchNormalization behind anything else            1x1 depthwise Conv         (an integer kernel with an int32 shift)
  x · clip(x + 3, 0, 6) / 6 in pieces                HardSwish, HardSigmoid     (ranges of the pieces need no grids)
  Sub, Div of a constant                             Add, Mul                   (QLinearAdd and QLinearMul are all there is)
  ReduceMean over all positions                      GlobalAveragePool
  ConvTranspose whose kernel is its stride           1x1 Conv, DepthToSpace     (windows do not overlap)

Every rewrite gives the same function within float rounding; a value keeps its name where it still exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxcompress.model import Model
from onnxcompress.model.edit import axes_of, constant_of, input_of, new_constant, set_constant, walk
from onnxcompress.model.wiring import Step, alone, bypass, drop_unread, replaced
from onnxcompress.operators.layer import Layer, by_node
from onnxcompress.operators.view import rank_of

Affine = tuple[np.ndarray, np.ndarray]
"""Scale and shift: float64, each of a shape that broadcasts against the node's output from the right."""


def folded(model: Model) -> Model:
    """The same function with as little beside products as can be; idempotent. Bodies of If and Loop included."""
    graph = model.ir.clone()
    for rewrite in (_as_constant, _as_hard, _as_pool, _as_add_or_mul, _as_pixels):
        for node in list(walk(graph)):
            rewrite(graph, node)
    weighted = by_node(model.edited(graph))
    for node in list(walk(graph)):
        _into_product(graph, node, weighted)
    for node in list(walk(graph)):
        _as_depthwise(graph, node)
    drop_unread(graph)
    return model.edited(graph)


# -- into the product before ---------------------------------------------------------------------------------------

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _norm(node: ir.Node) -> Affine | None:
    """BatchNormalization: γ/√(σ²+ε) and β − μ·scale, along axis 1."""
    parts = [constant_of(input_of(node, index)) for index in range(1, 5)]
    rank = rank_of(node.outputs[0])
    if any(part is None for part in parts) or rank is None or rank < 2 or len(node.outputs) > 1:
        return None
    gamma, beta, mean, var = (np.asarray(part, np.float64) for part in parts)
    scale = gamma / np.sqrt(var + (node.attributes.get_float("epsilon", 1e-5) or 0.0))
    along = (-1, *[1] * (rank - 2))
    return scale.reshape(along), (beta - mean * scale).reshape(along)


def _constant_operand(node: ir.Node) -> np.ndarray | None:
    """The constant of a two-operand node."""
    found = [values for value in node.inputs if (values := constant_of(value)) is not None and values.dtype.kind == "f"]
    return found[0].astype(np.float64) if len(found) == 1 and len(node.inputs) == 2 else None


def _scale(node: ir.Node) -> Affine | None:
    values = _constant_operand(node)
    return None if values is None else (values, np.zeros(1))


def _shift(node: ir.Node) -> Affine | None:
    values = _constant_operand(node)
    return None if values is None else (np.ones(1), values)


AFFINE: Mapping[str, Callable[[ir.Node], Affine | None]] = {"BatchNormalization": _norm, "Mul": _scale, "Add": _shift}


def _into_product(graph: ir.Model, node: ir.Node, weighted: Mapping[str, Layer]) -> None:
    """Fold a scale and shift of channels into the product that alone feeds it."""
    if node.domain or node.op_type not in AFFINE:
        return
    before = next((v for v in node.inputs if v is not None and constant_of(v) is None), None)
    product = None if before is None else before.producer()
    if product is None or product.op_type not in PRODUCTS or product.domain or not alone(product.outputs[0]):
        return
    layer = weighted.get(product.name or "")
    affine = AFFINE[node.op_type](node)
    if layer is None or affine is None or constant_of(product.inputs[1]) is None or not _plain(product):
        return
    weight = product.inputs[1]
    assert weight is not None
    values = constant_of(weight)
    assert values is not None
    matrix = layer.matrix(values)
    parts = [_by_channel(each, product, values.ndim, len(matrix)) for each in affine]
    if parts[0] is None or parts[1] is None:
        return
    if product.op_type == "MatMul" and parts[1].any():
        if node.op_type == "Add" or rank_of(product.inputs[0]) != 2 or values.ndim != 2:
            return  # an Add behind MatMul is its bias as it stands
        product.op_type = "Gemm"
    scale, shift = parts[0], parts[1]
    if (scale != 1).any():
        new = layer.stored(matrix * scale.reshape(-1, *[1] * (matrix.ndim - 1)), values)
        _give(graph, product, 1, weight.name or "", new.astype(values.dtype))
    bias = constant_of(input_of(product, 2))
    if bias is not None or shift.any():
        start = np.zeros(len(matrix)) if bias is None else np.broadcast_to(bias.reshape(-1), (len(matrix),))
        name = product.inputs[2].name if bias is not None else f"{weight.name}.bias"  # type: ignore[union-attr]
        _give(graph, product, 2, name or "", (start * scale + shift).astype(values.dtype))
    bypass(node, product.outputs[0])


def _plain(product: ir.Node) -> bool:
    """A bias that can be scaled by the channel: a constant vector, counted once."""
    bias = input_of(product, 2)
    values = constant_of(bias)
    if bias is not None and (values is None or values.size not in (1, *values.shape[-1:])):
        return False
    return product.op_type != "Gemm" or product.attributes.get_float("beta", 1.0) == 1.0


def _by_channel(values: np.ndarray, product: ir.Node, weight_rank: int, channels: int) -> np.ndarray | None:
    """[channels], where the values differ along the product's channels only."""
    rank = weight_rank if "Conv" in product.op_type else max(2, rank_of(product.outputs[0]) or values.ndim)
    axis = 1 if "Conv" in product.op_type else rank - 1
    if values.ndim > rank:
        return None
    shape = (*[1] * (rank - values.ndim), *values.shape)
    if any(size != 1 for place, size in enumerate(shape) if place != axis) or shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(values.reshape(-1), (channels,))


def _give(graph: ir.Model, node: ir.Node, index: int, name: str, values: np.ndarray) -> None:
    """Input `index` gets these values: in place where the node alone reads them."""
    old = input_of(node, index)
    stored = constant_of(old)
    if old is not None and stored is not None and alone(old) and stored.shape == values.shape:
        set_constant(graph, old.name or "", values)
        return
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, new_constant(graph, name, np.ascontiguousarray(values)))


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
    evaluator = ReferenceEvaluator(ir.to_proto(node), opsets={"": graph.opset_imports[""]})
    (result,) = evaluator.run(None, values)
    name = node.outputs[0].name or ""
    node.outputs[0].replace_all_uses_with(new_constant(graph, name, np.ascontiguousarray(result)))
    assert isinstance(node.graph, ir.Graph)
    node.graph.remove(node, safe=True)


def _as_depthwise(graph: ir.Model, node: ir.Node) -> None:
    """BatchNormalization that has no product before it: a 1x1 convolution a channel."""
    rank = rank_of(node.outputs[0])
    affine = _norm(node) if node.op_type == "BatchNormalization" and not node.domain else None
    if affine is None or rank is None or rank < 3:
        return
    scale, shift = (each.reshape(-1).astype(np.float32) for each in affine)
    weight = new_constant(graph, f"{node.name}.weight", scale.reshape(-1, *[1] * (rank - 1)))
    bias = new_constant(graph, f"{node.name}.bias", shift)
    attributes = {"group": len(scale), "kernel_shape": [1] * (rank - 2)}
    replaced(node, [("Conv", [node.inputs[0], weight, bias], attributes)])


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


HARD = {"HardSigmoid": {"alpha": 1 / 6, "beta": 0.5}, "HardSwish": {}}


def _as_hard(graph: ir.Model, node: ir.Node) -> None:
    """Clip(x + 3, 0, 6) / 6 is HardSigmoid; times x, before or after the division, HardSwish."""
    if node.domain or node.op_type not in ("Mul", "Div"):
        return
    sixth = _sixth(node)
    source = None if sixth is None else _gate(sixth)
    if source is not None:
        replaced(node, [("HardSigmoid", [source], HARD["HardSigmoid"])])
    elif sixth is not None and (product := sixth.producer()) is not None and product.op_type == "Mul" and alone(sixth):
        for value, other in _both_ways(product):
            if _gate(other) is value and value is not None:
                replaced(node, [("HardSwish", [value], {})])
                return
    elif node.op_type == "Mul":
        for value, other in _both_ways(node):
            made = None if other is None else other.producer()
            if made is not None and made.op_type == "HardSigmoid" and made.inputs[0] is value and _is_gate(made):
                replaced(node, [("HardSwish", [value], {})])
                return


def _both_ways(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    one, other = node.inputs[0], node.inputs[1]
    return [(one, other), (other, one)]


def _is_gate(node: ir.Node) -> bool:
    alpha, beta = node.attributes.get_float("alpha", 0.2) or 0.0, node.attributes.get_float("beta", 0.5)
    return abs(alpha - 1 / 6) < 1e-6 and beta == 0.5


def _sixth(node: ir.Node) -> ir.Value | None:
    """What the node divides by six."""
    for value, other in _both_ways(node)[: 1 if node.op_type == "Div" else 2]:
        number = _number(other)
        if number is not None and abs(number - (6 if node.op_type == "Div" else 1 / 6)) < 1e-6:
            return value
    return None


def _gate(value: ir.Value | None) -> ir.Value | None:
    """x, where the value is Clip(x + 3, 0, 6)."""
    clip = None if value is None else value.producer()
    if clip is None or clip.op_type != "Clip" or clip.domain:
        return None
    if _number(input_of(clip, 1)) != 0.0 or _number(input_of(clip, 2)) != 6.0:
        return None
    add = clip.inputs[0].producer() if clip.inputs[0] is not None else None
    if add is None or add.op_type != "Add" or add.domain:
        return None
    return next((x for x, three in _both_ways(add) if _number(three) == 3.0), None)


def _number(value: ir.Value | None) -> float | None:
    values = constant_of(value)
    return float(values.reshape(())) if values is not None and values.size == 1 and values.dtype.kind == "f" else None
