"""Which values need one and the same grid, and which grids follow from others: what the rows' forms mean for grids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, walk
from onnxcompress.operators.layer import Layer, by_node
from onnxcompress.passes.quantize.grid import Grid
from onnxcompress.passes.quantize.rows import bias_adds, data_of, number_of, result_of, row_of


@dataclass(frozen=True)
class Share:
    """Values that must be on the same grid.

    values  names, in the order of the graph       ranges  those of them whose seen ranges count, together
    fixed   the range, where the operator knows it  of     the node that makes the grid from its input's: see `derived`
    limits  beyond them the one node that reads the values makes all entries alike
    flat    so far from zero, either way, whoever reads them does
    holds   number that should be a level: what an Add further on makes zero of
    """

    values: tuple[str, ...]
    ranges: tuple[str, ...]
    fixed: tuple[float, float] | None = None
    of: str = ""
    limits: tuple[float, float] = (-np.inf, np.inf)
    flat: float = np.inf
    holds: float | None = None


def shares(model: Model, nodes: Collection[str]) -> list[Share]:
    """Every float value that the static nodes `nodes` read or write, in sets that need one grid each, in graph order.

    Products that can hand out floats are among the writers: leave their grid away where only float nodes read them.
    """
    weighted = by_node(model)
    parent: dict[str, str] = {}
    made: dict[str, ir.Node] = {}
    flat: dict[str, float] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            name = parent[name]
        return name

    chosen = [node for node in walk(model.ir) if node.name in nodes]
    absorbed = bias_adds(chosen, weighted)
    chosen = [node for node in chosen if node not in absorbed]
    for node in chosen:
        fed = [v for v in data_of(node) if constant_of(v) is None]
        reads = [v.name or "" for v in fed]
        writes = [result_of(node, weighted.get(node.name or "")), *node.outputs[1:]]
        for value in (*fed, *writes):
            root(value.name or "")
            flat[value.name or ""] = _flat(value)
        for value in writes:
            made[value.name or ""] = node
            if row_of(node).form in ("moves", "clips"):
                parent[root(value.name or "")] = root(reads[0])
    parts: set[str] = set()
    for node in chosen:
        if row_of(node).joins:
            for names in _laid_together(node, made, lambda name: [each for each in parent if root(each) == root(name)]):
                parts.update(names)
                parent[root(names[0])] = root(node.outputs[0].name or "")
    sets: dict[str, list[str]] = {}
    for name in parent:
        sets.setdefault(root(name), []).append(name)
    clipped = _only_clipped(chosen)
    limits, holds = _only_ramps(chosen), {root(name): number for name, number in _zeros(chosen, made).items()}
    return [
        replace(
            _share(names, made, clipped, parts),
            limits=limits.get(names[0], Share.limits) if len(names) == 1 else Share.limits,
            holds=holds.get(key),
            flat=max(flat[name] for name in names),
        )
        for key, names in sets.items()
    ]


def _flat(value: ir.Value) -> float:
    """How far from zero all that read a value stop telling its entries apart; what moves or clips them is looked through."""
    if value.is_graph_output() or not value.uses():
        return np.inf
    rows = {user: row_of(user) for user, _ in value.uses()}
    through = [user for user, row in rows.items() if row.form in ("moves", "clips")]
    ends = [row.flat for user, row in rows.items() if user not in through]
    return max([*ends, *(_flat(output) for user in through for output in user.outputs)])


def _only_ramps(chosen: list[ir.Node]) -> Mapping[str, tuple[float, float]]:
    """Value -> where the ramp begins and ends (a HardSwish goes on), for values that nothing else reads."""
    found = {}
    for node in chosen:
        read = node.inputs[0]
        if row_of(node).form == "ramp" and read is not None and not read.is_graph_output() and len(read.uses()) == 1:
            slope, offset = _line(node)
            if slope > 0:
                end = np.inf if node.op_type == "HardSwish" else (1 - offset) / slope
                found[read.name or ""] = (min(-offset / slope, 0.0), max(end, 0.0))
    return found


def _zeros(chosen: list[ir.Node], made: Mapping[str, ir.Node]) -> Mapping[str, float]:
    """Value -> its entry that the Add of a number makes zero of, Muls by numbers between them left aside."""
    found: dict[str, float] = {}
    for node in chosen:
        if row_of(node).form != "affine" or node.op_type != "Add":
            continue
        number, value = -(number_of(node) or 0.0), activation(node)
        while (before := made.get(value)) is not None and row_of(before).form == "affine" and before.op_type == "Mul":
            number, value = number / (number_of(before) or 1.0), activation(before)
        found.setdefault(value, number)
    return found


def activation(node: ir.Node) -> str:
    """The first value that a node reads and that is computed."""
    return next(v.name or "" for v in node.inputs if v is not None and constant_of(v) is None)


def _only_clipped(chosen: list[ir.Node]) -> Mapping[str, str]:
    """Value -> the output of the one node that reads it, where that node clips."""
    found = {}
    for node in chosen:
        read = node.inputs[0]
        if row_of(node).form == "clips" and read is not None and not read.is_graph_output() and len(read.uses()) == 1:
            found[read.name or ""] = node.outputs[0].name or ""
    return found


def _laid_together(
    node: ir.Node, made: Mapping[str, ir.Node], together: Callable[[str], list[str]]
) -> Iterator[list[str]]:
    """Inputs that may take the grid of what the node makes of them, each with the names on its own grid (`together`).

    They are read by that node alone, so that nobody misses a finer one: there is one rounding where there were two. What only
    clips is left out unless all inputs do, since that is free where a grid begins at zero, and the shared one would not.
    """
    reads = {v.name or "": v for v in data_of(node) if constant_of(v) is None}
    sets = {name: together(name) for name in reads}
    clips = {
        name: sorted(_clip(made[each]) for each in names if _moves(each, made, "clips")) for name, names in sets.items()
    }
    alike = len(reads) == len(node.inputs) and len({tuple(each) for each in clips.values()}) == 1
    for name, names in sets.items():
        inner = {made[each] for each in names if _moves(each, made, "moves", "clips")}
        values = {v for each in inner for v in (*each.inputs, *each.outputs) if v is not None and v.name in names}
        seen = {user for value in (reads[name], *values) for user, _ in value.uses()}
        rows = [row_of(made[each]) for each in names if each in made and made[each] not in inner]
        free = not any(value.is_graph_output() for value in (reads[name], *values)) and seen <= {*inner, node}
        own = all(row.fixed is None and row.form in ("product", "computes") for row in rows)
        if free and own and (alike or not clips[name]) and node.outputs[0].name not in names:
            yield names


def _moves(name: str, made: Mapping[str, ir.Node], *forms: str) -> bool:
    return name in made and row_of(made[name]).form in forms


def _clip(node: ir.Node) -> str:
    """An operator and its limits."""
    return " ".join([node.op_type, *(str(constant_of(value)) for value in node.inputs[1:])])


def _share(names: list[str], made: Mapping[str, ir.Node], clipped: Mapping[str, str], parts: Collection[str]) -> Share:
    """parts: values that others of the same grid are laid together from: what was seen of these counts once"""
    sources = [name for name in names if not _moves(name, made, "moves", "clips") and name not in parts]
    ranges = []
    for name in sources:
        while name in clipped:
            name = clipped[name]
        ranges.append(name)
    rows = [(row_of(made[name]), made[name]) for name in sources if name in made]
    fixed = next((row.fixed for row, _ in rows if row.fixed is not None), None)
    of = next((node.name or "" for row, node in rows if row.form == "affine" or node.op_type == "HardSigmoid"), "")
    return Share(tuple(names), tuple(dict.fromkeys(ranges)), fixed, of)


def derived(node: ir.Node, grid: Grid) -> Grid | None:
    """The grid of what a HardSigmoid or an affine node writes, from that of what it reads; None where it needs its own."""
    if row_of(node).form == "affine":
        return affine(node, grid)
    found = ramp(node, grid)
    return None if found is None else found[0]


def follows(node: ir.Node, grids: Mapping[str, Grid]) -> bool:
    """Does a node run on the levels that are there, so that it rounds nothing?"""
    form = row_of(node).form
    if form != "affine":
        return form in ("moves", "clips")
    source = grids.get(activation(node))
    return source is not None and affine(node, source) is not None


@dataclass(frozen=True)
class Roundings:
    """Where the activations of a float graph are rounded, so that it says what the quantized one says.

    results  of all nodes that run on integers, without the Add nodes that are biases of others: what each leaves
    read     what comes from float nodes: a value -> the integer nodes that read it, and at which input
    written  what integer nodes compute anew: rounded for all who read it
    """

    results: Mapping[ir.Node, ir.Value]
    read: Mapping[ir.Value, list[tuple[ir.Node, int]]]
    written: list[ir.Value]


def roundings(
    graph: ir.Model, nodes: Collection[str], grids: Mapping[str, Grid], weighted: Mapping[str, Layer]
) -> Roundings:
    """Of the values in `grids`, where `nodes` of the graph run on integers; `weighted`: layers by node."""
    chosen = [node for node in walk(graph) if node.name in nodes]
    absorbed = bias_adds(chosen, weighted)
    results = {node: result_of(node, weighted.get(node.name or "")) for node in chosen if node not in absorbed}
    made = {value for node, result in results.items() for value in (result, *node.outputs)}
    read: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for node in results:
        operands = {value for value in data_of(node) if value.name in grids and constant_of(value) is None}
        for index, value in enumerate(node.inputs):
            if value is not None and value in operands and value not in made:
                read.setdefault(value, []).append((node, index))
    written = [value for node, value in results.items() if value.name in grids and not follows(node, grids)]
    return Roundings(results, read, written)


NEAR = 0.25
"""Steps by which a zero may be off: three quarters of a rounding error's power; two more roundings would cost two."""


