"""Rate-aware assignment: symbols by error + λ · bits, so that an entropy code of them is shorter at the same error.

    minimise tr(D G Dᵀ) + λ Σ bits(symbol)         bits(s) = −log2 of its share of the tensor

Entropy-constrained scalar quantization (Chou, Lookabaugh, Gray, IEEE Transactions on Acoustics, Speech and Signal Processing 1989):
assignment, entries and code lengths are best for each other in turns. On the Gram matrix λ · bits is paid inside the compensated
recursion (`price` in assign.py), where DeepCABAC (Wiedemann et al. 2020, arXiv:1907.11900) weighs each error by itself and EntQuant
(arXiv:2601.22787) follows gradients.

    error's slope over bits is the same everywhere, −λ:   step of the entries = √(6 λ / (ln 2 · mean stiffness))

(the uniform quantizer with an entropy code is best for many levels: Gish, Pierce 1968), so that λ alone decides how fine each tensor's
entries are, and one λ for a whole model shares its bytes out. `for_size` finds the λ of a given size: by halving on the sorted
weights alone, then by a few runs in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from onnxcompress.errors import BudgetError, SettingError
from onnxcompress.passes.cluster.assign import compensated, descended
from onnxcompress.passes.cluster.books import Books, Gram, diagonal, refitted
from onnxcompress.passes.quantize.rounding import DAMPING, factored

MOST = 255
"""Entries at most: symbols are bytes, and zero stands in the middle."""

SIDE = 2000
"""Steps on each side of zero at most, before entries are merged. With MOST as the limit one far weight made the steps of all others
coarse: PP-OCRv4's recogniser came to 18.1 dB of its weights where 20.0 were asked for, at the same price a bit."""

ROUNDS = 1
"""Of assignment, entries and code lengths, from a sketch; three gave 0.1 dB more on one model and nothing on another, in over twice
the time."""

SKETCHED = 4
"""Rounds of a sketch, which takes a few binary searches each."""

CLOSE = 1e-3
"""Share of itself to which λ is found by halving."""

COARSER = 1.5
"""Times λ where no run has met the target; then its square, and so on, as a run may be a walk through a model."""

FINEST = 1e-12
"""The least λ, as a share of the one that puts every weight to zero."""

AT_ONCE = 8
"""Share of the entries that are too many, joined at once."""

RUNS = 8
"""In full, until the size is met."""

NEAR = 0.01
"""Share of the target by which a size may be below it."""


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Tensor:
    """What is to be coded.

    rows   [out, row]                     gram   in any of its forms
    worth  of a unit of the form          zeros  bool [out, row], pruned weights
    limit  of λ over worth: no coarser, however little an error seems to matter
    """

    rows: np.ndarray
    gram: Gram = None
    worth: float = 1.0
    zeros: np.ndarray | None = None
    limit: float = np.inf

    def price(self, each: float) -> float:
        """λ `each` in the unit of the form."""
        return min(each / self.worth, self.limit)


@dataclass(frozen=True, eq=False)
class Rated:
    """Symbols uint8 [out, row], one book for all, and the entropy of the symbols in bits a weight."""

    symbols: np.ndarray
    books: Books
    entropy: float


def lengths(symbols: np.ndarray, entries: int) -> np.ndarray:
    """[K] bits of each symbol in a code for these; what is not used could still be written, at a price."""
    return _lengths(np.bincount(symbols.reshape(-1), minlength=entries))


def _lengths(counts: np.ndarray) -> np.ndarray:
    return np.asarray(-np.log2((counts + 0.5) / (counts.sum() + 0.5 * len(counts))))


