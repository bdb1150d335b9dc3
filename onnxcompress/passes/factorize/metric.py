"""How errors of a weight count: by what it multiplies, told by a Gram matrix, by rows, or by how often; without, all alike.

‖(W − Ŵ) X‖² = tr (W − Ŵ) G (W − Ŵ)ᵀ,    G = X Xᵀ over rows X that the layer was fed
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import eigh, qr
from scipy.linalg.lapack import dtrtri


@dataclass(frozen=True, eq=False)
class Metric:
    """One of these, or none, for a weight [groups, out, in, taps].

    gram  [groups, n, n] with n = in · taps, positive     rows  [groups, m, n]     taps  [taps, taps] of each input by itself
    often [groups, n]: the Gram matrix of rows that each look up one column of the weight, which is diagonal
    noise [groups]: white noise beside gram or rows, added to the diagonal
    """

    gram: np.ndarray | None = None
    rows: np.ndarray | None = None
    often: np.ndarray | None = None
    taps: np.ndarray | None = None
    noise: np.ndarray | None = None

    @property
    def plain(self) -> bool:
        """Is nothing known, so that all errors count alike?"""
        return self.gram is None and self.rows is None and self.often is None and self.taps is None

    def between(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """left G rightᵀ for [groups, a, n] and [groups, b, n] -> [groups, a, b]."""
        if self.rows is None:
            return self.times(left) @ right.transpose(0, 2, 1)
        found = (left @ self.rows.transpose(0, 2, 1)) @ (self.rows @ right.transpose(0, 2, 1))
        return found if self.noise is None else found + self.noise[:, None, None] * (left @ right.transpose(0, 2, 1))

    def times(self, left: np.ndarray) -> np.ndarray:
        """left G for [groups, a, n]."""
        if self.taps is not None:
            return (left.reshape(*left.shape[:2], -1, len(self.taps)) @ self.taps).reshape(left.shape)
        if self.gram is None and self.rows is None:
            return left if self.often is None else left * self.often[:, None]
        if self.gram is not None:
            found = left @ self.gram
        else:
            assert self.rows is not None
            found = (left @ self.rows.transpose(0, 2, 1)) @ self.rows
        return found if self.noise is None else found + self.noise[:, None, None] * left

    def error(self, left: np.ndarray) -> float:
        """tr left G leftᵀ for a difference of weights [groups, out, ...]."""
        flat = left.reshape(*left.shape[:2], -1)
        if self.rows is None or self.noise is not None:
            return float(max((self.times(flat) * flat).sum(), 0.0))
        return float(np.square(flat @ self.rows.transpose(0, 2, 1)).sum())

    def outputs(self, weight: np.ndarray) -> np.ndarray:
        """[groups, out, out] second moments of what a weight puts out."""
        flat = weight.reshape(*weight.shape[:2], -1)
        return self.between(flat, flat)

    def leading(self, weight: np.ndarray, rank: int) -> np.ndarray:
        """[groups, out, rank]: the orthonormal directions in which a weight puts out most.

        By whichever side is shorter: a classifier of 8,210 characters has a moment matrix of half a gigabyte, and minutes of it.
        """
        flat = weight.reshape(*weight.shape[:2], -1)
        inner = flat.shape[2] if self.rows is None or self.noise is not None else min(self.rows.shape[1:])
        if flat.shape[1] <= inner or self.taps is not None:
            return top(self.outputs(weight), rank)
        if self.gram is not None or self.noise is not None:
            fed = flat @ root(self.of_axes((inner,), (0,)), 0.0)[0]
        elif self.rows is not None:
            count, width = self.rows.shape[1:]
            across = self.rows.transpose(0, 2, 1)
            fed = flat @ (across if count <= width else root(across @ self.rows)[0])
        else:
            fed = flat if self.often is None else flat * np.sqrt(self.often[:, None])
        sent = fed @ top(fed.transpose(0, 2, 1) @ fed, min(rank, inner))
        # numpy's own works in float64, on three copies: eight times a wide classifier's weight
        return np.stack([qr(each, mode="economic", overwrite_a=True, check_finite=False)[0] for each in sent])

    def of_axes(self, sizes: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
        """[groups, m, m] moments between positions along some axes of [in, *kernel] (sizes), summed over the other axes.

        What counts where a factor reads these axes and is used at all places of the others.
        """
        found = self._of_axes(sizes, axes)
        if self.noise is not None:
            others = np.prod(sizes, dtype=int) // found.shape[1]
            found = found.copy()
            np.einsum("gkk->gk", found)[:] += (others * self.noise)[:, None]
        return found

    def _of_axes(self, sizes: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
        """Without the noise."""
        kept = np.prod([sizes[axis] for axis in axes], dtype=int)
        others = tuple(axis for axis in range(len(sizes)) if axis not in axes)
        if self.gram is not None:
            groups = len(self.gram)
            both = self.gram.reshape(groups, *sizes, *sizes)
            left, right = _letters(len(sizes))
            right = [left[axis] if axis in others else letter for axis, letter in enumerate(right)]
            out = [left[axis] for axis in axes] + [right[axis] for axis in axes]
            found = np.einsum(f"z{''.join(left)}{''.join(right)}->z{''.join(out)}", both)
            return found.reshape(groups, kept, kept)
        if self.rows is not None:
            groups, count = self.rows.shape[:2]
            order = (0, 1, *(2 + axis for axis in others), *(2 + axis for axis in axes))
            flat = self.rows.reshape(groups, count, *sizes).transpose(order).reshape(groups, -1, kept)
            return flat.transpose(0, 2, 1) @ flat
        if self.taps is not None:
            return self._of_taps(sizes, axes)[None]
        return np.eye(kept)[None]

    def whitener(self, sizes: tuple[int, ...], axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Root of the moments along axes (see of_axes), and its inverse; held, as several forms of a layer ask for the same."""
        if (sizes, axes) not in self._roots:
            self._roots[sizes, axes] = root(self.of_axes(sizes, axes))
        return self._roots[sizes, axes]

    @cached_property
    def _roots(self) -> dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[np.ndarray, np.ndarray]]:
        return {}

    def _of_taps(self, sizes: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
        """The same where inputs know nothing of each other."""
        assert self.taps is not None
        kernel = sizes[1:]
        left, right = _letters(len(kernel))
        right = [letter if axis + 1 in axes else left[axis] for axis, letter in enumerate(right)]
        out = [side[axis - 1] for side in (left, right) for axis in axes if axis]
        found = np.einsum(f"{''.join([*left, *right])}->{''.join(out)}", self.taps.reshape(*kernel, *kernel))
        found = found.reshape(*[int(np.prod([sizes[axis] for axis in axes if axis], dtype=int))] * 2)
        return np.kron(np.eye(sizes[0]), found) if 0 in axes else found * sizes[0]

    def diagonal(self) -> np.ndarray:
        """[groups, n] of G, for a gram or rows."""
        if self.gram is not None:
            own = np.einsum("gnn->gn", self.gram)
        else:
            assert self.rows is not None
            own = np.square(self.rows).sum(1)
        return own if self.noise is None else own + self.noise[:, None]

    def balanced(self) -> Metric:
        """With a diagonal about 1, by a power of four, so that no digit changes: factors hold powers of what a layer is fed."""
        scale = float(self.diagonal().mean())
        unit = 4.0 ** np.round(np.log2(scale) / 2) if 0 < scale < np.inf else 1.0
        return self._over(unit, np.float64)

    def single(self) -> Metric:
        """In float32, with a diagonal about 1."""
        scale = max(float(self.diagonal().mean()), 1e-300)
        return self._over(scale, np.float32)

    def _over(self, unit: float, kind: type[np.floating[Any]]) -> Metric:
        """Of a gram or rows, divided by a unit of the moments."""
        return Metric(
            gram=None if self.gram is None else (self.gram / unit).astype(kind, copy=False),
            rows=None if self.rows is None else (self.rows / np.sqrt(unit)).astype(kind, copy=False),
            noise=None if self.noise is None else (self.noise / unit).astype(kind, copy=False),
        )


def _letters(count: int) -> tuple[list[str], list[str]]:
    return list("abcdefgh"[:count]), list("ABCDEFGH"[:count])


NEAR = 0.6
"""Correlation of what neighbouring taps of a kernel read, where nothing was seen. At half of the multiply-adds, fitted to weights
alone by lowrank, spatial and tucker, this prior against white noise: open-nsfw 9.1 against 7.7 dB of logits, ddddocr 4.6 against 3.5.
Chosen on these two, so no proof for others (methods.md)."""


def prior(kernel: tuple[int, ...]) -> Metric:
    """What layers are fed where there are no data: neighbours in space are alike, channels are not. None for a product."""
    taps = np.ones((1, 1))
    for size in kernel:
        places = np.arange(size)
        taps = np.kron(taps, NEAR ** np.abs(places[:, None] - places))
    return Metric(taps=taps) if len(taps) > 1 else Metric()


def contracted(equation: str, *arrays: np.ndarray) -> np.ndarray:
    """An einsum, two arrays at a time in the order in which they are given, so that each step is a product of matrices.

    numpy's own orders take three arrays at once where that saves memory: ten times slower for CP, thirty for blueprints.
    """
    path = [(0, 1), *((0, left) for left in range(len(arrays) - 2, 0, -1))]
    return np.asarray(np.einsum(equation, *arrays, optimize=["einsum_path", *path]))


def top(moments: np.ndarray, rank: int) -> np.ndarray:
    """[groups, n, n] -> [groups, n, rank]: the directions with the largest moments, largest first."""
    n = moments.shape[-1]
    if n < LARGE:
        return np.ascontiguousarray(np.linalg.eigh(moments)[1][:, :, ::-1][:, :, :rank])
    few = {"subset_by_index": (n - rank, n - 1)} if rank < FEW * n else {"driver": "evd"}
    found = [eigh(each, check_finite=False, **few)[1][:, ::-1][:, :rank] for each in moments]
    return np.ascontiguousarray(np.stack(found))


LARGE, FEW = 256, 0.4
"""Size from which matrices are taken one by one, and the share of directions below which only those are worked out: of 1,536 in float32
numpy takes 0.7 s for all, LAPACK's divide and conquer called directly 0.34, a third of them 0.27."""


def root(moments: np.ndarray, damping: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
    """[groups, n, n] -> S with S Sᵀ = moments, and its inverse; directions that hardly occur are taken as `damping` of the mean.

    A group that is fed nothing but zeros is taken as white noise. By Cholesky where that goes: a sixth of the time of eigenvectors.
    """
    n = moments.shape[-1]
    mean = np.einsum("gnn->g", moments).astype(np.float64) / n
    if damping > 0 and n >= LARGE and (mean > 0).all():
        damped = moments.astype(np.float64)
        np.einsum("gnn->gn", damped)[:] += damping * mean[:, None]
        try:
            found = np.linalg.cholesky(damped)
        except np.linalg.LinAlgError:  # moments that are mostly rounding
            return _root(moments, damping)
        inverses = np.stack([dtrtri(each, lower=1)[0] for each in found])
        return found.astype(moments.dtype), inverses.astype(moments.dtype)
    return _root(moments, damping)


def _root(moments: np.ndarray, damping: float) -> tuple[np.ndarray, np.ndarray]:
    if moments.shape[-1] < LARGE:
        values, vectors = np.linalg.eigh(moments)
    else:
        found = [eigh(each, driver="evd", check_finite=False) for each in moments]
        values, vectors = (np.stack(each) for each in zip(*found, strict=True))
    mean = values.mean(-1, keepdims=True)
    values, mean = np.where(mean > 0, values, 1), np.where(mean > 0, mean, 1)
    least = np.maximum(damping * mean, np.finfo(values.dtype).tiny)
    roots = np.sqrt(np.maximum(values, least))
    return vectors * roots[:, None, :], vectors.transpose(0, 2, 1) / roots[:, :, None]
