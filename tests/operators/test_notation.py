"""The one-line notation: what it says, and what it refuses."""

from __future__ import annotations

import pytest

from onnxcompress.operators import SIGNATURES
from onnxcompress.operators.notation import Axis, parse
from onnxcompress.operators.view import ZEROS, Case


def test_terms_axes_and_products() -> None:
    found = parse("x[n,(G i),*s] w[(G o),i,*k] b[(G o)] -> y[n,(G o),*t]")
    assert [term.name for term in found.inputs] == ["x", "w", "b"] and found.outputs[0].name == "y"
    assert found.inputs[0].axes == (Axis(("n",)), Axis(("G", "i"))) and found.inputs[0].star == (2, "s")


def test_a_capital_alone_has_no_letter() -> None:
    assert Axis(("G", "i")).letter == "i"
    assert Axis(("C",)).letter is None and Axis(()).letter is None


@pytest.mark.parametrize(
    ("term", "rank", "letters"),
    [
        ("x[n,c,*s]", 4, ["n", "c", "s0", "s1"]),
        ("x[n,c,*s]", 2, ["n", "c"]),
        ("x[n,c,*s]", 1, None),
        ("x[n,c,*1]", 3, ["n", "c", None]),
        ("b[...m,o]", 1, ["o"]),
        ("b[...m,o]", 3, ["lead0", "m", "o"]),
        ("x[n,i]", 3, None),
    ],
)
def test_a_term_fits_a_rank_or_not(term: str, rank: int, letters: list[str | None] | None) -> None:
    axes = parse(f"{term} -> y[n]").inputs[0].expand(rank)
    assert (None if axes is None else [axis.letter for axis in axes]) == letters


@pytest.mark.parametrize("text", ["x[n,c]", "x[*s,*t] -> y[*s]"])
def test_what_is_not_the_notation(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize("name", [name for name, row in SIGNATURES.items() if isinstance(row, Case)])
def test_every_plain_row_is_well_formed(name: str) -> None:
    """It parses, every attribute and inexact letter stands in it, and its rule for zeros exists."""
    row = SIGNATURES[name]
    assert isinstance(row, Case)
    signature = parse(row.signature)
    letters = {f for term in (*signature.inputs, *signature.outputs) for axis in term.axes for f in axis.factors}
    stars = {term.star[1] for term in (*signature.inputs, *signature.outputs) if term.star}
    assert row.zeros in ZEROS
    assert {*row.attributes.values(), *(row.origin or ())} <= letters
    assert {letter.rstrip("0123456789") for letter in row.inexact} <= letters | stars
