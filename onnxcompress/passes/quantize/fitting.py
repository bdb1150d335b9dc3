"""One layer at a stop of the paired walk: rows to fit on and rows to judge on, the weights to aim at, the error of what is tried.

The layer is fed what the rounded layers before it really put out, and should put out what the original did there. The weights
that bring that nearest are the aim (ridge regression, refit/solver.py; the target of GPTAQ, Li et al. 2025, arXiv:2504.02692);
rows that are kept back judge every rounding of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Generic, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from onnxcompress.evidence.paired import Pair
from onnxcompress.model import Model
from onnxcompress.operators.layer import Layer
from onnxcompress.passes.quantize.rounding import WIDE
from onnxcompress.passes.refit.goals import goals
from onnxcompress.passes.refit.refit import bias_of, unsuited
from onnxcompress.passes.refit.rows import FOLDS, fewer, spread
from onnxcompress.passes.refit.solver import Held, Sums, in_db, ridges
from onnxcompress.passes.refit.validated import Few

RIDGES = (1.0, 1e-1, 1e-2)
"""Tried for the aim until one does no better than the one before, as shares of the Gram's mean diagonal. Rounding errors are
small and much like noise: of 54 layers of a classifier (24 samples) the original's weights won 26, the shares 1, 0.1 and 0.01
won 19, 4 and 3, smaller ones 2 in all."""

WIDEST = 4608
"""Columns of a row above which a weight stays nearest: the Gram of 9,216 (AlexNet's first matrix) takes 0.7 GB and minutes."""


def fits(model: Model, layer: Layer, node: ir.Node) -> bool:
    """Can rows be gathered of it? Not of weights that several nodes read, that have batch axes, lie in bodies or are wider than WIDEST."""
    return not unsuited(layer, node, model) and prod(layer.matrix(model.array(layer.weight)).shape[1:]) <= WIDEST


class Valued(Protocol):
    """A lattice, or books: what levels or symbols stand for."""

    def values(self, levels: np.ndarray, /) -> np.ndarray:
        """Levels [out, row] -> float64 weights."""
        ...


L = TypeVar("L", bound=Valued)


@dataclass(frozen=True, eq=False)
class Tried(Generic[L]):
    """Levels [out, row] on a lattice, the bias [groups, out/groups] that goes with them, and their error on held-out rows."""

    levels: np.ndarray
    lattice: L
    bias: np.ndarray
    error: float


@dataclass(frozen=True, eq=False)
class Fitting:
    """What a stop knows of a layer.

    weight  [groups, out/groups, k] the original's       offset  [groups, out/groups] its bias at present
    bias    the constant that may be fitted too; None: it stays as it is
    """

    weight: np.ndarray
    offset: np.ndarray
    bias: str | None
    fit: Sums | Held
    judge: Sums | Held

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Gram [groups, k, k] and cross moments of the rows to fit on, about the means where the bias is fitted."""
        assert isinstance(self.fit, Sums)
        if self.bias:
            return self.fit.centre()
        return self.fit.gram, self.fit.cross - self.offset[:, :, None] * self.fit.x[:, None, :]

    def gram(self) -> np.ndarray:
        """[groups, k, k] of the rows to fit on, about their mean where the bias is fitted; not to be written to."""
        rows = self.rows()
        if rows is None:
            return self.moments[0]
        light = rows.astype(np.float32)
        return np.asarray(light.transpose(0, 2, 1) @ light, np.float64)

    def rows(self) -> np.ndarray | None:
        """[groups, n, k], whose products are `gram`, where there are fewer rows than columns; None where there are more."""
        if isinstance(self.fit, Sums):
            return None
        rows = np.concatenate([x for x, _ in self.fit.parts], axis=1, dtype=np.float64)
        return rows - rows.mean(1, keepdims=True) if self.bias else rows

    def aim(self) -> np.ndarray:
        """The weights to round: those of the ridge that does best on held-out rows, or the original's where none does better."""
        best, error = self.weight, self.judge.error(self.weight, self._bias_for(self.weight))
        for found in self._ridges():
            now = np.inf if found is None else self.judge.error(*found)
            if found is None or now >= error:
                break
            best, error = found[0], now
        return best

    def _ridges(self) -> Iterator[tuple[np.ndarray, np.ndarray] | None]:
        fixed = self.bias is None
        if isinstance(self.fit, Held):
            return Few(self.fit, (), self.weight, self.offset, fixed).fits(RIDGES)
        return ridges(self.fit, self.weight, self.offset, RIDGES, fixed_bias=fixed, moments=self.moments)

    def present(self, levels: np.ndarray, lattice: L) -> Tried[L]:
        """Levels with the bias as it is."""
        return Tried(levels, lattice, self.offset, self.judge.error(self._values(levels, lattice), self.offset))

    def tried(self, levels: np.ndarray, lattice: L) -> Tried[L]:
        """Levels with the bias that suits them."""
        values = self._values(levels, lattice)
        bias = self._bias_for(values)
        return Tried(levels, lattice, bias, self.judge.error(values, bias))

    def decibel(self, error: float) -> float:
        """Error on held-out rows -> SQNR of the layer's output there."""
        return in_db(float(self.judge.power.sum()), error)

    def bias_like(self, model: Model, best: Tried) -> np.ndarray | None:
        """The bias as the model stores it; None where it is not fitted."""
        if self.bias is None:
            return None
        held = model.array(self.bias)
        return best.bias.reshape(held.shape).astype(held.dtype)

    def _values(self, levels: np.ndarray, lattice: Valued) -> np.ndarray:
        return lattice.values(levels).reshape(self.weight.shape)

    def _bias_for(self, values: np.ndarray) -> np.ndarray:
        if self.bias is None:
            return self.offset
        return np.asarray((self.fit.y - (values @ self.fit.x[:, :, None])[:, :, 0]) / self.fit.count)


def fitting(model: Model, layer: Layer, node: ir.Node, pair: Pair, rows: int, seed: int) -> Fitting | None:
    """What the stop `pair` before `node` knows of its layer; None where it has too few rows to judge on.

    rows  at most so many positions of samples         seed  which are drawn
    """
    matrix = layer.matrix(model.array(layer.weight)).astype(np.float64)
    weight = matrix.reshape(layer.groups, len(matrix) // layer.groups, -1)
    told = bias_of(model, layer, node, len(matrix))
    offset = np.zeros(len(matrix))
    if told.name is not None:
        offset = pair.constant(told.name).astype(np.float64).reshape(-1) + offset
    fed, goal = pair.read(_fed(layer, node, pair)), goals(model, node, told.value, pair)
    wide = weight.shape[2] >= WIDE
    few, goal = fewer(node, layer, len(fed), goal, rows, weight.shape[2])
    fit, judge = Held() if few and wide else Sums(single=wide), Held() if wide else Sums()
    spread([judge, *[fit] * (FOLDS - 1)], node, layer, fed, goal, rows, seed)
    if not fit.count or not judge.count:
        return None
    return Fitting(weight, offset.reshape(weight.shape[:2]), told.name if told.free else None, fit, judge)


def _fed(layer: Layer, node: ir.Node, pair: Pair) -> str:
    """What the layer reads in the rounded graph, where inputs of the model have another name behind their rounding."""
    index = next(i for i, value in enumerate(node.inputs) if value is not None and value.name == layer.reads)
    return str(pair.current.proto.graph.node[pair.current.place[pair.node]].input[index])
