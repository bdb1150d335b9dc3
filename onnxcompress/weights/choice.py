"""Which form a tensor takes in the packed file: all that it may have are compared by what they would cost, the smallest wins.

Costs come from counts of a piece in the middle; nothing is coded to be thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxcompress.weights import books, codecs, gaps, scales, streams, whole
from onnxcompress.weights.codecs import Fitted, Spec
from onnxcompress.weights.kinds import divided
from onnxcompress.weights.plain import table
from onnxcompress.weights.tunstall import Dictionary, digits, encode

PIECE = 1 << 17
"""Elements by which forms are compared."""

STREAM_BYTES = 5
"""Of the container's table, for a stream."""

FEW = 32
"""Distinct values of a tensor up to which its slices are not looked at one by one."""

LEAST_COMMON = 0.3
"""Share of one element from which gaps are tried."""


@dataclass(frozen=True, eq=False)
class Made:
    """What the nodes of a model say of a tensor of bytes.

    words    that it is numbers of                          counts  of the symbols whose Huffman codes it is
    planes   bytes and bits of each plane, where it is the planes of symbols, one after another
    shape    of what its symbols become; () where that is not known
    """

    words: Dictionary | None = None
    counts: np.ndarray | None = None
    planes: tuple[tuple[int, int], ...] = ()
    shape: tuple[int, ...] = ()


def fit(values: np.ndarray, dims: tuple[int, ...], floats: bool, entropy: str, made: Made | None = None) -> Fitted:
    """The form, gaps and kinds of slices that take the fewest bytes.

    values   flat, unsigned     dims  of the tensor, for what differs between its slices; () where they are not known
    """
    made = made or Made()
    priced = [
        each
        for fitted in _candidates(values, dims, floats, entropy, made)
        for each in (fitted, *_with_gaps(*fitted, entropy))
    ]
    best = min(priced, key=lambda each: each[0])
    whole = [each for each in priced if not each[1].spec.gaps]
    cheapest = min(whole, key=lambda each: each[0])
    for price, fitted in whole:
        if fitted is cheapest[1] or fitted.spec.form in codecs.OF_SYMBOLS:  # numbers of words say little of their kind
            own = made.shape if fitted.spec.form in (codecs.DIGITS, *codecs.OF_SYMBOLS) else dims
            apart = divided(fitted, own, entropy)
            if apart is not None and price - apart[0] < best[0]:
                best = price - apart[0], apart[1]
    return best[1]


def _candidates(
    values: np.ndarray, dims: tuple[int, ...], floats: bool, entropy: str, made: Made
) -> Iterator[tuple[float, Fitted]]:
    spec = Spec(codecs.PLAIN, values.itemsize, int(floats and values.itemsize > 1), values.nbytes)
    plain = Fitted(spec, values)
    if spec.width == 1:
        yield from ((cost(each, entropy), each) for each in (plain, *_of_bytes(plain, entropy, made)))
        return
    found = books.per_tensor(values, floats)
    if found is None or len(found[0]) > FEW:
        yield cost(plain, entropy), plain
    if found is not None:
        one = Fitted(replace(spec, form=codecs.BOOK, entries=len(found[0])), found[1], (found[0],))
        yield cost(one, entropy), one
    if found is None or len(found[0]) > FEW:
        yield from ((cost(each, entropy), each) for each in _sliced(values, dims, spec, floats))


def _sliced(values: np.ndarray, dims: tuple[int, ...], spec: Spec, floats: bool) -> Iterator[Fitted]:
    """Books a slice: one times a scale where they are that, else each as it is where slices are long enough."""
    found = books.per_slice(values, dims, floats) if len(dims) > 1 else None
    if found is None or found[0].size > codecs.MOST_ENTRIES:
        return
    whole, symbols, stride, count = found
    own = replace(spec, form=codecs.SLICES, stride=stride, count=count, entries=whole.shape[1])
    product = scales.scaled(whole) if floats and spec.width == 4 else None
    if product is not None:
        _renumbered(symbols.reshape(-1, count, stride), product.place)
        sides = (product.base, product.scales, product.missed.reshape(-1))
        yield Fitted(replace(own, form=codecs.SCALED, entries=len(product.base)), symbols, sides)
    elif 4 * whole.size <= len(values):
        yield Fitted(own, symbols, (whole.reshape(-1),))


