"""The few ways in which a graph is read and edited: walking, constants, new initializers, patched shape inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxcompress.weights.coded import CODED, Coded


def walk(model: ir.Model) -> Iterator[ir.Node]:
    """Every node in order of execution, the bodies of If, Loop and Scan just before the node that holds them."""
    return _walk(model.graph)


def _walk(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        for attribute in node.attributes.data.values():  # of the mapping itself it takes four times as long
            if attribute.type in WITH_BODIES:
                for body in bodies_of(attribute):
                    yield from _walk(body)
        yield node


WITH_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def bodies_of(attribute: ir.Attr) -> list[ir.Graph]:
    """The graphs that one attribute holds."""
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return []


def branches(model: ir.Model) -> dict[ir.Graph, ir.Node]:
    """The bodies that run at most once in a run of the model, each with the If that holds it: branches, and branches in these."""
    found: dict[ir.Graph, ir.Node] = {}
    todo: list[ir.Graph] = [model.graph]
    while todo:
        for node in todo.pop():
            if node.op_type == "If" and not node.domain:
                bodies = [body for attribute in node.attributes.values() for body in bodies_of(attribute)]
                found |= dict.fromkeys(bodies, node)
                todo += bodies
    return found


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The values of a constant tensor, None for one that is computed or fed."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def ints_of(value: ir.Value | None) -> list[int] | None:
    """A small constant integer tensor as a list."""
    values = constant_of(value)
    return None if values is None else [int(v) for v in values.reshape(-1)]


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def axes_of(node: ir.Node, rank: int, default: list[int] | None = None) -> list[int] | None:
    """The `axes` of a node as non-negative numbers, given as attribute or as second input; None where they are computed or not a list."""
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    elif input_of(node, 1) is not None:
        found = constant_of(node.inputs[1])
        if found is None or found.ndim > 1:  # onnxruntime takes no matrix of axes, but ONNX's checker lets it pass
            return None
        axes = found.reshape(-1).tolist()
    else:
        axes = list(range(rank)) if default is None else default
    return [axis % rank if rank else axis for axis in axes]


def set_constant(model: ir.Model, name: str, values: np.ndarray) -> None:
    """Give initializer `name` new values, stored in the type it had."""
    value = model.graph.initializers[name]
    assert value.const_value is not None
    kept = np.ascontiguousarray(values.astype(value.const_value.dtype.numpy(), copy=False))
    before = value.const_value
    if FILE_TYPE in before.meta:
        value.const_value = narrow_tensor(kept, before.meta[FILE_TYPE], name)
    else:
        value.const_value = ir.Tensor(kept, dtype=before.dtype, name=name)
    if CODED in before.meta:
        value.const_value.meta[CODED] = before.meta[CODED]
    value.shape = ir.Shape(kept.shape)


def set_computed(model: ir.Model, name: str, compute: Callable[[], np.ndarray]) -> None:
    """As `set_constant` with values of the same shape, computed whenever somebody asks: large ones of which few are needed at a time."""
    value = model.graph.initializers[name]
    before = value.const_value
    assert before is not None
    if before.meta:  # how the file holds them follows from the values
        set_constant(model, name, compute())
        return
    kind = before.dtype.numpy()

    def tensor() -> ir.Tensor:
        return ir.Tensor(np.ascontiguousarray(compute().astype(kind, copy=False)))

    value.const_value = ir.LazyTensor(tensor, before.dtype, ir.Shape(before.shape.numpy()), name=name)


def set_coded(model: ir.Model, name: str, coded: Coded) -> None:
    """Give initializer `name` the decoded values; the file gets the symbols (weights/forms.py)."""
    values = coded.decode()
    tensor = ir.Tensor(values, name=name)
    tensor.meta[CODED] = coded
    value = model.graph.initializers[name]
    value.const_value, value.shape = tensor, ir.Shape(values.shape)


def coded_of(value: ir.Value) -> Coded | None:
    """How the values of a constant were coded, before edits that may have followed."""
    return None if value.const_value is None else value.const_value.meta.get(CODED)


FILE_TYPE = "onnxcompress.file_type"
"""Key of a tensor's meta: the narrower type in which the file holds its values, behind a Cast."""


