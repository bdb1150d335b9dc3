"""Memory that is free, given back to the system: the C library keeps what a session held, and it counts as this process' own."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Return freed pages to the system, where the C library is glibc; elsewhere nothing is done.

    After a session of a ResNet-50 had gone, 230 of its 260 MB were still resident; returning them takes some milliseconds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3)."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
