"""How much of a relative error in what one layer puts out arrives at the model's outputs.

Every observed value y becomes y · (1 + g · r), with r a fixed pattern of ±1 along its channels and g a scalar input of the
graph, zero by default: an error of exactly g². One session then serves all values, one run each. What arrives, divided by g²,
is the sensitivity by which errors of different layers can be added up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.data import Data
from onnxcompress.evidence.gates import Share, add_gate, arriving
from onnxcompress.model import Model
from onnxcompress.model.edit import new_constant

GATE = 0.1
"""-20 dB: far above float noise, and small enough that the answer is nearly linear."""


def sensitivities(
    model: Model,
    values: Sequence[tuple[str, int]],
    data: Data,
    *,
    batch: int = 8,
    batches: int = 1,
    threads: int = 1,
    seed: int = 0,
    share: Share | None = None,
) -> dict[str, float]:
    """Value name -> noise share at the worst output for each unit of noise share at the value.

    values  names of main-graph values and their channel axis; those inside If or Loop bodies are left out
    share   of noise at the outputs; None: gates.noise_share
    """
    graph, gates = _gated(model, values, seed)
    openings = {value: [gate] for value, gate in gates.items()}
    found = arriving(
        graph,
        openings,
        data,
        level=GATE,
        batch=batch,
        batches=batches,
        threads=threads,
        name=model.source.name,
        share=share,
    )
    return {value: noise / GATE**2 for value, noise in found.items()}


def _gated(model: Model, values: Sequence[tuple[str, int]], seed: int) -> tuple[ir.Model, dict[str, str]]:
    """The graph with a gate at every value; value name -> name of its gate input."""
    graph = model.ir.clone()
    axes = dict(values)
    gates: dict[str, str] = {}
    for node in list(graph.graph):
        for value in node.outputs:
            axis = axes.get(value.name or "")
            if axis is None or value.shape is None or value.dtype != ir.DataType.FLOAT or value.is_graph_output():
                continue
            size = value.shape[axis]
            if not isinstance(size, int):
                continue
            gates[value.name or ""] = _insert(
                graph, node, value, (axis % len(value.shape), size), np.random.default_rng([seed, len(gates)])
            )
    return graph, gates


def _insert(graph: ir.Model, node: ir.Node, value: ir.Value, along: tuple[int, int], rng: np.random.Generator) -> str:
    """value · (1 + gate · pattern), for all its readers."""
    axis, size = along
    shape = [1] * len(value.shape)  # type: ignore[arg-type]
    shape[axis] = size
    name = f"{value.name}.gate"
    gate = add_gate(graph, name)
    signs = new_constant(graph, f"{name}.signs", rng.choice([-1.0, 1.0], shape).astype(np.float32))
    one = new_constant(graph, f"{name}.one", np.ones((), np.float32))
    readers = list(value.uses())
    scaled = ir.node("Mul", [gate, signs], name=f"{name}.scaled")
    factor = ir.node("Add", [scaled.outputs[0], one], name=f"{name}.factor")
    gated = ir.node("Mul", [value, factor.outputs[0]], name=f"{name}.gated")
    for made in (scaled, factor, gated):
        made.outputs[0].name = f"{made.name}.out"
    node.graph.insert_after(node, [scaled, factor, gated])  # type: ignore[union-attr]
    for reader, index in readers:
        reader.replace_input_with(index, gated.outputs[0])
    return name
