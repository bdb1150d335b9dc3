"""Rounding weights to levels: by itself, or with each error made up for by the weights that are still free.

A layer's output error is the quadratic form tr(D G Dᵀ), with D = Q − W [out, row] and G [row, row] the second moments of what
the row meets (centred where the bias is corrected as well: `bias_shift`). With G = U Uᵀ, U upper triangular in the order in which
columns are fixed, it is ‖D U‖²: entry j is U_jj D_j + Σ_{i<j} D_i U_ij, so the level nearest to W_j − Σ_{i<j} D_i U_ij / U_jj is
best once the earlier ones stand. This is GPTQ (Frantar et al. 2022, arXiv:2210.17323) without the inverse of G that the paper
computes: one Cholesky factor is all. Two weights that a kernel adds in 16 bits are fixed together, so that the second can make
room for the first (see portable.py). `descent` then revisits every level, as AdaRound does by gradients (Nagel et al. 2020,
arXiv:2004.10568): coordinate descent on the same form, which never raises it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky

from onnxcompress.errors import DataError, SettingError
from onnxcompress.passes.quantize.portable import Pairing, bounds, box, project, safe_levels

BLOCK = 128
"""Columns between two matrix products (Frantar et al., section 3.3); even, so that no pair is split."""

WIDE = 256
"""Columns from which on products that only judge are taken in float32, right to 1e-6: they take as long as what is judged."""

DAMPING = 0.01
"""Added to the Gram's diagonal, as a share of its mean (Frantar et al., section 3.3)."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """The numbers (level − zero) · scale that a weight [out, row] may take.

    scale, zero  [out, blocks], a block for every `block` columns of the row, the last one may be shorter; else [out, 1]
    low, high    levels that may be used       pairs  which levels share 16 bits; None: no limit
    """

    scale: np.ndarray
    zero: np.ndarray
    low: int
    high: int
    block: int | None = None
    pairs: Pairing | None = None

    def __post_init__(self) -> None:
        if self.block is not None and self.pairs is not None:
            raise SettingError("weights with a scale for each block are not multiplied in 16 bits; leave `pairs` out")

    def along(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero of each weight, float64 [out, row] or [out, 1]."""
        if self.block is None:
            return self.scale.astype(np.float64), self.zero.astype(np.float64)
        return tuple(
            np.repeat(part.astype(np.float64), self.block, axis=1)[:, :width] for part in (self.scale, self.zero)
        )  # type: ignore[return-value]

    def values(self, levels: np.ndarray) -> np.ndarray:
        """Levels [out, row] -> float64 weights."""
        scale, zero = self.along(levels.shape[1])
        return (levels - zero) * scale

    def of_rows(self, rows: slice) -> Lattice:
        """The same for some rows."""
        return replace(self, scale=self.scale[rows], zero=self.zero[rows])


def nearest(rows: np.ndarray, lattice: Lattice, gram: np.ndarray | None = None) -> np.ndarray:
    """The nearest level to each weight, int32 [out, row]; pairs that would overflow are projected. `gram` is not read."""
    scale, zero = lattice.along(rows.shape[1])
    return safe_levels(rows / scale + zero, lattice.low, lattice.high, lattice.pairs).astype(np.int32)


def loss(rows: np.ndarray, levels: np.ndarray, lattice: Lattice, gram: np.ndarray) -> np.ndarray:
    """[out] D G Dᵀ of each row: what rounding adds to the layer's output, squared and summed over the data."""
    error = lattice.values(levels) - rows
    if error.shape[1] >= WIDE:
        error, gram = error.astype(np.float32), gram.astype(np.float32)
    return np.einsum("ok,ok->o", error @ gram, error, dtype=np.float64)


def gptq(
    rows: np.ndarray,
    lattice: Lattice,
    gram: np.ndarray | None = None,
    *,
    damping: float = DAMPING,
    by_activation: bool = True,
) -> np.ndarray:
    """Column by column, each error made up for by the columns still free; int32 [out, row].

    rows      [out, row] float64               gram  [row, row], or [groups, row, row] of a grouped layer
    damping   share of the Gram's mean diagonal     by_activation  columns that meet the largest inputs are fixed first
    A row keeps its nearest levels where these do better on `gram` itself. Without a Gram the levels are the nearest.
    Raises DataError where the Gram is not finite.
    Frantar et al., ICLR 2023, arXiv:2210.17323.
    """
    return _by_group(_gptq, rows, lattice, gram, damping=damping, by_activation=by_activation)


