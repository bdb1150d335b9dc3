"""Original and current model walked together, layer by layer, on the same samples.

The walk stops before every layer that a pass wants to look at. Everything computed so far stays in memory, so each node
runs once; what no later node reads is dropped. A weight that is replaced at a stop is what the rest of the walk uses, so
that every layer is fitted to what the layers before it really feed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.data import Data
from onnxcompress.evidence.need import Need
from onnxcompress.model import Model
from onnxcompress.runtime.session import open_session

Arrays = list[np.ndarray]
"""One array a batch."""


@dataclass(eq=False)
class Track:
    """One of the two models on its way: its nodes in order, its constants, and the values that are still wanted."""

    proto: onnx.ModelProto
    constants: dict[str, onnx.TensorProto]
    place: dict[str, int]
    store: dict[str, Arrays]
    threads: int
    done: int = 0
    last: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, node in enumerate(self.proto.graph.node):
            for name in _inputs(node):
                self.last[name] = number

    def advance(self, stop: int) -> None:
        """Run the nodes up to (not including) number `stop`, and drop what nobody reads any more."""
        nodes = list(self.proto.graph.node[self.done : stop])
        made = {name for node in nodes for name in node.output if name}
        wanted = [name for name in sorted(made) if self.last.get(name, -1) >= stop]
        if wanted:
            for name, arrays in self.run(nodes, wanted).items():
                self.store[name] = arrays
        self.done = stop
        for name in [name for name in self.store if self.last.get(name, -1) < stop]:
            del self.store[name]

    def run(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> dict[str, Arrays]:
        """Values that these nodes make, on every batch, from what is stored."""
        made = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in _inputs(node)} - made
        fed = sorted(name for name in read if name in self.store)
        graph = onnx.helper.make_graph(
            nodes,
            "part",
            [onnx.helper.make_tensor_value_info(name, _type_of(self.store[name][0]), None) for name in fed],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [self.constants[name] for name in sorted(read) if name in self.constants],
        )
        model = onnx.helper.make_model(graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version)
        session = open_session(model.SerializeToString(), threads=self.threads, name="part of the model")
        batches = len(next(iter(self.store.values())))
        found: dict[str, Arrays] = {name: [] for name in outputs}
        for batch in range(batches):
            values = session.run({name: self.store[name][batch] for name in fed})
            for name in outputs:
                found[name].append(values[name])
        return found


@dataclass(eq=False)
class Pair:
    """One stop of the walk, before a layer of the current model has run."""

    node: str
    original: Track
    current: Track

    def read(self, value: str) -> Arrays:
        """A value that the current layer is fed."""
        return self.current.store[value]

    def has(self, value: str) -> bool:
        """Is a value of the current model known here?"""
        return value in self.current.store

    def target(self, value: str) -> Arrays:
        """A value of the original at or behind this layer, as long as nothing that is not known yet is needed for it."""
        graph = self.original.proto.graph
        nodes, made = [], set()
        for node in graph.node[self.original.done :]:
            nodes.append(node)
            made.update(node.output)
            if value in made:
                return self.original.run(nodes, [value])[value]
        return self.original.store[value]

    def constant(self, name: str) -> np.ndarray:
        """The present values of a constant of the current model."""
        return np.array(onnx.numpy_helper.to_array(self.current.constants[name]))

    def replace(self, name: str, values: np.ndarray) -> None:
        """Use these values of a constant from here on."""
        self.current.constants[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)

    def add_input(self, name: str, values: np.ndarray) -> None:
        """Give this layer one more constant input."""
        self.replace(name, values)
        self.current.proto.graph.node[self.current.place[self.node]].input.append(name)


@dataclass(eq=False)
class Paired:
    """Evidence for Refit: the walk itself, since what a layer is fed depends on how the layers before it were refitted."""

    NEED: ClassVar[Need] = Need("paired", "")

    original: Model
    current: Model
    data: Data
    batch: int = 8
    threads: int = 1
    progress: Callable[[int, int, str], None] | None = None

    def walk(self, nodes: Sequence[str]) -> Iterator[Pair]:
        """Stop before each of these nodes of the main graph, in graph order; nodes that only one model has are passed over."""
        feeds = list(self.data.batches(self.batch))
        original = _track(self.original, feeds, self.threads)
        current = _track(self.current, feeds, self.threads)
        wanted = [name for name in current.place if name in set(nodes) and name in original.place]
        for number, name in enumerate(wanted):
            if self.progress is not None:
                self.progress(number, len(wanted), "refit")
            original.advance(original.place[name])
            current.advance(current.place[name])
            yield Pair(name, original, current)


def _track(model: Model, feeds: Sequence[dict[str, Any]], threads: int) -> Track:
    proto = ir.to_proto(model.ir)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    place = {node.name: number for number, node in enumerate(proto.graph.node)}
    store = {name: [np.asarray(feed[name]) for feed in feeds] for name in feeds[0]}
    return Track(proto, constants, place, store, threads)


def _inputs(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those captured by its bodies included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            inside = {name for inner in body.node for name in inner.output}
            names += [name for inner in body.node for name in _inputs(inner) if name not in inside]
            names += [value.name for value in body.output if value.name not in inside]
    return names


def _type_of(array: np.ndarray) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
