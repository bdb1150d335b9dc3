"""CP by alternating least squares: it finds what is there, errs less with every rank, and is the same twice."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.passes.factorize.forms.canonical import terms


def summed(found: list[np.ndarray]) -> np.ndarray:
    letters = "oiab"[: len(found)]
    return np.asarray(np.einsum(f"{','.join(f'{letter}r' for letter in letters)}->{letters}", *found))


@pytest.mark.parametrize("sizes", [(9, 7, 3, 3), (8, 6, 9)])
def test_a_sum_of_few_terms_is_found(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    tensor = summed([rng.standard_normal((size, 2)) for size in sizes])
    found = summed(terms(tensor, 2))
    assert np.square(tensor - found).sum() <= 1e-6 * np.square(tensor).sum()


def test_more_terms_err_less_and_all_of_them_not_at_all() -> None:
    tensor = np.random.default_rng(4).standard_normal((6, 5, 3, 3))
    errors = [float(np.square(tensor - summed(terms(tensor, rank))).sum()) for rank in (3, 10, 25, 45)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-20


def test_the_same_twice() -> None:
    tensor = np.random.default_rng(5).standard_normal((6, 5, 3, 3))
    for one, other in zip(terms(tensor, 12), terms(tensor, 12), strict=True):
        assert one.tobytes() == other.tobytes()
