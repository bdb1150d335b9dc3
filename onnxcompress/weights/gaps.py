"""Sparse arrays as gaps: how far each entry is from the one before, in a few bits.

Where it is further, an entry of the common value stands between: the relative indexing of Deep Compression with its padding zeros
(Han et al., ICLR 2016, arXiv:1510.00149, section 2).
"""

from __future__ import annotations

import numpy as np

BITS = (3, 4, 5, 8)
"""Widths of a gap that are tried; the paper has 5 for fully connected layers and 8 for convolutions."""


def split(elements: np.ndarray, common: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaps, uint8 below 2**bits, and the entry behind each. What follows the last entry is common."""
    places = np.flatnonzero(elements != common)
    runs = np.diff(places, prepend=-1) - 1
    ends = np.cumsum((runs >> bits) + 1) - 1
    count = int(ends[-1]) + 1 if len(ends) else 0
    gaps = np.full(count, (1 << bits) - 1, np.uint8)
    entries = np.full(count, common, elements.dtype)
    gaps[ends] = runs & ((1 << bits) - 1)
    entries[ends] = elements[places]
    return gaps, entries


def counted(places: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Counts of the gaps before entries at these places [2**bits], and how many common entries stand between."""
    runs = np.diff(places, prepend=-1) - 1
    counts = np.bincount(runs & ((1 << bits) - 1), minlength=1 << bits)
    between = int((runs >> bits).sum())
    counts[-1] += between
    return counts, between


def join(gaps: np.ndarray, entries: np.ndarray, common: int, count: int) -> np.ndarray:
    """The array of `count` elements again; ValueError where the gaps lead out of it."""
    elements = np.full(count, common, entries.dtype)
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if len(places) and places[-1] >= count:
        raise ValueError("gaps that lead out of the tensor")
    elements[places] = entries
    return elements
