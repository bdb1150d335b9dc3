"""Data: samples in order, fed in batches, split once into calibration and held-out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnxcompress.data.arrange import Layout, Shape, arrange
from onnxcompress.data.arrays import check_finite, fitted
from onnxcompress.errors import DataError
from onnxcompress.runtime.session import Port

CALIBRATION_SHARE = 0.75  # the rest is held out
SPLIT_STREAM = 1  # keeps the split's random numbers apart from those of other users of the same seed
SHUFFLE_STREAM = 3
KEPT_STREAM = 4

Feed = dict[str, np.ndarray]
Part = Literal["", "calibration", "held-out", "kept-back"]


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a source that is loaded at once: a file, an image, a dict of arrays.

    shapes   by input name, known without loading    load     the arrays, of exactly these shapes
    trusted  made by this package: no need to look for NaN before the work begins
    """

    name: str
    shapes: Mapping[str, Shape]
    load: Callable[[], Mapping[str, np.ndarray]]
    trusted: bool = False


class Store:
    """Pieces end to end: sample i of all, loaded when it is asked for. Keeps the piece that was used last."""

    def __init__(self, pieces: Sequence[Piece], ports: Sequence[Port]) -> None:
        self.pieces, self.ports = list(pieces), list(ports)
        self.layouts = [arrange(piece.shapes, ports, piece.name) for piece in pieces]
        self.starts = np.cumsum([0, *(layout.samples for layout in self.layouts)])
        self.first_rows = np.cumsum([0, *(layout.given for layout in self.layouts)])
        self.casts: dict[str, None] = {}  # sentences, in the order in which they came up
        self._last: tuple[int, Feed] | None = None

    def sample(self, index: int) -> tuple[Layout, Feed]:
        """One sample as a feed, and the layout that says whether it may be joined with others."""
        at = self.piece_of(index)
        inside, layout = index - int(self.starts[at]), self.layouts[at]
        arrays = self.prepared(at)
        return layout, {name: array[inside if len(array) > 1 else 0, ...] for name, array in arrays.items()}

    def together(self, indices: np.ndarray) -> int | None:
        """The piece that holds all these samples, where any of them may be joined; None where they must be looked at one by one."""
        places = np.unique(np.searchsorted(self.starts, indices, side="right") - 1)
        if len(places) != 1 or not self.layouts[at := int(places[0])].joins:
            return None
        views = self.layouts[at].views
        return at if all(views[name].constant or len(array) > 1 for name, array in self.prepared(at).items()) else None

    def joined(self, at: int, indices: np.ndarray) -> Feed:
        """Samples of one piece as one feed, as joining them one by one would give it."""
        rows, views = indices - int(self.starts[at]), self.layouts[at].views
        return {
            name: np.asarray(array[0], order="C") if views[name].constant else array[rows].reshape(-1, *array.shape[2:])
            for name, array in self.prepared(at).items()
        }

    def piece_of(self, index: int) -> int:
        """The piece that holds sample `index`."""
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def rows_of(self, index: int) -> range:
        """The rows of the source, counted over all pieces, that sample `index` is made of."""
        at = self.piece_of(index)
        layout = self.layouts[at]
        start = int(self.first_rows[at]) + (index - int(self.starts[at])) * layout.rows
        return range(start, start + layout.rows)

    def prepared(self, at: int) -> Feed:
        """The arrays of one piece as [samples or 1, *feed], in the ports' types, finite."""
        if self._last is not None and self._last[0] == at:
            return self._last[1]
        piece, layout = self.pieces[at], self.layouts[at]
        loaded, arrays = piece.load(), {}
        for port in self.ports:
            view = layout.views[port.name]
            array = np.asanyarray(loaded[port.name])
            array = array[: len(array) - view.dropped] if view.dropped else array
            array = array.reshape(view.shape)
            check_finite(array, port, piece.name)
            arrays[port.name], cast = fitted(array, port, piece.name)
            if cast:
                self.casts[cast] = None
        self._last = (at, arrays)
        return arrays


