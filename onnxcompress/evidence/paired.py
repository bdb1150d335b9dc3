"""Original and current model walked together, layer by layer, on the same samples.

The walk stops before every layer that a pass wants to look at, so each node runs once; what no later node reads is dropped.
Everything computed so far is kept on a Shelf: in memory up to a limit, beyond that in temporary files that are read again
batch by batch, so that peak memory does not grow with the number of samples. A weight that is replaced at a stop is what the
rest of the walk uses, so that every layer is fitted to what the layers before it really feed it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx

from onnxcompress.data import Data
from onnxcompress.errors import DataError
from onnxcompress.evidence.need import Need
from onnxcompress.model import Model
from onnxcompress.runtime.loose import bare, loose_message
from onnxcompress.runtime.session import Feeds, open_session

LEAST_BATCHES = 5
"""Batches are made smaller where there would be fewer: a fit keeps whole batches back to be judged on."""


@dataclass(eq=False)
class Room:
    """Memory that all shelves of a walk share, and the folder for what does not fit.

    free  bytes that are left      files  how many were written, which is also the next one's name
    """

    free: int
    folder: Path
    files: int = 0


@dataclass(eq=False)
class Shelf:
    """The arrays of one value, one a batch, in memory while there is room and in files beyond; `shelf[batch]` reads either."""

    room: Room
    kept: list[np.ndarray | Path] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, batch: int) -> np.ndarray:
        kept = self.kept[batch]
        return np.load(kept, allow_pickle=False) if isinstance(kept, Path) else kept

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[batch] for batch in range(len(self)))

    def append(self, array: np.ndarray) -> None:
        """Keep one more. DataError where the folder for temporary files is full."""
        if array.nbytes <= self.room.free or array.dtype.hasobject:
            self.room.free -= array.nbytes
            self.kept.append(array)
            return
        path = self.room.folder / f"{self.room.files}.npy"
        self.room.files += 1
        try:
            np.save(path, array, allow_pickle=False)
        except OSError as error:
            raise DataError(
                f"{self.room.folder}: no room for activations ({error.strerror}); give fewer samples with --limit, "
                "or set TMPDIR to a larger disk"
            ) from error
        self.kept.append(path)

    def clear(self) -> None:
        """Give the room back."""
        for kept in self.kept:
            if isinstance(kept, Path):
                kept.unlink()
            else:
                self.room.free += kept.nbytes
        self.kept.clear()


@dataclass(eq=False)
class Constants(Mapping[str, np.ndarray]):
    """Those of a model, read when they are asked for, or what has been put in their place."""

    model: Model
    replaced: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.replaced[name] if name in self.replaced else self.model.array(name)

    def __contains__(self, name: object) -> bool:
        return name in self.replaced or name in self.model.initializers

    def __iter__(self) -> Iterator[str]:
        return iter({**self.model.initializers, **self.replaced})

    def __len__(self) -> int:
        return len(self.model.initializers.keys() | self.replaced.keys())


@dataclass(eq=False)
class Track:
    """One of the two models on its way: its nodes in order, its constants, and the values that are still wanted."""

    proto: onnx.ModelProto
    constants: Constants
    place: dict[str, int]
    store: dict[str, Shelf]
    room: Room
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
            shelves = {name: Shelf(self.room) for name in wanted}
            for values in self.run(nodes, wanted):
                for name, shelf in shelves.items():
                    shelf.append(values[name])
            self.store.update(shelves)
        self.done = stop
        for name in [name for name in self.store if self.last.get(name, -1) < stop]:
            self.store.pop(name).clear()
        for name in [name for name in self.constants.replaced if self.last.get(name, -1) < stop]:
            del self.constants.replaced[name]

    def run(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Values that these nodes make from what is stored, batch by batch."""
        made = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in _inputs(node)} - made
        fed = sorted(name for name in read if name in self.store)
        graph = onnx.helper.make_graph(
            nodes,
            "part",
            [onnx.helper.make_tensor_value_info(name, _type_of(self.store[name][0]), None) for name in fed],
            [onnx.ValueInfoProto(name=name) for name in outputs],
        )
        model = onnx.helper.make_model(graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version)
        held = {name: self.constants[name] for name in sorted(read) if name in self.constants}
        session = open_session(loose_message(model, held), threads=self.threads, name="part of the model")
        for batch in range(len(next(iter(self.store.values())))):
            yield session.run({name: self.store[name][batch] for name in fed})


