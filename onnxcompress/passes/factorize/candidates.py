"""What each form would cost and lose at each layer, before any is made: (cost, error) candidates for the one solver.

Rows of what a layer is fed give the start of each form at its largest ranks; smaller ones are its leading terms. Other rows judge:

    error = Σ ‖(W − Ŵ) x‖² / Σ ‖y‖²   times how far a relative error of this layer arrives at the model's outputs

Without data neighbours in space are taken as alike and channels as white noise: tr (W − Ŵ) P (W − Ŵ)ᵀ / tr W P Wᵀ (metric.prior).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from onnxcompress.passes.factorize.forms import FORMS, Factors, Form, Ranks, Shape
from onnxcompress.passes.factorize.metric import Metric, prior
from onnxcompress.passes.factorize.ranks import Rule, ranks_by
from onnxcompress.passes.factorize.sites import Site

PROBES = 48
"""Random mixtures of the outputs on which errors are measured where a layer has more: off by a few percent, in a tenth of the time."""

ROWS, JUDGING = 768, 256
"""Rows of a layer on which forms are begun, and on which they are judged."""

ROW_BYTES = 64 << 20
"""For both, where rows are wide."""


@dataclass(frozen=True)
class Choice:
    """A form with its ranks; without a name: the layer as it is."""

    form: str = ""
    ranks: Ranks = ()


@dataclass(eq=False)
class Seen:
    """Rows of a layer as they come [groups, n, k], with what the layer puts out [groups, n, out]; batches in turn, see refit/rows.py."""

    x: list[np.ndarray] = field(default_factory=list)
    power: float = 0.0
    count: int = 0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take more in."""
        self.x.append(x.astype(np.float32))
        self.power += float(np.square(y, dtype=np.float64).sum())
        self.count += x.shape[1]

    @property
    def unit(self) -> float:
        """A power of two about the largest entry: squares of rows in it stay numbers of float32, and no digit of them changes."""
        largest = max((float(np.abs(x).max(initial=0)) for x in self.x), default=0.0)
        return float(2.0 ** np.round(np.log2(largest))) if largest > 0 else 1.0

    def metric(self, unit: float) -> Metric:
        """How errors count on these rows in `unit`, a row on average."""
        rows = np.concatenate(self.x, axis=1)
        rows /= np.float32(unit)
        rows /= np.float32(np.sqrt(max(self.count, 1)))
        return Metric(rows=rows)


@dataclass(frozen=True, eq=False)
class Known:
    """Of one layer: rows to begin on and rows to judge on; how much it puts out, a row; how far errors arrive."""

    fit: Metric
    judge: Metric
    power: float
    arrives: float = 1.0


def unknown(site: Site, weight: np.ndarray) -> Known:
    """Without data."""
    metric = prior(site.shape.kernel)
    return Known(metric, metric, metric.error(weight))


def tried(
    site: Site, weight: np.ndarray, known: Known, forms: Collection[str], seed: int = 0, rule: Rule | None = None
) -> Iterator[tuple[Choice, float]]:
    """Each form at each of its ranks, or at those of a rule, with its share of noise at the model's outputs; the layer as it is first."""
    yield Choice(), 0.0
    exact = weight
    weight = weight.astype(np.float32, copy=False) if known.judge.rows is not None else weight
    judged = Judged(site.shape, weight, known.judge, seed)
    for name in forms:
        form = FORMS[name]
        if form.unfit(site.shape):
            continue
        ladder = form.ladder(site.shape) if rule is None else _given(rule, form, site.shape, exact)
        if not ladder:
            continue
        largest = tuple(max(each) for each in zip(*ladder, strict=True))
        begun = form.start(site.shape, weight, largest, known.fit) if form.nested else []
        for ranks in ladder:
            if form.nested:
                factors = form.leading(begun, ranks)
            else:
                factors = form.start(site.shape, weight, ranks, known.fit)
            yield Choice(name, ranks), known.arrives * judged.error(form, factors) / max(known.power, 1e-300)


def _given(rule: Rule, form: Form, shape: Shape, weight: np.ndarray) -> list[Ranks]:
    """The ranks of the rule, where they are less than the layer."""
    ranks = ranks_by(rule, form, shape, weight)
    return [ranks] if ranks is not None and form.size(shape, ranks) < shape.size else []


@dataclass(frozen=True, eq=False)
class Judged:
    """One layer's weight [groups, out, in, taps], on what its candidates are judged, and which mixtures of its outputs stand for all."""

    shape: Shape
    weight: np.ndarray
    judge: Metric
    seed: int = 0

    @cached_property
    def mixing(self) -> np.ndarray:
        """[PROBES, out]"""
        drawn = np.random.default_rng(self.seed).normal(size=(PROBES, self.shape.outs))
        return drawn.astype(self.weight.dtype) / np.sqrt(PROBES)

    @cached_property
    def mixed(self) -> np.ndarray:
        """[groups, PROBES, in, taps]"""
        flat = self.weight.reshape(self.shape.groups, self.shape.outs, -1)
        return (self.mixing @ flat).reshape(self.shape.groups, PROBES, self.shape.ins, -1)

    def error(self, form: Form, factors: Factors) -> float:
        """‖(W − Ŵ) X‖², of PROBES mixtures of the outputs where one factor alone writes them."""
        terms = form.equation.split("->")[0].split(",")
        writers = [j for j, term in enumerate(terms) if "o" in term]
        if len(writers) != 1 or self.shape.outs <= 2 * PROBES:
            return self.judge.error(self.weight - form.dense(self.shape, factors))
        place = terms[writers[0]].index("o")
        few = list(factors)
        few[writers[0]] = np.moveaxis(np.tensordot(self.mixing, factors[writers[0]], (1, place)), 0, place)
        return self.judge.error(self.mixed - form.dense(replace(self.shape, outs=PROBES), few))
