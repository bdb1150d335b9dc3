"""The steps of the door that run in ONNX's and onnxsim's C++, on one message without its large weights, in a guarded child process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx
import onnx_ir as ir
from onnx import checker, shape_inference, version_converter

from onnxcompress.errors import ModelError
from onnxcompress.model.edit import bodies_of, walk
from onnxcompress.model.guard import Crash, guarded
from onnxcompress.weights.coded import CODED

FLOOR = 17
"""The lowest opset that passes see. The door raises to it and never lowers; an encoding may raise further when it writes."""

LARGE = 1 << 12
"""Bytes above which a matrix stays behind. No step looks into one, unless it folds it into another constant."""

FOLDED_LIMIT = 1_500_000_000
"""Bytes of constants to be folded above which they are left as they are: the C++ steps copy the whole message."""

UNWANTED = (
    *("fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched", "fuse_qkv", "fuse_attention"),
    *("fuse_mul_into_conv", "fuse_preceding_mul_into_conv", "fuse_matmul_into_conv", "eliminate_duplicate_initializer"),
    "fuse_pad_into_pool",
)
"""onnxsim's rewrites that hide layers or their names: Reshape-Gemm-Reshape around MatMul, merged projections, equal vectors tied.
Pads as wide as a pooling window are not legal there, but onnxsim 0.8 fuses them too."""

FAILURES = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, AssertionError, OverflowError),
    *(checker.ValidationError, shape_inference.InferenceError, version_converter.ConvertError),
)
"""What the libraries raise when a message parses but is not a legal graph."""

Weights = Mapping[str, ir.TensorProtocol]


def run_native(graph: ir.Model, notes: list[str]) -> ir.Model:
    """Checked, raised to the lowest opset, simplified, shapes inferred; `graph` is used up.

    Raises Crash, or one of FAILURES where the graph is not legal.
    """
    weights = take_weights(graph)
    data = ir.to_proto(graph).SerializeToString()
    try:
        data, said = guarded(_all, FAILURES, data, STEPS)
    except Crash as crash:
        if crash.step != simplify.__name__:
            raise
        data, said = guarded(_all, FAILURES, data, [step for step in STEPS if step is not simplify])
        said.append("onnxsim crashes on it: not simplified")
    notes.extend(said)
    return give_weights(ir.from_proto(onnx.load_from_string(data)), weights)


def raised(graph: ir.Model, version: int) -> ir.Model:
    """A model at opset `version`, for types that came with it; `graph` is used up. ModelError where ONNX cannot convert it."""
    weights = take_weights(graph)
    data = ir.to_proto(graph).SerializeToString()
    try:
        data = guarded(_converted, FAILURES, data, version)
    except FAILURES as error:
        raise ModelError(f"it cannot be raised to opset {version}: {first_line(error)}; choose another form") from error
    model = give_weights(ir.from_proto(onnx.load_from_string(data)), weights)
    model.ir_version = max(
        model.ir_version, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)])
    )
    return model


def _converted(tell: Callable[[str], None], data: bytes, version: int) -> bytes:
    tell(raise_opset.__name__)
    return version_converter.convert_version(onnx.load_from_string(data), version).SerializeToString()


def _all(tell: Callable[[str], None], data: bytes, steps: list[Step]) -> tuple[bytes, list[str]]:
    model, notes = onnx.load_from_string(data), list[str]()
    for step in steps:
        tell(step.__name__)
        model = step(model, notes)
    return model.SerializeToString(), notes


# -- weights -------------------------------------------------------------------------------------------------------


def take_weights(model: ir.Model) -> Weights:
    """Turn matrices that are large, or coded, into inputs, those that onnxsim will fold excepted. Returns name -> tensor."""
    folded = _folded(model)
    if sum(value.const_value.nbytes for value in folded if value.const_value is not None) > FOLDED_LIMIT:
        folded = set()
    taken = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value in folded or value.is_graph_output():
            continue
        if tensor.nbytes < LARGE and CODED not in tensor.meta:  # what it remembers would not come back with the message
            continue
        if sum(int(size) > 1 for size in tensor.shape) < 2:  # type: ignore[arg-type]
            continue
        taken[name] = tensor
        value.shape, value.type = ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)  # type: ignore[arg-type]
        model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    return taken


def _folded(model: ir.Model) -> set[ir.Value]:
    """Constants that a node reads all of whose inputs are constant."""
    constant, folded = set(model.graph.initializers.values()), set[ir.Value]()
    for node in walk(model):
        given = [value for value in node.inputs if value is not None]
        if (
            (given or node.op_type == "Constant")
            and constant.issuperset(given)
            and not any(map(bodies_of, node.attributes.values()))
        ):
            constant.update(node.outputs)
            folded.update(given)
    return folded


def give_weights(model: ir.Model, weights: Weights) -> ir.Model:
    """The inverse of `take_weights`, on what the steps made of the graph."""
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = weights[value.name or ""]
        model.graph.register_initializer(value)
    return model


# -- steps ---------------------------------------------------------------------------------------------------------

Step = Callable[[onnx.ModelProto, list[str]], onnx.ModelProto]


def check(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """ONNX's own checker."""
    check_message(model)
    return model


