"""A Page as one HTML file that needs nothing else: no script, nothing from outside, drawings inline; page.html is its template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from onnxcompress.report import words
from onnxcompress.report.parts import MOST_ROWS, Chart, Page, Table

WIDTH, HEIGHT = 300, 72
"""Of a drawing, in its own units."""

NAMES = {0: "good", 1: "look", 2: "bad", None: "plain"}


def html(page: Page) -> str:
    """The whole file; names that users gave are escaped."""
    return str(_template().render(page=page, drawn=_drawn, bars=_bars, name=NAMES[page.grade], most=MOST_ROWS))


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    return Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")


@dataclass(frozen=True)
class Drawing:
    """Of a Chart, from left to right over what was seen and chosen; heights go with logarithms of counts.

    path    the bars' outline  band  left end and width of the chosen interval         zero  where 0 lies, if it does
    """

    path: str
    band: tuple[float, float]
    zero: float | None
    seen: str
    chosen: str


def _drawn(chart: Chart) -> Drawing:
    low, high = min(chart.low, chart.chosen[0]), max(chart.high, chart.chosen[1])
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return round(WIDTH * (value - low) / span, 1)

    top = math.log1p(max(chart.counts, default=0)) or 1.0
    width = (chart.high - chart.low) / max(len(chart.counts), 1)
    steps = [
        f"V{round(HEIGHT * (1 - math.log1p(count) / top), 1):g}H{x(chart.low + (number + 1) * width):g}"
        for number, count in enumerate(chart.counts)
    ]
    outline = f"M{x(chart.low):g} {HEIGHT}{''.join(steps)}V{HEIGHT}z"
    left, right = map(x, chart.chosen)
    zero = x(0.0) if low < 0 < high else None
    return Drawing(outline, (left, round(right - left, 1)), zero, _ends(chart.low, chart.high), _ends(*chart.chosen))


def _ends(low: float, high: float) -> str:
    return f"{words.number(low)} … {words.number(high)}".replace("-", "\u2212")


def _bars(table: Table) -> list[Sequence[float]]:
    """Widths in per cent of each row's segments; the longest bar takes all of it."""
    longest = max((sum(bar) for bar in table.bars), default=0.0) or 1.0
    return [[round(100 * size / longest, 1) for size in bar] for bar in table.bars]
