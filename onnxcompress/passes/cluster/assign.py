"""Assignment to codebooks on a Gram matrix: by itself, or with each error made up for by the weights that are still free.

What a weight may become are the entries of its row's book; the Cholesky factor and the recursion are those of quantize/rounding.py.

- `compensated`  GPTQ (Frantar et al. 2022, arXiv:2210.17323) with the nearest entry in place of the nearest level, which is the
                 one-dimensional case of GPTVQ (van Baalen et al. 2024, arXiv:2402.15319)
- `descended`    coordinate descent over symbols, as AQLM's search (Egiazarian et al. 2024, arXiv:2401.06118) with a beam of one
- `alternated`   both, in turns with books refitted to the symbols (books.py), GPTVQ's codebook update

A `price` [G, K] is what each symbol costs beside the error it makes, in the unit of the form: λ times its bits (see rate.py).
Weights with `zeros` set are pruned: they stay at the entry that is exactly zero, which a refit does not move.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxcompress.errors import DataError, SettingError
from onnxcompress.passes.cluster.books import Books, Gram, diagonal, loss, refitted, rescaled
from onnxcompress.passes.quantize.rounding import BLOCK, DAMPING, column_by_column, factored

SWEEPS = 1
"""Of coordinate descent. On 13 layers of two models compensation and one refit came to 32.73 dB on held-out rows, a sweep and a
refit more to 32.81; two more of each with compensation again between them added 0.07 for twice the time."""


# -- one column ---------------------------------------------------------------------------------------------------------


class Picker:
    """The best entry for a wish a row: the nearest, or with a price the least of stiffness · distance² + price.

    Entries stand in ascending order, so that the nearest one is a count of the middles below the wish. Pruned weights get zero.
    """

    def __init__(self, books: Books, out: int, price: np.ndarray | None = None, zeros: bool = False) -> None:
        tables = books.tables(out)
        order = np.argsort(tables, axis=1, kind="stable")
        self._rows = np.arange(out)
        self._order = np.ascontiguousarray(order.T)
        self._entries = np.ascontiguousarray(np.take_along_axis(tables, order, axis=1).T)
        self._middles = (self._entries[1:] + self._entries[:-1]) / 2
        # of entries that are the same the first counts, whatever the wish
        fresh = np.concatenate([np.ones((1, out), bool), self._entries[1:] > self._entries[:-1]])
        self._first = np.maximum.accumulate(np.where(fresh, np.arange(len(fresh))[:, None], 0), axis=0)
        self._price = None if price is None else np.take_along_axis(price[books.of(out)], order, axis=1).T
        self._zero = _zero_of(self._entries) if zeros else None
        self._alike = bool((tables == tables[:1]).all()) and len(np.unique(books.of(out))) == 1
        self._stiff, self._edges, self._kept = -1.0, np.empty(0), np.empty(0, int)

    def __call__(self, wish: np.ndarray, stiff: np.ndarray | float, zeros: np.ndarray | None = None) -> np.ndarray:
        """Positions [out] for wishes [out]; `stiff` is what a squared error costs, `zeros` [out] says who is pruned."""
        if self._price is None:
            count = (wish > self._middles).sum(axis=0, dtype=np.uint8)
            place = self._first[count, self._rows]
        elif self._alike and np.ndim(stiff) == 0 and stiff > 0:
            if stiff != self._stiff:
                self._stiff, (self._edges, self._kept) = float(stiff), self._envelope(float(stiff))
            place = self._kept[np.searchsorted(self._edges, wish)]
        else:
            place = (stiff * (wish - self._entries) ** 2 + self._price).argmin(axis=0)
        if zeros is not None and self._zero is not None:
            place = np.where(zeros, self._zero, place)
        return place

    def _envelope(self, stiff: float) -> tuple[np.ndarray, np.ndarray]:
        """Where one entry gives way to the next, and which entries are the best anywhere, where all rows have the same.

        Costs are parabolas of one curvature: an entry that gives way to the next before its turn is nowhere the best.
        """
        assert self._price is not None
        entries, price = self._entries[:, 0], self._price[:, 0]
        kept = np.lexsort((price, entries))
        kept = kept[np.append(True, np.diff(entries[kept]) > 0)]  # of entries that are the same the cheapest
        while True:
            each, costs = entries[kept], price[kept]
            edges = (each[1:] + each[:-1]) / 2 + np.diff(costs) / (2 * stiff * np.diff(each))
            left = np.ones(len(kept), bool)
            left[1:-1] = edges[1:] > edges[:-1]
            if left.all():
                return edges, kept
            kept = kept[left]

    def values(self, place: np.ndarray) -> np.ndarray:
        """[out] the entries at positions [out]."""
        return self._entries[place, self._rows]

    def prices(self, place: np.ndarray) -> np.ndarray | float:
        """[out] what positions [out] cost."""
        return 0.0 if self._price is None else self._price[place, self._rows]

    def symbols(self, places: np.ndarray) -> np.ndarray:
        """Positions [row, out] -> symbols uint8 [out, row]."""
        return np.take_along_axis(self._order, places.astype(int), axis=0).T.astype(np.uint8)

    def places(self, symbols: np.ndarray) -> np.ndarray:
        """Symbols [out, row] -> positions [row, out]."""
        back = np.argsort(self._order, axis=0, kind="stable")
        return np.take_along_axis(back, symbols.T.astype(int), axis=0)


def _zero_of(entries: np.ndarray) -> np.ndarray:
    """[out] where zero stands in each column of entries [K, out]."""
    place = (entries == 0).argmax(axis=0)
    if not (entries[place, np.arange(entries.shape[1])] == 0).all():
        raise SettingError(
            "pruned weights need an entry that is exactly zero in every codebook; make books with zero kept"
        )
    return place


# -- assignment -----------------------------------------------------------------------------------------------------------


def nearest(
    rows: np.ndarray,
    books: Books,
    gram: Gram = None,
    *,
    zeros: np.ndarray | None = None,
    price: np.ndarray | None = None,
) -> np.ndarray:
    """The entry nearest to each weight, uint8 [out, row]; with a price, by the Gram's diagonal."""
    pick = Picker(books, len(rows), price, zeros is not None)
    stiff = np.ascontiguousarray(diagonal(gram, rows).T)
    stiff = stiff[:, 0] if stiff.shape[1] == 1 else stiff
    columns = np.ascontiguousarray(rows.T)
    masks = _columns_of(zeros, len(columns))
    places = [pick(column, stiff[j], mask) for j, (column, mask) in enumerate(zip(columns, masks, strict=True))]
    return pick.symbols(np.stack(places))