def affine(node: ir.Node, grid: Grid) -> Grid | None:
    """The grid on which the levels of x tell x + b or x · a. None where the new zero is no level of the type."""
    number = number_of(node)
    if number is None or grid.axis is not None:
        return None
    if node.op_type == "Mul":
        return replace(grid, scale=np.asarray(np.float32(number) * grid.scale, np.float32))
    exact = float(grid.zero) - number / float(grid.scale)
    zero = int(np.rint(exact))
    if abs(exact - zero) > NEAR or not grid.low <= zero <= grid.high:
        return None
    return replace(grid, zero=np.asarray(zero))


def _line(node: ir.Node) -> tuple[float, float]:
    """(α, β) of HardSigmoid, or of the one in HardSwish."""
    if node.op_type == "HardSwish":
        return 1 / 6, 0.5
    return float(node.attributes.get_float("alpha", 0.2) or 0.0), float(node.attributes.get_float("beta", 0.5) or 0.0)


def ramp(node: ir.Node, grid: Grid) -> tuple[Grid, int, int] | None:
    """clip(αx + β, 0, 1) of levels on `grid`: the grid that reads the clipped levels, and the levels to clip at.

    With x = (q − z)s it is αs·(q − (z − β/(αs))): the same levels, another scale and zero. The zero is rounded, an
    error of at most half a step. None where it does not fit the type: the ramp begins outside the grid.
    """
    slope, offset = _line(node)
    scale = np.float32(slope) * grid.scale
    if slope <= 0 or grid.axis is not None:
        return None
    zero = int(np.rint(float(grid.zero) - offset / float(scale)))
    if not grid.low <= zero <= grid.high:
        return None
    top = min(zero + int(np.rint(1 / float(scale))), grid.high)
    return Grid(np.asarray(scale, np.float32), np.asarray(zero), grid.kind, None, grid.low, grid.high), zero, top
