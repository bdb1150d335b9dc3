"""How many entries each tensor gets, and who shares them: bytes and expected error of every choice, for the one solver.

The error of a tensor is what its rounding brings to the outputs, as a share of their power: the mean square of what a layer then
adds to its output over that output's own, times the sensitivity that was measured there (evidence/sensitivity.py). Without data it
is the squared error over the tensor's own square.

Every number of entries is tried with one book for the tensor, which one dynamic programme gives; every sharing with REFERENCE
entries. All other pairs are taken as the product: a sharing cuts the error by about the same factor whatever the entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.allocate import Candidate, allocate
from onnxcompress.passes.cluster.kmeans import books
from onnxcompress.passes.cluster.sharing import SHARINGS, Weights, lost, placed, pruned, shared
from onnxcompress.weights.plain import planes
from onnxcompress.weights.tunstall import digits

SIZES = (2, 3, 4, 6, 8, 16, 32, 64, 128, 256)
"""Entries that an allocation chooses from: those for which the packed forms waste little."""

TRIED = 32
"""Entries up to which books are made to choose; beyond, twice the entries leave a quarter of the error."""

REFERENCE = 16

COARSE = 0.1
"""Noise at a layer's output, as a share of its power, above which fewer than REFERENCE entries are not trusted: how far errors
arrive was measured with a hundredth. Without this limit the last layer of PP-OCRv4's recogniser got one bit: its outputs are
probabilities, most of which a small error does not move."""

DEAR = 1.0
"""Bits a weight of books and scales above which a sharing is not tried."""


@dataclass(frozen=True)
class Choice:
    """How a tensor is to be coded."""

    entries: int
    sharing: str


def bits_of(entries: int) -> float:
    """A weight in the file, as the smaller of the packed forms holds it."""
    each = 8 / digits(entries)
    return min(each, sum(planes(entries)) or each)


def payload(shape: tuple[int, int], choice: Choice) -> float:
    """Bytes of symbols, books and scales of rows [channels, n]; nodes are not counted."""
    return shape[0] * shape[1] * bits_of(choice.entries) / 8 + overhead(shape, choice)


def overhead(shape: tuple[int, int], choice: Choice) -> float:
    """Bytes of books, scales and numbers of books: two for each entry, scale and number."""
    count = BOOKS.get(choice.sharing, shape[0])
    return 2 * (min(count, shape[0]) * choice.entries + (shape[0] if choice.sharing != "tensor" else 0))


BOOKS = {"tensor": 1, "scaled": 1, "4 books": 4, "16 books": 16}
"""Of a sharing; a book a channel where it has no row here."""


def best_sharing(rows: np.ndarray, entries: int, weights: Weights = None, names: Iterable[str] = SHARINGS) -> str:
    """The sharing that loses least at equal bytes: a bit more a weight would quarter the error.

    Of a pruned tensor only weights that are left would take that bit. LeNet-300-100 at 95 % zeros, 8 entries: a book a channel of the
    first layer was 4.8 of 30.0 kB, and 7,900 weights shared its 2,400 entries.
    """
    errors, left = errors_of(rows, entries, weights, names), _left(rows)
    return min(errors, key=lambda name: errors[name] * 4 ** (8 * overhead(rows.shape, Choice(entries, name)) / left))


def _left(rows: np.ndarray) -> int:
    """Weights that a book is for."""
    return max(int(np.count_nonzero(rows)), 1) if pruned(rows) else rows.size


def errors_of(rows: np.ndarray, entries: int, weights: Weights, names: Iterable[str]) -> dict[str, float]:
    """Sharing -> Σ weight · squared error; without those whose books weigh too much."""
    found, left = {}, _left(rows)
    for name in names:
        if name == "tensor" or 8 * overhead(rows.shape, Choice(entries, name)) <= DEAR * left:
            made = shared(rows, entries, name, weights)
            found[name] = lost(rows, placed(rows, made), made, weights)
    return found


def candidates(
    layer: str,
    rows: np.ndarray,
    power: float,
    arriving: float,
    sizes: Sequence[int],
    weights: Weights = None,
    coarse: float = COARSE,
) -> list[Candidate]:
    """Every choice of one tensor: its bytes, and its expected noise as a share of `power`, times `arriving`.

    coarse  shares above it leave out fewer entries than REFERENCE
    """
    one_book = _one_book(rows, sizes, weights)
    whole = errors_of(rows, REFERENCE, weights, SHARINGS)
    ratios = {name: error / max(whole["tensor"], 1e-300) for name, error in whole.items()}
    return [
        Candidate(layer, choice, payload(rows.shape, choice), arriving * share)
        for size in sizes
        for name, ratio in ratios.items()
        for choice, share in [(Choice(size, name), one_book[size] * ratio / max(power, 1e-300))]
        if share <= coarse or size >= REFERENCE
    ]


def _one_book(rows: np.ndarray, sizes: Sequence[int], weights: Weights) -> dict[int, float]:
    """Entries -> error with one book for the tensor."""
    tried = sorted({*(size for size in sizes if size <= TRIED), TRIED})
    made = books(rows, tried, weights, exact=TRIED * 8)
    found = {}
    for size in tried:
        book = made[size]
        at = np.searchsorted((book[1:] + book[:-1]) / 2, rows)
        square = np.square(book[at] - rows)
        found[size] = float((square if weights is None else square * weights).sum())
    return {size: found[size] if size <= TRIED else found[TRIED] * (TRIED / size) ** 2 for size in sizes}


def allocated(found: Iterable[Candidate], budget: float) -> dict[str, Choice]:
    """Tensor -> its choice: the least summed error within `budget` bytes. SettingError where that is too little."""
    return {layer: each.setting for layer, each in allocate(found, budget, maximum_gap=1e-3).items()}  # type: ignore[misc]
