"""How a tensor of the graph follows from what trains: as it is, with zeros that stay, or as symbols of books.

    parts (in one flat buffer) ──values──▶ tensor of the graph        gradient of the tensor ──pull──▶ gradients of the parts

A form is a class with five methods; `form_of` chooses. The graph knows nothing of it: it takes the tensor as an input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import set_coded, set_constant
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.pen import halved

Parts = dict[str, np.ndarray]
"""What trains of one tensor, by name."""

FEW = 0.02
"""Share of exact zeros from which a matrix was pruned: trained weights are hardly ever zero."""

AT_ONCE = 1 << 16
"""Vectors whose distances from a book are computed at once."""


class Kept(Protocol):
    """A form. decays: which of its parts weight decay may shrink."""

    decays: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """Their names."""

    def start(self) -> Parts:
        """The parts before the first update, float32."""

    def values(self, parts: Parts) -> np.ndarray:
        """The tensor."""

    def pull(self, gradient: np.ndarray, parts: Parts) -> Parts:
        """Gradients of the parts from the tensor's."""

    def settle(self, parts: Parts) -> None:
        """After an update, in place."""

    def write(self, graph: ir.Model, name: str, parts: Parts) -> None:
        """The tensor into the graph, in the form that it came in."""


@dataclass(eq=False)
class Dense:
    """The tensor itself trains. zeros: True where it stays zero, None where nothing does."""

    array: np.ndarray
    zeros: np.ndarray | None = None
    decays: tuple[str, ...] = ("",)
    parts: tuple[str, ...] = ("",)

    def start(self) -> Parts:
        """A copy."""
        return {"": self.array.astype(np.float32)}

    def values(self, parts: Parts) -> np.ndarray:
        """Without a copy."""
        return parts[""]

    def pull(self, gradient: np.ndarray, parts: Parts) -> Parts:
        """Zeros that stay have none."""
        return {"": gradient if self.zeros is None else np.where(self.zeros, np.float32(0), gradient)}

    def settle(self, parts: Parts) -> None:
        """Without a gradient no optimizer moves a zero."""

    def write(self, graph: ir.Model, name: str, parts: Parts) -> None:
        """As dense as it was."""
        set_constant(graph, name, parts[""].copy())