@dataclass(eq=False)
class Pair:
    """One stop of the walk, before a layer of the current model has run."""

    node: str
    original: Track
    current: Track

    def read(self, value: str) -> Shelf:
        """A value that the current layer is fed."""
        return self.current.store[value]

    def looked_up(self, value: str, rows: int) -> list[np.ndarray]:
        """How often numbers that a lookup is fed name each row of its table, batch by batch [rows]; negative ones count from the end."""
        return [np.bincount(ids.reshape(-1) % rows, minlength=rows) for ids in self.read(value)]

    def has(self, value: str) -> bool:
        """Is a value of the current model known here?"""
        return value in self.current.store

    def target(self, value: str) -> Iterator[np.ndarray]:
        """A value of the original at or behind this layer, batch by batch; nothing that is not known yet may be needed for it."""
        nodes, made = [], set()
        for node in self.original.proto.graph.node[self.original.done :]:
            nodes.append(node)
            made.update(node.output)
            if value in made:
                return (values[value] for values in self.original.run(nodes, [value]))
        return iter(self.original.store[value])

    def constant(self, name: str) -> np.ndarray:
        """The present values of a constant of the current model."""
        return np.array(self.current.constants[name])

    def replace(self, name: str, values: np.ndarray) -> None:
        """Use these values of a constant from here on."""
        self.current.constants.replaced[name] = np.array(values, order="C")

    def add_bias(self, name: str, values: np.ndarray) -> None:
        """Give this layer, which has none, a bias as its third input."""
        self.replace(name, values)
        inputs = self.current.proto.graph.node[self.current.place[self.node]].input
        if len(inputs) > 2:
            inputs[2] = name
        else:
            inputs.append(name)


@dataclass(eq=False)
class Paired:
    """Evidence for Refit: the walk itself, since what a layer is fed depends on how the layers before it were refitted.

    memory_limit  bytes of activations that are held in memory, both models together
    """

    NEED: ClassVar[Need] = Need("paired", "")

    original: Model
    current: Model
    data: Data
    batch: int = 8
    threads: int = 1
    progress: Callable[[int, int, str], None] | None = None
    memory_limit: int = 256 << 20

    def walk(self, nodes: Sequence[str], *, still: bool = False) -> Iterator[Pair]:
        """Stop before each of these nodes of the main graph, in graph order; nodes that only one model has are passed over.

        still  both models are the same one and stay so: nothing is replaced on the way, and every node runs once instead of twice
        """
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
            room = Room(self.memory_limit, Path(folder))
            current = self._track(self.current, room)
            original = current if still else self._track(self.original, room)
            wanted = [name for name in current.place if name in set(nodes) and name in original.place]
            for number, name in enumerate(wanted):
                if self.progress is not None:
                    self.progress(number, len(wanted), "refit")
                for track in (original, current)[still:]:
                    track.advance(track.place[name])
                yield Pair(name, original, current)

    def batches(self) -> Iterator[Feeds]:
        """What is walked, in the batches in which it is."""
        return self.data.batches(self.size)

    @property
    def size(self) -> int:
        """Samples of a batch."""
        return _even(self.data.samples, self.batch)

    def _track(self, model: Model, room: Room) -> Track:
        proto = bare(model.ir)
        place = {node.name: number for number, node in enumerate(proto.graph.node)}
        store: dict[str, Shelf] = {}
        for feed in self.batches():
            for name, array in feed.items():
                store.setdefault(name, Shelf(room)).append(np.asarray(array))
        return Track(proto, Constants(model), place, store, room, self.threads)


def _even(samples: int, most: int) -> int:
    """Size of a batch near `most` that leaves the last one nearly full: each batch gives a fit as many rows, and judges alone."""
    most = max(1, min(most, samples // LEAST_BATCHES))
    return max(range((most + 1) // 2, most + 1), key=lambda size: ((samples % size or size) / size, size))


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