LIKE = "onnxcompress.like"
"""Key of a value's meta: the name of a value of the same shape, which was there before an edit."""


def narrow_tensor(values: np.ndarray, file_type: ir.DataType, name: str) -> ir.Tensor:
    """Values rounded to what the file can hold; where one is too large for it, the file gets them as they are."""
    with np.errstate(over="ignore"):
        rounded = values.astype(file_type.numpy()).astype(values.dtype)
    fits = bool(np.isfinite(rounded).all())
    tensor = ir.Tensor(rounded if fits else values, name=name)
    if fits:
        tensor.meta[FILE_TYPE] = file_type
    return tensor


def new_constant(model: ir.Model, name: str, values: np.ndarray) -> ir.Value:
    """Add an initializer; a number is appended where the name is taken."""
    free, number = name, 0
    while free in model.graph.initializers:
        number += 1
        free = f"{name}.{number}"
    value = ir.val(
        free, const_value=ir.Tensor(values, name=free)
    )  # ir.tensor asks protocols first, which takes longer than all else
    model.graph.register_initializer(value)
    return value


def is_vector(values: np.ndarray) -> bool:
    """At most one axis has more than one entry."""
    return sum(size > 1 for size in values.shape) <= 1


def untie(model: ir.Model, value: ir.Value) -> list[str]:
    """A private copy of an initializer for each reader but the first; the copies' names."""
    names = []
    for number, (node, index) in enumerate(list(value.uses())[1:], 1):
        name = f"{value.name}.{number}"
        while name in model.graph.initializers:
            name += "_"
        copy = ir.val(name, const_value=value.const_value, type=value.type, shape=value.shape)
        model.graph.register_initializer(copy)
        node.replace_input_with(index, copy)
        names.append(name)
    return names


def set_vector(model: ir.Model, node: ir.Node, index: int, values: np.ndarray) -> None:
    """Give a constant input new values: in place where this node alone reads it, else as a constant of its own."""
    value = node.inputs[index]
    assert value is not None
    if len(list(value.uses())) == 1 and value.name in model.graph.initializers:
        set_constant(model, value.name or "", values)
    else:
        node.replace_input_with(index, new_constant(model, f"{value.name}.cut", values.astype(np.int64)))


def set_elements(model: ir.Model, node: ir.Node, index: int, elements: Mapping[int, int]) -> None:
    """Change elements of an integer vector input, whether it is a constant or computed by Concat of pieces."""
    value = node.inputs[index]
    assert value is not None
    constant = constant_of(value)
    if constant is not None:
        changed = constant.copy()
        for place, number in elements.items():
            changed.reshape(-1)[place] = number
        set_vector(model, node, index, changed)
        return
    node.replace_input_with(index, _pieces(model, node, value, elements))


def _pieces(model: ir.Model, node: ir.Node, value: ir.Value, elements: Mapping[int, int]) -> ir.Value:
    """A new Concat of single elements: taken from `value`, or the given constants."""
    length = value.shape[0] if value.shape is not None and len(value.shape) == 1 else None
    count = length if isinstance(length, int) else max(elements) + 1
    parts = []
    for place in range(count):
        if place in elements:
            parts.append(new_constant(model, f"{node.name}.size{place}", np.array([elements[place]], np.int64)))
            continue
        where = new_constant(model, f"{node.name}.place{place}", np.array([place], np.int64))
        gather = ir.node("Gather", [value, where], {"axis": 0}, name=f"{node.name}.part{place}")
        _insert(node, gather)
        parts.append(gather.outputs[0])
    concat = ir.node("Concat", parts, {"axis": 0}, name=f"{node.name}.sizes")
    _insert(node, concat)
    return concat.outputs[0]


def _insert(before: ir.Node, node: ir.Node) -> None:
    node.outputs[0].name = node.name
    node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    assert before.graph is not None
    before.graph.insert_before(before, node)
