"""One price λ for error and bits over a whole model: found so that its codes meet a size, on data with the walk inside.

What an error of a tensor is worth is what `expected` takes it for: its share of the layer's output power, times how far it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxcompress.errors import BudgetError
from onnxcompress.evidence.need import Evidence
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import Model
from onnxcompress.passes.cluster.allocation import COARSE
from onnxcompress.passes.cluster.books import loss
from onnxcompress.passes.cluster.choices import ByRate
from onnxcompress.passes.cluster.expected import arriving, met
from onnxcompress.passes.cluster.rate import MOST, RUNS, Rated, Sketch, Tensor, rated, searched
from onnxcompress.passes.cluster.sharing import pruned
from onnxcompress.passes.cluster.tensors import Clustered
from onnxcompress.passes.cluster.walk import Begun, Found, Start, Walk, begun, walked
from onnxcompress.passes.cluster.written import Budget, Whole
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.forms import FORMS, chosen, chosen_together
from onnxcompress.weights.pools import POOLED, SHARED_BYTES

WALKS = 4
"""At most, to meet a size on data."""


def in_file(coded: Coded) -> float:
    """Bytes of a tensor in the form that its file will have, without nodes."""
    return _held(coded, chosen(coded))


def _held(coded: Coded, form: str | None) -> float:
    """Symbols in a form, and two bytes for each entry of the book."""
    symbols = None if form is None else FORMS[form].size(coded)
    if symbols is None:
        return float(np.prod(coded.shape) * coded.dtype.itemsize)
    return float(symbols + 2 * coded.books.size)


def together(tensors: Mapping[str, Coded]) -> float:
    """Of a file: what tensors share counts once."""
    forms = chosen_together(tensors)
    shared = SHARED_BYTES if any(form in POOLED for form in forms.values()) else 0
    return shared + sum(_held(each, forms.get(name)) for name, each in tensors.items())


def in_container(coded: Coded) -> float:
    """Bytes of a tensor in an ideal entropy code, and two for each entry."""
    return coded.entropy() * len(coded.symbols) / 8 + 2 * coded.books.size


Size = Callable[[Coded], float]

SIZES: dict[str, tuple[tuple[int, ...], Size, Whole]] = {
    "file": ((15, 31, 63), in_file, together),
    "container": ((MOST,), in_container, lambda tensors: sum(map(in_container, tensors.values()))),
}
"""Where symbols will lie -> how many entries a book may have, the bytes of a tensor there, and of all tensors together. A file holds
them in Tunstall's code, whose 256 words are short where there are many: on PP-OCRv4's recogniser 15 entries took 2.56 bits a weight for
12.9 dB, 31 took 2.75 for 13.3, 255 took 2.79 for 13.4, at one λ."""


def at_one_price(
    how: Walk, model: Model, evidence: Evidence, tensors: Sequence[Clustered], where: str, budget: Budget
) -> tuple[Start, Found]:
    """What each tensor begins with and what it becomes, within the budget; BudgetError where that is too little.

    where  a key of SIZES
    No tensor is made coarser than COARSE while a size can be met so.
    """
    try:
        return _at_one_price(how, model, evidence, tensors, where, budget, COARSE)
    except BudgetError:
        return _at_one_price(how, model, evidence, tensors, where, budget, np.inf)


def _at_one_price(
    how: Walk, model: Model, evidence: Evidence, tensors: Sequence[Clustered], where: str, budget: Budget, coarse: float
) -> tuple[Start, Found]:
    most, size, _ = SIZES[where]
    units = _units(model, tensors, evidence, coarse)
    sketches = {each.name: [Sketch(units[each.name][0], count) for count in most] for each in tensors}
    paired = evidence.get(Paired.NEED)

    def coded(price: float) -> tuple[float, tuple[Start, Found]]:
        start: dict[str, Begun] = {}
        for each in tensors:
            unit, measured = units[each.name]
            count, found = _best(each, model.array(each.name).dtype, unit, sketches[each.name], price, size)
            choice = ByRate(found.books.entries.size, "tensor", price, unit.worth, count, unit.limit, measured)
            start[each.name] = each, choice, found.symbols, found.books
        codes = begun(model, start) if paired is None else walked(how, model, paired, start)
        return budget.of(codes.coded), (start, codes)

    return searched(
        coded, [each[-1] for each in sketches.values()], budget.bytes, runs=RUNS if paired is None else WALKS
    )[1]


def _best(
    each: Clustered, dtype: np.dtype, unit: Tensor, sketches: Sequence[Sketch], price: float, size: Size
) -> tuple[int, Rated]:
    """How many entries a book may have, and what comes of it: the least of error and bytes at this price."""
    found = [(sketch.most, rated(unit, price, sketch=sketch)) for sketch in sketches]
    if len(found) == 1:
        return found[0]

    def paid(one: tuple[int, Rated]) -> float:
        lost = float(loss(unit.rows, one[1].symbols, one[1].books, unit.gram).sum())
        return lost + unit.price(price) * 8 * size(each.coded(one[1].symbols, one[1].books, dtype))

    return min(found, key=paid)


def _units(
    model: Model, tensors: Sequence[Clustered], evidence: Evidence, coarse: float
) -> Mapping[str, tuple[Tensor, bool]]:
    """What is coded of each tensor and what its errors are worth; was it measured?"""
    reached, found = arriving(tensors, evidence), {}
    for each in tensors:
        rows = each.rows(model.array(each.name)).astype(np.float64)
        unit = Tensor(rows, zeros=rows == 0 if pruned(rows) else None)
        weights, power = met(each, rows, evidence)
        if weights is not None and weights.ndim == 1:
            unit = replace(unit, gram=weights)
        elif weights is not None:
            power /= float(weights.mean())
        worth = reached[each.name] / max(power, 1e-300)
        limit = 2 * np.log(2) * coarse * power / max(rows.size, 1)  # of a form whose noise is that share: see rate.py
        found[each.name] = replace(unit, worth=max(worth, 1e-300), limit=max(limit, 1e-300)), weights is not None
    return found
