"""A Pen adds the nodes and constants of decoding chains to a graph; a Form is one way to hold symbols, with these nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.weights.coded import Coded

NODE_BYTES = 40
"""Of a node with its names in the file."""


def halved(values: np.ndarray) -> np.ndarray | None:
    """As float16, where that holds the numbers exactly and saves more than a node takes."""
    if values.dtype != np.float32 or values.nbytes <= 4 * NODE_BYTES:
        return None
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None


@dataclass
class Pen:
    """Adds constants and nodes to a graph; equal constants are written once."""

    graph: ir.Graph
    nodes: list[ir.Node] = field(default_factory=list)
    _made: dict[tuple, ir.Value] = field(default_factory=dict)
    _number: int = 0

    def name(self) -> str:
        """A short free name."""
        while (found := f"~{self._number}") in self.graph.initializers:
            self._number += 1
        self._number += 1
        return found

    def constant(self, values: np.ndarray) -> ir.Value:
        """An initializer, shared by all who want the same values."""
        key = (values.dtype.name, values.shape, values.tobytes())
        if key not in self._made:
            name = self.name()
            value = ir.val(name, const_value=ir.tensor(np.require(values, requirements="C"), name=name))
            self.graph.register_initializer(value)
            self._made[key] = value
        return self._made[key]

    def split(self, value: ir.Value, sizes: list[int]) -> list[ir.Value]:
        """Parts of a vector, so long each."""
        if len(sizes) == 1:
            return [value]
        lengths = self.constant(np.array(sizes, np.int64))
        made = ir.node("Split", [value, lengths], {"axis": 0}, name=self.name(), num_outputs=len(sizes))
        for each in made.outputs:
            each.name = self.name()
        self.nodes.append(made)
        return list(made.outputs)

    def node(self, op: str, *inputs: ir.Value, **attributes: int | str) -> ir.Value:
        """The output of a new node."""
        made = ir.node(op, inputs, attributes, name=self.name())
        made.outputs[0].name = made.name
        self.nodes.append(made)
        return made.outputs[0]

    def shared(self, op: str, *inputs: ir.Value, **attributes: int | str) -> ir.Value:
        """The output of a node that others may have made already."""
        key = (op, *(each.name for each in inputs), *attributes.items())
        return self.once(key, lambda: self.node(op, *inputs, **attributes))

    def once(self, key: tuple, make: Callable[[], ir.Value]) -> ir.Value:
        """What `make` writes, the first time."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def numbers(self, values: np.ndarray) -> ir.Value:
        """Small integers, int32 in the graph, as narrow as they fit in the file."""
        narrow = next(t for t in (np.uint8, np.uint16, np.int32) if values.size == 0 or values.max() <= np.iinfo(t).max)
        stored = self.constant(values.astype(narrow))
        return stored if narrow == np.int32 else self.shared("Cast", stored, to=ir.DataType.INT32)

    def floats(self, values: np.ndarray) -> ir.Value:
        """Numbers in their type; as float16 in the file where that holds them exactly and is worth a node."""
        half = halved(values)
        return self.constant(values) if half is None else self.shared("Cast", self.constant(half), to=ir.DataType.FLOAT)

    def shape(self, value: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
        """Reshaped."""
        return self.node("Reshape", value, self.constant(np.array(sizes, np.int64)))

    def finish(self) -> None:
        """Put the nodes before all others."""
        if self.nodes:
            self.graph.insert_before(self.graph[0], self.nodes)


Lookup = Callable[[ir.Value], ir.Value]
"""int32 numbers of entries -> entries, where there is one book; the numbers themselves where there are several."""


@dataclass(frozen=True)
class Form:
    """size: bytes of the symbols in the file, None where it cannot hold them; write: their nodes, [n] or [n, width] or the tensor's shape.

    opset  the lowest        auto  chosen without being asked for        arranged  entries in the order that it needs
    """

    size: Callable[[Coded], float | None]
    write: Callable[[Pen, Coded, Lookup], ir.Value]
    opset: int = 17
    auto: bool = True
    arranged: Callable[[Coded], Coded] = lambda coded: coded
