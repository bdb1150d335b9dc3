"""Vector codebooks: `width` weights that follow each other in memory share one symbol (product quantization).

Jégou, Douze, Schmid 2011 for the code, Stock et al. 2020 (arXiv:1907.05686) for weights; assigned with each error made up for and
the book refitted on the Gram matrix as in GPTVQ (van Baalen et al. 2024, arXiv:2402.15319), where a vector's columns are fixed
together: with U their triangle of the Cholesky factor, the best entry is the nearest in the metric U Uᵀ to what the vector should
be now that the earlier ones stand.

Where the vectors lie depends on how the tensor is stored. Seen as [out, row], they run

- along   a row, its neighbouring columns (a convolution), or
- across  rows, which have the same column in them (a matrix product stores [row, out]).

256 entries of two weights are 4 bits a weight, as 16 of one are. There is one book a tensor; rows may have scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxcompress.errors import DataError, SettingError
from onnxcompress.passes.cluster.books import Books, Gram, diagonal, refitted, times
from onnxcompress.passes.quantize.rounding import BLOCK, DAMPING, column_by_column, factored

WIDTHS = (2, 4, 8)
"""They divide BLOCK, so that no vector is split between two products."""

SAMPLE = 64
"""Vectors an entry that Lloyd's algorithm learns from. On 7 layers of two models 16, 64 and 256 gave 20.6, 21.0 and 21.1 dB, all of
them 21.2 in seven times the time; drawn evenly 64 gave 20.2."""

STEPS = 8
"""Of Lloyd's algorithm on the sample; 25 gave 0.04 dB more."""

