"""Two small kernels for a large one: 3×3 and 3×3 for 5×5, and for 7×7 with the second one's taps two apart.

    W[o, i, a + e·b] = Σ_m B[o, m, b] A[m, i, a]      e = 1, 2 or 3 for 5, 7 or 9 taps along an axis

VGG's argument (Simonyan, Zisserman, ICLR 2015, arXiv:1409.1556; Szegedy et al., CVPR 2016, arXiv:1512.00567) without a function in
between, so that it can be fitted to a layer that is there. The whole padding is the first kernel's, which makes borders exact; the stride
is the second one's, or the first one's where the distance of the second one's taps is a multiple of it (7×7 at stride 2 is 3×3 at
stride 2, then plain 3×3). The start is the singular value decomposition over all pairs of taps that meet; both then follow conjugate
gradients in turn.
"""

from __future__ import annotations

from itertools import product
from typing import ClassVar

import numpy as np

from onnxcompress.passes.factorize.alternate import followed
from onnxcompress.passes.factorize.forms.form import Factors, Form, Part, Ranks, Shape, proportional
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.merge.maps import Window

SPLIT = {5: (3, 3, 1), 7: (3, 3, 2), 9: (3, 3, 3)}
"""Taps along an axis -> those of both kernels, and how far the second one's lie apart. Others stay whole, in the second."""

SWEEPS = 3
"""Over both kernels, where the start is no exact one."""

SHARES = (0.26, 0.4, 0.54, 0.7)
"""Of the layer's weights: each costs a decomposition and sweeps of its own."""


