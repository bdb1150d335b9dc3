"""The step graph: forward, loss and gradients in one, with parameters, masks and gates as its inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxcompress.errors import ModelError, nearest
from onnxcompress.model import Model
from onnxcompress.runtime.loose import loose
from onnxcompress.runtime.session import Session, open_session
from onnxcompress.training.blocked import block_size, in_blocks
from onnxcompress.training.derivatives.normalization import training_form
from onnxcompress.training.fixed import fix
from onnxcompress.training.integers import STOP
from onnxcompress.training.pen import Pen, shape_of
from onnxcompress.training.products import turned_products
from onnxcompress.training.sources import OWN, Source, gradients_by

Criterion = Callable[[Pen, Mapping[str, ir.Value]], Mapping[str, ir.Value]]
"""(op, values by name) -> scalars that add up to the loss, by name. What it needs besides, it takes with `op.input`."""

LOSS, GRADIENT, TERM = "loss", "gradient/", "term/"
MASK, GATE = "mask/", "gate/"


@dataclass(frozen=True)
class Statistics:
    """A BatchNormalization in training form: outputs with the batch's mean and variance, and how many values each is of.

    mean, var  names of the model's own running values
    """

    mean: str
    var: str
    batch_mean: str
    batch_var: str
    count: int


@dataclass(frozen=True, eq=False)
class StepGraph:
    """One training step as a graph.

    inputs: those of the model, of the criterion, each parameter under its own name, `mask/NAME` and `gate/NAME`.
    outputs: `loss`; `term/NAME` for each of its terms; `gradient/NAME` for each parameter, mask and gate; batch statistics.
    source: where the gradients come from, in words.
    """

    graph: ir.Model
    trained: tuple[str, ...]
    terms: tuple[str, ...]
    statistics: tuple[Statistics, ...]
    source: str

    def open(self, *, threads: int = 1) -> Session:
        """A session of it, in the order of its nodes and with memory taken value by value: a third to a half of what a plan takes."""
        return open_session(loose(self.graph), threads=threads, name="the training step", early=True, lean=True)


def step_graph(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Sequence[str],
    criterion: Criterion,
    *,
    norms: str = "frozen",
    masks: Collection[str] = (),
    gates: Mapping[str, int] | None = None,
    known: Mapping[str, np.ndarray] | None = None,
    source: Source | None = OWN,
) -> StepGraph:
    """Forward, loss and gradients of one batch.

    shapes      of the model's inputs                  parameters  initializers that train; all others stay constants
    norms       "frozen": BatchNormalization keeps its running statistics; "training": it normalises by the batch
    masks       parameters that are multiplied by an input of their own shape
    gates       value -> the axis along which an input of that length multiplies it
    known       inputs that have these values in every run; they stay inputs, and what is fed there does not count
    source      where gradients come from; None: the loss alone
    ModelError for an operator without a derivative between a parameter and the loss, a shape that depends on the data.
    """
    graph = model.ir.clone()
    op = Pen(graph)
    op.block = block_size()
    op.stops.update(node.outputs[0] for node in graph.graph if STOP in node.metadata_props)
    trained = {name: _to_input(op, name) for name in parameters}
    for name in masks:
        trained[f"{MASK}{name}"] = _masked(op, trained[name])
    _unnamed_outputs(graph)
    fix(op, shapes, known)
    statistics = _in_training_form(op) if norms == "training" else []
    values = {value.name or "": value for node in graph.graph for value in node.outputs}
    values |= {value.name or "": value for value in graph.graph.inputs}
    for name, axis in (gates or {}).items():
        trained[f"{GATE}{name}"], values[name] = _gated(op, values, name, axis)
    terms = criterion(op, values)
    loss, *others = terms.values()
    for term in others:
        loss = op.Add(loss, term)
    found, told = ({}, "") if source is None else gradients_by(source, op, loss, list(trained.values()))
    outputs = {LOSS: loss, **{f"{TERM}{name}": value for name, value in terms.items()}}
    outputs |= {f"{GRADIENT}{name}": found[value] for name, value in trained.items() if value in found}
    batch = [values[name] for each in statistics for name in (each.batch_mean, each.batch_var)]
    graph.graph.outputs[:] = [*(_called(op, name, value) for name, value in outputs.items()), *batch]
    turned_products(op)
    common.RemoveUnusedNodesPass()(graph)
    blocked = in_blocks(op)
    told += f", {blocked} convolutions in blocks of {op.block} channels" if blocked and told else ""
    return StepGraph(graph, tuple(trained), tuple(terms), tuple(statistics), told)


def settings_in(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs that are one whole number, such as a sampling rate: they choose branches, and a step graph is made for each value."""
    return {name: array for name, array in feed.items() if array.ndim == 0 and array.dtype.kind in "iub"}


