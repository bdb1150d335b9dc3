"""What all writers of quantized graphs do: new nodes with free names, constants of their own, unread leftovers taken out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import LIKE, new_constant, walk
from onnxcompress.passes.quantize.grid import Grid

MICROSOFT = "com.microsoft"


@dataclass(frozen=True, eq=False)
class Rounded:
    """A weight on its grid: integer levels in the stored layout."""

    levels: np.ndarray
    grid: Grid


@dataclass(frozen=True, eq=False)
class Decided:
    """What a plan of static int8 says: nodes, grids of values, levels of weights, corrected biases."""

    nodes: Collection[str]
    grids: Mapping[str, Grid]
    weights: Mapping[str, Rounded]
    biases: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Pen:
    """A graph under edit, and the names of nodes that are taken in it."""

    graph: ir.Model
    taken: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.taken = {node.name or "" for node in walk(self.graph)}

    def constant(self, name: str, values: np.ndarray) -> ir.Value:
        """A new initializer: each reader has its own, equal ones are merged when the file is saved. Large ones are no copies."""
        return new_constant(self.graph, name, np.asarray(values, order="C"))

    def node(
        self,
        op: str,
        inputs: list[ir.Value | None],
        name: str,
        *,
        dtype: ir.DataType = ir.DataType.FLOAT,
        like: ir.Value | None = None,
        before: ir.Node | None = None,
        domain: str = "",
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        """A node whose one output is called `name`, of type `dtype` and shaped as `like`; put before another node, or nowhere yet."""
        made = ir.node(op, inputs, attributes, domain=domain, name=self.free(f"{name}.{op}"))
        value = made.outputs[0]
        value.name, value.type = name, ir.TensorType(dtype)
        if like is not None:
            value.shape, value.meta[LIKE] = like.shape, like.name or ""
        if before is not None:
            assert isinstance(before.graph, ir.Graph)
            before.graph.insert_before(before, made)
        if domain:
            self.graph.graph.opset_imports.setdefault(domain, 1)
        return value

    def free(self, name: str) -> str:
        """A name that no node has yet."""
        found, number = name, 0
        while found in self.taken:
            number += 1
            found = f"{name}.{number}"
        self.taken.add(found)
        return found


def instead(old: ir.Value, new: ir.Value) -> None:
    """`new` takes the readers, the name, type and shape of `old`; its node goes when nothing of it is read."""
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    node = old.producer()
    if node is not None and isinstance(node.graph, ir.Graph) and not any(each.uses() for each in node.outputs):
        node.graph.remove(node, safe=True)
    new.name, old.name = old.name, None