@dataclass(eq=False)
class Booked:
    """Symbols stay, books and scales train: an entry's gradient is the sum over all weights that share it.

    Han, Mao, Dally, ICLR 2016 (Deep Compression), arXiv:1510.00149, the second stage. Entries that are zero stay zero; books of
    nothing but -1, 0 and 1 stay too, and their scales train (as in Rastegari et al., ECCV 2016, arXiv:1603.05279, where scales
    follow from latent weights, and Zhu et al., ICLR 2017, arXiv:1612.01064, where they are learned).

    The parts are changes in units of what they change, the mean size of a book's entries and each scale: one step of an entry moves
    all weights that share it the same way, and of the same length as a weight's own step that is too far (PP-OCR's recogniser at 2
    bits: the loss of the first epoch rose from 0.56 to 0.75).
    """

    coded: Coded
    decays: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Scales only where there are any."""
        return ("books",) if self.coded.scales is None else ("books", "scales")

    @cached_property
    def fixed(self) -> np.ndarray:
        """[G, K, width]: entries that do not train."""
        books = self.coded.books
        signs = self.coded.scales is not None and bool(np.isin(books, (-1, 0, 1)).all())
        return np.ones(books.shape, bool) if signs else books == 0

    @cached_property
    def base(self) -> np.ndarray:
        """int [size / width]: where the book of each symbol begins among all entries."""
        coded = self.coded
        if coded.groups is None:
            return np.zeros(1, np.intp)
        starts = coded.groups.astype(np.intp) * coded.books.shape[1]
        if coded.width > 1:
            return np.repeat(starts, len(coded.symbols) // coded.shape[0])
        return np.broadcast_to(coded.along(starts), coded.shape).reshape(-1)

    @cached_property
    def _places(self) -> np.ndarray:
        return self.coded.numbers().astype(np.intp) + self.base

    def places(self, parts: Parts) -> np.ndarray:
        """int [size / width]: which of all entries each symbol stands for."""
        return self._places

    @cached_property
    def unit(self) -> np.ndarray:
        """[G, 1, 1]: mean size of a book's entries that train."""
        books = np.abs(self.coded.books)
        counts = np.maximum((books > 0).sum(axis=(1, 2), keepdims=True), 1)
        return (books.sum(axis=(1, 2), keepdims=True) / counts).astype(np.float32)

    def start(self) -> Parts:
        """No change of books, nor of scales where there are any."""
        parts = {"books": np.zeros_like(self.coded.books)}
        return parts if self.coded.scales is None else {**parts, "scales": np.zeros_like(self.coded.scales)}

    def books(self, parts: Parts) -> np.ndarray:
        """As they are now."""
        return self.coded.books + self.unit * parts["books"]

    def scales(self, parts: Parts) -> np.ndarray | None:
        """As they are now."""
        scales = self.coded.scales
        return None if scales is None else scales + scales * parts["scales"]

    def values(self, parts: Parts) -> np.ndarray:
        """As `Coded.decode` computes them."""
        scales = self.scales(parts)
        found = self._looked_up(parts, self.places(parts))
        return found if scales is None else found * self.coded.along(scales)

    def _looked_up(self, parts: Parts, places: np.ndarray) -> np.ndarray:
        """Before scales."""
        books = self.books(parts)
        rows = books.reshape(-1, books.shape[2]) if books.shape[2] > 1 else books.reshape(-1)
        return rows[places].reshape(self.coded.shape)

    def pull(self, gradient: np.ndarray, parts: Parts) -> Parts:
        """Sums over all who share an entry, or a scale."""
        coded, places, scales = self.coded, self.places(parts), self.scales(parts)
        scaled = gradient if scales is None else gradient * coded.along(scales)
        count, entries, width = coded.books.shape
        columns = scaled.reshape(-1, width).T
        sums = np.stack([np.bincount(places, each, count * entries) for each in columns], axis=-1)
        books = np.where(self.fixed, 0.0, sums.reshape(count, entries, width)).astype(np.float32) * self.unit
        if coded.scales is None:
            return {"books": books}
        others = tuple(axis for axis in range(len(coded.shape)) if axis != coded.axis % len(coded.shape))
        return {"books": books, "scales": (gradient * self._looked_up(parts, places)).sum(others) * coded.scales}

    def settle(self, parts: Parts) -> None:
        """Symbols stay where they are."""

    def now(self, parts: Parts) -> Coded:
        """As it is coded now; numbers that the file held in half of the bytes still fit there."""
        scales = self.scales(parts)
        return replace(
            self.coded,
            books=_like(self.books(parts), self.coded.books),
            scales=None if scales is None or self.coded.scales is None else _like(scales, self.coded.scales),
        )

    def write(self, graph: ir.Model, name: str, parts: Parts) -> None:
        """Symbols, books and scales."""
        set_coded(graph, name, self.now(parts))


def _like(values: np.ndarray, before: np.ndarray) -> np.ndarray:
    """A copy in the precision in which the numbers were stored."""
    return values.astype(np.float16).astype(np.float32) if halved(before) is not None else values.copy()