def told_apart(feed: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """What a step graph is made for: the shapes and settings of a feed."""
    settings = sorted((name, array.item()) for name, array in settings_in(feed).items())
    return (*settings, *sorted((name, array.shape) for name, array in feed.items()))


def _called(op: Pen, name: str, value: ir.Value) -> ir.Value:
    made: ir.Value = op.Identity(value)
    made.name = name
    return made


def _to_input(op: Pen, name: str) -> ir.Value:
    """An initializer becomes an input of the same name; half and double floats train in float32."""
    graph = op.graph.graph
    if name not in graph.initializers:
        raise ModelError(f"no constant is called {name!r}; {nearest(name, graph.initializers)}")
    value = graph.initializers[name]
    assert value.const_value is not None
    if value.const_value.dtype != ir.DataType.FLOAT:
        raise ModelError(f"parameter {name!r} is {value.const_value.dtype.name}, and only float32 trains; freeze it")
    value.shape, value.type = ir.Shape(value.const_value.shape), ir.TensorType(ir.DataType.FLOAT)  # type: ignore[arg-type]
    graph.initializers.pop(name)
    value.const_value = None
    graph.inputs.append(value)
    return value


def _masked(op: Pen, parameter: ir.Value) -> ir.Value:
    """All who read the parameter now read it times its mask."""
    mask = op.input(f"{MASK}{parameter.name}", shape_of(parameter))
    node = ir.node("Mul", [parameter, mask], name=f"{parameter.name}~masked")
    node.outputs[0].name = node.name
    parameter.replace_all_uses_with(node.outputs[0])
    node.replace_input_with(0, parameter)
    op.graph.graph.insert_before(op.graph.graph[0], node)
    return mask


def _gated(op: Pen, values: Mapping[str, ir.Value], name: str, axis: int) -> tuple[ir.Value, ir.Value]:
    """All who read the value now read it times its gate. Returns the gate, and the product."""
    if name not in values:
        raise ModelError(f"no value of the graph is called {name!r}; {nearest(name, values)}")
    value = values[name]
    shape, producer = shape_of(value), value.producer()
    gate = op.input(f"{GATE}{name}", [shape[axis]])
    graph = op.graph.graph
    at = axis % len(shape)
    lined = ir.node("Reshape", [gate, op.constant(np.array([-1 if a == at else 1 for a in range(len(shape))]))])
    scaled = ir.node("Mul", [value, lined.outputs[0]])
    for node, what in ((lined, "gate"), (scaled, "gated")):
        node.name = node.outputs[0].name = f"{name}~{what}"
    value.replace_all_uses_with(scaled.outputs[0])
    scaled.replace_input_with(0, value)
    graph.insert_before(graph[0], lined) if producer is None else graph.insert_after(producer, lined)
    graph.insert_after(lined, scaled)
    op.infer(lined)
    op.infer(scaled)
    return gate, scaled.outputs[0]


def _unnamed_outputs(graph: ir.Model) -> None:
    """The model's outputs are values like others: the loss decides which of them are computed."""
    for value in graph.graph.outputs:
        if value.producer() is None:
            raise ModelError(f"output {value.name!r} is an input or a constant; there is nothing to train for it")


def _in_training_form(op: Pen) -> list[Statistics]:
    found: list[Statistics] = []
    for node in list(op.graph.graph):
        if node.op_type == "BatchNormalization" and not node.domain:
            shape, running = shape_of(node.inputs[0]), [str(node.inputs[i].name) for i in (3, 4)]  # type: ignore[arg-type, union-attr]
            mean, var = training_form(op, node, len(found))
            count = prod(shape) // shape[1]
            found.append(Statistics(running[0], running[1], str(mean.name), str(var.name), count))
    return found
