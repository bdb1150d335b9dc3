"""Small models for the tests of the writers, ranges from data, and what onnxruntime makes of the written graph."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.evidence.expose import exposed
from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, set_constant, walk
from onnxcompress.model.load import load
from onnxcompress.model.save import to_bytes
from onnxcompress.operators.layer import layers
from onnxcompress.passes.quantize.grid import Grid, grid_of
from onnxcompress.passes.quantize.pen import Rounded
from onnxcompress.passes.quantize.ranges import holding
from onnxcompress.passes.quantize.rows import refusal, row_of, weight_axis
from onnxcompress.passes.quantize.shares import NEAR, derived, shares
from onnxcompress.runtime.session import open_session

Arrays = dict[str, np.ndarray]


def model_of(text: str, constants: Arrays | None = None, opset: int = 17) -> Model:
    """`agraph (float[1,4] x) => (float[1,4] y) {...}` with constants, through the door."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in (constants or {}).items())
    return load(proto)


def feeds_of(model: Model, seed: int = 0, count: int = 4) -> list[Arrays]:
    """Normal numbers for float inputs, small whole ones for the others."""
    rng = np.random.default_rng(seed)
    return [
        {
            port.name: rng.standard_normal([s if isinstance(s, int) else 2 for s in port.shape]).astype(np.float32)
            if port.dtype == np.float32
            else rng.integers(0, 2, [s if isinstance(s, int) else 2 for s in port.shape]).astype(port.dtype)
            for port in open_session(to_bytes(model.ir)).inputs
        }
        for _ in range(count)
    ]


def rounded_weights(model: Model, names: set[str]) -> dict[str, Rounded]:
    """int8, symmetric, a scale a channel."""
    found = {}
    for layer in layers(model):
        if layer.name in names:
            values, axis = model.array(layer.weight), weight_axis(layer)
            others = tuple(i for i in range(values.ndim) if i != axis)
            low, high = (f(values, axis=None if axis is None else others) for f in (np.min, np.max))
            grid = grid_of(low, high, "int8", symmetric=True, axis=axis)
            found[layer.weight] = Rounded(grid.levels(values), grid)
    return found


def static(model: Model) -> set[str]:
    """Every node that can be."""
    return {node.name or "" for node in model.ir.graph if not refusal(node, {model.ir.graph})}


def decided(
    model: Model, feeds: list[Arrays], nodes: set[str] | None = None
) -> tuple[set[str], dict[str, Grid], dict[str, Rounded]]:
    """Grids from the least and largest value seen; everything that can be static is, or the nodes given."""
    nodes = static(model) if nodes is None else nodes
    sets = shares(model, nodes)
    ranges = _seen(model, feeds, [name for share in sets for name in share.ranges])
    grids: dict[str, Grid] = {}
    by_name = {node.name: node for node in walk(model.ir)}
    for share in sorted(sets, key=lambda share: bool(share.of)):
        low, high = share.fixed or (min(ranges[n][0] for n in share.ranges), max(ranges[n][1] for n in share.ranges))
        grid = grid_of(low, high, "uint8", symmetric=False)
        grid = grid if share.holds is None else holding(grid, share.holds, NEAR)
        if share.of:
            node = by_name[share.of]
            source = next(v.name or "" for v in node.inputs if constant_of(v) is None)  # type: ignore[union-attr]
            found = derived(node, grids[source])
            grid = found if found else grid
        grids.update(dict.fromkeys(share.values, grid))
    products = {name for name in nodes if row_of(by_name[name]).form == "product"}
    return nodes, grids, rounded_weights(model, products)


def _seen(model: Model, feeds: list[Arrays], names: list[str]) -> dict[str, tuple[float, float]]:
    inner = [name for name in names if name not in feeds[0]]
    seen: dict[str, list[np.ndarray]] = {name: [feed[name] for feed in feeds] for name in names if name in feeds[0]}
    for feed in feeds if inner else []:
        shown = exposed(model, inner)
        answers = open_session(shown.model, optimise=False, outputs=shown.outputs).run(feed)
        for name, values in answers.items():
            seen.setdefault(name, []).extend([values] if values.size else [])
    return {name: (float(min(v.min() for v in each)), float(max(v.max() for v in each))) for name, each in seen.items()}


def executed(model: Model) -> Counter[str]:
    """Operators that onnxruntime executes; layouts depend on the CPU, so transposes and their names do not count."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        open_session(to_bytes(model.ir), optimised_to=path)
        found = Counter(node.op_type.removeprefix("Nhwc") for node in onnx.load(path).graph.node)
    return Counter({op: count for op, count in found.items() if op not in ("Transpose", "Reshape")})


def run(model: Model, feed: Arrays, *, optimise: bool = True) -> Arrays:
    """The outputs."""
    return open_session(to_bytes(model.ir), optimise=optimise).run(feed)


def fake(model: Model, feed: Arrays, grids: dict[str, Grid], weights: dict[str, Rounded]) -> Arrays:
    """Fake quantization in numpy around the float operators: weights, inputs and outputs rounded, nothing between."""
    graph: ir.Model = model.ir.clone()
    for name, stored in weights.items():
        set_constant(graph, name, stored.grid.values(stored.levels))
    for node in graph.graph:
        for value in node.inputs:
            values = constant_of(value)
            if (
                value is not None
                and values is not None
                and row_of(node).form == "computes"
                and values.dtype.kind == "f"
            ):
                grid = grid_of(values.min(), values.max(), "uint8", symmetric=False)
                set_constant(graph, value.name or "", grid.rounded(values))
    fed = {name: grids[name].rounded(x) if name in grids else x for name, x in feed.items()}
    outputs = open_session(to_bytes(graph)).run(fed)
    return {name: grids[name].rounded(y) if name in grids else y for name, y in outputs.items()}


def db(wanted: np.ndarray, got: np.ndarray) -> float:
    """Signal over error."""
    error = float(((wanted.astype(np.float64) - got) ** 2).sum())
    return 10 * float(np.log10(float((wanted.astype(np.float64) ** 2).sum()) / max(error, 1e-30)))
