"""The canonical form, as ordered small steps, so that no pass below needs the branches that they remove.

BatchNormalization is not folded here: slimming, training and equalization read it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxcompress.errors import ModelError
from onnxcompress.model.edit import constant_of, is_vector, narrow_tensor, new_constant, untie, walk
from onnxcompress.model.model import Model, Source
from onnxcompress.model.native import FAILURES, first_line, run_native
from onnxcompress.model.wiring import drop_unread
from onnxcompress.weights.chains import decoded
from onnxcompress.weights.coded import CODED

OLDEST_IR = 8
"""The IR version of opset 17. Below 4 every initializer had to be an input too, which the converter still insists on."""

SMALL = 256
"""Numbers in a constant that may be a shape, an axis or a table of them, rather than weights."""

Step = Callable[[ir.Model, list[str]], ir.Model]


def normalise(proto: onnx.ModelProto, source: Source, beside: Mapping[str, ir.TensorProtocol]) -> Model:
    """Run every step on a copy; ModelError where the graph is not legal ONNX.

    beside  initializers that the message has the type and shape of
    """
    notes: list[str] = []
    try:
        graph = ir.from_proto(proto)
        for name, tensor in beside.items():
            graph.graph.initializers[name].const_value = tensor
        if source.path is not None:
            ir.external_data.set_base_dir(graph.graph, source.path.parent)
        _forget_negative_sizes(graph)
        declared = {value.name or "": _copied(value.shape) for value in (*graph.graph.inputs, *graph.graph.outputs)}
        with uncollected():
            for step in STEPS:
                graph = step(graph, notes)
    except FAILURES as error:
        raise ModelError(f"{source.name}: not a legal ONNX graph: {first_line(error)}") from error
    return Model(graph, source, notes=tuple(notes), declared=declared)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection: a graph is many small objects that all live, and looking through them took a third of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _forget_negative_sizes(model: ir.Model) -> None:
    """A declared size below zero is not known, as onnxruntime reads it too; ONNX's shape inference would abort on some."""
    bodies = {node.graph for node in walk(model)} | {model.graph}
    values = [v for body in bodies if body is not None for v in (*body.inputs, *body.outputs)]
    for value in (*values, *(output for node in walk(model) for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([None if isinstance(n, int) and n < 0 else n for n in value.shape])


def _copied(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape(list(shape), [shape.get_denotation(axis) for axis in range(len(shape))])


# -- steps ---------------------------------------------------------------------------------------------------------


def order(model: ir.Model, notes: list[str]) -> ir.Model:
    """Functions inlined, nodes sorted and named, initializers that are also inputs made plain constants."""
    if model.functions:
        common.InlinePass()(model)
    if not _sorted(model):
        common.TopologicalSortPass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    common.NameFixPass()(model)
    model.ir_version = max(model.ir_version or 0, OLDEST_IR)
    _name_nodes(model)
    return model


def _sorted(model: ir.Model) -> bool:
    """Every node behind those whose values it reads: sorting again would change nothing, and take five times as long."""
    seen: set[ir.Node | None] = {None}
    for node in walk(model):
        if not all(value is None or value.producer() in seen for value in node.inputs):
            return False
        seen.add(node)
    return True


def _name_nodes(model: ir.Model) -> None:
    """Every node has a name that no other has, in any body: plans and patches find nodes by it."""
    taken: set[str] = set()
    for number, node in enumerate(walk(model)):
        name = node.name or f"{node.op_type}_{number}"
        while name in taken:
            name = f"{name}_{number}"
        if name != node.name:
            node.name = name
        taken.add(name)


def validate(model: ir.Model, notes: list[str]) -> ir.Model:
    """What ONNX's checker lets pass, and would end the process later."""
    if not model.opset_imports.get(""):
        raise ModelError("it imports no version of the standard operators")
    for value in model.graph.inputs:
        if value.type is None or value.dtype == ir.DataType.UNDEFINED:
            raise ModelError(f"input {value.name!r} declares no element type; export it again")
    for node in walk(model):
        faults = [] if node.domain else [check(node) for name, check in CRASHES if name in ("", node.op_type)]
        for fault in filter(None, faults):
            raise ModelError(f"{node.op_type} {node.name!r}: {fault}; export it again")
    return model


def _split_counts(node: ir.Node) -> str | None:
    parts = node.attributes.get_int("num_outputs", len(node.outputs))
    return None if parts == len(node.outputs) else f"num_outputs is {parts}, and it has {len(node.outputs)}"


def _left_out(node: ir.Node) -> str | None:
    """One of any number of equal inputs cannot be left out, as an optional one can."""
    if None not in node.inputs or not onnx.defs.has(node.op_type):
        return None
    last = len(onnx.defs.get_schema(node.op_type).inputs) - 1
    formal = onnx.defs.get_schema(node.op_type).inputs[last]
    variadic = formal.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    return "one of its inputs has no name" if variadic and None in node.inputs[last:] else None


POSITIVE = {"strides", "dilations", "kernel_shape", "group", "blocksize", "num_groups", "num_heads", "hidden_size"}
"""Attributes that the libraries divide by."""


def _not_positive(node: ir.Node) -> str | None:
    for name in POSITIVE & node.attributes.keys():
        attribute = node.attributes[name]
        if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
            values = [attribute.as_int()] if attribute.type == ir.AttributeType.INT else list(attribute.as_ints())
            if min(values, default=1) < 1:
                return f"{name} is {values}, and must be positive"
    return None


CRASHES: tuple[tuple[str, Callable[[ir.Node], str | None]], ...] = (
    ("Split", _split_counts),
    ("", _left_out),
    ("", _not_positive),
)
"""Operator ("": any) and what is wrong with a node that ONNX's checker lets pass, and that then ends the whole process in the shape
inference of onnx 1.23 or in a run of onnxruntime 1.32."""


def large_constants_to_initializers(model: ir.Model, notes: list[str]) -> ir.Model:
    """Weights in Constant nodes and bodies come to the main graph; small constants stay where shape inference sees them."""
    for node in list(walk(model)):
        value = node.attributes.get("value") if node.op_type == "Constant" and not node.domain else None
        if value is None or value.type != ir.AttributeType.TENSOR or node.outputs[0].is_graph_output():
            continue
        if value.value.size >= SMALL and node.graph is not None:
            weight = ir.Value(name=node.outputs[0].name, const_value=value.value)
            node.outputs[0].replace_all_uses_with(weight)
            node.graph.remove(node, safe=True)
            model.graph.register_initializer(weight)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    return model


def constants_to_initializers(model: ir.Model, notes: list[str]) -> ir.Model:
    """Every Constant node becomes an initializer of the main graph, those of If and Loop bodies too."""
    _copy_constant_results(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.NameFixPass()(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    drop_unread(model)
    for node in walk(model):
        if node.op_type == "Constant" and not node.domain:
            raise ModelError(
                f"Constant {node.name!r} holds no dense tensor, which is all that is read; export it again"
            )
    return model


def _copy_constant_results(model: ir.Model) -> None:
    """What a body hands out must be made in it: a Constant that is its result goes there through an Identity, and can be lifted."""
    for node in list(walk(model)):
        graph, made = node.graph, node.outputs[0] if node.outputs else None
        if node.op_type != "Constant" or node.domain or made is None or graph is None or not made.is_graph_output():
            continue
        copy = ir.node("Identity", [made], name=f"{node.name}.result")
        made.name, copy.outputs[0].name = f"{made.name}.constant", made.name
        copy.outputs[0].shape, copy.outputs[0].type = made.shape, made.type
        graph.insert_after(node, copy)
        for place, result in enumerate(graph.outputs):
            if result is made:
                graph.outputs[place] = copy.outputs[0]


NARROW = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
"""Types of weights that are read as float, and written back behind a Cast as they came."""


def widen(model: ir.Model, notes: list[str]) -> ir.Model:
    """Weights that a Cast makes float: the float values, which remember the type of the file."""
    for node in [node for node in walk(model) if node.op_type == "Cast" and not node.domain]:
        given, made = node.inputs[0], node.outputs[0]
        tensor = given.const_value if given is not None else None
        wanted = node.attributes.get_int("to") == ir.DataType.FLOAT
        if tensor is None or tensor.dtype not in NARROW or not wanted or made.is_graph_output() or node.graph is None:
            continue
        weight = ir.Value(
            name=made.name, const_value=narrow_tensor(tensor.numpy().astype(np.float32), tensor.dtype, made.name or "")
        )
        made.replace_all_uses_with(weight)
        node.graph.remove(node, safe=True)
        model.graph.register_initializer(weight)
    return model


def decode(model: ir.Model, notes: list[str]) -> ir.Model:
    """Weights that the file holds as symbols: the dense values, which remember how they were coded."""
    for made, found in decoded(model.graph).items():
        tensor = ir.Tensor(found.values, name=made.name)
        if found.coded is not None:
            tensor.meta[CODED] = found.coded
        weight = ir.Value(name=made.name, const_value=tensor)
        node = made.producer()
        made.replace_all_uses_with(weight)
        assert node is not None and node.graph is not None
        node.graph.remove(node, safe=True)
        model.graph.register_initializer(weight)
    drop_unread(model)
    return model


def gemm_in_one_form(model: ir.Model, notes: list[str]) -> ir.Model:
    """Gemm with transA=0 and alpha=beta=1: the factors go into its constants."""
    for node in walk(model):
        if node.op_type != "Gemm" or node.domain:
            continue
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        for attribute, value in (("alpha", weight), ("beta", bias)):
            factor = node.attributes.get_float(attribute, 1.0)
            if factor == 1.0 or (value is None and attribute == "beta"):
                node.attributes.pop(attribute, None)
            elif value is not None and (values := constant_of(value)) is not None:
                scaled = (values.astype(np.float64) * factor).astype(values.dtype)
                if len(list(value.uses())) == 1:
                    value.const_value = ir.Tensor(scaled, name=value.name)
                else:
                    fresh = new_constant(model, f"{value.name}.{attribute}", scaled)
                    node.replace_input_with(1 if attribute == "alpha" else 2, fresh)
                node.attributes.pop(attribute, None)
        if node.attributes.get_int("transA", 0) and node.graph is not None:
            flipped = ir.node("Transpose", [node.inputs[0]], {"perm": [1, 0]}, name=f"{node.name}.transA")
            node.graph.insert_before(node, flipped)
            node.replace_input_with(0, flipped.outputs[0])
            flipped.outputs[0].name = f"{node.name}.transA"
            node.attributes.pop("transA")
    return model


def tie_equal_matrices(model: ir.Model, notes: list[str]) -> ir.Model:
    """One name a tied tensor: matrices with equal values become one initializer (an exporter may have written both)."""
    seen: dict[tuple[str, tuple[int, ...]], list[tuple[ir.Value, np.ndarray]]] = {}
    for value in list(model.graph.initializers.values()):
        values = constant_of(value)
        if values is None or is_vector(values) or value.is_graph_output() or values.dtype.kind != "f":
            continue
        alike = seen.setdefault((str(values.dtype), values.shape), [])
        first = next((one for one, others in alike if _equal(values, others)), None)
        if first is None:
            alike.append((value, values))
        elif not (values == values.flat[0]).all():  # else not yet trained, or a mask: equal by accident
            value.replace_all_uses_with(first)
            model.graph.initializers.pop(value.name or "")
    return model


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Bit for bit; the first rows tell most apart."""
    return one[:1].tobytes() == other[:1].tobytes() and one.tobytes() == other.tobytes()


def untie_vectors(model: ir.Model, notes: list[str]) -> ir.Model:
    """A private copy for each reader of a vector or scalar: exporters share equal biases between layers that have nothing in common.

    Saving merges them again where they are still equal.
    """
    for value in list(model.graph.initializers.values()):
        values = constant_of(value)
        if values is not None and is_vector(values):
            untie(model, value)
    return model


def to_arrays(model: ir.Model, notes: list[str]) -> ir.Model:
    """Stored tensors become arrays: a message hands out a copy at each access, and a file, mapped into memory, need not be known later."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if any(int(size) < 0 for size in tensor.shape):  # type: ignore[arg-type]
            raise ModelError(f"initializer {value.name!r} has a size below zero: {list(tensor.shape)}; export it again")
        if isinstance(tensor, (ir.ExternalTensor, ir.TensorProtoTensor)):
            value.const_value = tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
        value.shape, value.type = ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)  # type: ignore[arg-type]
    return model


STEPS: tuple[Step, ...] = (
    order,
    large_constants_to_initializers,
    to_arrays,
    validate,
    decode,
    widen,
    run_native,
    order,
    constants_to_initializers,
    to_arrays,
    gemm_in_one_form,
    tie_equal_matrices,
    untie_vectors,
)