def _renumbered(slices: np.ndarray, place: np.ndarray) -> None:
    """Symbols [outer, count, stride] become `place` [count, K] of them, in place, many slices at a time."""
    entries, step = place.shape[1], max(1, PIECE // (slices.size // len(place)))
    for start in range(0, len(place), step):
        own = place[start : start + step]
        begins = (np.arange(len(own), dtype=np.int32) * entries)[:, None]
        slices[:, start : start + step] = own.reshape(-1).take(slices[:, start : start + step] + begins)


def _of_bytes(plain: Fitted, entropy: str, made: Made) -> Iterator[Fitted]:
    """Bytes as the digits that they may be, of the base that fits best; as words of symbols where they are these."""
    values = plain.elements
    counts = streams.counted(values)
    largest = int(values.max(initial=0))
    costs = {
        base: streams.expected(np.bincount(table(base).reshape(-1), np.repeat(counts[: base**count], count)), entropy)
        for base in range(2, 17)
        if largest < base ** (count := digits(base))
    }
    if costs and (base := min(costs, key=lambda each: costs[each])):
        elements = table(base).take(values, axis=0).reshape(-1)
        yield Fitted(replace(plain.spec, form=codecs.DIGITS, entries=base), elements)
    yield from _of_symbols(plain, made)


def _of_symbols(plain: Fitted, made: Made) -> Iterator[Fitted]:
    """The symbols that the bytes were made of, where they are made of them again."""
    values, spec, words = plain.elements, plain.spec, made.words
    if words is not None and int(values.max(initial=0)) < len(words.lengths):
        lengths = words.lengths[values].astype(np.int64)
        steps = np.repeat(words.starts[values] - np.cumsum(lengths) + lengths, lengths)
        symbols = words.symbols.take(steps + np.arange(len(steps)))
        if np.array_equal(encode(symbols, words), values):
            own = replace(spec, form=codecs.WORDS, entries=words.kinds, count=len(words.lengths), symbols=len(symbols))
            yield Fitted(own, symbols, (words.lengths,))
    if made.planes:
        bits = sum(each for _, each in made.planes)
        parts = whole.of_planes(values, [size for size, _ in made.planes], bits)
        if parts is not None:
            yield Fitted(replace(spec, form=codecs.PLANES, entries=bits, symbols=len(parts)), parts)
    found = None if made.counts is None else whole.of_levels(values, made.counts)
    if found is not None:
        own = replace(spec, form=codecs.LEVELS, entries=len(found[1]), symbols=len(found[0]))
        yield Fitted(own, found[0], (found[1],))


def _with_gaps(price: float, fitted: Fitted, entropy: str) -> Iterator[tuple[float, Fitted]]:
    """The same with the most common element left out, where there is one."""
    spec = fitted.spec
    sample = fitted.elements[:: max(1, len(fitted.elements) // books.SAMPLE)]
    if not len(sample) or spec.form in (codecs.DIGITS, *codecs.OF_SYMBOLS):
        return
    found, counts = np.unique(sample, return_counts=True)
    if counts.max() < LEAST_COMMON * len(sample):
        return
    common = found[counts.argmax()]
    piece = _piece(fitted)
    places = np.flatnonzero(piece != common)
    left = [streams.counted(part) for part in codecs.planes(piece[places], _rotate(spec))]
    octets = codecs.planes(common[None], _rotate(spec))
    for bits in gaps.BITS:
        steps, between = gaps.counted(places, bits)
        for own, octet in zip(left, octets, strict=True):
            own[octet] += between
        each = replace(spec, gaps=bits, common=int(common))
        yield _whole(fitted, each, [steps, *left], entropy), replace(fitted, spec=each)
        for own, octet in zip(left, octets, strict=True):
            own[octet] -= between


def _piece(fitted: Fitted) -> np.ndarray:
    start = max(0, (len(fitted.elements) - PIECE) // 2)
    return fitted.elements[start : start + PIECE]


def _rotate(spec: Spec) -> int:
    return spec.rotate if spec.form == codecs.PLAIN else 0


def cost(fitted: Fitted, entropy: str) -> float:
    """Bytes of the whole, nearly: by a piece in the middle."""
    counts = [streams.counted(part) for part in codecs.planes(_piece(fitted), _rotate(fitted.spec))]
    return _whole(fitted, fitted.spec, counts, entropy)


def _whole(fitted: Fitted, spec: Spec, counts: list[np.ndarray], entropy: str) -> float:
    if not spec.blocks:
        return 0.0
    size = sum(streams.expected(each, entropy) for each in counts) / min(PIECE, len(fitted.elements))
    aside = sum(
        streams.expected(streams.counted(side), entropy) if side.itemsize == 1 else side.nbytes for side in fitted.sides
    )
    return size * spec.elements + STREAM_BYTES * spec.blocks * len(counts) + aside
