"""Low rank: one factor squeezes the channels, the other restores them; the kernel lies in either.

    after    W[o, (i k)]  = U[o, r] V[r, (i k)]       k×k to r channels, then 1×1; Gemm and MatMul: two products
    before   W[(o k), i]  = A[(o k), r] B[r, i]       1×1 to r channels, then k×k

After: the best U spans the leading directions of what the layer puts out, V = Uᵀ W (Zhang et al., TPAMI 2016, arXiv:1505.06798;
for products that is the whitened SVD of SVD-LLM, arXiv:2403.07378, without a Cholesky factor of the inputs).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from onnxcompress.passes.factorize.forms.form import Factors, Form, Part, Ranks, Shape
from onnxcompress.passes.factorize.metric import Metric, top


class LowRank(Form):
    """k×k to few channels, then 1×1 to all; two matrices for one."""

    name: ClassVar[str] = "lowrank"
    equation: ClassVar[str] = "grik,gor->goik"
    source: ClassVar[str] = "SVD; Denil et al. 2013, Zhang et al. 2016"
    formula: ClassVar[str] = "g·r·(i·k + o)"
    letters: ClassVar[str] = "r"
    blind: ClassVar[bool] = True
    closed: ClassVar[bool] = True

    def unfit(self, shape: Shape) -> str:
        """Of one output or input there is no rank."""
        return "" if min(shape.outs, shape.ins * shape.taps) > 1 else "it has one channel a group"

    def full(self, shape: Shape) -> Ranks:
        """(r,)"""
        return (min(shape.outs, shape.ins * shape.taps),)

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """The kernel, then 1×1."""
        g, inner = shape.groups, shape.groups * ranks[0]
        every = tuple(range(len(shape.kernel)))
        return Part(inner, g * shape.ins, g, every), Part(g * shape.outs, inner, g)

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """The best there is."""
        basis = metric.leading(weight, ranks[0])
        return [np.einsum("gor,goik->grik", basis, weight, optimize=True), basis]

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """Both, groups on the outer side of the channels."""
        first, last = factors
        return [
            first.reshape(-1, shape.ins, *shape.kernel),
            last.reshape(-1, last.shape[2], *(1 for _ in shape.kernel)),
        ]


class SqueezeIn(Form):
    """1×1 to few channels, then k×k to all."""

    name: ClassVar[str] = "squeeze"
    equation: ClassVar[str] = "gri,gork->goik"
    source: ClassVar[str] = "SVD over input channels; Iandola et al. 2016 (the squeeze of SqueezeNet)"
    formula: ClassVar[str] = "g·r·(i + o·k)"
    letters: ClassVar[str] = "r"
    blind: ClassVar[bool] = True

    def unfit(self, shape: Shape) -> str:
        """With one tap it is the low rank."""
        if shape.taps == 1:
            return "it has one tap: that is lowrank"
        return "" if shape.ins > 1 else "it has one input channel a group"

    def full(self, shape: Shape) -> Ranks:
        """(r,)"""
        return (min(shape.ins, shape.outs * shape.taps),)

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """1×1, then the kernel."""
        g, inner = shape.groups, shape.groups * ranks[0]
        return Part(inner, g * shape.ins, g), Part(g * shape.outs, inner, g, tuple(range(len(shape.kernel))))

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """By what the channels are fed, all taps together."""
        reading, restoring = channels(shape, weight, ranks[0], metric)
        return [reading, np.einsum("goik,gir->gork", weight, restoring, optimize=True)]

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """Both, groups on the outer side of the channels."""
        first, last = factors
        return [
            first.reshape(-1, shape.ins, *(1 for _ in shape.kernel)),
            last.reshape(-1, last.shape[2], *shape.kernel),
        ]


def channels(shape: Shape, weight: np.ndarray, rank: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """What reads `rank` mixtures of the input channels [groups, rank, in], and what restores the channels [groups, in, rank]."""
    whitener, inverse = metric.whitener((shape.ins, shape.taps), (0,))
    whitener, inverse = (np.broadcast_to(each, (shape.groups, *each.shape[1:])) for each in (whitener, inverse))
    seen = np.einsum("goik,gij->gokj", weight, whitener, optimize=True).reshape(shape.groups, -1, shape.ins)
    basis = top(seen.transpose(0, 2, 1) @ seen, rank)
    return basis.transpose(0, 2, 1) @ inverse, whitener @ basis
