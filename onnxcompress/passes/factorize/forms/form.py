"""What a form is: a chain of smaller layers that stands for one layer, exactly at full rank, nearly below it.

A layer's weight is seen as [groups, out, in, taps], out and in of one group. A form is an einsum whose factors, in the order of
the chain, make such a weight: "gri,gork->goik" is 1×1 to r channels, then k×k. Nothing lies between the factors, so that one dense
weight computes what the chain does: the walk and all fits work on that, and only the writer ever makes the chain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from onnxcompress.passes.factorize.metric import Metric, contracted
from onnxcompress.passes.merge.maps import Window

Ranks = tuple[int, ...]
"""The setting of a form: how wide the values between its factors are."""

Factors = list[np.ndarray]
"""float64, in the order of the chain: the first one reads what the layer reads."""

SHARES = (0.1, 0.15, 0.2, 0.26, 0.33, 0.4, 0.47, 0.54, 0.62, 0.7, 0.8)
"""Of the weights of a layer: ranks are tried that leave about so many."""


@dataclass(frozen=True)
class Shape:
    """A layer as forms see it.

    groups, outs, ins  of a convolution, outs and ins of one group      kernel  () of a product
    transposed         ConvTranspose: what a tap reads is spread out instead of gathered
    room               taps along each axis that padding has at both ends, so that they can go; () is none
    window             how the kernel moves; None: its padding is worked out from sizes
    """

    groups: int
    outs: int
    ins: int
    kernel: tuple[int, ...]
    transposed: bool = False
    room: tuple[int, ...] = ()
    window: Window | None = None

    @property
    def taps(self) -> int:
        """Of the whole kernel."""
        return prod(self.kernel)

    @property
    def size(self) -> int:
        """Weights."""
        return self.groups * self.outs * self.ins * self.taps

    @property
    def wide(self) -> tuple[int, ...]:
        """Kernel axes with more than one tap."""
        return tuple(axis for axis, size in enumerate(self.kernel) if size > 1)

    def over(self, axes: Sequence[int]) -> tuple[int, ...]:
        """The kernel of a part that covers only these axes."""
        return tuple(size if axis in axes else 1 for axis, size in enumerate(self.kernel))


@dataclass(frozen=True)
class Part:
    """One layer of the chain: channels in all, groups, and the kernel axes that it covers: their taps, strides, pads and dilations.

    order   it only puts channels in another order: its link is the place that each comes from
    taps    along each axis, where they are fewer than the layer's: those in the middle
    window  how it moves, where that is not the layer's own way along `axes`
    beside  it reads what the part before it reads, and what both write is laid end to end
    """

    outs: int
    ins: int
    groups: int = 1
    axes: tuple[int, ...] = ()
    order: bool = False
    taps: tuple[int, ...] = ()
    window: Window | None = None
    beside: bool = False

    def size(self, shape: Shape) -> int:
        """Weights."""
        if self.order:
            return 0
        return self.outs * self.ins // self.groups * prod(self.kernel(shape))

    def kernel(self, shape: Shape) -> tuple[int, ...]:
        """Its taps along each axis."""
        return self.taps or (shape.over(self.axes) if self.window is None else self.window.kernel)


class Form(ABC):
    """An entry of FORMS.

    name      as in --forms                equation  einsum of the factors -> the weight, letters g, o, i and the kernel's
    source    paper or network             formula   of its weights, in groups g, outs o, ins i (of a group), taps k and ranks
    letters   of the ranks, in their order      closed    is the start the best there is?
    blind     may it be chosen where nothing is known of what the layer is fed? The errors of depthwise forms and of channels that are
              dropped are not like noise: of a ResNet without data 3.4 dB were left with all forms, 7 to 8 with these alone
    offered   is it tried where nobody names forms?
    nested    are the leading terms of larger ranks near the best of smaller ones?
    constant  factors, by number, that are the same for every weight: they are no layers
    """

    name: ClassVar[str]
    equation: ClassVar[str]
    source: ClassVar[str]
    formula: ClassVar[str]
    letters: ClassVar[str]
    closed: ClassVar[bool] = False
    blind: ClassVar[bool] = False
    offered: ClassVar[bool] = True
    nested: ClassVar[bool] = True
    constant: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def unfit(self, shape: Shape) -> str:
        """Why it cannot stand for such a layer; empty where it can."""

    @abstractmethod
    def full(self, shape: Shape) -> Ranks:
        """The least ranks at which it equals any weight."""

    @abstractmethod
    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """The layers of its chain, which tell parameters and multiply-adds."""

    @abstractmethod
    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """Factors for a weight [groups, out, in, taps], by decompositions; near the best for this metric."""

    @abstractmethod
    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """The factors as weights of the parts: [outs, ins/groups, *kernel] each; product: [outs, ins]."""

    def view(self, shape: Shape) -> tuple[int, ...]:
        """The weight's shape as the equation has it: the kernel whole, where a form does not split it."""
        return (shape.groups, shape.outs, shape.ins, shape.taps)

    def dense(self, shape: Shape, factors: Factors) -> np.ndarray:
        """The weight [groups, out, in, taps] that the chain computes with."""
        inputs, output = self.equation.split("->")
        terms, given = inputs.split(","), list(factors)
        if shape.outs < shape.ins and not self.constant:  # from the side that is narrow
            terms, given = terms[::-1], given[::-1]
        found = contracted(f"{','.join(terms)}->{output}", *given)
        return np.ascontiguousarray(found).reshape(shape.groups, shape.outs, shape.ins, shape.taps)

    def leading(self, factors: Factors, ranks: Ranks) -> Factors:
        """The factors of smaller ranks: those of larger ones, cut. To be overridden where terms are not sorted by what they bring."""
        most = dict(zip(self.letters, ranks, strict=True))
        terms = self.equation.split("->")[0].split(",")
        return [
            factor[tuple(slice(most.get(letter)) for letter in term)]
            for term, factor in zip(terms, factors, strict=True)
        ]

    def size(self, shape: Shape, ranks: Ranks) -> int:
        """Weights."""
        return sum(part.size(shape) for part in self.parts(shape, ranks))

    def ladder(self, shape: Shape) -> list[Ranks]:
        """Ranks to try, smallest first: those of all ranks in proportion that leave about SHARES of the weights."""
        full = self.full(shape)
        found = {proportional(self, shape, full, share) for share in SHARES}
        return sorted(ranks for ranks in found if self.size(shape, ranks) < shape.size)


