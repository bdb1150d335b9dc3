"""One book for all tensors, each row of which has a scale: what differs between layers is mostly the size of their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcompress.model import Model
from onnxcompress.passes.cluster.books import Books
from onnxcompress.passes.cluster.kmeans import atoms_of, books, condensed
from onnxcompress.passes.cluster.sharing import ROUNDS, placed, pruned, sizes
from onnxcompress.passes.cluster.tensors import Clustered

ATOMS = 1024
"""That stand for a tensor."""


def common_book(model: Model, found: Sequence[Clustered], entries: int) -> np.ndarray:
    """Entries of the one book, float16 numbers, for rows of root mean square one; zero is among them where a tensor was pruned."""
    values, weights, zero = [], [], False
    for each in found:
        rows = each.rows(model.array(each.name))
        zero = zero or pruned(rows)
        own = condensed(atoms_of(rows / sizes(rows, None)[:, None].astype(rows.dtype)), ATOMS)
        values.append(own.values[0])
        weights.append(np.where(own.values[0] == 0, 0.0, own.weights[0]) if zero else own.weights[0])
    size = max(entries - zero, 1)
    book = books(np.concatenate(values), [size], np.concatenate(weights))[size]
    book = np.concatenate([[0.0], book]) if zero else book
    return Books(np.pad(book, (0, entries - len(book)), mode="edge")[None]).halved().entries[0]


def on_common(rows: np.ndarray, book: np.ndarray) -> Books:
    """The book with the scale of each row that loses least, as float16 numbers."""
    found = Books(book[None], scales=sizes(rows, None))
    for _ in range(ROUNDS):
        values = book[placed(rows, found)]
        power, along = (values**2).sum(axis=1), (values * rows).sum(axis=1)
        better = (power > 0) & (along > 0)
        found = Books(
            book[None], scales=np.where(better, along / np.where(power > 0, power, 1.0), found.factors(len(rows)))
        )
    return found.halved()
