"""Ranks that weights ask for: what was hidden in noise is found."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.errors import SettingError
from onnxcompress.passes.factorize.forms import FORMS, Shape
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.factorize.ranks import energy, ranks_by, rule_of, unfolded, vbmf

WITHOUT = ("cp", "cp-whole", "fire", "stacked", "grouped", "shrink")
"""Forms whose ranks do not cut the weight in two."""


@pytest.mark.parametrize(("rows", "columns", "rank"), [(64, 64, 5), (96, 40, 8), (30, 270, 3)])
def test_a_low_rank_in_noise_is_found(rows: int, columns: int, rank: int) -> None:
    rng = np.random.default_rng(rows)
    matrix = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns)) + 0.3 * rng.normal(size=(rows, columns))
    assert vbmf(matrix) == vbmf(matrix.T) == rank
    assert vbmf(7.0 * matrix) == rank


def test_noise_alone_has_next_to_no_rank() -> None:
    assert vbmf(np.random.default_rng(1).normal(size=(80, 120))) <= 2
    assert vbmf(np.zeros((4, 5))) == 1


def test_energy_is_counted_from_the_largest() -> None:
    assert energy(np.diag([3.0, 2.0, 1.0, 0.0]), 9 / 14) == 1
    assert energy(np.diag([3.0, 2.0, 1.0, 0.0]), 0.9) == 2
    assert energy(np.diag([3.0, 2.0, 1.0, 0.0]), 1.0) == 3


@pytest.mark.parametrize("name", [name for name in FORMS if name not in WITHOUT])
def test_ranks_that_keep_all_energy_keep_the_weight(name: str) -> None:
    """A weight of small ranks: the form is exact at the ranks that the rule gives."""
    form, shape = FORMS[name], Shape(1, 12, 10, (3, 3))
    rng = np.random.default_rng(6)
    small = form.start(shape, rng.normal(size=(1, 12, 10, 9)), tuple(2 for _ in form.letters), Metric())
    weight = form.dense(shape, small)
    ranks = ranks_by(energy, form, shape, weight)
    assert ranks is not None and all(1 <= rank <= most for rank, most in zip(ranks, form.full(shape), strict=True))
    every = tuple(max(map(np.linalg.matrix_rank, unfolded(form, shape, weight, letter))) for letter in form.letters)
    np.testing.assert_allclose(form.dense(shape, form.start(shape, weight, every, Metric())), weight, atol=1e-9)


def test_sums_of_products_have_no_such_rank() -> None:
    for name in WITHOUT:
        assert ranks_by(vbmf, FORMS[name], Shape(1, 4, 4, (3, 3)), np.ones((1, 4, 4, 9))) is None


def test_a_rule_is_read_from_its_name() -> None:
    matrix = np.diag([3.0, 2.0, 1.0, 0.0])
    assert [rule_of(text)(matrix) for text in ("energy", "energy:0.64", "energy:1")] == [2, 1, 3]
    assert rule_of("vbmf") is vbmf
    for text, why in (("entropy", "no rank rule"), ("vbmf:0.5", "takes a share"), ("energy:2", "at most 1")):
        with pytest.raises(SettingError, match=why):
            rule_of(text)