@dataclass(frozen=True, eq=False)
class Data:
    """Samples of a source, or a view of some of them. Made by `open_data`.

    what       the source in a few words                indices    [samples], which of the store's samples, ascending unless shuffled
    seed       of the split                             notes      sentences for the report
    synthetic  made up: nothing measured on it is about the user's own data
    part       which half of the split this is; empty for the whole
    """

    store: Store
    what: str
    indices: np.ndarray
    seed: int
    notes: tuple[str, ...] = ()
    synthetic: bool = False
    part: Part = ""

    @property
    def samples(self) -> int:
        """How many samples this view has."""
        return len(self.indices)

    @property
    def rows(self) -> np.ndarray:
        """[rows] of the whole source that these samples are made of, in the order of `batches`: labels follow them."""
        return np.concatenate([np.asarray(self.store.rows_of(int(i))) for i in self.indices])

    @property
    def total_rows(self) -> int:
        """Rows of the whole source, used or not."""
        return int(self.store.first_rows[-1])

    @property
    def calibration(self) -> Data:
        """The samples for collecting evidence: three quarters, chosen by the seed; all of them where there is one."""
        return self._view(0)

    @property
    def held_out(self) -> Data:
        """The samples for judging: those that are not for calibration; the same one where there is only one."""
        return self._view(1)

    def kept_back(self, count: int) -> tuple[Data, Data]:
        """These samples without so many of them, and these: what trains, and what chooses between its states. A single one is both."""
        if self.samples == 1:
            return self, replace(self, part="kept-back")
        order = np.random.default_rng([self.seed, KEPT_STREAM]).permutation(self.samples)
        training, kept = (self.indices[np.sort(each)] for each in (order[count:], order[:count]))
        return replace(self, indices=training), replace(self, indices=kept, part="kept-back")

    def shuffled(self, number: int) -> Data:
        """The same samples in an order that the seed and a number (of an epoch) give; those of one piece stay together, so that
        no piece is loaded twice."""
        rng = np.random.default_rng([self.seed, SHUFFLE_STREAM, number])
        order = rng.permutation(self.indices)
        rank = rng.permutation(len(self.store.pieces))[np.searchsorted(self.store.starts, order, side="right") - 1]
        return replace(self, indices=order[np.argsort(rank, kind="stable")])

    def batches(self, size: int = 1) -> Iterator[Feed]:
        """Feeds in the order of `indices`, up to `size` samples in each.

        Only samples of equal shape are joined, and only where the model's first axes are dynamic: otherwise a feed is
        one sample. Nothing but one piece of the source and one feed is held at a time.
        """
        return (feed for _, feed in self.indexed(size))

    def indexed(self, size: int = 1) -> Iterator[tuple[np.ndarray, Feed]]:
        """As `batches`, each feed with the indices of its samples in the store."""
        at = self.store.together(self.indices) if size > 1 and self.samples > 1 else None
        if at is not None:
            for first in range(0, self.samples, size):
                some = self.indices[first : first + size]
                yield some, self.store.joined(at, some)
            return
        yield from self._one_by_one(size)

    def _one_by_one(self, size: int) -> Iterator[tuple[np.ndarray, Feed]]:
        waiting: list[Feed] = []
        layout, key, done = None, None, 0
        for index in self.indices:
            now, feed = self.store.sample(int(index))
            shapes = (now.joins, tuple(value.shape for value in feed.values()))
            if waiting and layout is not None:
                fits = now.joins and shapes == key and _same_constants(waiting[0], feed, now)
                if len(waiting) >= size or not fits:
                    yield self.indices[done : done + len(waiting)], _joined(waiting, layout)
                    done, waiting = done + len(waiting), []
            waiting.append(feed)
            layout, key = now, shapes
        if waiting and layout is not None:
            yield self.indices[done:], _joined(waiting, layout)

    def describe(self) -> str:
        """One phrase for reports."""
        plural = "" if self.samples == 1 else "s"
        kind = "synthetic " if self.synthetic else ""
        if self.part:
            return f"{self.samples} {self.part} {kind}sample{plural}{self._of()}"
        if self.samples == 1:
            return f"1 {kind}sample{self._of()} (the same one for calibration and comparison)"
        parts = f"{self.calibration.samples} for calibration, {self.held_out.samples} held out"
        return f"{self.samples} {kind}samples{self._of()} ({parts})"

    def _of(self) -> str:
        return "" if self.synthetic else f" of {self.what}"

    def _view(self, half: int) -> Data:
        """The one place where data is split."""
        if self.part:
            raise DataError(f"{self.describe()}: already one half of the split, it is not split again")
        part: Part = ("calibration", "held-out")[half]
        if self.samples == 1:
            return replace(self, part=part)
        count = min(self.samples - 1, max(1, round(self.samples * CALIBRATION_SHARE)))
        order = np.random.default_rng([self.seed, SPLIT_STREAM]).permutation(self.samples)
        chosen = order[:count] if half == 0 else order[count:]
        return replace(self, part=part, indices=self.indices[np.sort(chosen)])


def _same_constants(one: Feed, other: Feed, layout: Layout) -> bool:
    return all(np.array_equal(one[name], other[name]) for name, view in layout.views.items() if view.constant)


def _joined(feeds: Sequence[Feed], layout: Layout) -> Feed:
    if len(feeds) == 1:
        return {name: np.asarray(value, order="C") for name, value in feeds[0].items()}
    return {
        name: np.asarray(value) if layout.views[name].constant else np.concatenate([feed[name] for feed in feeds])
        for name, value in feeds[0].items()
    }
