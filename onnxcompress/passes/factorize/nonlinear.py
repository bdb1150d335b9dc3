"""Factors for what a layer gives behind its Relu or Clip: errors that the function swallows do not count.

    min over factors and b of  Σ (r(y) − r(ŷ))²,   ŷ = Ŵ x + b,  x what the layer is now fed, y what the original put out

With an auxiliary z this is solved in turns (Zhang, Zou, He, Sun, TPAMI 2016, arXiv:1505.06798, asymmetric case): z entry by entry,

    min over z of  (r(y) − r(z))² + λ (z − ŷ)²

then factors and bias by least squares for z, with λ from small to 1. Rows that are kept back judge behind the function.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir
from scipy.linalg import cho_factor, cho_solve

from onnxcompress.evidence.paired import Shelf
from onnxcompress.model.edit import constant_of, input_of
from onnxcompress.passes.factorize.alternate import WIDEST, alternated
from onnxcompress.passes.factorize.forms import Factors, Form, Ranks, Shape
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.factorize.sites import Site
from onnxcompress.passes.refit.rows import FOLDS, spread

TURNS = (0.01, 0.01, 0.1, 0.1, 1.0, 1.0)
"""λ of each turn."""

RIDGE = 0.01
"""Of least squares, as a share of the Gram matrix's mean diagonal."""


@dataclass(frozen=True)
class Function:
    """What comes behind: values are kept between these limits."""

    low: float
    high: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """[any] -> the same shape."""
        return np.clip(values, self.low, self.high)

    def nearest(self, wanted: np.ndarray, present: np.ndarray, weight: float) -> np.ndarray:
        """The z of least (wanted − r(z))² + weight (z − present)², entry by entry; wanted lies between the limits."""
        inside = np.clip((weight * present + wanted) / (weight + 1), self.low, self.high)
        best, least = inside, (wanted - inside) ** 2 + weight * (inside - present) ** 2
        for limit, z in ((self.low, np.minimum(present, self.low)), (self.high, np.maximum(present, self.high))):
            if np.isfinite(limit):
                cost = (wanted - limit) ** 2 + weight * (z - present) ** 2
                best, least = np.where(cost < least, z, best), np.minimum(cost, least)
        return best


def function_behind(value: ir.Value) -> Function | None:
    """The Relu or Clip that alone reads a value; None where something else does."""
    users = list(value.uses())
    if len(users) != 1 or value.is_graph_output() or users[0][0].domain:
        return None
    node = users[0][0]
    if node.op_type == "Relu":
        return Function(0.0, np.inf)
    if node.op_type != "Clip":
        return None
    low, high = (constant_of(input_of(node, place)) for place in (1, 2))
    if any(input_of(node, place) is not None and held is None for place, held in ((1, low), (2, high))):
        return None
    return Function(-np.inf if low is None else float(low), np.inf if high is None else float(high))


@dataclass(eq=False)
class Rows:
    """Rows of a layer [groups, n, k] with what they should become [groups, n, out]."""

    x: list[np.ndarray] = field(default_factory=list)
    y: list[np.ndarray] = field(default_factory=list)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take more in."""
        self.x.append(x)
        self.y.append(y)

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """All of them."""
        return np.concatenate(self.x, axis=1), np.concatenate(self.y, axis=1)


@dataclass(frozen=True, eq=False)
class Behind:
    """Fits one layer to what its function gives.

    x, y            rows to fit on [groups, n, k], and what they should become before the function [groups, n, out]
    held_x, held_y  the same, to judge on
    """

    function: Function
    form: Form
    shape: Shape
    ranks: Ranks
    x: np.ndarray
    y: np.ndarray
    held_x: np.ndarray
    held_y: np.ndarray

    @cached_property
    def metric(self) -> Metric:
        """Of the rows about their mean, with a ridge."""
        centred = self.x - self.x.mean(1, keepdims=True)
        gram = centred.transpose(0, 2, 1) @ centred
        damping = RIDGE * np.einsum("gkk->g", gram) / gram.shape[1]
        np.einsum("gkk->gk", gram)[:] += damping[:, None]
        return Metric(gram)

    @cached_property
    def systems(self) -> list[tuple[np.ndarray, bool]]:
        """The metric's, for solving."""
        assert self.metric.gram is not None
        return [cho_factor(each) for each in self.metric.gram]

    def put_out(self, x: np.ndarray, factors: Factors, bias: np.ndarray) -> np.ndarray:
        """Rows [groups, n, k] -> [groups, n, out], before the function."""
        return np.asarray(x @ self._dense(factors).transpose(0, 2, 1) + bias[:, None])

    def error(self, factors: Factors, bias: np.ndarray) -> float:
        """Behind the function, on rows that were kept back."""
        wanted = self.function(self.held_y)
        return float(((self.function(self.put_out(self.held_x, factors, bias)) - wanted) ** 2).sum())

    def improved(self, factors: Factors, bias: np.ndarray) -> tuple[Factors, np.ndarray]:
        """Those of all turns that do best, the given ones among them; bias [groups, out]."""
        best, least = (factors, bias), self.error(factors, bias)
        for weight in TURNS:
            z = self.function.nearest(self.function(self.y), self.put_out(self.x, factors, bias), weight)
            factors, bias = self._least_squares(z, factors)
            error = self.error(factors, bias)
            if error < least:
                best, least = (factors, bias), error
        return best

    def _least_squares(self, z: np.ndarray, factors: Factors) -> tuple[Factors, np.ndarray]:
        """Factors and bias for what should be put out, from where the factors are."""
        dense, mean, z_mean = self._dense(factors), self.x.mean(1, keepdims=True), z.mean(1, keepdims=True)
        lacking = (z - z_mean - (self.x - mean) @ dense.transpose(0, 2, 1)).transpose(0, 2, 1) @ (self.x - mean)
        steps = [np.asarray(cho_solve(each, rows.T)).T for each, rows in zip(self.systems, lacking, strict=True)]
        shape, form = self.shape, self.form
        aim = (dense + np.stack(steps)).reshape(shape.groups, shape.outs, shape.ins, shape.taps)
        if form.closed:
            found = form.start(shape, aim, self.ranks, self.metric)
        else:
            found = alternated(form, shape, aim, factors, self.metric)
        return found, (z_mean - mean @ self._dense(found).transpose(0, 2, 1))[:, 0]

    def _dense(self, factors: Factors) -> np.ndarray:
        return self.form.dense(self.shape, factors).reshape(self.shape.groups, self.shape.outs, -1)


def behind(
    form: Form, site: Site, ranks: Ranks, fed: Shelf, goal: Iterable[np.ndarray], rows: int, seed: int
) -> Behind | None:
    """What a fit behind the layer's function needs; None without such a function, or where its rows are too wide."""
    function = function_behind(site.node.outputs[0])
    if function is None or site.shape.ins * site.shape.taps > WIDEST:
        return None
    fit, judge = Rows(), Rows()
    spread([judge, *[fit] * (FOLDS - 1)], site.node, site.layer, fed, goal, rows, seed)
    return Behind(function, form, site.shape, ranks, *fit.joined(), *judge.joined()) if fit.x and judge.x else None
