"""CP: a sum of products of vectors, one for each axis of the weight, so that the kernel is depthwise between two 1×1.

    cp         W[o, i, a, b] = Σ_r C[o, r] B[r, b] A[r, a] I[r, i]     1×1, a×1 and 1×b depthwise, 1×1
    cp-whole   W[o, i, k]    = Σ_r C[o, r] K[r, k] I[r, i]             1×1, k×k depthwise, 1×1: MobileNetV2's block without functions

Lebedev et al., ICLR 2015, arXiv:1412.6553. Found by alternating least squares from the leading directions of each axis (HOSVD), in
the whitened inputs; the number of sweeps is small, since fits on data follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import numpy as np

from onnxcompress.passes.factorize.forms.form import Factors, Form, Part, Ranks, Shape, proportional
from onnxcompress.passes.factorize.forms.spatial import cut_of, split_view
from onnxcompress.passes.factorize.metric import Metric, root

SWEEPS = 12
"""Over all axes: on 3×3 layers of a ResNet the next twelve gain less than 0.1 dB."""

DAMPING = 1e-10
"""Of the systems, as a share of their mean diagonal: vectors of different terms become nearly parallel."""

SHARES = (0.15, 0.26, 0.4, 0.54)
"""Fewer than of other forms: each costs a decomposition of its own."""


class Canonical(Form):
    """1×1, the kernel depthwise in one piece, 1×1."""

    name: ClassVar[str] = "cp-whole"
    equation: ClassVar[str] = "gri,grk,gor->goik"
    source: ClassVar[str] = "CP over channels and kernel; Lebedev et al. 2015, Sandler et al. 2018 (its shape)"
    formula: ClassVar[str] = "g·r·(i + k + o)"
    letters: ClassVar[str] = "r"
    offered: ClassVar[bool] = False

    def unfit(self, shape: Shape) -> str:
        """There must be a kernel between channels on both sides."""
        if shape.taps == 1:
            return "it has one tap: that is lowrank"
        return "" if min(shape.ins, shape.outs) > 1 else "it has one channel a group"

    def full(self, shape: Shape) -> Ranks:
        """(r,)"""
        sizes = self.view(shape)[1:]
        return (prod(sizes) // max(sizes),)

    def pieces(self, shape: Shape) -> list[tuple[int, ...]]:
        """Kernel axes of each depthwise part."""
        return [tuple(range(len(shape.kernel)))]

    def parts(self, shape: Shape, ranks: Ranks) -> tuple[Part, ...]:
        """1×1, a group a term, 1×1."""
        g, inner = shape.groups, shape.groups * ranks[0]
        middle = (Part(inner, inner, inner, axes) for axes in self.pieces(shape))
        return Part(inner, g * shape.ins, g), *middle, Part(g * shape.outs, inner, g)

    def ladder(self, shape: Shape) -> list[Ranks]:
        """A few."""
        found = {proportional(self, shape, self.full(shape), share) for share in SHARES}
        return sorted(ranks for ranks in found if self.size(shape, ranks) < shape.size)

    def start(self, shape: Shape, weight: np.ndarray, ranks: Ranks, metric: Metric) -> Factors:
        """Alternating least squares where all that is fed has the same moments; then the metric's own inputs again."""
        whitener, inverse = root(metric.of_axes((shape.ins, shape.taps), (0,)))
        whitener, inverse = (np.broadcast_to(each, (shape.groups, *each.shape[1:])) for each in (whitener, inverse))
        seen = np.einsum("goik,gij->gojk", weight, whitener, optimize=True).reshape(self.view(shape))
        outs, ins, *taps = (np.stack(each) for each in zip(*(terms(one, ranks[0]) for one in seen), strict=True))
        reading = np.einsum("gir,gij->grj", ins, inverse)
        return [reading, *(each.transpose(0, 2, 1) for each in taps), outs]

    def links(self, shape: Shape, factors: Factors) -> list[np.ndarray]:
        """All of them, groups on the outer side of the terms."""
        first, *middle, last = factors
        ones = tuple(1 for _ in shape.kernel)
        return [
            first.reshape(-1, shape.ins, *ones),
            *(each.reshape(-1, 1, *shape.over(axes)) for each, axes in zip(middle, self.pieces(shape), strict=True)),
            last.reshape(-1, last.shape[2], *ones),
        ]