def compensated(
    rows: np.ndarray,
    books: Books,
    gram: Gram,
    *,
    zeros: np.ndarray | None = None,
    price: np.ndarray | None = None,
    damping: float = DAMPING,
) -> np.ndarray:
    """Column by column, each error made up for by the columns still free; uint8 [out, row].

    rows     [out, row] float64 what is aimed at      gram  in any of its forms      zeros  bool [out, row], pruned weights
    price    [G, K] of symbols, in the unit of the form          damping  share of the Gram's mean diagonal
    A row keeps its nearest entries where these do better on `gram` itself. Raises DataError where the Gram is not finite,
    SettingError where weights are pruned and a book has no zero.
    """
    plain = nearest(rows, books, gram, zeros=zeros, price=price)
    if gram is None or gram.ndim == 1:
        return plain
    if not np.isfinite(gram).all():
        raise DataError("the Gram matrix is not finite; look for NaN or Inf in the data or the model")
    found = np.concatenate(
        [_compensated(rows[p], b, g, _part(zeros, p), price, damping) for p, b, g in _systems(rows, books, gram)]
    )
    better = loss(rows, found, books, gram, price) <= loss(rows, plain, books, gram, price)
    return np.where(better[:, None], found, plain)


def _compensated(
    rows: np.ndarray, books: Books, gram: np.ndarray, zeros: np.ndarray | None, price: np.ndarray | None, damping: float
) -> np.ndarray:
    """One Gram [row, row] for all rows, or one for each [out, row, row]."""
    diagonal = np.einsum("...kk->...k", gram)
    order = np.argsort(-diagonal.reshape(-1, rows.shape[1]).sum(axis=0), kind="stable")
    if gram.ndim == 2:
        stiff, feedback = factored(gram[np.ix_(order, order)], damping)
    else:
        each = [factored(one[np.ix_(order, order)], damping) for one in gram]
        stiff, feedback = (np.ascontiguousarray(np.moveaxis(np.stack(part), 0, -1)) for part in zip(*each, strict=True))
    stiff = stiff**2
    pick = Picker(books, len(rows), price, zeros is not None)
    target = rows.T[order]
    masks = list(_columns_of(None if zeros is None else zeros[:, order], len(target)))
    places = np.empty(target.shape, np.uint8)

    def fix(j: int, wishes: np.ndarray) -> np.ndarray:
        place = pick(wishes[0], stiff[j], masks[j])
        places[j] = place
        return pick.values(place)

    column_by_column(target, feedback, fix)
    found = np.empty(rows.shape, np.uint8)
    found[:, order] = pick.symbols(places)
    return found


def descended(
    rows: np.ndarray,
    symbols: np.ndarray,
    books: Books,
    gram: Gram,
    *,
    zeros: np.ndarray | None = None,
    price: np.ndarray | None = None,
    sweeps: int = 3,
) -> np.ndarray:
    """Coordinate descent from symbols [out, row]: a column after another gets what is best while all others stand.

    Never raises the form (with its prices). Arguments as for `compensated`.
    """
    if gram is None or gram.ndim == 1:
        return nearest(rows, books, gram, zeros=zeros, price=price)
    parts = [
        _descended(rows[p], symbols[p], b, g, _part(zeros, p), price, sweeps) for p, b, g in _systems(rows, books, gram)
    ]
    return np.concatenate(parts)


