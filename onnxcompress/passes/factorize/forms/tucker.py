"""Tucker-2: 1×1 to few channels, k×k between few, 1×1 to all.

    W[o, i, k] = Σ A[o, s] C[s, r, k] B[r, i]

Kim et al., ICLR 2016, arXiv:1511.06530.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from onnxcompress.passes.factorize.forms.form import SHARES, Factors, Form, Part, Ranks, Shape, proportional, rounded
from onnxcompress.passes.factorize.forms.lowrank import channels
from onnxcompress.passes.factorize.metric import Metric

LEANINGS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""How many times more of its full rank the input side keeps than the output side."""


class Tucker(Form):
    """Few channels on both sides of the kernel."""

    name: ClassVar[str] = "tucker"
    equation: ClassVar[str] = "gri,gsrk,gos->goik"
    source: ClassVar[str] = "Tucker-2; Kim et al. 2016"
    formula: ClassVar[str] = "g·(r·i + r·s·k + s·o)"
    letters: ClassVar[str] = "rs"
    blind: ClassVar[bool] = True

    def unfit(self, shape: Shape) -> str:
        """With one tap there is nothing between both sides."""
        if shape.taps == 1:
            return "it has one tap: that is lowrank"
        return "" if min(shape.ins, shape.outs) > 1 else "it has one channel a group"

    def full(self, shape: Shape) -> Ranks:
        """(r, s)"""
        return min(shape.ins, shape.outs * shape.taps), min(shape.outs, shape.ins * shape.taps)

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """1×1, the kernel, 1×1."""
        g, (r, s) = shape.groups, ranks
        every = tuple(range(len(shape.kernel)))
        return Part(g * r, g * shape.ins, g), Part(g * s, g * r, g, every), Part(g * shape.outs, g * s, g)

    def ladder(self, shape: Shape) -> list[Ranks]:
        """In several proportions of both ranks."""
        found, (most_in, most_out) = set(), self.full(shape)
        for share in SHARES:
            r, s = proportional(self, shape, self.full(shape), share)
            for leaning in LEANINGS:
                factor = leaning**0.5
                found.add((rounded(r * factor, most_in), rounded(s / factor, most_out)))
        return sorted(ranks for ranks in found if self.size(shape, ranks) < shape.size)

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """The channels that count for what is put out, then the directions of that."""
        reading, restoring = channels(shape, weight, ranks[0], metric)
        core = np.einsum("goik,gir->gork", weight, restoring, optimize=True)
        near = np.einsum("gork,gri->goik", core, reading, optimize=True)
        basis = metric.leading(near, ranks[1])
        return [reading, np.einsum("gos,gork->gsrk", basis, core, optimize=True), basis]

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """All three, groups on the outer side of the channels."""
        first, core, last = factors
        ones = tuple(1 for _ in shape.kernel)
        return [
            first.reshape(-1, shape.ins, *ones),
            core.reshape(-1, core.shape[2], *shape.kernel),
            last.reshape(-1, last.shape[2], *ones),
        ]