def descent(rows: np.ndarray, lattice: Lattice, gram: np.ndarray | None = None, *, sweeps: int = 3) -> np.ndarray:
    """`gptq`, and then coordinate descent from its levels; int32 [out, row], arguments as there."""
    return _by_group(_descent, rows, lattice, gram, sweeps=sweeps)


Rounding = Callable[..., np.ndarray]

ROUNDINGS: dict[str, Rounding] = {"nearest": nearest, "gptq": gptq, "descent": descent}
"""Name -> (rows, lattice, gram) -> levels; all but `nearest` read the Gram."""


def _by_group(
    rounding: Rounding, rows: np.ndarray, lattice: Lattice, gram: np.ndarray | None, **settings: float
) -> np.ndarray:
    """One Gram for all rows, or one for each group of neighbouring rows."""
    if gram is None:
        return nearest(rows, lattice)
    if not np.isfinite(gram).all():
        raise DataError("the Gram matrix is not finite; look for NaN or Inf in the data or the model")
    if gram.ndim == 2:
        return rounding(rows, lattice, gram, **settings)
    per = len(rows) // len(gram)
    parts = [slice(start, start + per) for start in range(0, len(rows), per)]
    found = [rounding(rows[p], lattice.of_rows(p), g, **settings) for p, g in zip(parts, gram, strict=True)]
    return np.concatenate(found)


# -- error compensation -----------------------------------------------------------------------------------------------


def _gptq(rows: np.ndarray, lattice: Lattice, gram: np.ndarray, damping: float, by_activation: bool) -> np.ndarray:
    found = _column_by_column(rows, lattice, gram, damping, by_activation)
    return _better(rows, found, nearest(rows, lattice), lattice, gram)


def _column_by_column(
    rows: np.ndarray, lattice: Lattice, gram: np.ndarray, damping: float, by_activation: bool
) -> np.ndarray:
    order, paired = _order(gram, lattice.pairs, by_activation)
    diagonal, feedback = factored(gram[np.ix_(order, order)], damping)
    # [row, out] from here on: what is done column by column lies together in memory
    scale, zero = (
        part.T[order] if part.shape == rows.shape else np.broadcast_to(part.T, rows.T.shape)
        for part in lattice.along(rows.shape[1])
    )
    low, high = box(lattice.low, lattice.high, lattice.pairs)
    most = None if lattice.pairs is None else lattice.pairs.most[order]
    target = rows.T[order]
    levels = np.empty_like(target)

    def fix(j: int, wishes: np.ndarray) -> np.ndarray:
        wish = wishes[0] / scale[j] + zero[j]
        if j >= paired or most is None:
            levels[j] = np.clip(np.rint(wish), low, high)
        elif j % 2 == 0:
            coupling = feedback[j, j + 1]
            other = (wishes[1] + coupling * (target[j] - wishes[0])) / scale[j] + zero[j]
            stiff = (float(diagonal[j] ** 2), float(diagonal[j + 1] ** 2))
            levels[j] = _first_of_pair(wish, other, (most[j], most[j + 1]), low, high, stiff, coupling)
        else:
            levels[j] = np.clip(np.rint(wish), *bounds(levels[j - 1], most[j], most[j - 1], low, high))
        return (levels[j] - zero[j]) * scale[j]

    column_by_column(target, feedback, fix)
    found = np.empty(rows.shape, np.int32)
    found[:, order] = levels.T
    return found


def column_by_column(target: np.ndarray, feedback: np.ndarray, fix: Callable[[int, np.ndarray], np.ndarray]) -> None:
    """Fix one column after another, each error made up for by those that are still free.

    target    [row, out] float64, columns in the order of `factored`
    feedback  [row, row] of `factored`; [row, row, out] where each of `out` has a Gram of its own, up to BLOCK columns
    fix       (j, wishes) -> values [out] of column j; wishes[0] is what the column should be now that the earlier ones stand,
              wishes[1:] those of the columns behind it in the block so far
    """
    width = len(target)
    error = np.empty_like(target)
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        wishes = target[start:stop] - feedback[:start, start:stop].T @ error[:start] if start else target[:stop].copy()
        for j in range(start, stop):
            error[j] = fix(j, wishes[j - start :]) - target[j]
            pull = feedback[j, j + 1 : stop]
            wishes[j + 1 - start :] -= (pull if pull.ndim == 2 else pull[:, None]) * error[j]


