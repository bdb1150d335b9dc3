"""Memory: how much the system has free; and what is free in this process given back, since the C library keeps what a session held."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path


def give_back() -> None:
    """Return freed pages to the system, where the C library is glibc; elsewhere nothing is done.

    After a session of a ResNet-50 had gone, 230 of its 260 MB were still resident; returning them takes some milliseconds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@contextmanager
def spared() -> Iterator[None]:
    """Collections of garbage pass over what is there already: modules alone are half a million objects, .1 s to look through."""
    mine, usual = gc.get_freeze_count() == 0, gc.get_threshold()
    if mine:
        gc.freeze()
        if usual[0]:
            gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()
            gc.set_threshold(*usual)


SELDOM = (5000, 10, 2)
"""New objects, and collections of the younger, before one of each age: graphs are objects that stay. The oldest come as often as usual."""


def free_bytes() -> int | None:
    """What this process can still take: the system's available memory, or less where a container sets a limit; None where unknown."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) << 10)
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        if limit != "max":
            found.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    except (OSError, ValueError, KeyError):  # another system, or no such group
        pass
    return min(found) if found else None


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3)."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
