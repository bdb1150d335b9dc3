"""Grouped: channels are sorted into groups so that most of the weight's energy lies within them, and the rest is dropped.

    W[o, i, k] = 0 where output o and input i are not of one group      order of inputs, k×k in G groups, order of outputs

ShuffleNet's shuffle (Zhang et al., CVPR 2018, arXiv:1707.01083), but the order is that which loses least: groups are halved again and
again, each time along the second singular vectors of the energies between outputs and inputs (bipartite spectral partitioning, Dhillon,
KDD 2001), balanced and then exchanged until nothing is gained. With data, what is kept makes up for what is dropped, by least squares.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.linalg import eigh

from onnxcompress.passes.factorize.forms.dropped import kept
from onnxcompress.passes.factorize.forms.form import Factors, Form, Part, Ranks, Shape
from onnxcompress.passes.factorize.metric import Metric

EXCHANGES = 20
"""Rounds, in each of which inputs and outputs choose their halves; nearly all end after four."""

MOST = 8
"""Groups: with more, kernels have too few channels to be fast."""


class Grouped(Form):
    """Channels in an order, k×k in groups, channels in an order."""

    name: ClassVar[str] = "grouped"
    equation: ClassVar[str] = ""
    source: ClassVar[str] = "grouped with the best order; Zhang et al. 2018 (ShuffleNet)"
    formula: ClassVar[str] = "g·w·o·k"
    letters: ClassVar[str] = "w"
    closed: ClassVar[bool] = True

    def unfit(self, shape: Shape) -> str:
        """A convolution that is not grouped yet, with channels that can be halved."""
        if not shape.kernel:
            return "matrices are not multiplied in groups"
        return "it is grouped already" if shape.groups > 1 else ""

    def full(self, shape: Shape) -> Ranks:
        """(inputs of a group,)"""
        return (shape.ins,)

    def ladder(self, shape: Shape) -> list[Ranks]:
        """Halves, quarters, eighths."""
        counts = [2**n for n in range(1, MOST.bit_length()) if not (shape.ins % 2**n or shape.outs % 2**n)]
        return [(shape.ins // count,) for count in reversed(counts)]

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """Order, kernel, order."""
        outs, ins = shape.outs, shape.ins
        kernel = Part(outs, ins, ins // ranks[0], tuple(range(len(shape.kernel))))
        return Part(ins, ins, order=True), kernel, Part(outs, outs, order=True)

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """Blocks [groups, out, in, taps], then the inputs and the outputs in the order of the groups."""
        squares = np.square(weight[0].astype(np.float64)).sum(axis=2)
        moments = np.einsum("gii->i", metric.of_axes((shape.ins, shape.taps), (0,)))
        outs, ins = halved(squares * moments, shape.ins // ranks[0])
        rows = [_fitted(shape, weight[0][some], read, metric) for some, read in zip(outs, ins, strict=True)]
        return [np.stack(rows), np.concatenate(ins).astype(np.float64), np.concatenate(outs).astype(np.float64)]

    def dense(self, shape: Shape, factors: Factors) -> np.ndarray:
        """Zeros between groups."""
        blocks, ins, outs = factors[0], factors[1].astype(int), factors[2].astype(int)
        found = np.zeros((1, shape.outs, shape.ins, shape.taps), blocks.dtype)
        pairs = zip(np.split(outs, len(blocks)), np.split(ins, len(blocks)), blocks, strict=True)
        for some, read, block in pairs:
            found[0, some[:, None], read[None, :]] = block
        return found

    def leading(self, factors: Factors, ranks: Ranks) -> Factors:
        """Each group halved again."""
        blocks, ins, outs = factors
        count = blocks.shape[2] // ranks[0]
        made, orders = [], []
        halves = zip(np.split(outs, len(blocks)), np.split(ins, len(blocks)), blocks, strict=True)
        for some, read, block in halves:
            rows, columns = halved(np.square(block).sum(axis=2), count)
            made += [block[one[:, None], other[None, :]] for one, other in zip(rows, columns, strict=True)]
            orders.append((read[np.concatenate(columns)], some[np.concatenate(rows)]))
        return [np.stack(made), *(np.concatenate(each) for each in zip(*orders, strict=True))]

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """Where inputs come from, the blocks one below the other, where outputs come from."""
        blocks, ins, outs = factors
        weight = blocks.reshape(shape.outs, -1, *shape.kernel)
        return [ins.astype(np.int64), weight, np.argsort(outs.astype(np.int64))]


def halved(energy: np.ndarray, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs and inputs of each of `count` groups, a power of two, for energies [out, in]."""
    groups = [(np.arange(energy.shape[0]), np.arange(energy.shape[1]))]
    while len(groups) < count:
        split = []
        for outs, ins in groups:
            high, wide = _halves(energy[np.ix_(outs, ins)])
            split += [(outs[high], ins[wide]), (outs[~high], ins[~wide])]
        groups = split
    return [outs for outs, _ in groups], [ins for _, ins in groups]


def _halves(energy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which outputs and which inputs belong to the first half."""
    rows, columns = (np.sqrt(np.maximum(energy.sum(axis=axis), 1e-300)) for axis in (1, 0))
    wide = _upper(_second(energy / np.outer(rows, columns)) / columns)
    high, best = _upper(energy @ (2.0 * wide - 1)), -1.0
    for _ in range(EXCHANGES):
        within = float(energy[np.ix_(high, wide)].sum() + energy[np.ix_(~high, ~wide)].sum())
        if within <= best * (1 + 1e-12):
            break
        best = within
        wide = _upper((2.0 * high - 1) @ energy)
        high = _upper(energy @ (2.0 * wide - 1))
    return high, wide


def _second(matrix: np.ndarray) -> np.ndarray:
    """Its second right singular vector, up to its length; by moments of the shorter side, of which one eigenvector is asked for."""
    few, count = matrix if len(matrix) <= matrix.shape[1] else matrix.T, min(matrix.shape)
    place = max(count - 2, 0)
    vector = eigh(few @ few.T, subset_by_index=(place, place), check_finite=False)[1][:, 0]
    return np.asarray(vector @ few if few is matrix else vector)


def _upper(scores: np.ndarray) -> np.ndarray:
    """The larger half; of equal ones the first."""
    found = np.zeros(len(scores), bool)
    found[np.argsort(-scores, kind="stable")[: len(scores) // 2]] = True
    return found


def _fitted(shape: Shape, rows: np.ndarray, ins: np.ndarray, metric: Metric) -> np.ndarray:
    """[out, in, taps] of one group: what it had, and its share of what the dropped inputs did."""
    places = (ins[:, None] * shape.taps + np.arange(shape.taps)).reshape(-1)
    return kept(rows.reshape(len(rows), -1), places, metric).reshape(len(rows), len(ins), shape.taps)
