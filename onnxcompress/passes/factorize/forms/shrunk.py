"""A smaller kernel: rings of taps go from the outside, as many as the padding has room for, and with data the rest makes up for them.

    W[o, i, k] = 0 for outer taps: 7×7 becomes 5×5 or 3×3, 5×5 becomes 3×3, and 3×3 becomes 1×1

The elastic kernel of Once-for-All (Cai et al., ICLR 2020, arXiv:1908.09791), fitted instead of trained.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

import numpy as np

from onnxcompress.passes.factorize.forms.dropped import kept
from onnxcompress.passes.factorize.forms.form import Factors, Form, Part, Ranks, Shape
from onnxcompress.passes.factorize.metric import Metric

Kernel = tuple[int, ...]


class Shrunk(Form):
    """The middle of the kernel."""

    name: ClassVar[str] = "shrink"
    equation: ClassVar[str] = ""
    source: ClassVar[str] = "smaller kernel; Cai et al. 2020 (elastic kernels)"
    formula: ClassVar[str] = "g·o·i·t"
    letters: ClassVar[str] = "t"
    closed: ClassVar[bool] = True

    def unfit(self, shape: Shape) -> str:
        """A ring must be there, and be padded: without padding the result would be larger."""
        if len(_rings(shape.kernel)) < 2:
            return "its kernel has no outer ring"
        return "" if len(self._allowed(shape)) > 1 else "its padding has no room for a smaller kernel"

    def _allowed(self, shape: Shape) -> list[Kernel]:
        """Largest first: kernels that the padding has room for."""
        room = shape.room or (0,) * len(shape.kernel)
        return [
            kernel
            for kernel in _rings(shape.kernel)
            if all(size - less <= 2 * most for size, less, most in zip(shape.kernel, kernel, room, strict=True))
        ]

    def full(self, shape: Shape) -> Ranks:
        """(taps,)"""
        return (shape.taps,)

    def ladder(self, shape: Shape) -> list[Ranks]:
        """A ring less each time."""
        return [(prod(kernel),) for kernel in reversed(self._allowed(shape)[1:])]

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """One layer."""
        every = tuple(range(len(shape.kernel)))
        outs, ins = shape.groups * shape.outs, shape.groups * shape.ins
        return (Part(outs, ins, shape.groups, every, taps=_with(shape.kernel, ranks[0])),)

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """The middle taps [groups, out, in, taps], their kernel and the whole one."""
        kernel = _with(shape.kernel, ranks[0])
        middle = _middle(shape.kernel, kernel)
        places = (np.arange(shape.ins)[:, None] * shape.taps + middle).reshape(-1)
        rows = [kept(each.reshape(shape.outs, -1), places, metric, group) for group, each in enumerate(weight)]
        made = np.stack(rows).reshape(shape.groups, shape.outs, shape.ins, -1)
        return [made, np.array([*kernel, *shape.kernel], np.float64)]

    def dense(self, shape: Shape, factors: Factors) -> np.ndarray:
        """Zeros around."""
        found = np.zeros((shape.groups, shape.outs, shape.ins, shape.taps), factors[0].dtype)
        found[..., _middle(shape.kernel, _sizes(factors)[0])] = factors[0]
        return found

    def leading(self, factors: Factors, ranks: Ranks) -> Factors:
        """The middle of the middle."""
        present, whole = _sizes(factors)
        kernel = _with(whole, ranks[0])
        return [factors[0][..., _middle(present, kernel)], np.array([*kernel, *whole], np.float64)]

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """The smaller kernel."""
        return [factors[0].reshape(shape.groups * shape.outs, shape.ins, *_sizes(factors)[0])]


def _rings(kernel: Kernel) -> list[Kernel]:
    """The kernel, and what is left when one ring after another goes."""
    found = [kernel]
    while (less := tuple(size - 2 if size > 2 else size for size in found[-1])) != found[-1]:
        found.append(less)
    return found


def _with(kernel: Kernel, taps: int) -> Kernel:
    """The one of them with so many taps."""
    return next(each for each in _rings(kernel) if prod(each) == taps)


def _middle(kernel: Kernel, less: Kernel) -> np.ndarray:
    """Numbers of the taps of `less` among those of `kernel`."""
    cut = tuple(slice((size - small) // 2, (size + small) // 2) for size, small in zip(kernel, less, strict=True))
    return np.arange(prod(kernel)).reshape(kernel)[cut].reshape(-1)


def _sizes(factors: Factors) -> tuple[Kernel, Kernel]:
    """The smaller kernel and the whole one."""
    sizes = [int(size) for size in factors[1]]
    half = len(sizes) // 2
    return tuple(sizes[:half]), tuple(sizes[half:])
