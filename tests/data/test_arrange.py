"""The rules by which axes become samples, on shapes alone."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.data.arrange import arrange
from onnxcompress.errors import DataError
from onnxcompress.runtime.session import Port

F = np.dtype("float32")


def port(name: str, *dims: int | str | None) -> Port:
    return Port(name, F, dims)


# ports, shapes given, samples, whether they join, the view of each
CASES = {
    "rows of a dynamic batch": ([port("x", "N", 3)], {"x": (7, 3)}, 7, True, {"x": (7, 1, 3)}),
    "rows of a fixed batch of 1": ([port("x", 1, 3)], {"x": (7, 3)}, 7, False, {"x": (7, 1, 3)}),
    "a fixed batch of 4, two rows too many": ([port("x", 4, 3)], {"x": (10, 3)}, 2, False, {"x": (2, 4, 3)}),
    "one sample without its batch axis": ([port("x", "N", 3, 8, 8)], {"x": (3, 8, 8)}, 1, True, {"x": (1, 1, 3, 8, 8)}),
    "states, a whole feed each": (
        [port("x", "N", 5), port("h", 2, "N", 4)],
        {"x": (6, 5), "h": (6, 2, 1, 4)},
        6,
        False,
        {"x": (6, 1, 5), "h": (6, 2, 1, 4)},
    ),
    "a state given once for all": (
        [port("x", "N", 5), port("h", 2, "N", 4)],
        {"x": (6, 5), "h": (2, 1, 4)},
        6,
        False,
        {"x": (6, 1, 5), "h": (1, 2, 1, 4)},
    ),
    "a graph without a batch axis": (
        [port("pos", "atoms", 3), port("edges", 2, "bonds"), port("far", "bonds")],
        {"pos": (6, 3), "edges": (2, 9), "far": (9,)},
        1,
        False,
        {"pos": (1, 6, 3), "edges": (1, 2, 9), "far": (1, 9)},
    ),
    "a scalar for all": ([port("x", "N", 5), port("sr")], {"x": (6, 5), "sr": ()}, 6, True, {"sr": (1,)}),
    "a scalar in brackets": ([port("x", "N", 5), port("sr")], {"x": (6, 5), "sr": (1,)}, 6, True, {"sr": (1,)}),
    "a scalar a sample": ([port("x", "N", 5), port("sr")], {"x": (6, 5), "sr": (6,)}, 6, False, {"sr": (6,)}),
    "one row for all": ([port("x", "N", 5), port("m", "N", 5)], {"x": (6, 5), "m": (1, 5)}, 6, True, {"m": (1, 1, 5)}),
    "a fixed table": ([port("x", "N", 5), port("a", 9, 4)], {"x": (6, 5), "a": (9, 4)}, 6, True, {"a": (1, 9, 4)}),
    "a sequence a sample": ([port("t", "L")], {"t": (6, 11)}, 6, False, {"t": (6, 11)}),
}


@pytest.mark.parametrize("case", CASES)
def test_rules(case: str) -> None:
    ports, shapes, samples, joins, views = CASES[case]
    layout = arrange(shapes, ports, "data")
    assert (layout.samples, layout.joins) == (samples, joins)
    for name, view in views.items():
        assert layout.views[name].shape == view


def test_rows_are_counted_for_labels() -> None:
    layout = arrange({"x": (10, 3)}, [port("x", 4, 3)], "data")
    assert (layout.rows, layout.given, layout.dropped) == (4, 10, 2)
    layout = arrange({"x": (6, 5), "a": (9, 4)}, [port("a", 9, 4), port("x", "N", 5)], "data")
    assert (layout.rows, layout.given, layout.dropped) == (1, 6, 0)


@pytest.mark.parametrize(
    ("dims", "shape", "message"),
    [
        (("N", 3), (7, 4), r"takes x float32\[N,3\], an array \[7,4\] does not fit; give \[samples,3\]"),
        (("N", 3), (0, 3), "it is empty"),
        (("N", 3), (), r"give \[samples,3\]"),
        (("N", 3), (2, 2, 2, 3), "does not fit"),
        ((4, 3), (3, 3), "does not fit"),
        ((4, 3), (3,), "does not fit"),
        ((), (2, 2), "give one number, or one a sample"),
        (("N", "L", 3), (7, 3, 4), r"give \[samples,any,3\]"),
    ],
)
def test_what_does_not_fit(dims: tuple, shape: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        arrange({"x": shape}, [port("x", *dims)], "c.npz")


def test_different_numbers_of_samples() -> None:
    ports = [port("x", "N", 5), port("m", "N", 5)]
    with pytest.raises(DataError, match=r"c.npz: input 'm' has 5 samples, input 'x' has 6; give as many of each"):
        arrange({"x": (6, 5), "m": (5, 5)}, ports, "c.npz")
