"""Ranks that weights themselves ask for, without a budget: how much of a matrix is more than noise, or makes most of its energy.

A rank of a form cuts the weight in two: letters of the factors before it stand for columns, those behind it for rows, and those on both
sides (a channel that is filtered by itself) for a batch of such matrices. CP and what drops weights have no such cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil

import numpy as np
from scipy.optimize import minimize_scalar

from onnxcompress.errors import SettingError
from onnxcompress.passes.factorize.forms import Form, Ranks, Shape
from onnxcompress.settings import check_names

ENERGY = 0.9
"""Of the squared singular values."""


def energy(matrix: np.ndarray, share: float = ENERGY) -> int:
    """The least rank that keeps this share of the squared singular values."""
    squares = np.cumsum(np.square(np.linalg.svd(matrix, compute_uv=False)))
    return int(np.searchsorted(squares, share * squares[-1] * (1 - 1e-12))) + 1


def vbmf(matrix: np.ndarray) -> int:
    """Singular values above the noise that the matrix itself shows: the global analytic solution of empirical variational Bayes.

    Nakajima, Sugiyama, Babacan, Tomioka, JMLR 14, 2013. The variance of the noise is what makes the free energy least. At least 1.
    """
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    rows, columns = matrix.shape
    values = np.linalg.svd(matrix, compute_uv=False)
    if rows == 1 or not values[0] > 0:
        return 1
    alpha = rows / columns
    tau = 2.5129 * np.sqrt(alpha)
    least = (1 + tau) * (1 + alpha / tau)  # of x = s² / (columns · noise), for which a component is kept
    most = min(ceil(rows / (1 + alpha)) - 1, rows - 1)
    upper = np.square(values).sum() / (rows * columns)
    lower = max(values[most] ** 2 / (columns * least), np.square(values[most:]).mean() / columns)
    noise = upper
    if 0 < lower < upper:
        found = minimize_scalar(
            _free_energy, args=(values, columns, alpha, least), bounds=(lower, upper), method="bounded"
        )
        noise = float(found.x)
    return max(1, int((values**2 > columns * noise * least).sum()))


def _free_energy(noise: float, values: np.ndarray, columns: int, alpha: float, least: float) -> float:
    """Up to constants, as a function of the variance of the noise."""
    x = np.maximum(np.square(values) / (columns * noise), 1e-300)
    kept, rest = x[x > least], x[x <= least]
    middle = kept - (1 + alpha)
    tau = (middle + np.sqrt(np.maximum(middle**2 - 4 * alpha, 0))) / 2
    told = np.sum(kept - tau) + np.sum(np.log((tau + 1) / kept)) + alpha * np.sum(np.log(tau / alpha + 1))
    return float(np.sum(rest - np.log(rest)) + told)


Rule = Callable[[np.ndarray], int]
"""The rank that it gives a matrix."""

RULES: Mapping[str, Rule] = {"energy": energy, "vbmf": vbmf}


def rule_of(text: str) -> Rule:
    """'vbmf', 'energy' or 'energy:0.95'. SettingError for anything else."""
    name, _, share = text.partition(":")
    check_names((name,), RULES, "rank rule")
    if not share:
        return RULES[name]
    kept = float(share) if share.replace(".", "", 1).isdigit() else 0.0
    if name != "energy" or not 0 < kept <= 1:
        raise SettingError(f"rank {text!r}: only energy takes a share, above 0 and at most 1, as in energy:0.95")
    return partial(energy, share=kept)


def ruled(form: Form) -> bool:
    """Does each of its ranks cut a weight in two, so that a rule can tell it?"""
    terms = form.equation.split("->")[0].split(",")
    return not form.constant and all(sum(letter in term for term in terms) == 2 for letter in form.letters)


def ranks_by(rule: Rule, form: Form, shape: Shape, weight: np.ndarray) -> Ranks | None:
    """The ranks of a form for a weight [groups, out, in, taps]; of several matrices the largest. None where the form has no such ranks."""
    found = []
    for letter, most in zip(form.letters, form.full(shape), strict=True):
        matrices = unfolded(form, shape, weight, letter)
        if matrices is None:
            return None
        found.append(min(most, max(rule(matrix) for matrix in matrices)))
    return tuple(found)


def unfolded(form: Form, shape: Shape, weight: np.ndarray, letter: str) -> np.ndarray | None:
    """[batch, rows, columns]: the weight as the rank with this letter cuts it; None where not just two factors share it."""
    if not ruled(form):
        return None
    inputs, output = form.equation.split("->")
    terms = inputs.split(",")
    sharing = [number for number, term in enumerate(terms) if letter in term]
    before, behind = ("".join(part) for part in (terms[: sharing[0] + 1], terms[sharing[1] :]))
    batch = [each for each in output if each in before and each in behind]
    rows = [each for each in output if each in behind and each not in batch]
    columns = [each for each in output if each in before and each not in batch]
    sizes = dict(zip(output, form.view(shape), strict=True))
    moved = np.einsum(f"{output}->{''.join(batch + rows + columns)}", weight.reshape(form.view(shape)))
    width = int(np.prod([sizes[each] for each in columns], dtype=int))
    height = int(np.prod([sizes[each] for each in rows], dtype=int))
    return moved.reshape(-1, height, width)