class Stacked(Form):
    """Small kernel, small kernel."""

    name: ClassVar[str] = "stacked"
    equation: ClassVar[str] = "gmia,gomb,abk->goik"
    source: ClassVar[str] = "two small kernels; Simonyan, Zisserman 2015"
    formula: ClassVar[str] = "g·m·(i·p + o·q), p and q taps"
    letters: ClassVar[str] = "m"
    nested: ClassVar[bool] = False
    constant: ClassVar[tuple[int, ...]] = (2,)

    def unfit(self, shape: Shape) -> str:
        """An axis that has two, and padding that does not hang on sizes."""
        if not any(size in SPLIT for size in shape.kernel):
            return "its kernel has no 5, 7 or 9 taps along an axis"
        if shape.transposed:
            return "it is transposed"
        return "" if shape.window is not None else "its padding follows from sizes"

    def full(self, shape: Shape) -> Ranks:
        """(m,): for each input or output, a copy for each shift of the one kernel that lets the other reach all taps."""
        return (min(shape.ins * len(_shifts(shape, 0)), shape.outs * len(_shifts(shape, 1))),)

    def ladder(self, shape: Shape) -> list[Ranks]:
        """A few."""
        found = {proportional(self, shape, self.full(shape), share) for share in SHARES}
        return sorted(ranks for ranks in found if self.size(shape, ranks) < shape.size)

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """The first with all padding, the second with what is left of stride and distance."""
        window = shape.window
        assert window is not None
        g, inner, every = shape.groups, shape.groups * ranks[0], tuple(range(len(shape.kernel)))
        first, second, apart = _kernels(shape)
        whole = [
            stride if d * e % stride == 0 else 1
            for stride, d, e in zip(window.strides, window.dilations, apart, strict=True)
        ]
        steps = [d * e // s if k > 1 else 1 for d, e, s, k in zip(window.dilations, apart, whole, second, strict=True)]
        rest = tuple(stride // s for stride, s in zip(window.strides, whole, strict=True))
        none = (0,) * len(every)
        one = Window(first, tuple(whole), window.dilations, window.begins, window.ends)
        other = Window(second, rest, tuple(steps), none, none)
        return (
            Part(inner, g * shape.ins, g, every, window=one),
            Part(g * shape.outs, inner, g, every, window=other),
        )

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """Exact at full rank; else the leading terms over all pairs of taps, and some sweeps."""
        meet = _meeting(shape)
        if ranks[0] >= self.full(shape)[0]:
            return [*_copies(shape, weight, ranks[0], meet), meet]
        spread = np.einsum("goik,abk->gobia", weight, meet / meet.sum(axis=(0, 1)), optimize=True)
        groups, outs, b, ins, a = spread.shape
        flat = spread.reshape(groups, outs * b, ins * a).astype(np.float64)
        left, values, right = np.linalg.svd(flat, full_matrices=False)
        root, m = np.sqrt(values[:, : ranks[0]]), min(ranks[0], values.shape[1])
        found = [
            (root[:, :, None] * right[:, :m]).reshape(groups, m, ins, a),
            np.moveaxis((left[:, :, :m] * root[:, None, :]).reshape(groups, outs, b, m), 3, 2),
            meet,
        ]
        for _ in range(SWEEPS):
            for j in (1, 0):
                found[j] = followed(self, shape, weight, found, j, metric)
        return found

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """Both kernels."""
        first, second, _ = _kernels(shape)
        return [
            factors[0].reshape(-1, shape.ins, *first),
            factors[1].reshape(-1, factors[1].shape[2], *second),
        ]


def _kernels(shape: Shape) -> tuple[tuple[int, ...], ...]:
    """Of both parts, and how far apart the second one's taps lie, along each axis."""
    return tuple(zip(*(SPLIT.get(size, (1, size, 1)) for size in shape.kernel), strict=True))


def _meeting(shape: Shape) -> np.ndarray:
    """[a, b, k]: 1 where a tap of the first and one of the second make a tap of the whole."""
    first, second, apart = _kernels(shape)
    sizes = [int(np.prod(each)) for each in (first, second, shape.kernel)]
    found = np.zeros(sizes)
    for (n, a), (m, b) in product(enumerate(np.ndindex(*first)), enumerate(np.ndindex(*second))):
        place = [i + e * j for i, j, e in zip(a, b, apart, strict=True)]
        found[n, m, np.ravel_multi_index(place, shape.kernel)] = 1
    return found


def _shifts(shape: Shape, which: int) -> list[int]:
    """Taps of one kernel, as few as let the other one reach all taps of the whole with them."""
    meet = _meeting(shape) if which == 0 else _meeting(shape).transpose(1, 0, 2)
    chosen: list[int] = []
    for tap in [0, len(meet) - 1, *range(1, len(meet) - 1)]:
        new = meet[tap].any(axis=0) & ~meet[chosen].any(axis=(0, 1)) if chosen else meet[tap].any(axis=0)
        if new.any():
            chosen.append(tap)
    for tap in list(chosen):
        others = [each for each in chosen if each != tap]
        if others and meet[others].any(axis=(0, 1)).all():
            chosen = others
    return sorted(chosen)


def _copies(shape: Shape, weight: np.ndarray, rank: int, meet: np.ndarray) -> list[np.ndarray]:
    """One kernel copies each channel, shifted; the other has the weight, each tap with the first shift that reaches it."""
    groups, outs, ins, _ = weight.shape
    small = 0 if shape.ins * len(_shifts(shape, 0)) <= shape.outs * len(_shifts(shape, 1)) else 1
    count = (ins, outs)[small]
    meet = meet if small == 0 else meet.transpose(1, 0, 2)
    moving, fixed = (
        np.zeros((groups, rank, count, meet.shape[0])),
        np.zeros((groups, (outs, ins)[small], rank, meet.shape[1])),
    )
    taken = np.zeros(meet.shape[2], bool)
    for number, shift in enumerate(_shifts(shape, small)):
        rows = slice(number * count, (number + 1) * count)
        moving[:, rows, :, shift] = np.eye(count)
        for tap in range(meet.shape[1]):
            place = int(np.argmax(meet[shift, tap]))
            if meet[shift, tap].any() and not taken[place]:
                taken[place] = True
                values = weight[..., place]
                fixed[:, :, rows, tap] = values if small == 0 else values.transpose(0, 2, 1)
    if small == 0:
        return [moving, fixed]
    return [fixed.transpose(0, 2, 1, 3), moving.transpose(0, 2, 1, 3)]
