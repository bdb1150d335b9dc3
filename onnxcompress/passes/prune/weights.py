"""Pruning of single weights: which entries of a matrix [out, in*] stay, anywhere or N of every M along the input.

A weight criterion scores entries, `keep_*` turns scores into a mask (True = kept), `sparsegpt` decides and repairs
together. `in*` is the input with the kernel behind it, flattened, in the order of the Gram matrix. The file only gets
smaller once an encoding stores the zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.linalg import LinAlgError, cholesky, lapack

from onnxcompress.errors import DataError, SettingError

BLOCK = 128  # columns for which SparseGPT decides at once, as in its paper


def magnitude(matrix: np.ndarray, gram: np.ndarray | None = None) -> np.ndarray:
    """|w|, [out, in*] float64. Han et al., NIPS 2015, arXiv:1506.02626."""
    return np.abs(np.asarray(matrix, dtype=np.float64))


def wanda(matrix: np.ndarray, gram: np.ndarray | None = None) -> np.ndarray:
    """|w| ‖x_j‖₂, [out, in*] float64, the norms from the Gram's diagonal; compare within rows (`keep_per_row`).

    gram       [in*, in*] XᵀX, or its diagonal [in*]; raises SettingError without one
    Sun et al., A Simple and Effective Pruning Approach for LLMs, ICLR 2024, arXiv:2306.11695.
    """
    if gram is None:
        raise SettingError("criterion 'wanda' needs input norms; pass calibration data or choose 'magnitude'")
    norms = np.sqrt(np.maximum(gram if np.ndim(gram) == 1 else np.diagonal(gram), 0.0).astype(np.float64))
    if len(norms) != np.shape(matrix)[1]:
        shapes = f"weights {np.shape(matrix)} and Gram matrix {np.shape(gram)}"
        raise DataError(f"{shapes} do not fit; collect the Gram matrix of this layer's input")
    return magnitude(matrix) * norms


WEIGHT_CRITERIA: dict[str, Callable[[np.ndarray, np.ndarray | None], np.ndarray]] = {
    "magnitude": magnitude,
    "wanda": wanda,
}


def keep_per_matrix(scores: np.ndarray, amount: float) -> np.ndarray:
    """Mask [out, in*]: the share `amount` with the lowest scores of the matrix goes; ties keep the earlier entry."""
    return keep_per_row(np.reshape(scores, (1, -1)), amount).reshape(np.shape(scores))


def keep_per_row(scores: np.ndarray, amount: float) -> np.ndarray:
    """Mask [out, in*]: the share `amount` with the lowest scores of each row goes, rounded down."""
    scores = _finite(scores)
    return _keep_top(scores, scores.shape[1] - _removed(scores.shape[1], amount))


def keep_global(scores: Mapping[str, np.ndarray], amount: float) -> dict[str, np.ndarray]:
    """Masks by name: one threshold over all matrices, the share `amount` of all their entries goes."""
    flat = np.concatenate([np.ravel(_finite(part)) for part in scores.values()]) if scores else np.zeros(0)
    mask, masks, start = keep_per_matrix(flat, amount), {}, 0
    for name, part in scores.items():
        masks[name] = mask[start : start + np.size(part)].reshape(np.shape(part))
        start += np.size(part)
    return masks


def keep_pattern(scores: np.ndarray, n: int, m: int) -> np.ndarray:
    """Mask [out, in*]: the N largest of every M neighbours along the input; a last, shorter block keeps at most N too.

    Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, arXiv:2104.08378 (2:4).
    """
    _check_pattern(n, m)
    scores = _finite(scores)
    rows, columns = scores.shape
    padded = np.pad(scores, ((0, 0), (0, -columns % m)), constant_values=-np.inf)
    return _keep_top(padded.reshape(-1, m), n).reshape(rows, -1)[:, :columns]


def sparsegpt(
    matrix: np.ndarray, gram: np.ndarray, amount: float | tuple[int, int], ridge: float = 0.01, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """Prune column by column, each time moving the error onto the columns that are still to come.

    matrix     [out, in*]              gram       [in*, in*] XᵀX
    amount     share of the entries to remove, 0 ... 1, or (N, M) to keep N of every M
    ridge      as a share of the Gram's mean diagonal (the paper's 1 %)
    returns    mask [out, in*] and new weights [out, in*] float64, zero where the mask is False
    With U the upper Cholesky factor of (XᵀX + λI)⁻¹: entry (r, j) costs w² / U[j,j]², and its removal changes row r by
    -(w / U[j,j]) U[j, j:]. Frantar, Alistarh, ICML 2023, arXiv:2301.00774.
    """
    w = np.array(matrix, dtype=np.float64)
    u = _inverse_factor(gram, w.shape[1], ridge)
    mask = np.ones(w.shape, dtype=bool)
    step = block if not isinstance(amount, tuple) else max(amount[1], block - block % amount[1])
    for start in range(0, w.shape[1], step):
        part = slice(start, min(start + step, w.shape[1]))
        errors = _prune_block(w[:, part], mask[:, part], u[part, part], amount)
        w[:, part.stop :] -= errors @ u[part, part.stop :]
    return mask, w


def _prune_block(w: np.ndarray, mask: np.ndarray, u: np.ndarray, amount: float | tuple[int, int]) -> np.ndarray:
    """Prune w [out, block] in place, and say what the later columns must make up for: [out, block]."""
    errors = np.zeros_like(w)
    pattern = amount if isinstance(amount, tuple) else None
    if pattern is None:
        mask[:] = keep_per_matrix((w / np.diagonal(u)) ** 2, amount)  # type: ignore[arg-type]
    for j in range(w.shape[1]):
        if pattern is not None and j % pattern[1] == 0:
            near = slice(j, j + pattern[1])
            mask[:, near] = keep_pattern((w[:, near] / np.diagonal(u)[near]) ** 2, *pattern)
        errors[:, j] = np.where(mask[:, j], 0.0, w[:, j]) / u[j, j]
        w[:, j:] -= np.outer(errors[:, j], u[j, j:])
        w[~mask[:, j], j] = 0.0
    return errors


def _inverse_factor(gram: np.ndarray, columns: int, ridge: float) -> np.ndarray:
    h = np.array(gram, dtype=np.float64)
    if h.shape != (columns, columns):
        shapes = f"weights with {columns} inputs and Gram matrix {h.shape}"
        raise DataError(f"{shapes} do not fit; collect the Gram matrix of this layer's input")
    if not np.isfinite(h).all():
        raise DataError("the Gram matrix of a layer is not finite; look for NaN or overflow in the calibration data")
    # An input that is always zero throughout still needs a scale for its ridge; any does.
    h[np.diag_indices_from(h)] += ridge * (h.diagonal().mean() or 1.0)
    try:
        lower = cholesky(h, lower=True, check_finite=False)
        inverse, _ = lapack.dpotri(lower, lower=1)
        return cholesky(np.tril(inverse) + np.tril(inverse, -1).T, lower=False, check_finite=False)
    except LinAlgError as error:
        raise DataError("the Gram matrix of a layer is singular; raise ridge or give more samples") from error


def _keep_top(scores: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask


def _removed(entries: int, amount: float) -> int:
    if not 0 <= amount <= 1:
        raise SettingError(f"amount is {amount}; it is the share of weights to remove, between 0 and 1")
    return int(np.floor(entries * amount + 1e-9))


def _check_pattern(n: int, m: int) -> None:
    if not 1 <= n <= m:
        raise SettingError(f"pattern is {n}:{m}; N of every M weights stay, with 1 <= N <= M")


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise DataError("weight scores are not finite; look for NaN or Inf in the weights or the calibration data")
    return scores
