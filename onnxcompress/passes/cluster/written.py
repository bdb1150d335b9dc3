"""What codes may take, and what they take: counted by themselves, or in the file, which is then written to be measured.

What nodes, tables and names cost depends on the whole file (tensors share tables, streams and books), so that no sum over tensors
is right to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.model import Model
from onnxcompress.model.edit import set_coded
from onnxcompress.model.save import LARGEST_MESSAGE, finished, size_of, to_bytes
from onnxcompress.passes.cluster.tensors import Clustered
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.forms import chosen
from onnxcompress.weights.packed import Packer

STAMP = 640
"""Bytes of the settings that a file says it was made with."""

Whole = Callable[[Mapping[str, Coded]], float]


@dataclass(frozen=True, eq=False)
class Budget:
    """bytes  that codes may take        of  what they take"""

    bytes: float
    of: Whole

    def left(self, coded: Mapping[str, Coded]) -> float:
        """Bytes that are not used; below zero where it is too many."""
        return self.bytes - self.of(coded)


def of_file(model: Model, tensors: Sequence[Clustered], target: float, *, packed: bool = False) -> Budget:
    """Of codes in a file of at most `target` bytes, or in its container.

    Their part is what the file has more than without any weight of the tensors.
    """
    rest = _packed_rest(model, tensors) if packed else rest_of(model, tensors)

    def taken(coded: Mapping[str, Coded]) -> float:
        message = message_of(model, tensors, coded)
        return (_packed(message) if packed else len(message)) + STAMP - rest

    return Budget(target - rest, taken)


def message_of(model: Model, tensors: Sequence[Clustered], coded: Mapping[str, Coded]) -> bytes:
    """The file with these codes, where they take less room than the weights."""
    graph = model.ir.clone()
    for each in tensors:
        if each.name in coded and chosen(coded[each.name]) is not None:
            set_coded(graph, each.name, coded[each.name])
            for name in each.tied:
                set_coded(graph, name, coded[each.name].transposed())
    return to_bytes(finished(model.edited(graph)))


def rest_of(model: Model, tensors: Sequence[Clustered]) -> int:
    """Bytes of the file beside the weights of the tensors; the graph counts as it will be written."""
    held = sum(value.const_value.nbytes for value in model.initializers.values() if value.const_value is not None)
    whole = size_of(finished(model)) if held < LARGEST_MESSAGE else max(model.source.size, held)
    return whole - sum(each.weight.bytes for each in tensors)


def _packed(message: bytes) -> int:
    return sum(map(len, Packer().pieces(message)))


def _packed_rest(model: Model, tensors: Sequence[Clustered]) -> int:
    """Of the container: zeros take next to nothing there."""
    bare = model.with_constants({each.name: np.zeros_like(model.array(each.name)) for each in tensors})
    return _packed(to_bytes(finished(bare)))