def _first_of_pair(
    wish: np.ndarray,
    other: np.ndarray,
    most: tuple[float, float],
    low: int,
    high: int,
    stiff: tuple[float, float],
    coupling: float,
) -> np.ndarray:
    """Levels [out] of the first of two weights: the nearest, or less where both together would leave 16 bits.

    other     what the second wishes if the first gets its wish       coupling  how far an error of the first moves that
    stiff     what a squared error of each costs, the other columns being free
    """
    first = np.clip(np.rint(wish), low, high)
    second = np.clip(np.rint(other - coupling * (first - wish)), low, high)
    least, top = bounds(first, most[1], most[0], low, high)
    tight = np.flatnonzero(((second > top) | (second < least)) & (wish * other > 0))
    if len(tight):
        wished = np.clip(other[tight], low, high)
        first[tight] = project(wish[tight], wished, most, low, high, stiff, coupling)[0]
    return first


def _order(gram: np.ndarray, pairs: Pairing | None, by_activation: bool) -> tuple[np.ndarray, int]:
    """Columns in the order in which they are fixed, pairs side by side and first; how many of them are paired."""
    weight = np.diagonal(gram) if by_activation else np.zeros(len(gram))
    if pairs is None or pairs.columns is None:
        return np.argsort(-weight, kind="stable"), 0
    pairwise = np.argsort(-weight[pairs.columns].max(axis=1, initial=0.0), kind="stable")
    alone = np.flatnonzero(pairs.partner() < 0)
    return np.concatenate([pairs.columns[pairwise].reshape(-1), alone]).astype(int), pairs.columns.size


