"""A model with Ifs as models without: for samples that take the same branches, these branches stand in place of the Ifs.

What walks a graph node by node sees nothing of a body. Which branch a sample takes is asked from the model itself, an outer If before
those inside it; samples are put together by their branches, and each such model is walked on its own samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxcompress.data import Data
from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of
from onnxcompress.model.save import to_bytes
from onnxcompress.runtime.session import open_session

Conditions = tuple[bool, ...]


def straight(model: Model, data: Data, threads: int = 1) -> Iterator[tuple[Model, Data]]:
    """Models whose main graph has no If, each with the samples that go through it; those of most samples first.

    Names of nodes, values and initializers are the model's own. What is read in a branch that is not taken has a reader more
    in what is given back, so that whoever counts readers counts them all.
    """
    ifs = [node for node in model.ir.graph if node.op_type == "If"]
    if not ifs:
        yield model, data
        return
    groups: dict[Conditions, list[int]] = {}
    for conditions, samples in _taken(model, ifs, data, threads):
        groups.setdefault(conditions, []).extend(samples)
    for conditions in sorted(groups, key=lambda each: -len(groups[each])):
        mine = replace(data, indices=np.array(groups[conditions], data.indices.dtype))
        yield from straight(_inlined(model, conditions), mine, threads)


def _taken(model: Model, ifs: list[ir.Node], data: Data, threads: int) -> Iterator[tuple[Conditions, list[int]]]:
    """What the conditions of these nodes are, sample by sample."""
    asked = [node.inputs[0] for node in ifs]
    known = {each.name: constant for each in asked if each is not None and (constant := constant_of(each)) is not None}
    graph = model.ir.clone()
    made = {value.name: value for node in graph.graph for value in node.outputs}
    wanted = {each.name: made[each.name] for each in asked if each is not None and each.name in made}
    graph.graph.outputs[:] = list(wanted.values())
    session = open_session(to_bytes(graph), threads=threads, name="conditions of the model") if wanted else None
    for samples, feed in data.indexed(1):
        values = {**known, **feed, **(session.run(feed) if session is not None else {})}
        yield tuple(bool(np.all(values[each.name])) for each in asked if each is not None), samples.tolist()


def _inlined(model: Model, conditions: Conditions) -> Model:
    """The model with branches in place of its outer Ifs, in their order."""
    readers = {name: len(list(value.uses())) for name, value in model.initializers.items()}
    graph = model.ir.clone()
    main = graph.graph
    for node, condition in zip([each for each in main if each.op_type == "If"], conditions, strict=True):
        branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
        results, inside = list(branch.outputs), list(branch)
        branch.outputs.clear()
        branch.remove(inside)
        ends = []
        for result, value in zip(results, node.outputs, strict=True):
            end = ir.node("Identity", [result], name=f"{value.name}~")
            end.outputs[0].name, end.outputs[0].type, end.outputs[0].shape = value.name, value.type, value.shape
            value.replace_all_uses_with(end.outputs[0], replace_graph_outputs=True)
            ends.append(end)
        main.insert_before(node, [*inside, *ends])
        main.remove(node, safe=True)
    for name, count in readers.items():
        value = main.initializers[name]
        if 0 < len(list(value.uses())) < count:
            beside = ir.node("Identity", [value], name=f"{name}~")
            beside.outputs[0].name = f"{name}~"
            main.insert_before(main[0], beside)
    return model.edited(graph)
