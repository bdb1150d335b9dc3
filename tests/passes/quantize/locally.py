"""Integer products one by one: each fed what it is fed in the written model, beside the float node on decoded weights.

Compared over a whole model, the roundings of inputs add up from layer to layer, and no bound holds for every model; of one
product it is known: an input is off by half a step at most, an output by the steps of its inputs times its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxcompress.evidence.expose import exposed
from onnxcompress.model import Model
from onnxcompress.model.edit import walk
from onnxcompress.model.save import to_bytes
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.runtime.session import open_session

Arrays = Mapping[str, np.ndarray]

OF_FLOATS = 1e-5
"""Of a product's largest output: sums in another order."""

LSTM = 0.15
"""Of its largest output: the rounded state comes back in each step of the sequence."""


def check_products(floats: Model, written: Model, decisions: Sequence[Mapping[str, object]], inputs: Arrays) -> None:
    """Each product that runs in integers lies within what rounding its inputs can do.

    floats  the model with weights decoded from the integers in `written`
    """
    forms = {name: each["form"] for each in decisions for name in each["nodes"]}  # type: ignore[attr-defined]
    nodes = {node.name: node for node in floats.ir.graph}
    own = {value.name for node in written.ir.graph for value in node.outputs}
    checked = []
    for layer in layers(floats):
        node = nodes.get(layer.name)
        if node is None or forms.get(layer.name, "load") == "load" or layer.op == "Gather":
            continue
        parts = [node] if node.outputs[0].name in own else [node, next(iter(node.outputs[0].uses()))[0]]
        if any(value.name for value in parts[-1].outputs):
            checked.append((layer, parts, forms[layer.name]))
    wanted = [layer.reads for layer, _, _ in checked]
    wanted += [value.name or "" for _, parts, _ in checked for value in parts[-1].outputs if value.name in own]
    seen = _values(written, [name for name in dict.fromkeys(wanted) if name not in inputs], inputs)
    for layer, parts, form in checked:
        alone = _alone(floats, parts, seen)
        for name, y in alone.items():
            if name in seen:
                most = _most(floats, layer, parts[0], seen[layer.reads], form) + OF_FLOATS * np.abs(y).max(initial=0)
                if layer.op == "LSTM":
                    most = np.asarray(LSTM * np.abs(y).max(initial=0))
                assert np.all(np.abs(seen[name] - y) <= most), f"{layer.name}: {form}"


def in_floats(written: Model) -> Model:
    """The same file with MatMulNBits told to multiply floats; run it without optimisation, which keeps DequantizeLinear apart."""
    graph = written.ir.clone()
    for node in walk(graph):
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    return written.edited(graph)


def _values(model: Model, names: Sequence[str], inputs: Arrays) -> dict[str, np.ndarray]:
    found = dict(inputs)
    if names:
        shown = exposed(model, names)
        found |= open_session(shown.model, outputs=shown.outputs).run(inputs)
    return found


def _alone(model: Model, parts: Sequence[ir.Node], seen: Arrays) -> dict[str, np.ndarray]:
    """What these nodes of the float model answer to what was seen before them."""
    proto = onnx.load_from_string(to_bytes(model.ir)).graph
    nodes = [next(node for node in proto.node if node.name == part.name) for part in parts]
    held = {each.name: each for each in proto.initializer}
    made = {name for node in nodes for name in node.output}
    read = list(dict.fromkeys(name for node in nodes for name in node.input if name and name not in made))
    fed = {name: seen[name] for name in read if name not in held}
    ports = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in fed.items()
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in nodes[-1].output if name]
    constants = [held[name] for name in read if name in held]
    graph = helper.make_graph(nodes, "alone", ports, ends, constants)
    opset = model.ir.graph.opset_imports.get("", 17)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()
    return open_session(data).run(fed)


def _most(model: Model, layer: Layer, node: ir.Node, x: np.ndarray, form: object) -> np.ndarray:
    """How far an output can lie from the float one. dynamic: one grid a tensor, off by a step where zero is rounded too;
    run: int8 by blocks of a row, whose steps are no larger than the row's."""
    weight = np.abs(layer.matrix(model.array(layer.weight))).sum(axis=1)  # [out]
    alpha = abs(node.attributes.get_float("alpha", 1.0))
    if form == "dynamic":
        step = (max(x.max(initial=0), 0.0) - min(x.min(initial=0), 0.0)) / 255
        return np.asarray(alpha * step * weight)
    steps = np.abs(x).max(axis=-1, keepdims=True, initial=0) / 127
    return np.asarray(steps / 2 * weight)