def lengths(
    shape: Shape, parts: Sequence[Part], read: Sequence[object], written: Sequence[object]
) -> list[list[object]]:
    """Sizes of the kernel's axes behind each part: those that the layer reads, then by and by those that it writes.

    None where a part moves in its own way over something whose size is no number.
    """
    found: list[list[object]] = []
    fed = now = list(read)
    for part in parts:
        fed = fed if part.beside else now
        if part.window is None:
            now = [written[axis] if axis in part.axes else size for axis, size in enumerate(fed)]
        else:
            now = [part.window.length(a, n) if isinstance(n, int) else None for a, n in enumerate(fed)]
        found.append(now)
    return found


def proportional(form: Form, shape: Shape, full: Ranks, share: float) -> Ranks:
    """The largest ranks, all about the same part of the full ones, that leave no more than `share` of the weights."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        ranks = tuple(rounded(middle * most, most) for most in full)
        low, high = (middle, high) if form.size(shape, ranks) <= share * shape.size else (low, middle)
    return tuple(rounded(low * most, most) for most in full)


def rounded(rank: float, most: int) -> int:
    """A rank that kernels like: onnxruntime's convolutions take channels 8 or 16 at once."""
    step = 8 if rank >= 24 else 4 if rank >= 8 else 1
    return max(1, min(most, int(rank // step) * step))
