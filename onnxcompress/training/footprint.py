"""What a training step takes in memory, from its graph's shapes before it runs, and how many samples of a minibatch fit.

Values live from their node to their last reader, in the order of the graph, which is that of the run (graph.py opens it so); what is
kept for the way back is in that. Beside them stand weights, gradients and the optimizer's buffers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import onnx_ir as ir

from onnxcompress.training.pen import shape_of

ARENA = 1.5
"""What onnxruntime holds, over what values take: gaps between values of other sizes, room that a kernel takes for itself. 1.13 of a
ResNet-8, 1.21 of a transformer, 1.33 of a MobileNet, 1.53 and 1.54 of two models of text lines."""

SESSION = 16 << 20
"""Bytes of the session itself."""

BUFFERS = {"sgd": 2, "adamw": 5, "lamb": 5}
"""Numbers that an optimizer holds for each weight: moments, and what lives within an update."""

ALWAYS = 5
"""Numbers for each weight besides: itself, its gradient as onnxruntime gives it and summed up, an average, the best so far."""

GB = 1e9

SAME = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
"""Operators whose output lies where their input does."""

OVER = frozenset(
    (
        *(
            "Abs",
            "Add",
            "Clip",
            "Div",
            "Erf",
            "Exp",
            "HardSigmoid",
            "Log",
            "LogSoftmax",
            "Mul",
            "Neg",
            "Reciprocal",
            "Relu",
        ),
        *("Sigmoid", "Softmax", "Sqrt", "Sub", "Tanh"),
    )
)
"""Operators that write over an input of the same size that nobody else reads."""


def step_bytes(graph: ir.Model, numbers: int, optimizer: str) -> int:
    """Of one step and its update, where `numbers` train."""
    fed = sum(_size(value) for value in graph.graph.inputs)
    held = 4 * numbers * (ALWAYS + BUFFERS[optimizer])
    return round(ARENA * run_bytes(graph)) + fed + held + SESSION


def run_bytes(graph: ir.Model) -> int:
    """The most that values of one run take at once, without its inputs and constants."""
    nodes, roots = list(graph.graph), dict[ir.Value, ir.Value]()
    for node in nodes:
        if node.op_type in SAME and node.inputs[0] is not None:
            roots[node.outputs[0]] = roots.get(node.inputs[0], node.inputs[0])
    reads = [{roots.get(value, value) for value in node.inputs if value is not None} for node in nodes]
    readers = Counter(value for each in reads for value in each)
    readers.update(roots.get(value, value) for value in graph.graph.outputs)
    live = peak = 0
    for node, read in zip(nodes, reads, strict=True):
        readers.subtract(read)
        gone = [_size(value) for value in read if not readers[value] and value.producer() is not None]
        made = 0 if node.op_type in SAME else sum(_size(value) for value in node.outputs)
        over = made if node.op_type in OVER and made in gone else 0
        peak = max(peak, live + made - over)
        live += made - sum(gone)
    return peak


def _size(value: ir.Value) -> int:
    return 0 if value.dtype is None or value.shape is None else round(prod(shape_of(value)) * value.dtype.itemsize)


def samples_that_fit(batch: int, need: Callable[[int], int], limit: int) -> tuple[int, int]:
    """How many of a batch's samples run at once, and what they take; one where none fit.

    need  samples -> bytes, more for more samples
    A divisor of the batch where one is at least half of what fits: a rest would be a session of its own, with memory of its own.
    """
    most, least = need(batch), need(1)
    if most <= limit or batch == 1:
        return batch, most
    found = 1 + int((batch - 1) * max(limit - least, 0) / max(most - least, 1))
    while found > 1:
        found = max((each for each in range(ceil(found / 2), found + 1) if batch % each == 0), default=found)
        taken = need(found)
        if taken <= limit:
            return found, taken
        found -= 1
    return 1, least


@dataclass(frozen=True)
class Room:
    """samples: that run at once of a minibatch of `batch`; taken, whole: bytes of these and of all; limit: None where it is unknown."""

    samples: int
    batch: int
    taken: int
    whole: int
    limit: float | None
    asked: bool

    def __str__(self) -> str:
        if self.limit is None or self.samples == self.batch:
            return f"a step of {self.batch} samples takes about {_gb(self.taken)} of memory"
        of = f"{_gb(self.limit)} that {'--memory allows' if self.asked else 'are free'}"
        if self.taken > self.limit:
            return (
                f"a step of one sample takes about {_gb(self.taken)}, more than the {of}; give smaller samples, or --freeze the layers "
                "at the input"
            )
        return (
            f"a step of {self.batch} samples would take about {_gb(self.whole)}, more than the {of}: {self.samples} run at once "
            f"({_gb(self.taken)}) and their gradients are added up; what compares or mixes samples, as BatchNormalization of the "
            "batch, sees these only"
        )


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{float(f'{size / 1e6:.3g}'):g} MB"


def in_words(rooms: Mapping[Any, Room]) -> str | None:
    """The room of the step that took most."""
    return str(max(rooms.values(), key=lambda room: room.whole)) if rooms else None