class SplitCanonical(Canonical):
    """1×1, a×1 and 1×b depthwise, 1×1."""

    name: ClassVar[str] = "cp"
    equation: ClassVar[str] = "gri,gra,grb,gor->goiab"
    source: ClassVar[str] = "CP; Lebedev et al. 2015"
    formula: ClassVar[str] = "g·r·(i + a + b + o), k = a·b"

    def unfit(self, shape: Shape) -> str:
        """The kernel needs two axes."""
        return super().unfit(shape) or ("" if len(shape.wide) > 1 else "its kernel has one axis: that is cp-whole")

    def view(self, shape: Shape) -> tuple[int, ...]:
        """[g, o, i, a, b]"""
        return split_view(shape)

    def pieces(self, shape: Shape) -> list[tuple[int, ...]]:
        """The first wide axis, then the rest."""
        cut = cut_of(shape)
        return [tuple(range(cut)), tuple(range(cut, len(shape.kernel)))]


def terms(tensor: np.ndarray, rank: int) -> list[np.ndarray]:
    """For each axis of the tensor [size, rank]: vectors whose products, summed over rank, come near to it."""
    sizes = tensor.shape
    if rank >= tensor.size // max(sizes):
        return _exact(tensor, rank)
    found = [_directions(tensor, axis, rank) for axis in range(tensor.ndim)]
    for _ in range(SWEEPS):
        for axis in range(tensor.ndim):
            gram = prod((each.T @ each for at, each in enumerate(found) if at != axis), start=np.ones((rank, rank)))
            gram[np.diag_indices(rank)] += DAMPING * np.trace(gram) / rank
            found[axis] = np.linalg.solve(gram, _met(tensor, found, axis).T).T
            if axis < tensor.ndim - 1:  # the last one carries the sizes
                found[axis] /= np.maximum(np.linalg.norm(found[axis], axis=0), 1e-300)
    order = np.argsort(-np.linalg.norm(found[-1], axis=0), kind="stable")  # so that the leading ones bring most
    return [each[:, order] for each in found]


def _directions(tensor: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """The leading directions of an axis, and as many drawn ones as are missing."""
    flat = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    basis = np.linalg.eigh(flat @ flat.T)[1][:, ::-1][:, :rank]
    drawn = np.random.default_rng(axis).standard_normal((len(flat), rank - basis.shape[1])) / np.sqrt(len(flat))
    return np.hstack([basis, drawn])


def _met(tensor: np.ndarray, found: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """[size, rank]: the tensor summed against the vectors of all other axes, the longest of them first, as a product of matrices."""
    others = [at for at in range(tensor.ndim) if at != axis]
    longest = max(others, key=lambda at: tensor.shape[at])
    left = [at for at in range(tensor.ndim) if at != longest]
    summed = np.tensordot(tensor, found[longest], axes=(longest, 0))
    for place in sorted((left.index(at) for at in others if at != longest), reverse=True):
        vectors = found[left[place]]
        summed = (summed * vectors.reshape(len(vectors), *[1] * (len(left) - place - 1), -1)).sum(axis=place)
        left.pop(place)
    return np.asarray(summed)


def _exact(tensor: np.ndarray, rank: int) -> list[np.ndarray]:
    """A term for each place along all axes but the longest, whose vector is the fibre there."""
    longest = int(np.argmax(tensor.shape))
    others = [axis for axis in range(tensor.ndim) if axis != longest]
    places = np.unravel_index(np.arange(tensor.size // tensor.shape[longest]), [tensor.shape[axis] for axis in others])
    found = [np.zeros((size, rank)) for size in tensor.shape]
    for axis, index in zip(others, places, strict=True):
        found[axis][index, np.arange(len(index))] = 1.0
    fibres = np.moveaxis(tensor, longest, 0).reshape(tensor.shape[longest], -1)
    found[longest][:, : fibres.shape[1]] = fibres
    return found
