"""Weights as sums of binary or ternary tensors, each with a factor a row: what the papers fit, with and without a Gram matrix.

- `binary`    W ≈ α sign(W), α = mean |w|: BWN (Rastegari et al. 2016, arXiv:1603.05279); the sign alone is BinaryConnect (Courbariaux
              et al. 2015, arXiv:1511.00363)
- `ternary`   W ≈ α T, T in {-1, 0, 1}: TWN (Li et al. 2016, arXiv:1605.04711), the threshold by search over all instead of by 0.7 mean |w|
- several terms: W ≈ Σ α_i B_i, each the best for what the others leave (Guo et al. 2017, "Network sketching"; Xu et al. 2018, alternating
              multi-bit quantization, arXiv:1802.00150)

On a Gram matrix signs are fixed column by column, each making up for the errors before it (cluster/assign.py; BiLLM, arXiv:2402.04291,
does so for language models), and factors are the least-squares ones for what the layer is really fed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from onnxcompress.passes.cluster.assign import compensated, descended, nearest
from onnxcompress.passes.cluster.books import Books, Gram, diagonal, loss, times

ROUNDS = 8
"""Of signs and factors in turn, on weights alone."""

DIGITS: dict[str, tuple[float, ...]] = {"binary": (-1.0, 1.0), "ternary": (-1.0, 0.0, 1.0)}
"""Name -> what one term may be."""


def patterns(kind: str, terms: int) -> np.ndarray:
    """[entries, terms]: the digits of each symbol, the first term the most significant."""
    return np.array(list(product(DIGITS[kind], repeat=terms)))


def approximated(rows: np.ndarray, kind: str, terms: int, gram: Gram = None) -> tuple[np.ndarray, Books]:
    """Symbols uint8 [out, row], and books [out, entries] whose entries are sums of a row's factors with signs; deterministic.

    rows  float64 [out, row]      kind  a key of DIGITS      terms  how many tensors are added up
    gram  of what the rows meet, in any form of `books.Gram`; None: every weight counts the same
    """
    digits = patterns(kind, terms)
    light = diagonal(gram, rows)
    factors = started(rows, kind, terms, light)
    symbols = nearest(rows, summed(digits, factors))
    for _ in range(ROUNDS if terms > 1 else 1):
        factors = _fitted(rows, digits[symbols], lambda term: term * light)
        symbols = nearest(rows, summed(digits, factors))
    if gram is not None and gram.ndim > 1:
        before = summed(digits, fitted(rows, digits[symbols], gram))
        made_up = compensated(rows, before, gram)
        after = summed(digits, fitted(rows, digits[made_up], gram))
        made_up = descended(rows, made_up, after, gram)
        after = summed(digits, fitted(rows, digits[made_up], gram))
        better = (loss(rows, made_up, after, gram) < loss(rows, symbols, before, gram))[:, None]
        symbols = np.where(better, made_up, symbols)
    return symbols, summed(digits, fitted(rows, digits[symbols], gram))


def summed(digits: np.ndarray, factors: np.ndarray) -> Books:
    """Books with a row each: factors [out, terms] times the digits of every symbol; of one term, one book and scales."""
    return Books(digits.T, scales=factors[:, 0]) if digits.shape[1] == 1 else Books(factors @ digits.T)


def started(rows: np.ndarray, kind: str, terms: int, light: np.ndarray) -> np.ndarray:
    """Factors [out, terms], each term the best for what those before it leave; `light` [out or 1, row] weighs squared errors."""
    left, found = rows.copy(), []
    light = np.broadcast_to(light, rows.shape)
    for _ in range(terms):
        term = np.where(left < 0, -1.0, 1.0) if kind == "binary" else _ternary(left, light)
        power = (light * np.abs(term)).sum(axis=1)
        factor = np.divide((light * left * term).sum(axis=1), power, out=np.zeros(len(rows)), where=power > 0)
        left = left - factor[:, None] * term
        found.append(factor)
    return np.stack(found, axis=1)


def _ternary(rows: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Signs of the m largest, m by search: they take away (Σ h |w|)² / Σ h of the error, h what each counts."""
    order = np.argsort(-np.abs(rows), axis=1, kind="stable")
    weigh = np.take_along_axis(light, order, axis=1)
    size = np.take_along_axis(np.abs(rows), order, axis=1)
    count = np.cumsum(weigh, axis=1)
    gain = np.divide(np.cumsum(weigh * size, axis=1) ** 2, count, out=np.zeros(rows.shape), where=count > 0)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(rows.shape[1])[None], axis=1)
    return np.where(rank <= gain.argmax(axis=1)[:, None], np.sign(rows), 0.0)


def fitted(rows: np.ndarray, terms: np.ndarray, gram: Gram) -> np.ndarray:
    """Factors [out, terms] that are best for terms [out, row, terms] on the Gram: T G Tᵀ α = T G w, a small system a row.

    A term that repeats another adds nothing: its factor comes out as the least-norm solution has it.
    """
    return _fitted(rows, terms, lambda term: times(term, gram))


def _fitted(rows: np.ndarray, terms: np.ndarray, pull: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`fitted`, where `pull` multiplies [out, row] by what the rows meet."""
    pulled = np.stack([pull(terms[:, :, number]) for number in range(terms.shape[2])], axis=1)
    system, wish = pulled @ terms, pulled @ rows[:, :, None]
    return (np.linalg.pinv(system, hermitian=True) @ wish)[:, :, 0]