def check_message(model: onnx.ModelProto) -> None:
    """ONNX's checker, which wants a shape of every input and output; onnxruntime does without, and so do we."""
    types = [
        value.type.tensor_type
        for value in (*model.graph.input, *model.graph.output)
        if value.type.HasField("tensor_type")
    ]
    bare = [each for each in types if not each.HasField("shape")]
    for each in bare:
        each.shape.SetInParent()
    try:
        checker.check_model(model)
    finally:
        for each in bare:
            each.ClearField("shape")


def raise_opset(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """Models below opset 17 are converted up to it."""
    version = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if version >= FLOOR:
        return model
    hidden = _hide_last_axis(model) if version < 13 else False
    converted = version_converter.convert_version(model, FLOOR)
    if hidden:
        _show_again(converted)
    notes.append(f"opset raised from {version} to {FLOOR}")
    return converted


HIDDEN = "onnxcompress.hidden"
FLATTENING = ("Softmax", "LogSoftmax", "Hardmax")
"""Before opset 13 these flattened their input from `axis` on; over the last axis both meanings agree, and the converter need not know."""


def _hide_last_axis(model: onnx.ModelProto) -> bool:
    """Put them under another domain while the converter runs, which would wrap each in Flatten and Reshape."""
    found = [node for node in _nodes(model.graph) if node.op_type in FLATTENING and not node.domain]
    ranks = _ranks(model) if found else {}
    hidden = False
    for node in found:
        rank = ranks.get(node.input[0], 0)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if rank and axis % rank == rank - 1:
            node.domain, hidden = HIDDEN, True
    if hidden:
        model.opset_import.add(domain=HIDDEN, version=1)
    return hidden


def _show_again(model: onnx.ModelProto) -> None:
    for node in _nodes(model.graph):
        if node.domain == HIDDEN:
            node.domain = ""
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("axis", -1))
    kept = [each for each in model.opset_import if each.domain != HIDDEN]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _nodes(body)
        yield node


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Rank of every value that is known."""
    return {name: len(tensor.shape.dim) for name, tensor in _tensor_types(model).items() if tensor.HasField("shape")}


def _tensor_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Type of every value of the main graph and of bodies that is known; names are unique across them."""
    inferred = _inferred(model).graph
    bodies = [inferred]
    for node in _nodes(inferred):
        bodies += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return {
        value.name: value.type.tensor_type for body in bodies for value in (*body.value_info, *body.input, *body.output)
    }


def plain_casts(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """CastLike as Cast where the type is known: of a constant it is folded then. PyTorch's exporter writes biases like an activation."""
    found = [node for node in _nodes(model.graph) if node.op_type == "CastLike" and not node.domain]
    types = _tensor_types(model) if found else {}
    for node in found:
        to = types[node.input[1]].elem_type if node.input[1] in types else 0
        if to:
            node.op_type = "Cast"
            del node.input[1], node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("to", to))
    return model


def lift_constants(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """Small Constant nodes become initializers of the main graph, as onnxsim wants them in bodies: their shapes are known by now."""
    _lift(model.graph, model.graph)
    return model


def _lift(graph: onnx.GraphProto, main: onnx.GraphProto) -> None:
    shown = {value.name for value in graph.output}
    for place in range(len(graph.node) - 1, -1, -1):
        node = graph.node[place]
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _lift(body, main)
        plain = node.op_type == "Constant" and [attribute.name for attribute in node.attribute] == ["value"]
        if plain and not node.domain and node.output[0] not in shown:
            tensor = main.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            del graph.node[place]


def simplify(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """Shape chains folded, duplicates merged and no-ops removed, by onnxsim; where it declines, the graph stays as it is."""
    import onnxsim  # the guarded process alone needs it: 20 MB

    try:
        simpler, _ = onnxsim.simplify(
            model, skip_fuse_bn=True, skipped_optimizers=list(UNWANTED), import_custom_schemas=False
        )
    except (RuntimeError, ValueError) as error:
        notes.append(f"onnxsim declined: {first_line(error)[:120]}")
        return model
    del simpler.metadata_props[:]  # onnxsim leaves a page about itself
    simpler.metadata_props.extend(model.metadata_props)
    return simpler


def infer_shapes(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """Shapes and types of all values, as far as ONNX's inference with data propagation knows them."""
    try:
        return _inferred(model)
    except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
        notes.append(f"shapes are not inferred: {first_line(error)[:120]}")
        return model


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants are shown as inputs too, since inference does not see them from If and Loop bodies otherwise."""
    shown, count = onnx.ModelProto(), len(model.graph.input)
    shown.CopyFrom(model)
    for tensor in model.graph.initializer:
        shown.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    shown = shape_inference.infer_shapes(shown, data_prop=True)
    del shown.graph.input[count:]
    return shown


STEPS: list[Step] = [check, raise_opset, plain_casts, lift_constants, simplify, infer_shapes]


def first_line(error: BaseException) -> str:
    """The first telling line of a library's message, without its C++ place names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if not line.startswith(("==>", "File "))), type(error).__name__)
    return text[:240]
