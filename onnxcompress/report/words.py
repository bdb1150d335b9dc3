"""How numbers are written for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
COUNTS = (("G", 1e9), ("M", 1e6), ("k", 1e3))
UNKNOWN = "-"
LONGEST_NAME = 64


def _scaled(value: float, units: tuple[tuple[str, float], ...], plain: str) -> str:
    for unit, size in units:
        if value >= size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f}{plain}"


def _three(value: float) -> str:
    """Three digits, trailing zeros kept: 13.0, not 13."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes, in powers of 1000."""
    return UNKNOWN if value is None else _scaled(value, BYTES, " B")


def count(value: float | None) -> str:
    """A number of things."""
    return UNKNOWN if value is None else _scaled(value, COUNTS, "")


def things(number: int, name: str) -> str:
    """A number and what it counts."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def names(known: Sequence[str], most: int = 2) -> str:
    """The first of some names, and how many others there are."""
    more = len(known) - most
    return ", ".join(known[:most]) + (f" and {more} more" if more > 0 else "")


def within(cell: str, most: int = LONGEST_NAME) -> str:
    """A cell whose longer words, names of hundreds of letters from some exporters, lack their middle."""
    front, back = most * 5 // 8, most * 3 // 8 - 1
    return re.sub(rf"\S{{{most + 1},}}", lambda found: f"{found[0][:front]}…{found[0][-back:]}", cell)


def percent(value: float | None, digits: int = 1) -> str:
    """A share."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %"


def number(value: Any, digits: int = 3) -> str:
    """A figure; JSON's words for infinity pass through."""
    if value is None:
        return UNKNOWN
    return value if isinstance(value, str) else f"{value:.{digits}g}"


def decibel(value: Any) -> str:
    """SQNR."""
    if isinstance(value, str):
        return "equal" if value == "inf" else value
    return UNKNOWN if value is None else f"{value:.1f} dB"


def times(before: float | None, after: float | None) -> str:
    """How much smaller."""
    if not before or not after:
        return UNKNOWN
    return (
        "same"
        if f"{before / after:.2f}" == "1.00"
        else f"{before / after:.2f}x smaller"
        if after < before
        else f"{after / before:.2f}x larger"
    )


def milliseconds(value: float) -> str:
    """A latency."""
    unit, scaled = ("us", 1e3 * value) if value < 1 else ("ms", value) if value < 1000 else ("s", value / 1000)
    return f"{_three(scaled)} {unit}"


def spans(seconds: Mapping[str, float]) -> str:
    """Seconds a step."""
    return ", ".join(f"{step} {value:.1f} s" for step, value in seconds.items())


def shape(sizes: tuple[int, ...] | list[int]) -> str:
    """[out, in, ...]."""
    return "x".join(map(str, sizes))
