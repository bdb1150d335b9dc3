"""Factors of any form, better for a metric: least squares for one factor at a time, the others held.

    min over F_j of  tr (W − Ŵ) G (W − Ŵ)ᵀ,   Ŵ = einsum(F_1 ... F_n), linear in each F_j

The factor that writes the outputs has its normal equations solved; those of the others couple all outputs and inputs, and are
followed by conjugate gradients, which need products with G alone. Alternating least squares as for Tucker (HOOI, De Lathauwer,
De Moor, Vandewalle 2000) and CP, but in the metric of what the layer is fed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from onnxcompress.passes.factorize.metric import Metric, contracted

if TYPE_CHECKING:  # forms begin with these sweeps too
    from onnxcompress.passes.factorize.forms.form import Factors, Form, Shape

SWEEPS = 3
"""Over all factors; on 3×3 layers of a text reader the fourth gained less than 0.05 dB."""

STEPS = 6
"""Of conjugate gradients for one factor."""

DAMPING = 1e-8
"""Of normal equations, as a share of their mean diagonal."""

WIDEST = 2400
"""Columns of a Gram matrix, or twice the rows that stand for it, above which only outputs are solved for: a product with it takes half a
second there."""


def alternated(form: Form, shape: Shape, weight: np.ndarray, factors: Factors, metric: Metric) -> Factors:
    """Factors that make the weight [groups, out, in, taps] more nearly than those given; the metric has a Gram matrix or rows.

    Gradients are followed in float32, in half of the time: the systems that end each sweep are solved in float64.
    """
    found = [factor.copy() for factor in factors]
    places = _writers(form)
    held = {*places, *form.constant}
    width = shape.ins * shape.taps if metric.rows is None else 2 * metric.rows.shape[1]
    others = [] if width > WIDEST else [j for j in range(len(found)) if j not in held]
    near = metric.single() if others else metric
    light = weight.astype(np.float32)
    for _ in range(SWEEPS if others else 1):
        for j in others:
            single = [factor.astype(np.float32) for factor in found]
            found[j] = followed(form, shape, light, single, j, near).astype(np.float64)
        found[places[-1]] = _solved(form, shape, weight, found, places[-1], metric)
    return found


def _writers(form: Form) -> list[int]:
    """The factors that have an axis of outputs."""
    terms = form.equation.split("->")[0].split(",")
    return [j for j, term in enumerate(terms) if "o" in term]


def followed(form: Form, shape: Shape, weight: np.ndarray, factors: Factors, j: int, metric: Metric) -> np.ndarray:
    """Factor j after some steps of conjugate gradients from where it is, in any metric."""

    def times_gram(dense: np.ndarray) -> np.ndarray:
        return metric.times(dense.reshape(shape.groups, shape.outs, -1)).reshape(form.view(shape))

    def made(factor: np.ndarray) -> np.ndarray:
        return form.dense(shape, [*factors[:j], factor, *factors[j + 1 :]])

    back = _adjoint(form, factors, j)
    x = factors[j]
    residual = back(times_gram(weight - made(x)))
    direction, square = residual, float((residual**2).sum())
    for _ in range(STEPS):
        if square <= 0:
            break
        bent = back(times_gram(made(direction)))
        curvature = float((direction * bent).sum())
        if curvature <= 0:
            break
        step = square / curvature
        x, residual = x + step * direction, residual - step * bent
        before, square = square, float((residual**2).sum())
        direction = residual + (square / before) * direction
    return x


def _adjoint(form: Form, factors: Factors, j: int) -> Callable[[np.ndarray], np.ndarray]:
    """Gradient of a dense weight -> of factor j."""
    inputs, output = form.equation.split("->")
    terms = inputs.split(",")
    rest = [(term, factor) for number, (term, factor) in enumerate(zip(terms, factors, strict=True)) if number != j]
    behind = rest[::-1]  # the outputs first, as a product of matrices
    letters = ",".join([output, *(term for term, _ in behind)])
    return lambda dense: contracted(f"{letters}->{terms[j]}", dense, *(factor for _, factor in behind))


def _solved(form: Form, shape: Shape, weight: np.ndarray, factors: Factors, j: int, metric: Metric) -> np.ndarray:
    """The least-squares factor that writes the outputs; as it was where its system is singular."""
    inputs = form.equation.split("->")[0]
    terms = inputs.split(",")
    rest = [(term, factor) for number, (term, factor) in enumerate(zip(terms, factors, strict=True)) if number != j]
    free = [letter for letter in terms[j] if letter not in "go"]
    each = "o" if any("o" in term for term, _ in rest) else ""
    gram, right = _normal(shape, form, rest, free, each, weight, metric)
    sizes = [factors[j].shape[terms[j].index(letter)] for letter in free]
    n = int(np.prod(sizes))
    systems, wanted = gram.reshape(-1, n, n), right.reshape(len(gram.reshape(-1, n, n)), -1, n)
    try:
        found = np.stack([_solve(system, row) for system, row in zip(systems, wanted, strict=True)])
    except LinAlgError:
        return factors[j]
    found = found.reshape(shape.groups, shape.outs, *sizes)
    order = "go" + "".join(free)
    return np.ascontiguousarray(np.einsum(f"{order}->{terms[j]}", found))


def _solve(system: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """rows system⁻¹"""
    n = len(system)
    damped = system + DAMPING * max(float(np.trace(system)) / n, 1e-300) * np.eye(n)
    return np.asarray(cho_solve(cho_factor(damped), rows.T)).T


def _normal(
    shape: Shape,
    form: Form,
    rest: list[tuple[str, np.ndarray]],
    free: list[str],
    each: str,
    weight: np.ndarray,
    metric: Metric,
) -> tuple[np.ndarray, np.ndarray]:
    """Gram of what the factor reads [g, (o), n, n], and its product with what it should write [g, o, n]."""
    output = form.equation.split("->")[1]
    columns = [letter for letter in output if letter not in "go"]
    sizes = dict(zip(output, form.view(shape), strict=True))
    twin = {letter: letter.upper() for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in "go"}

    def doubled(term: str) -> str:
        return "".join(twin.get(letter, letter) for letter in term)

    gradient = metric.times(weight.reshape(shape.groups, shape.outs, -1)).reshape(form.view(shape))
    terms, arrays = [term for term, _ in rest], [array for _, array in rest]
    right = contracted(f"{','.join([output, *terms])}->go{''.join(free)}", gradient, *arrays)
    shaped = [sizes[letter] for letter in columns]
    first, second = "".join(free), doubled("".join(free))
    out = f"g{each}{first}{second}"
    if metric.gram is not None:
        middle, between = "g" + "".join(columns) + doubled("".join(columns)), metric.gram.reshape(-1, *shaped, *shaped)
        found = contracted(f"{','.join([middle, *terms, *map(doubled, terms)])}->{out}", between, *arrays, *arrays)
    else:
        assert metric.rows is not None
        fed = metric.rows.reshape(*metric.rows.shape[:2], *shaped)  # "z" numbers the rows
        read = contracted(f"{','.join(['gz' + ''.join(columns), *terms])}->g{each}z{first}", fed, *arrays)
        flat = read.reshape(*read.shape[: 2 + len(each)], -1)
        found = (flat.swapaxes(-1, -2) @ flat).reshape(*flat.shape[: 1 + len(each)], *read.shape[2 + len(each) :] * 2)
    if metric.noise is not None:
        found = np.ascontiguousarray(found)
        _add_noise(found, out, terms, arrays, columns, metric.noise)
    return found, right


def _add_noise(
    gram: np.ndarray, letters: str, terms: list[str], arrays: list[np.ndarray], columns: list[str], noise: np.ndarray
) -> None:
    """What white noise in the columns adds to a Gram matrix of `_normal`: only where both sides see the same column."""

    def same(term: str) -> str:
        return "".join(letter.lower() if letter.lower() in columns else letter for letter in term)

    twins = ["".join(letter if letter in "go" else letter.upper() for letter in term) for term in terms]
    seen = "".join(dict.fromkeys(same(letters)))
    made = [letter for letter in seen if any(letter in same(term) for term in ["g", *terms, *twins])]
    operands = ",".join(["g", *terms, *map(same, twins)])
    added = contracted(f"{operands}->{''.join(made)}", noise, *arrays, *arrays)
    place = np.einsum(f"{same(letters)}->{seen}", gram)  # a view of where the columns are the same
    place += added.reshape([size if letter in made else 1 for letter, size in zip(seen, place.shape, strict=True)])
