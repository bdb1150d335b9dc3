"""Coded tensors of every kind, for hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from onnxcompress.weights.coded import Coded


@st.composite
def coded_tensors(draw: st.DrawFn, smallest: int = 1, most_entries: int = 256) -> Coded:
    """Of one to four axes; with and without scales, books a slice, vectors; symbols even or mostly one."""
    shape = tuple(draw(st.lists(st.integers(smallest, 6), min_size=1 if smallest == 1 else 3, max_size=4)))
    axis = draw(st.integers(0, len(shape) - 1))
    entries = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 64, 100, 128, 200, 256]))
    entries = min(entries, most_entries)
    size, length = int(np.prod(shape)), shape[axis]
    width = draw(st.sampled_from([w for w in (1, 2, 3, 4) if size % w == 0]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    several = draw(st.booleans()) and (width == 1 or (axis == 0 and (size // length) % width == 0))
    count = draw(st.integers(1, length)) if several else 1
    kind = draw(st.sampled_from([np.float32, np.float32, np.float64]))
    books = rng.normal(size=(count, entries, width)).astype(draw(st.sampled_from([np.float16, kind]))).astype(kind)
    symbols = rng.integers(0, entries, size // width)
    symbols[rng.random(len(symbols)) < draw(st.sampled_from([0, 0.5, 0.9]))] = 0
    return Coded(
        shape,
        symbols.astype(np.uint8),
        books,
        rng.uniform(0.5, 2, length).astype(kind) if draw(st.booleans()) else None,
        rng.integers(0, count, length) if several else None,
        axis,
    )