CELLS = 1 << 15
"""Distances held at once: what stays in the cache."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """A book of vectors and where they lie in the rows [out, row].

    entries  [K, width] float64       scales  [out] float64; None: no factor
    across   do vectors run across rows? Then symbols are [out / width, row], else [out, row / width]
    """

    entries: np.ndarray
    across: bool = False
    scales: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Weights a symbol stands for."""
        return self.entries.shape[1]

    @property
    def step(self) -> int:
        """Columns that are fixed together."""
        return 1 if self.across else self.width

    def factors(self, out: int) -> np.ndarray:
        """[out] the scale of each row."""
        return np.ones(out) if self.scales is None else self.scales

    def points(self, rows: np.ndarray) -> np.ndarray:
        """[out, row] -> [vectors down, vectors right, width]."""
        out, row = rows.shape
        if self.across:
            return rows.reshape(out // self.width, self.width, row).swapaxes(1, 2)
        return rows.reshape(out, row // self.width, self.width)

    def rows(self, points: np.ndarray) -> np.ndarray:
        """[vectors down, vectors right, width] -> [out, row]."""
        down, right, width = points.shape
        if self.across:
            return points.swapaxes(1, 2).reshape(down * width, right)
        return points.reshape(down, right * width)

    def values(self, symbols: np.ndarray) -> np.ndarray:
        """Symbols -> float64 weights [out, row]."""
        found = self.rows(self.entries[symbols])
        return found if self.scales is None else found * self.scales[:, None]

    def places(self, symbols: np.ndarray) -> np.ndarray:
        """Which number of the whole book each weight [out, row] is."""
        return self.rows(symbols[..., None].astype(int) * self.width + np.arange(self.width))

    def of_rows(self, part: slice) -> Vectors:
        """The same for some rows."""
        return self if self.scales is None else replace(self, scales=self.scales[part])

    def with_entries(self, found: Books) -> Vectors:
        """The same with the numbers of a scalar book, see `flat`."""
        return replace(self, entries=found.entries.reshape(self.entries.shape), scales=found.scales)

    def flat(self) -> Books:
        """All numbers as one scalar book, with which `places` are symbols: the error and the refit are the same."""
        return Books(self.entries.reshape(1, -1), scales=self.scales)


# -- where vectors lie -----------------------------------------------------------------------------------------------------------


def direction(positions: np.ndarray, width: int) -> bool | str:
    """Do vectors of `width` run across rows (True) or along them (False)? Else why there are none.

    positions  int [out, row], where each weight lies in the stored tensor
    """
    out, row = positions.shape
    if width not in WIDTHS:
        return f"vectors of {width} weights; widths are {', '.join(map(str, WIDTHS))}"
    for across, length in ((False, row), (True, out)):
        if length % width:
            continue
        cut = Vectors(np.zeros((1, width)), across).points(positions)
        if (np.diff(cut, axis=2) == 1).all() and (cut[..., 0] % width == 0).all():
            return across
    return f"rows of {row} weights for {out} outputs are not whole vectors of {width} weights that follow each other in memory"


def stored(symbols: np.ndarray, found: Vectors, positions: np.ndarray) -> np.ndarray:
    """Symbols in the order of the stored tensor, as Coded has them: uint8 [size / width]; positions as for `direction`."""
    flat = np.empty(symbols.size, np.uint8)
    flat[found.points(positions)[..., 0].reshape(-1) // found.width] = symbols.reshape(-1)
    return flat


# -- the book -------------------------------------------------------------------------------------------------------------------


def trained(
    rows: np.ndarray,
    width: int,
    entries: int,
    gram: Gram = None,
    *,
    across: bool = False,
    scales: np.ndarray | None = None,
    seed: int = 0,
) -> Vectors:
    """A book by Lloyd's algorithm from a k-means++ start, errors weighed by the diagonal of the Gram; [out, row] as `direction` says.

    Fewer entries where there are fewer vectors. Entries that nobody uses move to the vectors that lose most.
    """
    if not 0 < entries <= 256:
        raise SettingError(f"{entries} entries in a book; a symbol is one byte, give 1 to 256")
    found = Vectors(np.zeros((1, width)), across, scales)
    factors = found.factors(len(rows))[:, None]
    heavy = np.broadcast_to(diagonal(gram, rows), rows.shape) * factors**2
    heavy = np.where(heavy.any(), heavy, 1.0)
    points, heavy = (found.points(each).reshape(-1, width) for each in (rows / factors, heavy))
    rng = np.random.default_rng(seed)
    if len(points) > SAMPLE * entries:
        points, heavy = _coreset(points, heavy, SAMPLE * entries, rng)
    return replace(found, entries=_lloyd(points, heavy, min(entries, len(points)), rng))


def _coreset(
    points: np.ndarray, heavy: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Some of the points, those that are far out likelier, and weights that make up for it (Bachem, Lucic, Krause, KDD 2018)."""
    lost = (heavy * points**2).sum(axis=1)
    odds = 0.5 / len(points) + 0.5 * lost / max(lost.sum(), 1e-300)
    chosen = np.sort(rng.choice(len(points), count, p=odds / odds.sum()))
    return points[chosen], heavy[chosen] / (count * odds[chosen, None])


def _lloyd(points: np.ndarray, heavy: np.ndarray, entries: int, rng: np.random.Generator) -> np.ndarray:
    """[K, width] from points and weights [n, width]."""
    book = _spread(points, heavy, entries, rng)
    before = None
    for _ in range(STEPS):
        near, lost = _closest(points, heavy, book)
        if before is not None and np.array_equal(near, before):
            break
        before = near
        mass = _summed(near, heavy, entries)
        book = np.where(mass > 0, _summed(near, heavy * points, entries) / np.where(mass > 0, mass, 1.0), book)
        idle = np.flatnonzero(np.bincount(near, minlength=entries) == 0)
        book[idle] = points[np.argsort(-lost, kind="stable")[: len(idle)]]
    return book


def _spread(points: np.ndarray, heavy: np.ndarray, entries: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur, Vassilvitskii, SODA 2007): each entry drawn by its weighted squared distance to those before."""
    book = np.empty((entries, points.shape[1]))
    odds = heavy.sum(axis=1)
    far = np.full(len(points), np.inf)
    for number in range(entries):
        mass = np.cumsum(odds)
        at = np.searchsorted(mass, rng.random() * mass[-1], side="right") if mass[-1] > 0 else number
        book[number] = points[min(int(at), len(points) - 1)]
        far = np.minimum(far, (heavy * (points - book[number]) ** 2).sum(axis=1))
        odds = far
    return book


def _summed(near: np.ndarray, each: np.ndarray, entries: int) -> np.ndarray:
    """Sums of [n, width] by entry, [K, width]."""
    return np.stack([np.bincount(near, column, entries) for column in each.T], axis=1)


def _closest(points: np.ndarray, heavy: np.ndarray, book: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n] the entry of least weighted distance, and that distance; a part of the points at a time."""
    near, lost = np.empty(len(points), int), np.empty(len(points))
    pulled = heavy * points
    both, against = np.hstack([heavy, pulled]), np.vstack([(book**2).T, -2 * book.T])
    step = max(1, CELLS // len(book))
    for start in range(0, len(points), step):
        part = slice(start, start + step)
        scores = both[part] @ against
        near[part] = scores.argmin(axis=1)
        lost[part] = np.take_along_axis(scores, near[part, None], axis=1)[:, 0]
    return near, lost + (pulled * points).sum(axis=1)


# -- assignment ----------------------------------------------------------------------------------------------------------------


def loss(rows: np.ndarray, symbols: np.ndarray, found: Vectors, gram: Gram) -> float:
    """tr(D G Dᵀ)."""
    error = found.values(symbols) - rows
    return float(np.einsum("ok,ok->", times(error, gram), error))


def nearest(rows: np.ndarray, found: Vectors, gram: Gram = None) -> np.ndarray:
    """The nearest entry to each vector, errors weighed by the Gram's diagonal; uint8."""
    factors = found.factors(len(rows))[:, None]
    heavy = np.broadcast_to(diagonal(gram, rows), rows.shape) * factors**2
    points, heavy = (found.points(each) for each in (rows / factors, heavy))
    near, _ = _closest(points.reshape(-1, found.width), heavy.reshape(-1, found.width), found.entries)
    return near.reshape(points.shape[:2]).astype(np.uint8)


def compensated(rows: np.ndarray, found: Vectors, gram: Gram, *, damping: float = DAMPING) -> np.ndarray:
    """Vector by vector, each error made up for by the columns still free; uint8 symbols.

    The nearest entries of all rows where these do better on `gram` itself. Raises DataError where the Gram is not finite.
    """
    plain = nearest(rows, found, gram)
    if gram is None or gram.ndim == 1:
        return plain
    if not np.isfinite(gram).all():
        raise DataError("the Gram matrix is not finite; look for NaN or Inf in the data or the model")
    parts = [_compensated(rows[part], found.of_rows(part), one, damping) for part, one in _systems(rows, found, gram)]
    symbols = np.concatenate(parts)
    return symbols if loss(rows, symbols, found, gram) <= loss(rows, plain, found, gram) else plain


def _compensated(rows: np.ndarray, found: Vectors, gram: np.ndarray, damping: float) -> np.ndarray:
    step, width = found.step, rows.shape[1]
    order = np.argsort(-np.diagonal(gram).reshape(-1, step).max(axis=1), kind="stable")
    columns = (order[:, None] * step + np.arange(step)).reshape(-1)
    stiff, feedback = factored(gram[np.ix_(columns, columns)], damping)
    target = rows.T[columns]
    symbols = np.empty((width // step, target.shape[1] * step // found.width), np.uint8)
    held = np.empty((step, target.shape[1]))

    def fix(j: int, wishes: np.ndarray) -> np.ndarray:
        if j % step == 0:
            triangle = feedback[j : j + step, j : j + step]
            wish = wishes[:step].copy()
            for i in range(1, step):  # what it becomes if those before it get theirs
                wish[i] -= triangle[:i, i] @ (wish[:i] - target[j : j + i])
            metric = (triangle * stiff[j : j + step] ** 2) @ triangle.T
            place = _scores(found, metric @ wish, metric).argmin(axis=1)
            symbols[order[j // step]] = place
            held[:] = _block(found, place)
        return held[j % step]

    column_by_column(target, feedback, fix)
    return symbols.T


def descended(rows: np.ndarray, symbols: np.ndarray, found: Vectors, gram: Gram, *, sweeps: int = 3) -> np.ndarray:
    """Coordinate descent from these symbols: a vector after another gets what is best while all others stand; never worse."""
    if gram is None or gram.ndim == 1:
        return nearest(rows, found, gram)
    done = []
    for part, one in _systems(rows, found, gram):
        mine = slice(part.start // found.width, part.stop // found.width) if found.across else part
        columns = np.array(symbols[mine].T, order="C")  # a copy even where rows lie as columns do
        error = (found.of_rows(part).values(symbols[mine]) - rows[part]).T
        for _ in range(sweeps):
            if not _sweep(columns, error, found.of_rows(part), one):
                break
        done.append(columns.T)
    return np.concatenate(done)


def _sweep(symbols: np.ndarray, error: np.ndarray, found: Vectors, gram: np.ndarray) -> bool:
    """Give every vector once its best entry; has any changed? Symbols [right, down] and error [row, out] are written to."""
    step, width, changed = found.step, len(error), False
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        slope = gram[start:stop] @ error
        for j in range(start, stop, step):
            here = slice(j - start, j - start + step)
            metric = gram[j : j + step, j : j + step]
            old = symbols[j // step]
            held = _block(found, old)
            scores = _scores(found, metric @ held - slope[here], metric)
            place = scores.argmin(axis=1)
            each = np.arange(len(place))
            kept = scores[each, old]
            gains = kept - scores[each, place] > 1e-9 * np.abs(kept)
            if gains.any():
                symbols[j // step] = np.where(gains, place, old)
                moved = _block(found, symbols[j // step]) - held
                error[j : j + step] += moved
                slope[here.stop :] += gram[j + step : stop, j : j + step] @ moved
                changed = True
    return changed


def _scores(found: Vectors, pulled: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """[n, K] of each entry for the vectors of a step: (e − y) M (e − y)ᵀ without what is the same for all entries.

    pulled  M y [step, out], y what the columns should be        metric  M [step, step]
    """
    book, factors = found.entries, found.factors(pulled.shape[1])
    if not found.across:  # a row's scale multiplies whole vectors, so that it can be divided out
        return np.einsum("kd,kd->k", book @ metric, book) - 2 * (pulled / factors).T @ book.T
    scales = factors.reshape(-1, found.width)
    wished = pulled[0].reshape(-1, found.width) * scales
    return metric[0, 0] * (scales**2) @ (book**2).T - 2 * wished @ book.T


def _block(found: Vectors, symbols: np.ndarray) -> np.ndarray:
    """Values [step, out] of the vectors of a step."""
    values = found.entries[symbols]
    block = values.reshape(1, -1) if found.across else values.T
    return block if found.scales is None else block * found.scales


def _systems(rows: np.ndarray, found: Vectors, gram: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows with one Gram matrix; SettingError where a group of the layer ends within a vector."""
    if gram.ndim == 2:
        yield slice(0, len(rows)), gram
        return
    per = len(rows) // len(gram)
    if found.across and per % found.width:
        raise SettingError(
            f"groups of {per} rows are not whole vectors of {found.width}; give this layer a scalar codebook"
        )
    for group, one in enumerate(gram):
        yield slice(group * per, (group + 1) * per), one


# -- all of it ----------------------------------------------------------------------------------------------------------------


def alternated(
    rows: np.ndarray, found: Vectors, gram: Gram, *, sweeps: int = 1, half: bool = True
) -> tuple[np.ndarray, Vectors]:
    """Symbols uint8 and the book that goes with them: compensated, refitted; then descent and refit in turns.

    half  entries end as float16 numbers, and the symbols are descended once more on these
    """
    symbols = compensated(rows, found, gram)
    for _ in range(sweeps):
        found = fitted(rows, symbols, found, gram)
        symbols = descended(rows, symbols, found, gram, sweeps=1)
    found = fitted(rows, symbols, found, gram)
    if half:
        found = found.with_entries(found.flat().halved())
    return descended(rows, symbols, found, gram, sweeps=1), found


def fitted(rows: np.ndarray, symbols: np.ndarray, found: Vectors, gram: Gram) -> Vectors:
    """The entries that are best on the Gram for these symbols (books.refitted); scales stay."""
    return found.with_entries(refitted(rows, found.places(symbols), found.flat(), gram))
