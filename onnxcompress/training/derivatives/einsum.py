"""Derivative of Einsum: of each input an Einsum of dy and the other inputs, with the letters of that input as its result."""

from __future__ import annotations

import string

import onnx_ir as ir

from onnxcompress.training.derivatives.site import Gradients, Rule, Site
from onnxcompress.training.pen import Pen


def _terms(at: Site) -> tuple[list[str], str]:
    """The letters of each input and of the output, with letters of its own for what an ellipsis stands for."""
    equation = str(at.attribute("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    ranks = [len(at.shape(i)) - len(term.replace("...", "")) for i, term in enumerate(terms) if "..." in term]
    if len(set(ranks)) > 1:
        raise at.refused(f"its operands broadcast ({equation})")
    dots = "".join(free[: ranks[0]]) if ranks else ""
    if not arrow:  # all letters that come once, in order of the alphabet
        letters = left.replace(",", "").replace("...", "")
        right = ("..." if ranks else "") + "".join(sorted(each for each in set(letters) if letters.count(each) == 1))
    terms, right = [term.replace("...", dots) for term in terms], right.replace("...", dots)
    if any(len(set(term)) < len(term) for term in (*terms, right)):
        raise at.refused(f"a letter comes twice in one operand ({equation})")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        for letter, size in zip(term, at.shape(index), strict=True):
            if sizes.setdefault(letter, size) != size:
                raise at.refused(f"its operands broadcast ({equation})")
    return terms, right


def _einsum(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    terms, right = _terms(at)
    found: list[ir.Value | None] = []
    for index, term in enumerate(terms):
        if not at.wants(index):
            found.append(None)
            continue
        others = [i for i in range(len(terms)) if i != index]
        letters = [right, *(terms[i] for i in others)]
        seen = "".join(letter for letter in term if any(letter in each for each in letters))
        made = op.Einsum(dy, *(at.x[i] for i in others), equation=f"{','.join(letters)}->{seen}")
        if seen != term:  # letters that this input alone has were summed away: alike along them
            shape = at.shape(index)
            kept = [size if letter in seen else 1 for letter, size in zip(term, shape, strict=True)]
            made = op.Expand(op.Reshape(made, kept), list(shape))
        found.append(made)
    return found


EINSUM: dict[str, Rule] = {"Einsum": _einsum}
