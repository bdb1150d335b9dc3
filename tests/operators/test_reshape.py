"""How the axes of a Reshape correspond, as far as sizes tell."""

from __future__ import annotations

import pytest

from onnxcompress.operators.reshape import align


@pytest.mark.parametrize(
    ("source", "target", "copied", "factors"),
    [
        ([2, 6], [2, 6], set(), [(2, 0, 0), (6, 1, 1)]),
        (["N", 12], ["N", 3, 4], set(), [("N", 0, 0), (3, 1, 1), (4, 1, 2)]),
        (["N", 3, 4], ["N", 12], set(), [("N", 0, 0), (3, 1, 1), (4, 2, 1)]),
        ([None, 8], [None, 2, 4], {0}, [(None, 0, 0), (2, 1, 1), (4, 1, 2)]),
        ([4, 6], [8, 3], set(), [(4, 0, 0), (2, 1, 0), (3, 1, 1)]),
    ],
)
def test_whole_factors(source: list, target: list, copied: set[int], factors: list) -> None:
    assert [(f.size, f.source, f.target) for f in align(source, target, copied)] == factors


def test_sizes_without_a_common_factor_stay_unknown() -> None:
    found = align([6, 4], [8, 3], set())
    assert not [factor for factor in found if factor.size not in (None, 1)]


def test_the_right_end_is_matched_where_the_left_is_unknown() -> None:
    found = align([None, None, 8], ["M", 8], set())
    assert (8, 2, 1) in [(factor.size, factor.source, factor.target) for factor in found]
