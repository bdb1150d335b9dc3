"""Rounding: never worse than the nearest levels on the Gram, always inside the limits, and the best of all on tiny rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import DataError, SettingError
from onnxcompress.passes.quantize.portable import fits, pairing
from onnxcompress.passes.quantize.rounding import (
    ROUNDINGS,
    Lattice,
    aimed,
    bias_shift,
    descent,
    factored,
    fitted,
    gptq,
    loss,
    nearest,
)
from onnxcompress.passes.quantize.steps import restrict

KINDS = {"int8": (-127, 127), "int4": (-8, 7), "int3": (-4, 3), "uint4": (0, 15), "int2": (-2, 1)}


def layer(seed: int, outs: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [out, row] and the Gram of correlated inputs, some of them dead."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((3 * width, width)) @ rng.standard_normal((width, width)) + 0.5, 0)
    x[:, rng.random(width) < 0.1] = 0.0
    return rng.standard_t(4, (outs, width)), x.T @ x


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    outs=st.integers(1, 6),
    width=st.integers(1, 30),
    kind=st.sampled_from(sorted(KINDS)),
    block=st.sampled_from([None, 4, 16]),
    ordered=st.booleans(),
)
def test_compensated_rounding_is_never_worse_than_nearest(
    seed: int, outs: int, width: int, kind: str, block: int | None, ordered: bool
) -> None:
    rows, gram = layer(seed, outs, width)
    low, high = KINDS[kind]
    lattice = fitted(rows, low, high, symmetric=kind != "uint4", block=block)
    plain = loss(rows, nearest(rows, lattice), lattice, gram)
    one, more = gptq(rows, lattice, gram, by_activation=ordered), descent(rows, lattice, gram)
    for levels in (one, more):
        assert levels.dtype == np.int32 and levels.min() >= low and levels.max() <= high
        assert (loss(rows, levels, lattice, gram) <= plain + 1e-9 * (1 + plain)).all()
    first = loss(rows, gptq(rows, lattice, gram), lattice, gram)
    assert (loss(rows, more, lattice, gram) <= first + 1e-9 * (1 + first)).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    case=st.sampled_from([("MatMul", (4, 9)), ("Conv", (3, 4, 3)), ("Conv", (2, 3, 3, 3)), ("Unheard", (3, 8))]),
    top=st.sampled_from([255, 220, 140]),
    name=st.sampled_from(sorted(ROUNDINGS)),
)
def test_pairs_fit_whatever_the_rounding(seed: int, case: tuple[str, tuple[int, ...]], top: int, name: str) -> None:
    rows, gram = layer(seed, case[1][0], int(np.prod(case[1][1:])))
    rows = np.abs(rows) if seed % 2 else rows  # of one sign: nearly every pair is tight
    most = np.random.default_rng(seed).integers(100, top + 1, case[1][1])
    pairs = pairing(*case, most=most)
    lattice = Lattice(np.abs(rows).max(axis=1, keepdims=True) / 127, np.zeros((len(rows), 1)), -127, 127, pairs=pairs)
    levels = ROUNDINGS[name](rows, lattice, gram)
    assert fits(levels, pairs)
    plain = loss(rows, nearest(rows, lattice), lattice, gram)
    assert (loss(rows, levels, lattice, gram) <= plain * (1 + 1e-9) + 1e-9).all()


def test_over_many_blocks_it_halves_the_error_with_the_limit_as_well() -> None:
    rows, gram = layer(0, 24, 300)
    pairs = pairing("MatMul", rows.shape)
    found = restrict(rows, -127, 127, pairs, np.diagonal(gram))
    lattice = Lattice(found.scale[:, None], np.zeros((24, 1)), -127, 127, pairs=pairs)
    free = replace(lattice, scale=restrict(rows, -127, 127, None, np.diagonal(gram)).scale[:, None], pairs=None)
    gain = {}
    for name, grid in (("bound", lattice), ("free", free)):
        plain = loss(rows, nearest(rows, grid), grid, gram).sum()
        levels = gptq(rows, grid, gram)
        gain[name] = plain / loss(rows, levels, grid, gram).sum()
        assert fits(levels, grid.pairs)
    assert gain["free"] > 2.2 and gain["bound"] > 1.8


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999))
def test_descent_ends_where_no_single_level_is_better(seed: int) -> None:
    rows, gram = layer(seed, 2, 5)
    pairs = pairing("MatMul", rows.shape)
    lattice = Lattice(np.abs(rows).max(axis=1, keepdims=True) / 127, np.zeros((2, 1)), -127, 127, pairs=pairs)
    levels = descent(rows, lattice, gram, sweeps=200)
    held = loss(rows, levels, lattice, gram)
    for column, step in product(range(5), (-2, -1, 1, 2)):
        other = levels.copy()
        other[:, column] = np.clip(other[:, column] + step, -127, 127)
        safe = [fits(other[row : row + 1], pairs) for row in range(2)]
        assert (loss(rows, other, lattice, gram)[safe] >= held[safe] * (1 - 1e-6) - 1e-9).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999))
def test_two_columns_are_fixed_as_well_as_can_be_with_the_first_nearest(seed: int) -> None:
    """The second level is the best that any could be, given the first; without damping and limits."""
    rows, gram = layer(seed, 3, 2)
    gram += np.eye(2)
    lattice = Lattice(np.full((3, 1), 0.3), np.zeros((3, 1)), -127, 127)
    levels = gptq(rows, lattice, gram, damping=1e-9)
    held = loss(rows, levels, lattice, gram)
    for step in (-1, 1):
        other = levels.copy()
        other[:, np.argsort(-np.diagonal(gram), kind="stable")[1]] += step
        assert (loss(rows, other, lattice, gram) >= held * (1 - 1e-9)).all()


def test_a_diagonal_gram_gives_the_nearest_levels() -> None:
    rows, _ = layer(3, 4, 200)
    lattice = fitted(rows, -127, 127, symmetric=True)
    np.testing.assert_array_equal(gptq(rows, lattice, np.diag(np.arange(1.0, 201))), nearest(rows, lattice))


def test_groups_are_rounded_by_their_own_gram() -> None:
    (rows, one), (_, other) = layer(1, 6, 8), layer(2, 6, 8)
    lattice = fitted(rows, -8, 7, symmetric=True)
    for name, rounding in ROUNDINGS.items():
        both = rounding(rows, lattice, np.stack([one, other]))
        np.testing.assert_array_equal(both[:3], rounding(rows[:3], lattice.of_rows(slice(0, 3)), one), err_msg=name)
        np.testing.assert_array_equal(both[3:], rounding(rows[3:], lattice.of_rows(slice(3, 6)), other), err_msg=name)


def test_without_a_gram_the_levels_are_the_nearest() -> None:
    rows, _ = layer(0, 3, 10)
    lattice = fitted(rows, 0, 15, symmetric=False, block=4)
    for rounding in ROUNDINGS.values():
        np.testing.assert_array_equal(rounding(rows, lattice, None), nearest(rows, lattice))


def test_a_block_has_its_own_scale_and_the_last_may_be_short() -> None:
    rows = np.concatenate([np.full((2, 4), 8.0), np.full((2, 4), 0.5), np.full((2, 2), 0.01)], axis=1)
    lattice = fitted(rows, -8, 7, symmetric=True, block=4)
    assert lattice.scale.shape == (2, 3)
    np.testing.assert_allclose(lattice.values(nearest(rows, lattice)), rows, rtol=1e-6)


@given(seed=st.integers(0, 999), symmetric=st.booleans())
def test_searched_scales_lose_no_more_than_the_full_range(seed: int, symmetric: bool) -> None:
    rows = np.random.default_rng(seed).standard_t(3, (3, 24))
    low, high = (-8, 7) if symmetric else (0, 15)
    found = fitted(rows, low, high, symmetric=symmetric, block=8)
    parts = rows.reshape(9, 8)
    least, most = np.minimum(parts.min(1), 0), np.maximum(parts.max(1), 0)
    scale = np.maximum(-least / 8, most / 7) if symmetric else (most - least) / 15
    zero = np.zeros(9) if symmetric else np.rint(-least / scale)
    plain = Lattice(scale.reshape(3, 3), zero.reshape(3, 3), low, high, 8)
    lost = [float(((lattice.values(nearest(rows, lattice)) - rows) ** 2).sum()) for lattice in (found, plain)]
    assert lost[0] <= lost[1] * (1 + 1e-5)


@given(seed=st.integers(0, 999))
def test_the_target_is_the_least_squares_answer_to_the_original_output(seed: int) -> None:
    rng = np.random.default_rng(seed)
    original = rng.standard_normal((60, 5))
    present = original + 0.1 * rng.standard_normal((60, 5))
    rows = rng.standard_normal((3, 5))
    found = aimed(rows, present.T @ present, original.T @ present, damping=1e-12)
    best = np.linalg.lstsq(present, original @ rows.T, rcond=None)[0].T
    np.testing.assert_allclose(found, best, atol=1e-6)
    np.testing.assert_allclose(aimed(rows, present.T @ present, present.T @ present), rows, atol=1e-12)


@given(seed=st.integers(0, 999), groups=st.sampled_from([None, 2]))
def test_the_bias_takes_the_mean_error_away(seed: int, groups: int | None) -> None:
    rng = np.random.default_rng(seed)
    rows, values = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    x = rng.standard_normal((20, groups or 1, 3)) + 2
    mean = x.mean(axis=0)
    per = 4 // (groups or 1)

    def mean_output(weights: np.ndarray) -> np.ndarray:
        return np.concatenate([(x[:, g] @ weights[g * per : (g + 1) * per].T).mean(axis=0) for g in range(groups or 1)])

    shift = bias_shift(rows, values, mean if groups else mean[0])
    np.testing.assert_allclose(mean_output(values) + shift, mean_output(rows), atol=1e-12)


def test_a_gram_that_is_not_finite_is_an_error() -> None:
    rows, gram = layer(0, 2, 3)
    gram[1, 1] = np.nan
    lattice = fitted(rows, -8, 7, symmetric=True)
    for rounding in (gptq, descent):
        with pytest.raises(DataError, match="not finite"):
            rounding(rows, lattice, gram)
    with pytest.raises(DataError, match="not finite"):
        aimed(rows, gram, gram)


def test_blocks_and_pairs_exclude_each_other() -> None:
    with pytest.raises(SettingError, match="leave `pairs` out"):
        Lattice(np.ones((1, 2)), np.zeros((1, 2)), -8, 7, 2, pairing("MatMul", (1, 4)))


def test_sums_whose_rounding_outweighs_the_damping() -> None:
    """Large means leave a Gram about them indefinite: more damping, not an error, unless it is no Gram at all."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    gram = basis @ np.diag([9.0, 4.0, 1.0, 0.1, 0.01, -0.2]) @ basis.T
    damped = gram.copy()
    diagonal, upper = factored(damped, 0.01)
    whole = upper * diagonal
    assert np.allclose(whole @ whole.T, damped) and np.allclose(damped - gram, (damped - gram)[0, 0] * np.eye(6))
    with pytest.raises(DataError, match="negative eigenvalues"):
        factored(np.eye(6) - 1e4 * basis[:, :1] @ basis[:, :1].T, 0.01)
