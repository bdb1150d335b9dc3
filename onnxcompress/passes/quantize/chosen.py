"""Which nodes go together in int8: products first, and around them only what does not cost a conversion that nobody else needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import onnx_ir as ir

from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.model.edit import branches, constant_of, input_of, walk
from onnxcompress.operators.layer import Layer, by_node
from onnxcompress.passes.quantize.grid import Grid
from onnxcompress.passes.quantize.rows import IN_BODY, NOT_TAKEN, bias_adds, data_of, refusal, result_of, row_of
from onnxcompress.passes.quantize.shares import shares

RANGES = ("histogram", "range")
"""Kinds of evidence that tell a range."""


def candidates(model: Model, kept: Collection[str]) -> tuple[dict[str, ir.Node], dict[str, str]]:
    """Nodes of the main graph and of branches that can run on static grids, by name; and why each other one with a weight cannot.

    kept  names of nodes that stay float because somebody said so
    """
    found, refused = {}, {}
    weighted, graphs = by_node(model), {model.ir.graph, *branches(model.ir)}
    for node in walk(model.ir):
        name = node.name or ""
        why = "it was to be kept" if name in kept else refusal(node, graphs)
        if not why:
            found[name] = node
        elif name in weighted:
            refused[name] = why
    return found, refused


def in_bodies(refused: Mapping[str, str]) -> list[str]:
    """A sentence for the report where `refused` names layers of loops, and one for those of branches that were not taken."""
    told = []
    for why, where in (
        (IN_BODY, "bodies of Loop or Scan"),
        (NOT_TAKEN, "branches of If that no calibration sample takes"),
    ):
        count = sum(each == why for each in refused.values())
        layers = "1 layer lies" if count == 1 else f"{count} layers lie"
        if count:
            told.append(f"{layers} in {where}, where nobody sees ranges: activations stay float there, weights do not")
    return told


def unseen(model: Model, names: Collection[str], evidence: Evidence) -> frozenset[str]:
    """Those of the nodes in branches that read or write a value of which the evidence has no range: no sample came by."""
    missing = {
        value
        for share in shares(model, names)
        if share.fixed is None and not any(Need(k, v, 0) in evidence for k in RANGES for v in share.ranges)
        for value in share.values
    }
    held, weighted = branches(model.ir), by_node(model)
    return frozenset(
        node.name or ""
        for node in walk(model.ir)
        if node.name in names
        and node.graph in held
        and any(v.name in missing for v in (*data_of(node), result_of(node, weighted.get(node.name or ""))))
    )


def connected(model: Model, names: Iterable[str]) -> frozenset[str]:
    """Those of the nodes that are worth it: all products; others where the levels that they read are there anyway.

    A kernel that adds or pools bytes saves time only between integer kernels: one operand at least must come from one, and
    one reader be one. A node that moves or clips follows the kernel before it, since a grid that begins at zero tells more.
    """
    wanted = set(names)
    weighted = by_node(model)
    nodes = {node.name or "": node for node in walk(model.ir) if node.name in wanted}
    while True:
        absorbed = {node.name for node in bias_adds(nodes.values(), weighted)}
        out = [name for name, node in nodes.items() if name not in absorbed and not _pays(node, nodes, weighted)]
        if not out:
            return frozenset(nodes)
        for name in out:
            del nodes[name]


def _pays(node: ir.Node, nodes: Mapping[str, ir.Node], weighted: Mapping[str, Layer]) -> bool:
    form = row_of(node).form
    if form == "product":
        return True
    fed = [_writer(value, nodes, weighted) for value in data_of(node) if constant_of(value) is None]
    if form == "clips":
        return any(fed)
    return any(fed) and any(reader.name in nodes for output in node.outputs for reader, _ in output.uses())


def _writer(value: ir.Value, nodes: Mapping[str, ir.Node], weighted: Mapping[str, Layer]) -> bool:
    """Does a chosen node write this value (a MatMul through the Add of its bias)?"""
    made = value.producer()
    if made is None:
        return False
    if made.name in nodes:
        return True
    before = next((v.producer() for v in made.inputs if v is not None and constant_of(v) is None), None)
    return before is not None and before.name in nodes and result_of(before, weighted.get(before.name or "")) is value


def classes(model: Model, nodes: Collection[str]) -> dict[str, list[str]]:
    """Like nodes under one name, for the clock: operators, and convolutions by what makes their kernels differ."""
    weighted = by_node(model)
    found: dict[str, list[str]] = {}
    for node in walk(model.ir):
        name = node.name or ""
        if name in nodes and row_of(node).form in ("product", "computes", "ramp"):
            found.setdefault(_kind(node, weighted.get(name), model), []).append(name)
    return found


FEW = 8
"""Channels below which an integer convolution does not fill its vectors."""


def _kind(node: ir.Node, layer: Layer | None, model: Model) -> str:
    if layer is None or "Conv" not in layer.op:
        return node.op_type if layer is not None or node.op_type != "MatMul" else "MatMul of activations"
    out, per_group, *kernel = layer.matrix(model.array(layer.weight)).shape
    if layer.groups > 1:
        return "depthwise Conv" if per_group == 1 else "grouped Conv"
    if min(per_group, out) < FEW:
        return "Conv of few channels"
    return "pointwise Conv" if all(size == 1 for size in kernel) else "Conv"


def needless(model: Model, nodes: Collection[str], *, ends: bool = False) -> set[str]:
    """Values whose product can hand them out in float, because no integer node reads them.

    ends  also of products that write outputs of the model
    """
    weighted, found = by_node(model), set()
    for node in walk(model.ir):
        if node.name in nodes and row_of(node).float_output:
            result = result_of(node, weighted.get(node.name or ""))
            read = any(reader.name in nodes and _reads(reader, result) for reader, _ in result.uses())
            if not read and (ends or not result.is_graph_output()):
                found.add(result.name or "")
    return found


def needed(model: Model, nodes: Collection[str], grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """The grids without those of `needless` values."""
    gone = needless(model, nodes)
    return {value: grid for value, grid in grids.items() if value not in gone}


def _reads(node: ir.Node, value: ir.Value) -> bool:
    return any(input_of(node, index) is value for index in range(len(node.inputs)))
