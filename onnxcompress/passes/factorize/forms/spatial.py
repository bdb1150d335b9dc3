"""Spatial: a kernel along the first axis, then one along the others (k×1, 1×k), or the other way round.

    W[o, i, (a b)] = Σ_r H[o, r, b] V[r, i, a]

Jaderberg, Vedaldi, Zisserman, BMVC 2014, arXiv:1405.3866.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

import numpy as np

from onnxcompress.passes.factorize.forms.form import Factors, Form, Part, Ranks, Shape
from onnxcompress.passes.factorize.metric import Metric, top


def cut_of(shape: Shape) -> int:
    """Kernel axes of the first part: up to the first wide one."""
    return shape.wide[0] + 1


def split_view(shape: Shape) -> tuple[int, ...]:
    """[g, o, i, a, b]: the taps of the first part, and of the rest."""
    before = prod(shape.kernel[: cut_of(shape)])
    return (shape.groups, shape.outs, shape.ins, before, shape.taps // before)


class Spatial(Form):
    """Along the first wide axis, then along the rest."""

    name: ClassVar[str] = "spatial"
    equation: ClassVar[str] = "gria,gorb->goiab"
    source: ClassVar[str] = "spatial SVD; Jaderberg et al. 2014"
    formula: ClassVar[str] = "g·r·(i·a + o·b), k = a·b"
    letters: ClassVar[str] = "r"
    blind: ClassVar[bool] = True
    first: ClassVar[str] = "a"

    def unfit(self, shape: Shape) -> str:
        """A kernel along one axis is not split."""
        return "" if len(shape.wide) > 1 else "its kernel has one axis"

    def axes(self, shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the first and of the last part; every axis belongs to one of them."""
        cut = cut_of(shape)
        before, behind = tuple(range(cut)), tuple(range(cut, len(shape.kernel)))
        return (before, behind) if self.first == "a" else (behind, before)

    def view(self, shape: Shape) -> tuple[int, ...]:
        """[g, o, i, a, b]"""
        return split_view(shape)

    def full(self, shape: Shape) -> Ranks:
        """(r,)"""
        *_, a, b = self.view(shape)
        first, last = (a, b) if self.first == "a" else (b, a)
        return (min(shape.ins * first, shape.outs * last),)

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """Two kernels."""
        g, inner = shape.groups, shape.groups * ranks[0]
        first, last = self.axes(shape)
        return Part(inner, g * shape.ins, g, first), Part(g * shape.outs, inner, g, last)

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """SVD of the weight, as (out, last axis) times (in, first axis), by what the first part is fed."""
        sizes = self.view(shape)
        place, letters = (3, "goiab,giaj->gobj") if self.first == "a" else (4, "goiab,gibj->goaj")
        n, length = shape.ins * sizes[place], sizes[place]
        whitener, inverse = metric.whitener(sizes[2:], (0, place - 2))
        whitener, inverse = (np.broadcast_to(each, (shape.groups, n, n)) for each in (whitener, inverse))
        split = whitener.reshape(shape.groups, shape.ins, length, n)
        seen = np.einsum(letters, weight.reshape(sizes), split, optimize=True)
        flat = seen.reshape(shape.groups, -1, n)
        basis = top(flat.transpose(0, 2, 1) @ flat, ranks[0])
        reading = (basis.transpose(0, 2, 1) @ inverse).reshape(shape.groups, -1, shape.ins, length)
        return [reading, np.einsum("gobj,gjr->gorb", seen, basis, optimize=True)]

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """Both, groups on the outer side of the channels."""
        first, last = self.axes(shape)
        return [
            factors[0].reshape(-1, shape.ins, *shape.over(first)),
            factors[1].reshape(-1, factors[1].shape[2], *shape.over(last)),
        ]


class Across(Spatial):
    """Along the last axes, then along the first."""

    name: ClassVar[str] = "spatial-across"
    equation: ClassVar[str] = "grib,gora->goiab"
    formula: ClassVar[str] = "g·r·(i·b + o·a), k = a·b"
    letters: ClassVar[str] = "r"
    first: ClassVar[str] = "b"