def _descended(
    rows: np.ndarray,
    symbols: np.ndarray,
    books: Books,
    gram: np.ndarray,
    zeros: np.ndarray | None,
    price: np.ndarray | None,
    sweeps: int,
) -> np.ndarray:
    pick = Picker(books, len(rows), price, zeros is not None)
    places = pick.places(symbols)
    if gram.ndim == 3:
        gram = np.ascontiguousarray(np.moveaxis(gram, 0, -1))
    error = books.values(symbols).T - rows.T
    masks = list(_columns_of(zeros, len(places)))
    for _ in range(sweeps):
        if not _sweep(places, error, pick, gram, masks):
            break
    return pick.symbols(places)


def _sweep(
    places: np.ndarray, error: np.ndarray, pick: Picker, gram: np.ndarray, masks: list[np.ndarray | None]
) -> bool:
    """Give every column once the entries that are best while all others stand; has any changed?

    places  [row, out], written to, as is error [row, out]      gram  [row, row], or [row, row, out] of rows with one each
    """
    width, changed = len(places), False
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        slope = gram[start:stop] @ error if gram.ndim == 2 else np.einsum("jko,ko->jo", gram[start:stop], error)
        for j in range(start, stop):
            stiff = gram[j, j]
            off = np.divide(slope[j - start], stiff, out=np.zeros(places.shape[1]), where=stiff > 0)
            held = pick.values(places[j])
            wish = held - off
            place = pick(wish, stiff, masks[j])
            values = pick.values(place)
            gain = stiff * (off**2 - (values - wish) ** 2) + pick.prices(places[j]) - pick.prices(place)
            moved = np.flatnonzero(gain > 1e-9 * stiff * off**2)
            if len(moved):
                step = (values - held)[moved]
                places[j, moved] = place[moved]
                error[j, moved] += step
                pull = gram[j + 1 : stop, j]
                slope[j + 1 - start :, moved] += (pull[:, moved] if pull.ndim == 2 else pull[:, None]) * step
                changed = True
    return changed


def _systems(rows: np.ndarray, books: Books, gram: np.ndarray) -> Iterator[tuple[slice, Books, np.ndarray]]:
    """Rows that are solved together, with their books and Gram: all, a group of the layer, or all of a depthwise one."""
    out, width = rows.shape
    if gram.ndim == 2:
        yield slice(0, out), books.of_rows(slice(0, out), out), gram
    elif len(gram) == out and width <= BLOCK:
        # some rows at a time, so that their matrices stay in the cache
        at_once = max(1, 2**18 // width**2)
        for start in range(0, out, at_once):
            part = slice(start, min(start + at_once, out))
            yield part, books.of_rows(part, out), gram[part]
    else:
        per = out // len(gram)
        for group, one in enumerate(gram):
            part = slice(group * per, (group + 1) * per)
            yield part, books.of_rows(part, out), one


def _columns_of(zeros: np.ndarray | None, width: int) -> Iterator[np.ndarray | None]:
    return iter([None] * width if zeros is None else np.ascontiguousarray(zeros.T))


def _part(zeros: np.ndarray | None, part: slice) -> np.ndarray | None:
    return None if zeros is None else zeros[part]


# -- all of it --------------------------------------------------------------------------------------------------------


def alternated(
    rows: np.ndarray,
    books: Books,
    gram: Gram,
    *,
    zeros: np.ndarray | None = None,
    price: np.ndarray | None = None,
    sweeps: int = SWEEPS,
    half: bool = True,
) -> tuple[np.ndarray, Books]:
    """Symbols uint8 [out, row] and the books that go with them: compensated, books refitted; then descent and refit in turns.

    sweeps  of descent, a refit after each
    half    entries end as float16 numbers (`Books.halved`), and the symbols are descended once more on these
    The other arguments as for `compensated`. Before the entries are halved nothing raises the form, so that the nearest entries
    of the given books are never better by more than that costs.
    """
    symbols = compensated(rows, books, gram, zeros=zeros, price=price)
    books = _refitted(rows, symbols, books, gram, zeros)
    for _ in range(sweeps):
        symbols = descended(rows, symbols, books, gram, zeros=zeros, price=price, sweeps=1)
        books = _refitted(rows, symbols, books, gram, zeros)
    if half:
        books = books.halved()
    return descended(rows, symbols, books, gram, zeros=zeros, price=price, sweeps=1), books


def _refitted(rows: np.ndarray, symbols: np.ndarray, books: Books, gram: Gram, zeros: np.ndarray | None) -> Books:
    books = refitted(rows, symbols, books, gram, keep_zero=zeros is not None)
    return books if books.scales is None else rescaled(rows, symbols, books, gram)
