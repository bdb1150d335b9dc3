"""Depthwise separable: sums of terms that filter each channel by itself, before or after the channels are mixed.

    separable   W[o, i, k] = Σ_t P[o, t, i] D[t, i, k]      k×k depthwise, each channel to t, then 1×1 over all of them
    blueprint   W[o, i, k] = Σ_t D[o, t, k] P[o, t, i]      1×1 to t channels an output, then k×k within these

One term is MobileNet's block (Howard et al. 2017, arXiv:1704.04861; Xception, arXiv:1610.02357), and a blueprint that of Haase and
Amthor, CVPR 2020, arXiv:2003.13549. 3×3 from 2 to 4 channels: 72 weights, with one term 18 + 8 = 26.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from onnxcompress.passes.factorize.forms.form import Factors, Form, Part, Ranks, Shape
from onnxcompress.passes.factorize.metric import Metric, top


class Separable(Form):
    """Depthwise, then 1×1."""

    name: ClassVar[str] = "separable"
    equation: ClassVar[str] = "gitk,goit->goik"
    source: ClassVar[str] = "depthwise separable; Howard et al. 2017, Chollet 2017"
    formula: ClassVar[str] = "g·t·i·(k + o)"
    letters: ClassVar[str] = "t"

    def unfit(self, shape: Shape) -> str:
        """There must be a kernel, and something that is mixed."""
        if shape.taps == 1:
            return "it has one tap"
        return "" if shape.outs > 1 else "it is depthwise already"

    def full(self, shape: Shape) -> Ranks:
        """(t,)"""
        return (min(shape.outs, shape.taps),)

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """A group a channel, then the layer's groups."""
        g, every = shape.groups, shape.groups * shape.ins
        inner = every * ranks[0]
        return Part(inner, every, every, tuple(range(len(shape.kernel)))), Part(g * shape.outs, inner, g)

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """For each channel the leading shapes of its kernels, as the layer's inputs weigh taps."""
        kernels = weight.transpose(0, 2, 3, 1)
        basis = top((kernels @ kernels.transpose(0, 1, 3, 2)).reshape(-1, shape.taps, shape.taps), ranks[0])
        basis = basis.reshape(shape.groups, shape.ins, shape.taps, ranks[0])
        return [basis.transpose(0, 1, 3, 2), np.einsum("goik,gikt->goit", weight, basis, optimize=True)]

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """A channel's terms follow each other."""
        ones = tuple(1 for _ in shape.kernel)
        return [
            factors[0].reshape(-1, 1, *shape.kernel),
            factors[1].reshape(shape.groups * shape.outs, -1, *ones),
        ]


class Blueprint(Form):
    """1×1, then depthwise."""

    name: ClassVar[str] = "blueprint"
    equation: ClassVar[str] = "goti,gotk->goik"
    source: ClassVar[str] = "blueprint separable; Haase, Amthor 2020"
    formula: ClassVar[str] = "g·t·o·(i + k)"
    letters: ClassVar[str] = "t"

    def unfit(self, shape: Shape) -> str:
        """There must be a kernel, and something that is mixed."""
        if shape.taps == 1:
            return "it has one tap"
        return "" if shape.ins > 1 else "it is depthwise already"

    def full(self, shape: Shape) -> Ranks:
        """(t,)"""
        return (min(shape.ins, shape.taps),)

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """The layer's groups, then a group an output."""
        g, every = shape.groups, shape.groups * shape.outs
        inner = every * ranks[0]
        return Part(inner, g * shape.ins, g), Part(every, inner, every, tuple(range(len(shape.kernel))))

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """For each output the leading shapes of its kernels."""
        kernels = weight.transpose(0, 1, 3, 2)
        basis = top((kernels @ kernels.transpose(0, 1, 3, 2)).reshape(-1, shape.taps, shape.taps), ranks[0])
        basis = basis.reshape(shape.groups, shape.outs, shape.taps, ranks[0])
        return [np.einsum("goik,gokt->goti", weight, basis, optimize=True), basis.transpose(0, 1, 3, 2)]

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """An output's terms follow each other."""
        ones = tuple(1 for _ in shape.kernel)
        return [
            factors[0].reshape(-1, shape.ins, *ones),
            factors[1].reshape(shape.groups * shape.outs, -1, *shape.kernel),
        ]