def entropy(counts: np.ndarray) -> float:
    """Bits a symbol."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


# -- one tensor -----------------------------------------------------------------------------------------------------------------


class Sketch:
    """What a tensor would be at some λ, from its weights alone: they are sorted once, a few binary searches for each λ."""

    def __init__(self, tensor: Tensor, most: int = MOST) -> None:
        """most  entries of the book"""
        left = tensor.rows if tensor.zeros is None else np.where(tensor.zeros, 0.0, tensor.rows)
        self._sorted = np.sort(left, axis=None)
        self._stiff, self._price, self.most = stiffness(tensor), tensor.price, most
        self._largest = float(np.abs(self._sorted).max(initial=0.0))
        # a step of twice the largest weight leaves zero alone
        self.coarsest = 4 * self._largest**2 * self._stiff * tensor.worth * np.log(2) / 6 or 1.0

    def at(self, price: float) -> tuple[np.ndarray, np.ndarray]:
        """Entries [K] and how many weights have each."""
        own = self._price(price) / self._stiff
        book, counts = self._even(price)
        if len(book) > self.most:
            book, counts = self._turned(_merged(book, counts, own, self.most), own)
        return book, counts

    @property
    def size(self) -> int:
        """Weights."""
        return len(self._sorted)

    def _even(self, price: float) -> tuple[np.ndarray, np.ndarray]:
        """However many entries that takes."""
        own = self._price(price) / self._stiff
        return self._turned(_uniform(self._largest, own), own)

    def _turned(self, book: np.ndarray, own: float) -> tuple[np.ndarray, np.ndarray]:
        """Code lengths, and the thresholds between neighbouring entries that follow from them, in turns."""
        middles, bits = (book[1:] + book[:-1]) / 2, np.zeros(len(book))
        for _ in range(SKETCHED):
            shift = own * np.diff(bits) / (2 * np.diff(book))
            ends = np.maximum.accumulate(np.searchsorted(self._sorted, middles + shift))
            counts = np.diff(np.concatenate([[0], ends, [len(self._sorted)]]))
            bits = _lengths(counts)
        return book, counts

    def bytes(self, price: float) -> float:
        """Expected, nearly as `entropy_bytes` counts them: entries that are too many are not merged for this."""
        counts = self._even(price)[1]
        bits = min(entropy(counts), float(np.log2(self.most)))
        return bits * len(self._sorted) / 8 + 2 * min(int((counts > 0).sum()), self.most)


def rated(tensor: Tensor, price: float, *, sketch: Sketch | None = None, rounds: int = ROUNDS) -> Rated:
    """Symbols, entries and code lengths that are best for each other at `price` λ a bit, zero among the entries.

    price   λ, in the unit of the tensor's form times its worth, above 0
    sketch  of the tensor, where there is one already
    """
    if not price > 0:
        raise SettingError(f"λ is {price}; give more than 0")
    book, counts = (sketch or Sketch(tensor)).at(price)
    books, bits = Books(book[None]), _lengths(counts)
    rows, gram, zeros, own = tensor.rows, tensor.gram, tensor.zeros, tensor.price(price)
    for _ in range(rounds):
        symbols = compensated(rows, books, gram, zeros=zeros, price=own * bits[None])
        books, symbols = _used(refitted(rows, symbols, books, gram, keep_zero=True), symbols)
        bits = lengths(symbols, books.entries.shape[1])
    books = books.halved()
    symbols = descended(rows, symbols, books, gram, zeros=zeros, price=own * bits[None], sweeps=1)
    books, symbols = _used(books, symbols)
    return Rated(symbols, books, entropy(np.bincount(symbols.reshape(-1))))


def stiffness(tensor: Tensor) -> float:
    """Mean over the weights of what a squared error costs once the columns behind make up for it: of U's squared diagonal."""
    gram = tensor.gram
    if gram is None or gram.ndim == 1:
        return float(np.mean(diagonal(gram, tensor.rows))) or 1.0
    parts = [gram] if gram.ndim == 2 else list(gram)
    order = [np.argsort(-np.diagonal(one), kind="stable") for one in parts]
    stiff = [factored(one[np.ix_(by, by)], DAMPING)[0] ** 2 for one, by in zip(parts, order, strict=True)]
    return float(np.mean(stiff))


def _uniform(largest: float, price: float) -> np.ndarray:
    """Multiples of the step that a price (for squared errors) asks for, both sides of zero as far as the largest weight.

    They may be more than a book holds: few weights are far out, and it is their entries that are then merged.
    """
    step = np.sqrt(6 * price / np.log(2))
    side = min(int(np.ceil(largest / step - 0.5)) if step < largest else 0, SIDE)
    if side and largest / step - 0.5 > side:
        step = largest / side
    return np.arange(-side, side + 1) * step