def factored(gram: np.ndarray, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """The diagonal of U with U Uᵀ = G + λ, and U with its columns divided by it; λ is added to `gram` itself.

    Where means are much larger than what varies about them, the sums' rounding can outweigh λ: then it grows tenfold.
    """
    ridge = _ridge(gram, damping)
    for times in (1, 9, 90, 900):
        gram[np.diag_indices(len(gram))] += times * ridge
        with suppress(np.linalg.LinAlgError):
            # laid out as LAPACK wants it, so that it is the only copy: of 4,096 columns each takes 134 MB
            flipped = np.asfortranarray(gram[::-1, ::-1])
            lower = cholesky(flipped, lower=True, overwrite_a=True, check_finite=False)
            break
    else:
        raise DataError(
            "a Gram matrix has negative eigenvalues as large as its diagonal; give other samples with --data"
        )
    upper = lower[::-1, ::-1]
    diagonal = np.diagonal(upper).copy()
    upper /= diagonal
    return diagonal, upper


def _ridge(gram: np.ndarray, damping: float) -> float:
    mean = float(np.trace(gram)) / len(gram)
    return damping * mean if mean > 0 else 1.0


def _better(rows: np.ndarray, one: np.ndarray, other: np.ndarray, lattice: Lattice, gram: np.ndarray) -> np.ndarray:
    """Row by row, the levels that lose less."""
    return np.where((loss(rows, one, lattice, gram) <= loss(rows, other, lattice, gram))[:, None], one, other)


# -- local search -----------------------------------------------------------------------------------------------------


def _descent(rows: np.ndarray, lattice: Lattice, gram: np.ndarray, sweeps: int) -> np.ndarray:
    levels = _gptq(rows, lattice, gram, DAMPING, True).T.astype(np.float64)
    for _ in range(sweeps):
        if not _sweep(levels, rows, lattice, gram):
            break
    return levels.T.astype(np.int32)


def _sweep(levels: np.ndarray, rows: np.ndarray, lattice: Lattice, gram: np.ndarray) -> bool:
    """Give every column once the level that is best while all others stand; has any changed?

    levels  float64 [row, out], written to
    """
    width = rows.shape[1]
    scale, zero = (np.broadcast_to(part, rows.shape).T for part in lattice.along(width))
    low, high = box(lattice.low, lattice.high, lattice.pairs)
    partner = np.full(width, -1) if lattice.pairs is None else lattice.pairs.partner()
    most = np.ones(width) if lattice.pairs is None else lattice.pairs.most
    error, changed = (levels - zero) * scale - rows.T, False
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        slope = gram[start:stop] @ error
        for j in np.flatnonzero(np.diagonal(gram)[start:stop] > 0) + start:
            other = partner[j]
            limits = (low, high) if other < 0 else bounds(levels[other], most[j], most[other], low, high)
            wish = levels[j] - slope[j - start] / (gram[j, j] * scale[j])
            level = np.clip(np.rint(wish), *limits)
            moved = np.flatnonzero(np.abs(level - wish) < np.abs(levels[j] - wish) - 1e-9)
            if len(moved):
                step = (level[moved] - levels[j, moved]) * scale[j, moved]
                levels[j, moved] = level[moved]
                error[j, moved] += step
                slope[j + 1 - start :, moved] += gram[j + 1 : stop, j, None] * step
                changed = True
    return changed


# -- what is aimed at -------------------------------------------------------------------------------------------------


def aimed(rows: np.ndarray, gram: np.ndarray, cross: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """Weights that, fed with what the quantized layers before really put out, come nearest to the layer's original output.

    rows  [out, row] the original weights      gram  [row, row] Σ x' x'ᵀ of the present inputs
    cross [row, row] Σ x x'ᵀ, original times present       returns [out, row]: round these with `gram`
    W (C + λ)(G + λ)⁻¹: the target of GPTAQ (Li et al. 2025, arXiv:2504.02692) and Qronos (Zhang et al. 2025,
    arXiv:2505.11695), for all columns at once; with C = G it is W.
    """
    if not (np.isfinite(gram).all() and np.isfinite(cross).all()):
        raise DataError("the Gram matrices are not finite; look for NaN or Inf in the data or the model")
    ridged = gram + _ridge(gram, damping) * np.eye(len(gram))
    factor = cho_factor(ridged, lower=True, overwrite_a=True, check_finite=False)
    return rows + cho_solve(factor, (rows @ (cross - gram)).T, check_finite=False).T


def bias_shift(rows: np.ndarray, values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """[out] to add to the bias so that the mean output stays: −(Q − W) E[x] (Nagel et al., ICCV 2019, arXiv:1906.04721).

    rows, values  [out, row] original and rounded weights      mean  [row], or [groups, row] of a grouped layer
    """
    error = values - rows
    if mean.ndim == 1:
        return -(error @ mean)
    return -np.einsum("gok,gk->go", error.reshape(len(mean), -1, error.shape[1]), mean).reshape(-1)


# -- scales -----------------------------------------------------------------------------------------------------------

SHRINK = np.linspace(1.0, 0.4, 25)
"""Shares of the full range that are tried; with four bits or fewer the best clips a good part of it."""


def fitted(
    rows: np.ndarray,
    low: int,
    high: int,
    *,
    symmetric: bool,
    block: int | None = None,
    importance: np.ndarray | None = None,
) -> Lattice:
    """The lattice of least squared error, a scale (and zero) for each row, or for each block of neighbouring columns.

    rows  [out, row]      low, high  levels that may be used      block  columns; None: the whole row
    symmetric  zero is the level nearest the middle, low + high + 1 over 2    importance  [row] weights of the squares
    returns a Lattice without pairs: `portable.restrict` finds scales under that limit
    """
    width = rows.shape[1]
    size = min(block or width, width)
    blocks = -(-width // size)
    padded = np.zeros((len(rows), blocks * size))
    padded[:, :width] = rows
    weights = np.zeros(blocks * size)
    weights[:width] = 1.0 if importance is None else importance
    parts = padded.reshape(len(rows), blocks, size)
    scale, zero = _searched(parts, weights.reshape(blocks, size), low, high, symmetric)
    return Lattice(scale, zero, low, high, None if block is None else size)


def _searched(
    parts: np.ndarray, weights: np.ndarray, low: int, high: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero [out, blocks] of parts [out, blocks, size], the best of SHRINK."""
    middle = (low + high + 1) // 2
    least, most = np.minimum(parts.min(axis=2), 0.0), np.maximum(parts.max(axis=2), 0.0)
    best = np.full(least.shape, np.inf)
    scale, zero = np.ones(least.shape), np.full(least.shape, float(middle))
    for share in SHRINK:
        if symmetric:
            step = share * np.maximum(-least / max(middle - low, 1), most / max(high - middle, 1))
        else:
            step = share * (most - least) / (high - low)
        step = np.where(step > 0, step, 1.0).astype(np.float32).astype(np.float64)
        shift = (
            np.full(step.shape, float(middle)) if symmetric else np.clip(np.rint(low - share * least / step), low, high)
        )
        levels = np.clip(np.rint(parts / step[..., None]) + shift[..., None], low, high)
        lost = np.einsum("obk,bk->ob", ((levels - shift[..., None]) * step[..., None] - parts) ** 2, weights)
        better = lost < best
        best, scale, zero = np.where(better, lost, best), np.where(better, step, scale), np.where(better, shift, zero)
    return scale, zero