@dataclass(eq=False)
class Moving(Booked):
    """Books and scales train, and symbols too: a latent weight behind each takes the tensor's gradient as its own (straight-through),
    and the symbol is that of the nearest entry.

    Courbariaux, Bengio, David, NeurIPS 2015 (BinaryConnect), arXiv:1511.00363, for books of any entries: latent weights are kept
    between the outermost ones. guess: the weights before they were coded; where the symbols agree with them they are the latent ones,
    elsewhere the coded value is. Weights that pruning has set to zero stay zero.
    """

    guess: np.ndarray | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Latent weights too."""
        return (*super().parts, "latent")

    @cached_property
    def zeros(self) -> np.ndarray | None:
        """[size]: where zeros stay, in books of more than three entries (in a ternary one zero is a symbol like others)."""
        if self.coded.width > 1 or self.coded.books.shape[1] <= 3:
            return None
        zeros = self.coded.decode().reshape(-1) == 0
        return zeros if zeros.mean() >= FEW else None

    def start(self) -> Parts:
        """Books, scales, and latent weights."""
        parts, own = super().start(), self.coded.decode().astype(np.float32)
        if self.guess is None or self.guess.shape != own.shape:
            return {**parts, "latent": own}
        told = {**parts, "latent": self.guess.astype(np.float32)}
        agree = self.places(told) == self._places
        agree = np.repeat(agree, self.coded.width).reshape(own.shape)
        latent = np.where(agree, told["latent"], own)
        return {**parts, "latent": np.clip(latent, *self._reach(parts))}

    def places(self, parts: Parts) -> np.ndarray:
        """Of the nearest entries."""
        coded, latent, books, scales = self.coded, parts["latent"], self.books(parts), self.scales(parts)
        if scales is not None:
            latent = latent / coded.along(np.where(scales == 0, np.float32(1), scales))
        if coded.groups is None:
            found = _nearest(latent.reshape(-1, coded.width), books[0])
        else:
            rows = np.moveaxis(latent, coded.axis, 0).reshape(coded.shape[coded.axis], -1)
            near = np.stack([
                _nearest(row.reshape(-1, coded.width), books[group])
                for row, group in zip(rows, coded.groups, strict=True)
            ])  # fmt: skip
            found = self._in_place(near) + self.base
        return found if self.zeros is None else np.where(self.zeros, self._places, found)

    def _in_place(self, near: np.ndarray) -> np.ndarray:
        """[slices, n] along the axis of books -> flat, in the tensor's order."""
        coded = self.coded
        if coded.width > 1:
            return near.reshape(-1)
        shape = (coded.shape[coded.axis], *np.delete(coded.shape, coded.axis))
        return np.ascontiguousarray(np.moveaxis(near.reshape(shape), 0, coded.axis)).reshape(-1)

    def pull(self, gradient: np.ndarray, parts: Parts) -> Parts:
        """Straight through to the latent weights."""
        still = self.zeros
        latent = gradient if still is None else np.where(still.reshape(gradient.shape), np.float32(0), gradient)
        return {**super().pull(gradient, parts), "latent": latent}

    def settle(self, parts: Parts) -> None:
        """No latent weight runs away beyond the outermost entries, from where it would not come back."""
        low, high = self._reach(parts)
        np.clip(parts["latent"], low, high, out=parts["latent"])

    def _reach(self, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
        """Outermost values, in a shape that broadcasts over the tensor."""
        coded, books, scales = self.coded, self.books(parts), self.scales(parts)
        low, high = books.min(axis=(1, 2)), books.max(axis=(1, 2))
        if coded.groups is not None:
            low, high = coded.along(low[coded.groups]), coded.along(high[coded.groups])
        if scales is None:
            return low, high
        ends = low * coded.along(scales), high * coded.along(scales)
        return np.minimum(*ends), np.maximum(*ends)

    def now(self, parts: Parts) -> Coded:
        """With the symbols of the nearest entries."""
        symbols = (self.places(parts) - self.base).astype(np.uint8)
        return replace(super().now(parts), symbols=np.broadcast_to(symbols, self.coded.symbols.shape).copy())


def _nearest(vectors: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Index [n] of the nearest entry of a book [K, width] for each of the vectors [n, width]; the first of equal ones."""
    if book.shape[1] == 1:
        order = np.argsort(book[:, 0], kind="stable")
        ascending = book[order, 0]
        return order[np.searchsorted((ascending[1:] + ascending[:-1]) / 2, vectors[:, 0])]
    sizes = (book * book).sum(1) / 2
    parts = [vectors[first : first + AT_ONCE] for first in range(0, len(vectors), AT_ONCE)]
    return np.concatenate([(sizes - part @ book.T).argmin(1) for part in parts])


def form_of(array: np.ndarray, coded: Coded | None, *, move: bool = False, guess: np.ndarray | None = None) -> Kept:
    """The form that keeps a tensor as it is stored. A trellis' symbols depend on each other, and never move."""
    if coded is None or coded.dtype != np.float32:
        zeros = array == 0
        matrix = sum(size > 1 for size in array.shape) > 1
        return Dense(array, zeros if matrix and FEW <= zeros.mean() < 1 else None)
    return Moving(coded, guess=guess) if move and coded.states == 1 else Booked(coded)


__all__ = ["Booked", "Dense", "Kept", "Moving", "Parts", "form_of"]
