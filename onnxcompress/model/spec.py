"""What a legal Model is: the invariants behind the door, row by row. Tests check them after loading and after every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from onnxcompress.model.edit import walk
from onnxcompress.model.model import Model
from onnxcompress.model.native import FLOOR

Check = Callable[[Model], Iterator[str]]


def _constants(model: Model) -> Iterator[str]:
    yield from (node.name or "?" for node in walk(model.ir) if node.op_type == "Constant" and not node.domain)


def _functions(model: Model) -> Iterator[str]:
    yield from (str(name) for name in model.ir.functions)


def _names(model: Model) -> Iterator[str]:
    counts = Counter(node.name for node in walk(model.ir))
    yield from (str(name) for name, count in counts.items() if count > 1 or not name)


def _order(model: Model) -> Iterator[str]:
    known = set(model.ir.graph.inputs) | set(model.initializers.values())
    for node in model.ir.graph:
        for value in node.inputs:
            if value is not None and value not in known and value.producer() is not None:
                yield f"{node.name} reads {value.name} before it is made"
        known.update(node.outputs)


def _gemm(model: Model) -> Iterator[str]:
    for node in walk(model.ir):
        if node.op_type == "Gemm" and not node.domain:
            constant = node.inputs[1] is not None and node.inputs[1].const_value is not None
            if node.attributes.get_int("transA", 0) or (constant and node.attributes.get_float("alpha", 1.0) != 1.0):
                yield node.name or "?"


def _opset(model: Model) -> Iterator[str]:
    if model.ir.opset_imports.get("", 0) < FLOOR:
        yield str(model.ir.opset_imports)


def _inputs(model: Model) -> Iterator[str]:
    yield from (value.name or "?" for value in model.ir.graph.inputs if value.name in model.initializers)


def _unused(model: Model) -> Iterator[str]:
    for name, value in model.initializers.items():
        if not list(value.uses()) and not value.is_graph_output():
            yield name


def _vectors(model: Model) -> Iterator[str]:
    for name, value in model.initializers.items():
        shape = value.const_value.numpy().shape if value.const_value is not None else ()
        if sum(size > 1 for size in shape) <= 1 and len(list(value.uses())) > 1:
            yield name


def _shapes(model: Model) -> Iterator[str]:
    for name, value in model.initializers.items():
        if value.const_value is not None and value.shape is not None:
            stored = tuple(value.const_value.numpy().shape)
            if tuple(value.shape) != stored:
                yield f"{name}: {value.shape} is recorded, {stored} stored"


INVARIANTS: dict[str, Check] = {
    "constants are initializers": _constants,
    "no functions of the model's own": _functions,
    "every node has a name of its own": _names,
    "nodes are sorted": _order,
    "Gemm has transA=0 and unit alpha": _gemm,
    f"opset {FLOOR} or later": _opset,
    "no initializer is an input": _inputs,
    "no initializer is unused": _unused,
    "a vector has one reader": _vectors,
    "recorded shapes of constants are the stored ones": _shapes,
}


def violations(model: Model) -> list[str]:
    """Broken invariants, with the names at fault; empty for a legal Model."""
    return [f"{name}: {where}" for name, check in INVARIANTS.items() for where in check(model)]
