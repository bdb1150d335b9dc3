"""Looking into branches of If: their values handed out, and the model as it is where samples always take the same ones.

A value is another output of its If, empty wherever the other branch is taken. What a Loop or Scan computes differs from turn to
turn and stays inside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxcompress.data import Data
from onnxcompress.model import Model
from onnxcompress.model.edit import bodies_of, branches, constant_of
from onnxcompress.runtime.loose import loose
from onnxcompress.runtime.session import Feeds, open_session


def inside(graph: ir.Model) -> dict[str, ir.Value]:
    """The values that can be handed out, by name: those of known type that nodes in branches compute."""
    held = branches(graph)
    return {
        value.name: value
        for body in held
        for node in body
        for value in node.outputs
        if value.name and isinstance(value.type, ir.TensorType)
    }


def hand_out(graph: ir.Model, names: Iterable[str]) -> None:
    """Make those of the names that lie in branches values of the main graph, without entries where their branch is not taken.

    The value inside gets another name. As many axes as before where that is known, else one.
    """
    held, places = branches(graph), inside(graph)
    for name in dict.fromkeys(names):
        value = places.get(name)
        if value is None:
            continue
        while (made := value.producer()) is not None and made.graph in held:
            value.name = f"{value.name}.inside"
            value = _through(held[made.graph], made.graph, value)  # type: ignore[index, arg-type]
        value.name = name


def _through(node: ir.Node, taken: ir.Graph, value: ir.Value) -> ir.Value:
    """One If further out."""
    for attribute in node.attributes.values():
        for body in bodies_of(attribute):
            made = (
                ir.node("Identity", [value]) if body is taken else ir.node("Constant", [], {"value": _nothing(value)})
            )
            shown = made.outputs[0]
            shown.name, shown.type = f"{value.name}.{body.name}", value.type
            body.append(made)
            body.outputs.append(shown)
    node.resize_outputs(len(node.outputs) + 1)
    out = node.outputs[-1]
    out.name, out.type = f"{value.name}.out", value.type
    return out


def _nothing(value: ir.Value) -> ir.Tensor:
    rank = 1 if value.shape is None else len(value.shape)
    return ir.Tensor(np.zeros((0,) * max(rank, 1), value.dtype.numpy()))  # type: ignore[union-attr]


def straight(model: Model, names: Collection[str], feeds: Iterable[Feeds]) -> Model:
    """The model as all of these samples run it: Ifs that hold nodes of these names give way to the branch that is taken.

    Not those of which the samples take both. Other Ifs, and the names of nodes and values, stay.
    """
    inner = {node.name for body in branches(model.ir) for node in body}
    if not inner & set(names):
        return model
    graph, feeds, left = model.ir.clone(), list(feeds), False
    while True:
        ways = _ways(graph, _holding(graph, names), feeds)
        if not ways:
            return model.edited(graph) if left else model
        for node, way in ways.items():
            _unfold(graph, node, node.attributes["then_branch" if way else "else_branch"].as_graph())
        left = True


def paths(model: Model, names: Collection[str], data: Data) -> Iterator[tuple[Model, Data]]:
    """The model as its samples run it where they take several branches: as `straight`, a model for each way, with the samples that go it.

    Those of most samples first. What branches that are not taken read as well has one reader more in what is given back, so that
    whoever counts readers of a constant sees that it is shared.
    """
    made = straight(model, names, data.batches(1))
    mixed = _holding(made.ir, names)
    if not mixed:
        yield _shared(model, made), data
        return
    groups: dict[tuple[bool, ...], list[int]] = {}
    told = _conditions(made.ir, mixed, data.batches(1))
    for index, way in zip(data.indices.tolist(), told, strict=True):
        groups.setdefault(way, []).append(index)
    for way in sorted(groups, key=lambda each: -len(groups[each])):
        own = replace(data, indices=np.array(groups[way], data.indices.dtype))
        for each, samples in paths(made, names, own):
            yield _shared(model, each), samples


def _shared(model: Model, made: Model) -> Model:
    """`made` with readers of constants that had more in the model it was made of."""
    readers = {name: len(list(value.uses())) for name, value in model.initializers.items()}
    less = [name for name, value in made.initializers.items() if 0 < len(list(value.uses())) < readers.get(name, 0)]
    if not less:
        return made
    graph = made.ir.clone()
    for name in less:
        beside = ir.node("Identity", [graph.graph.initializers[name]], name=f"{name}.beside")
        beside.outputs[0].name = f"{name}.beside"
        graph.graph.insert_before(graph.graph[0], beside)
    return made.edited(graph)


def _holding(graph: ir.Model, names: Collection[str]) -> list[ir.Node]:
    """The Ifs of the main graph that hold nodes of these names, at any depth."""

    def held(node: ir.Node) -> Iterator[ir.Node]:
        return (each for a in node.attributes.values() for body in bodies_of(a) for each in body.all_nodes())

    return [node for node in graph.graph if node.op_type == "If" and any(each.name in names for each in held(node))]


def _ways(graph: ir.Model, nodes: Sequence[ir.Node], feeds: Sequence[Feeds]) -> dict[ir.Node, bool]:
    """Which way samples take at these Ifs of the main graph, where that is always the same."""
    told = zip(*_conditions(graph, nodes, feeds), strict=True)
    return {node: ways[0] for node, ways in zip(nodes, told, strict=False) if len(set(ways)) == 1}


def _conditions(graph: ir.Model, nodes: Sequence[ir.Node], feeds: Iterable[Feeds]) -> Iterator[tuple[bool, ...]]:
    """What each of these Ifs of the main graph is told by each feed."""
    asked = [(node.inputs[0].name or "", node.inputs[0]) for node in nodes if node.inputs[0] is not None]
    known = {name: value for name, each in asked if (value := constant_of(each)) is not None}
    computed = list(dict.fromkeys(name for name, each in asked if each.producer() is not None and name not in known))
    session = None
    if computed:
        told = graph.clone()
        places = {value.name: value for node in told.graph for value in node.outputs}
        told.graph.outputs[:] = [places[name] for name in computed]
        session = open_session(loose(told), name="the conditions")
    for feed in feeds:
        values = {**feed, **known, **(session.run(feed) if session is not None else {})}
        yield tuple(bool(values[name]) for name, _ in asked)


def _unfold(graph: ir.Model, node: ir.Node, body: ir.Graph) -> None:
    """What a body holds, where its If stood."""
    made, results = list(body), list(body.outputs)
    body.outputs.clear()
    body.remove(made)
    graph.graph.insert_before(node, made)
    for old, new in zip(node.outputs, results, strict=True):
        name, last = old.name, ir.node("Identity", [new], name=f"{node.name}.{old.name}")
        graph.graph.insert_before(node, last)
        shown = last.outputs[0]
        shown.type, shown.shape = old.type, old.shape
        old.replace_all_uses_with(shown, replace_graph_outputs=True)
        old.name, shown.name = None, name
    graph.graph.remove(node)