def _merged(book: np.ndarray, counts: np.ndarray, price: float, most: int) -> np.ndarray:
    """At most so many entries: neighbours are joined where that costs least in error and bits; zero stays (Equitz 1989)."""
    left = (counts > 0) | (book == 0)
    book, counts = book[left], counts[left].astype(np.float64)
    total = counts.sum()

    def spent(each: np.ndarray) -> np.ndarray:
        return -each * np.log2(np.maximum(each, 0.5) / total)

    while (excess := len(book) - most) > 0:
        first, second = counts[:-1], counts[1:]
        both = first + second
        lost = first * second / np.maximum(both, 1) * np.diff(book) ** 2
        lost += price * (spent(both) - spent(first) - spent(second))
        lost[(book[:-1] == 0) | (book[1:] == 0)] = np.inf
        if len(book) > 3:
            # of pairs that share an entry only the cheaper one; some at a time, since joined pairs cost more than they did
            least = (lost < np.append(np.inf, lost[:-1])) & (lost <= np.append(lost[1:], np.inf))
            found = np.flatnonzero(least & np.isfinite(lost))
            at = np.sort(found[np.argsort(lost[found], kind="stable")[: max(1, excess // AT_ONCE)]])
        else:
            at = np.array([len(book) - 2 if book[-1] else 0])
        centres = (book[at] * counts[at] + book[at + 1] * counts[at + 1]) / np.maximum(both[at], 1)
        book[at] = np.where((book[at] == 0) | (book[at + 1] == 0), 0.0, centres)
        counts[at] = both[at]
        book, counts = np.delete(book, at + 1), np.delete(counts, at + 1)
    return book


def _used(books: Books, symbols: np.ndarray) -> tuple[Books, np.ndarray]:
    """Without entries that nobody uses; zero stays."""
    counts = np.bincount(symbols.reshape(-1), minlength=books.entries.shape[1])
    kept = (counts > 0) | (books.entries[0] == 0)
    number = (np.cumsum(kept) - 1).astype(np.uint8)
    return replace(books, entries=books.entries[:, kept]), number[symbols]


# -- a whole model under a size ---------------------------------------------------------------------------------------------------


def entropy_bytes(found: Rated) -> float:
    """The ideal entropy code of the symbols, and two bytes an entry."""
    return found.entropy * found.symbols.size / 8 + 2 * found.books.entries.size


def for_size(
    tensors: Sequence[Tensor], target: float, *, size: Callable[[Rated], float] = entropy_bytes, most: int = MOST
) -> tuple[float, list[Rated]]:
    """λ and all tensors coded with it, in at most `target` bytes and at least 1 - NEAR of them, as far as λ can reach that.

    size  bytes of one coded tensor        most  entries of a book
    Raises BudgetError where even the coarsest is larger.
    """
    sketches = [Sketch(tensor, most) for tensor in tensors]

    def coded(price: float) -> tuple[float, list[Rated]]:
        found = [rated(tensor, price, sketch=sketch) for tensor, sketch in zip(tensors, sketches, strict=True)]
        return sum(map(size, found)), found

    return searched(coded, sketches, target)


def searched(
    coded: Callable[[float], tuple[float, T]], sketches: Sequence[Sketch], target: float, *, runs: int = RUNS
) -> tuple[float, T]:
    """λ, and what `coded` makes of it in at most `target` bytes; begins where the sketches expect that, runs at most so often.

    coded  λ -> bytes, and what takes them
    """
    top = max((sketch.coarsest for sketch in sketches), default=1.0)
    tried: dict[float, tuple[float, T]] = {}

    def expected(price: float) -> float:
        return sum(sketch.bytes(price) for sketch in sketches)

    price = _halved(expected, target, top)
    while price not in tried and len(tried) < runs:
        tried[price] = coded(price)
        if (1 - NEAR) * target <= tried[price][0] <= target:
            break
        totals = {each: total for each, (total, _) in tried.items()}
        price = min(max(_next(totals, target, sum(sketch.size for sketch in sketches)), top * FINEST), top)
    factor = COARSER
    while (highest := max(tried)) < top and min(total for total, _ in tried.values()) > target:
        # bytes of a few thousand weights are steps in λ: the runs may end a byte above the target
        price, factor = min(factor * highest, top), factor**2
        tried[price] = coded(price)
    fitting = [(total, price) for price, (total, _) in tried.items() if total <= target]
    if not fitting:
        least = min(total for total, _ in tried.values())
        raise BudgetError(
            f"the smallest that was found takes {least:,.0f} bytes, not {target:,.0f}; give a larger target size"
        )
    _, price = max(fitting)
    return price, tried[price][1]


def _next(tried: dict[float, float], target: float, weights: int) -> float:
    """The λ to try after these: bytes are about linear in log λ, between the two nearest to the target as beyond all of them.

    A bit a weight quarters the error, and λ with it: where one λ was tried that is the slope.
    """
    aim = (1 - NEAR / 2) * target
    points = sorted((abs(total - aim), np.log(price), total) for price, total in tried.items())
    over, under = ([each for each in points if (each[2] > target) == side] for side in (True, False))
    (_, at, now), (_, other, before) = (over[0], under[0]) if over and under else (points * 2)[:2]
    slope = (now - before) / (at - other) if at != other else 0.0
    slope = slope if slope < 0 else -weights / 16 / np.log(2)
    moved = at + (aim - now) / slope
    if over and under:
        low, high = sorted((at, other))
        moved = np.clip(moved, low + EDGE * (high - low), high - EDGE * (high - low))
    return float(np.exp(np.clip(moved, at - FARTHEST, at + FARTHEST)))


EDGE = 0.05
"""Of an interval, how near to its ends λ is tried."""

FARTHEST = 6.0
"""By which log λ changes at most."""


def _halved(bytes_of: Callable[[float], float], target: float, top: float) -> float:
    """The least λ up to `top` whose size is within the target; bytes fall as λ rises."""
    if bytes_of(top * FINEST) <= target:
        return top * FINEST
    low, high = np.log(top * FINEST), np.log(top)
    while high - low > CLOSE:
        middle = (low + high) / 2
        low, high = (low, middle) if bytes_of(float(np.exp(middle))) <= target else (middle, high)
    return min(float(np.exp(high)), top)
