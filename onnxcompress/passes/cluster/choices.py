"""Ways to code a tensor: scalar books of a given size, one that all tensors share, vectors of neighbours, paths of a trellis, and
symbols under one price for error and bits.

Each knows how to begin without data, and what to try on the Gram matrix at a stop of the walk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxcompress.passes.cluster import assign, trellis, vectors
from onnxcompress.passes.cluster.allocation import Choice, overhead
from onnxcompress.passes.cluster.books import Books, rescaled, shrunk
from onnxcompress.passes.cluster.common_book import on_common
from onnxcompress.passes.cluster.rate import MOST, Sketch, Tensor, entropy, rated
from onnxcompress.passes.cluster.sharing import placed, pruned, shared
from onnxcompress.passes.cluster.trellis import STATES, Trellis
from onnxcompress.passes.cluster.vectors import Vectors
from onnxcompress.passes.quantize.rounding import DAMPING
from onnxcompress.weights.coded import MOST_ENTRIES

Coding = tuple[np.ndarray, Books | Vectors]
"""Symbols, and what they stand for."""


@dataclass(frozen=True, eq=False)
class Stop:
    """What a stop of the walk offers: rows to code [out, n] and their Gram matrix, summed over `count` positions.

    zeros  which weights are pruned; None: none      seed  of what is drawn
    """

    rows: np.ndarray
    gram: np.ndarray
    count: int
    zeros: np.ndarray | None
    seed: int

    def weights(self) -> np.ndarray:
        """What a squared error of each weight costs by itself, [n] or [out, n], damped, one on average."""
        power = np.einsum("...kk->...k", self.gram)
        power = power + DAMPING * power.mean(axis=-1, keepdims=True)
        each = power if power.ndim == 1 else np.repeat(power, len(self.rows) // len(power), axis=0)
        return np.asarray(each / max(float(each.mean()), 1e-300))


class Coder(Choice, ABC):
    """A choice that knows how to code rows at a stop, and what its symbols cost beside their error."""

    @abstractmethod
    def tried(self, at: Stop) -> Iterator[Coding]:
        """Codes, of which the walk takes the best."""

    def paid(self, symbols: np.ndarray) -> float:
        """Nothing: bits are settled."""
        return 0.0


class Starter(Coder):
    """One that knows how to begin, too."""

    @abstractmethod
    def begun(self, rows: np.ndarray, seed: int, counts: np.ndarray | None = None) -> Coding:
        """Codes of rows [out, n], from the weights alone; counts: what a squared error counts, [n] or [out, n]."""


@dataclass(frozen=True)
class ByBooks(Starter):
    """Scalar books of so many entries; `start` of k-means."""

    start: str = "optimal"

    def begun(self, rows: np.ndarray, seed: int, counts: np.ndarray | None = None) -> Coding:
        """The nearest entries of books for the weights."""
        books = shared(rows, self.entries, self.sharing, counts, start=self.start, seed=seed)
        return placed(rows, books), books

    def tried(self, at: Stop) -> Iterator[Coding]:
        """Books for rows that are weighed by what they meet; symbols that make up for errors, and books refitted to these."""
        books = shared(at.rows, self.entries, self.sharing, at.weights(), start=self.start, seed=at.seed)
        yield placed(at.rows, books), books
        symbols, books = assign.alternated(at.rows, books, at.gram, zeros=at.zeros)
        yield symbols, books.halved()


@dataclass(frozen=True)
class ByCommon(Starter):
    """The one `book` [entries] that all tensors share, which none of them moves; each row has a scale."""

    book: np.ndarray = field(default_factory=lambda: np.zeros(0), compare=False)

    def begun(self, rows: np.ndarray, seed: int, counts: np.ndarray | None = None) -> Coding:
        """With the scales that lose least."""
        books = on_common(rows, self.book)
        return placed(rows, books), books

    def tried(self, at: Stop) -> Iterator[Coding]:
        """Symbols that make up for errors, and scales for them, in turns."""
        books = on_common(at.rows, self.book)
        symbols = assign.compensated(at.rows, books, at.gram, zeros=at.zeros)
        books = rescaled(at.rows, symbols, books, at.gram).halved()
        yield assign.compensated(at.rows, books, at.gram, zeros=at.zeros), books


@dataclass(frozen=True)
class ByVectors(Starter):
    """`width` weights that follow each other in memory share a symbol."""

    width: int = 2
    across: bool = False

    def begun(self, rows: np.ndarray, seed: int, counts: np.ndarray | None = None) -> Coding:
        """From the weights alone: nearest entries and entries that are best for them, in turns."""
        found = self._trained(rows, None, seed)
        return vectors.alternated(rows.astype(np.float64), found, None)

    def tried(self, at: Stop) -> Iterator[Coding]:
        """A book for rows that are weighed by what they meet; symbols that make up for errors."""
        drawn = shrunk(at.gram)
        found = self._trained(at.rows, drawn, at.seed)
        yield vectors.nearest(at.rows, found, drawn), found
        yield vectors.alternated(at.rows, found, drawn)

    def _trained(self, rows: np.ndarray, gram: np.ndarray | None, seed: int) -> Vectors:
        scales = np.sqrt(np.square(rows, dtype=np.float64).mean(axis=1))
        scales = np.where(scales > 0, scales, 1.0)
        found = vectors.trained(
            rows.astype(np.float64), self.width, self.entries, gram, across=self.across, scales=scales, seed=seed
        )
        return found.with_entries(found.flat().halved())


def by_vectors(positions: np.ndarray, rows: np.ndarray, entries: int, width: int) -> ByVectors | str:
    """The choice, or why a tensor has no vectors; positions [out, row] of its rows in memory."""
    if pruned(rows):
        return "vectors would not keep its pruned weights at zero"
    across = vectors.direction(positions, width)
    return across if isinstance(across, str) else ByVectors(entries, "vectors", width, across)


@dataclass(frozen=True)
class ByTrellis(Starter):
    """Symbols of each row follow a trellis: `entries` of them choose among twice as many values."""

    states: int = STATES

    def begun(self, rows: np.ndarray, seed: int, counts: np.ndarray | None = None) -> Coding:
        """From the weights alone."""
        found = self._trained(rows, counts, seed)
        return trellis.followed(rows.astype(np.float64), found, trellis.along(counts)), found

    def tried(self, at: Stop) -> Iterator[Coding]:
        """Books for rows that are weighed by what they meet; paths that make up for errors."""
        weights = at.weights()
        found = self._trained(at.rows, weights, at.seed)
        yield trellis.followed(at.rows, found, weights), found
        yield trellis.alternated(at.rows, found, at.gram)

    def _trained(self, rows: np.ndarray, weights: np.ndarray | None, seed: int) -> Trellis:
        return trellis.trained(rows, self.entries, self.sharing, weights, states=self.states, seed=seed)


def by_trellis(shape: tuple[int, ...], axis: int, rows: np.ndarray, choice: Choice) -> ByTrellis | None:
    """The choice for a tensor of this shape with books along `axis`; None where a trellis would not pay, or cannot be followed."""
    columns = rows.shape[1]
    fits = choice.entries % 2 == 0 and 2 * choice.entries <= MOST_ENTRIES and axis in (0, len(shape) - 1)
    more = overhead(rows.shape, Choice(2 * choice.entries, choice.sharing)) - overhead(rows.shape, choice)
    if not fits or columns < trellis.SHORTEST or more > DEAREST * rows.size or pruned(rows):
        return None
    return ByTrellis(choice.entries, choice.sharing)


DEAREST = 0.004
"""Bytes a weight by which its books may grow: 0.03 bits, where a trellis saves a quarter of one."""


@dataclass(frozen=True)
class ByRate(Coder):
    """At a price λ a bit, see rate.py; an error's unit is a position of the layer's output, or the weights' own without data.

    worth     of a unit of it at the model's outputs       most  entries        limit  of λ over worth
    measured  is what the layer meets known? Otherwise the walk has no unit to pay in
    """

    price: float = 1.0
    worth: float = 1.0
    most: int = MOST
    limit: float = np.inf
    measured: bool = True

    def tried(self, at: Stop) -> Iterator[Coding]:
        """Symbols whose errors are made up for, at that price a position."""
        if self.measured:
            tensor = Tensor(at.rows, shrunk(at.gram / at.count), self.worth, at.zeros, self.limit)
            found = rated(tensor, self.price, sketch=Sketch(tensor, self.most))
            yield found.symbols, found.books

    def paid(self, symbols: np.ndarray) -> float:
        """What these symbols cost, in the error's unit."""
        return entropy(np.bincount(symbols.reshape(-1))) * symbols.size * min(self.price / self.worth, self.limit)
