"""How a file holds the symbols of a Coded tensor: a row a form, each a few nodes that onnxruntime folds when it loads the file.

symbols ─(the form)─▶ numbers of entries ─Gather from the book─▶ values ─Mul by scales─▶ the tensor

With one book the form looks up entries itself, in a table of what a byte stands for; after folding the model runs as with dense weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxcompress.weights import paths, pools
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.pen import NODE_BYTES, Form, Lookup, Pen, halved
from onnxcompress.weights.plain import PLAIN
from onnxcompress.weights.pools import POOLED
from onnxcompress.weights.runs import RUNS

FORMS: dict[str, Form] = {**PLAIN, **RUNS}
"""Name -> form. In order of the time that a file takes to load."""

WORTH = 0.95
"""A form that loads more slowly must save at least a twentieth of the bytes."""


def bytes_of(coded: Coded, form: str) -> float | None:
    """Of a tensor in the file, its books and nodes counted; None where the form cannot hold it."""
    symbols = FORMS[form].size(coded)
    factors = [coded.books] if coded.scales is None else [coded.books, coded.scales]
    stored = sum((values if (half := halved(values)) is None else half).nbytes + NODE_BYTES for values in factors)
    several = 0 if coded.groups is None else 2 * len(coded.groups) + 3 * NODE_BYTES
    return None if symbols is None else symbols + stored + several + 5 * NODE_BYTES + paths.size(coded)


def chosen(coded: Coded, opset: int = 17, *, without: tuple[str, ...] = ()) -> str | None:
    """The form that a tensor gets: as wanted where that can hold it, else the smallest; None where dense is no larger.

    Symbols of a trellis are in forms of PLAIN only: the others number them anew.
    """
    dense = WORTH * coded.size * coded.dtype.itemsize
    sizes = {
        name: size
        for name, form in FORMS.items()
        if form.opset <= opset and name not in without and (coded.states == 1 or name in PLAIN)
        if (form.auto or name == coded.form) and (size := bytes_of(coded, name)) is not None
    }
    if coded.form in sizes:
        return coded.form if sizes[coded.form] < dense else None
    best = None
    for name, size in sizes.items():
        if size < (dense if best is None else WORTH * sizes[best]):
            best = name
    return best


def chosen_together(tensors: Mapping[str, Coded], opset: int = 17) -> dict[str, str]:
    """The form of each tensor of a file that is not dense; forms of POOLED only where they save, together, more than a stream takes."""
    found = {name: chosen(coded, opset) for name, coded in tensors.items()}
    for pooled in POOLED:
        names = [name for name, form in found.items() if form == pooled]
        others = {name: chosen(tensors[name], opset, without=(pooled,)) for name in names}
        saved = sum(_bytes(tensors[name], form) - _bytes(tensors[name], pooled) for name, form in others.items())
        shared = pools.shared_bytes(tensors[name] for name in names)
        if saved < shared and not any(tensors[name].form == pooled for name in names):
            found |= others
    return {name: form for name, form in found.items() if form is not None}


def _bytes(coded: Coded, form: str | None) -> float:
    size = None if form is None else bytes_of(coded, form)
    return coded.size * coded.dtype.itemsize if size is None else size


def write(pen: Pen, coded: Coded, form: str) -> ir.Value:
    """The value of a tensor, computed from its symbols."""
    coded = FORMS[form].arranged(coded)
    return _looked_up(pen, coded, form, lambda look: FORMS[form].write(pen, coded, look))


def write_all(pen: Pen, tensors: Mapping[str, Coded], forms: Mapping[str, str]) -> dict[str, ir.Value]:
    """The values of all tensors that have a form; those in a form of POOLED share streams."""
    made = {name: write(pen, tensors[name], form) for name, form in forms.items() if form not in POOLED}
    for pooled in POOLED:
        names = [name for name, form in forms.items() if form == pooled]
        arranged = [FORMS[pooled].arranged(tensors[name]) for name in names]
        for pool in pools.pools(arranged, pooled):
            numbers = pools.numbers(pen, [arranged[each] for each in pool], pooled)
            for each, found in zip(pool, numbers, strict=True):
                made[names[each]] = _looked_up(pen, arranged[each], pooled, lambda look, found=found: look(found))  # type: ignore[misc]
    return made


def _looked_up(pen: Pen, coded: Coded, form: str, symbols: Callable[[Lookup], ir.Value]) -> ir.Value:
    """The tensor, by its books and scales."""
    count, entries, width = coded.books.shape
    if coded.states > 1:
        made = paths.write(pen, coded, symbols(lambda numbers: numbers))
    elif coded.groups is None:
        book = pen.floats(coded.books[0] if width > 1 else coded.books[0, :, 0])
        made = symbols(lambda numbers: pen.node("Gather", book, numbers))
        made = made if form in AS_SHAPED and width == 1 else pen.shape(made, coded.shape)
    else:
        numbers = symbols(lambda numbers: numbers)
        shape = coded.shape if width == 1 else (coded.shape[0], len(coded.symbols) // coded.shape[0])
        numbers = numbers if form in AS_SHAPED and width == 1 else pen.shape(numbers, shape)
        offsets = (coded.groups * entries).astype(np.int32)
        offsets = coded.along(offsets) if width == 1 else offsets[:, None]
        books = coded.books.reshape(count * entries, width)
        made = pen.node(
            "Gather", pen.floats(books if width > 1 else books[:, 0]), pen.node("Add", numbers, pen.numbers(offsets))
        )
        made = made if width == 1 else pen.shape(made, coded.shape)
    return made if coded.scales is None else pen.node("Mul", made, pen.floats(coded.along(coded.scales)))


AS_SHAPED = {"bytes", "uint4", "uint2"}
"""Forms that keep the tensor's shape by themselves."""
