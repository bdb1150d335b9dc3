"""Tensors whose symbols lie in one stream: words, tables and nodes are then needed once, and a small tensor costs its entropy.

symbols of all ─(nodes of the form)─▶ numbers of entries ─Split─▶ of each tensor ─Gather from its book─▶ values
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.weights import levels
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.pen import NODE_BYTES, Lookup, Pen
from onnxcompress.weights.plain import numbered
from onnxcompress.weights.runs import SHARES, sparse, words_for

SHARED_BYTES = 600 + 75 * NODE_BYTES
"""Of a stream: the words of its mask, and the nodes that decode it."""

FEW, FEW_SHARED = 16, 600 + 40 * NODE_BYTES
"""Of a stream of symbols that are so few: their codes have few levels. Measured on one to seven tensors, what the file had more than its
tensors by themselves: 0.6 to 2.5 kB with 3 to 15 entries, 3.1 to 4.3 kB with 32 and 64."""


@dataclass(frozen=True)
class Pooled:
    """How tensors in a form share: kind(counts by rank) -> a number, near for those that are alike; cost(counts) -> bytes of a stream."""

    write: Callable[[Pen, Coded, Lookup], ir.Value]
    kind: Callable[[np.ndarray], int]
    cost: Callable[[np.ndarray], float]


def shared_bytes(tensors: Iterable[Coded]) -> int:
    """Of the stream of these."""
    return FEW_SHARED if max((each.entries for each in tensors), default=0) <= FEW else SHARED_BYTES


def pools(tensors: Sequence[Coded], form: str) -> list[list[int]]:
    """Which tensors share a stream: those that are alike, where a code that fits them saves more than it takes.

    Sorted by their kind and cut where that is cheapest: all cuts are compared.
    """
    counts = [np.sort(np.bincount(each.symbols, minlength=256))[::-1].astype(np.float64) for each in tensors]
    kinds: dict[int, list[int]] = {}
    for number, each in enumerate(counts):
        kinds.setdefault(POOLED[form].kind(each), []).append(number)
    places = sorted(kinds)
    sums = [np.sum([counts[number] for number in kinds[place]], axis=0) for place in places]
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(places) + 1):
        costs = [(best[begin][0] + POOLED[form].cost(np.sum(sums[begin:end], axis=0)), begin) for begin in range(end)]
        best.append(min(costs))
    found, end = [], len(places)
    while end:
        begin = best[end][1]
        found.append(sorted(number for place in places[begin:end] for number in kinds[place]))
        end = begin
    return sorted(found)


def numbers(pen: Pen, tensors: Sequence[Coded], form: str) -> list[ir.Value]:
    """The numbers of entries of each tensor, [n] int32; tensors as `by_rank` has them."""
    whole = numbered(np.concatenate([each.symbols for each in tensors]), max(each.entries for each in tensors))
    found = POOLED[form].write(pen, whole, lambda made: made)
    return pen.split(found, [len(each.symbols) for each in tensors])


def _bits(counts: np.ndarray) -> float:
    used = counts[counts > 0]
    return float((used * np.log2(used.sum() / used)).sum())


def _sparse(counts: np.ndarray) -> float:
    total = counts.sum()
    mask = total * words_for(counts[0] / total).bits(np.array([counts[0], max(total - counts[0], 1)]))
    return SHARED_BYTES + (mask + _bits(counts[1:])) / 8


POOLED = {
    "sparse": Pooled(sparse, lambda counts: int(np.abs(SHARES - counts[0] / counts.sum()).argmin()), _sparse),
    "huffman": Pooled(
        levels.numbers,
        lambda counts: round(4 * _bits(counts) / counts.sum()),
        lambda counts: SHARED_BYTES + _bits(counts) / 8,
    ),
}
"""Forms whose tensors share streams: by how common the common entry is; by their entropy, in quarters of a bit."""
