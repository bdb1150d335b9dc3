"""Slices of a tensor told apart by how its symbols are distributed in them, so that each kind gets frequencies of its own.

Channels differ: in some nearly all weights are zero, in others few are. One code for all cannot follow that, and one for each would
cost more than it saves. A few kinds, found by k-means whose distance is the length of the code (Banerjee et al., JMLR 2005).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np

from onnxcompress.weights import codecs, streams
from onnxcompress.weights.codecs import Fitted

LEAST = 1 << 13
"""Elements of a tensor that is looked at."""

KINDS = 4
"""With 2 a third of what they save is lost, 8 save a tenth more and take twice the time."""

TURNS, SLICES = 4, 1 << 9
RUN = 512
"""Elements of a slice where a tensor has one axis, or its shape is not known."""

BEHIND = 254
"""Symbols that may stand behind those of the tensor: what fills a byte, or the last word."""

FLOOR = 0.05
"""Added to each count, so that a symbol may come where it has not been seen."""

STREAM_BYTES = 16
"""Of a kind in each block: its record, the end of its words."""


def divided(fitted: Fitted, dims: tuple[int, ...], entropy: str) -> tuple[float, Fitted] | None:
    """(bytes that it saves, the same with kinds of slices), where that is smaller."""
    spec, size = fitted.spec, len(fitted.elements)
    entries = int(fitted.elements.max(initial=0)) + 1 if spec.element_width == 1 else 0
    if size < LEAST or entries < 2:
        return None
    best, whole = (np.inf, fitted), 0.0
    for run, runs in slices(dims, size):
        if runs * entries > codecs.MOST_ENTRIES:
            continue
        counts = _counts(fitted.elements, run, runs, entries)
        if best[1] is fitted:
            best = whole, _ = streams.expected(_padded(counts.sum(axis=0)), entropy), fitted
        kind = found(counts, KINDS)
        sums = _sums(counts, kind, KINDS)
        price = sum(streams.expected(_padded(each), entropy) + STREAM_BYTES * spec.blocks for each in sums)
        price += streams.expected(np.bincount(kind, minlength=256), entropy)
        if price < best[0]:
            own = replace(spec, kinds=KINDS, run=run, runs=runs)
            best = price, Fitted(own, fitted.elements, (*fitted.sides, kind.astype(np.uint8)))
    return None if best[1] is fitted else (whole - best[0], best[1])


def slices(dims: tuple[int, ...], size: int) -> Iterator[tuple[int, int]]:
    """(run, runs) of slices along the first axis, along the second, or of neighbours."""
    if not size - BEHIND <= prod(dims) <= size or max(dims, default=0) == prod(dims):
        yield min(RUN, size), -(-size // RUN)
        return
    for axis in (0, 1):
        if dims[axis] > 1:
            yield prod(dims[axis + 1 :]), dims[axis]


def _counts(elements: np.ndarray, run: int, runs: int, entries: int) -> np.ndarray:
    """float64 [runs, entries]: how often each symbol occurs in each slice; in large tensors by a part of each slice."""
    found, some = np.zeros(runs * entries, np.int64), elements
    share = max(1, len(elements) // ENOUGH)
    if share > 1 and len(elements) % (run * runs) == 0:
        whole = elements.reshape(-1, runs, run)
        if len(whole) >= 4 * share:
            some = np.ascontiguousarray(whole[::share]).reshape(-1)
        elif run >= ENOUGH_OF_ONE * share:
            some, run = np.ascontiguousarray(whole[:, :, : run // share]).reshape(-1), run // share
    for start in range(0, len(some), codecs.BLOCK):
        piece = some[start : start + codecs.BLOCK]
        found += np.bincount(codecs.spread(start, len(piece), run, runs) * entries + piece, minlength=len(found))
    return found.reshape(runs, entries) * (len(elements) / len(some))


ENOUGH, ENOUGH_OF_ONE = 1 << 17, 1 << 7
"""Elements of a tensor, and of a slice, that are counted."""


def _padded(counts: np.ndarray) -> np.ndarray:
    found = np.zeros(256, counts.dtype)
    found[: len(counts)] = counts
    return found


def _sums(counts: np.ndarray, kind: np.ndarray, kinds: int) -> np.ndarray:
    """[kinds, entries]"""
    return (kind == np.arange(kinds)[:, None]).astype(np.float64) @ counts


def found(counts: np.ndarray, kinds: int) -> np.ndarray:
    """int [slices]: the kind of each, by how many bits its symbols take in the code of that kind. Starts from their entropies in order."""
    sizes = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(counts > 0, counts * np.log2(sizes[:, None] / counts), 0).sum(axis=1) / np.maximum(sizes, 1)
    order = np.argsort(bits, kind="stable")
    kind = np.empty(len(counts), np.int64)
    kind[order] = np.minimum(np.cumsum(sizes[order]) * kinds / max(sizes.sum(), 1), kinds - 1).astype(np.int64)
    few = counts[:: max(1, len(counts) // SLICES)]
    chosen = kind[:: max(1, len(counts) // SLICES)]
    for _ in range(TURNS):
        lengths = _lengths(_sums(few, chosen, kinds))
        nearest = (few @ lengths).argmin(axis=1)
        if np.array_equal(nearest, chosen):
            break
        chosen = nearest
    return (counts @ _lengths(_sums(few, chosen, kinds))).argmin(axis=1)


def _lengths(counts: np.ndarray) -> np.ndarray:
    """Bits of each symbol in the code of each kind, [entries, kinds]."""
    shares = counts + FLOOR
    return -np.log2(shares / shares.sum(axis=1, keepdims=True)).T
