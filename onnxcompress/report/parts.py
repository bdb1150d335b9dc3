"""What a page is made of: tables, charts, lines and cases, as text and numbers. Renderers show them and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnxcompress.report import words

MOST_ROWS = 12


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    right  names of columns with numbers
    most   rows that are shown at first; None: all
    bars   for each row the sizes of the segments of its bar, in any unit; none: rows have no bars
    legend names of these segments
    form   "tiles": a few figures, each with its name first and what counts last
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()
    most: int | None = MOST_ROWS
    bars: tuple[tuple[float, ...], ...] = ()
    legend: tuple[str, ...] = ()
    form: Literal["rows", "tiles"] = "rows"

    @property
    def first(self) -> tuple[tuple[str, ...], ...]:
        """The rows shown at first."""
        return self.rows[: self.most]

    @property
    def more(self) -> int:
        """How many others there are."""
        return len(self.rows) - len(self.first)


@dataclass(frozen=True)
class Chart:
    """A histogram.

    counts  of equal bins from `low` to `high`      chosen  the interval that was made of it
    """

    title: str
    caption: str
    low: float
    high: float
    counts: tuple[int, ...]
    chosen: tuple[float, float]


@dataclass(frozen=True)
class Case:
    """What a CI job counts: passed, unless there is a `fault`. `more` is told either way."""

    name: str
    fault: str = ""
    more: str = ""


@dataclass(frozen=True)
class Page:
    """title: what it is of. grade: 0 good, 1 look at it, 2 bad; None: neither. lines: (what, sentence). charts: worst first."""

    title: str
    headline: str
    grade: int | None
    tables: tuple[Table, ...]
    lines: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...] = ()
    cases: tuple[Case, ...] = ()


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str] = (),
    most: int | None = MOST_ROWS,
    bars: Sequence[Sequence[float]] = (),
    legend: Sequence[str] = (),
) -> Table:
    """A table without the columns that are empty in all rows."""
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] != words.UNKNOWN for row in rows)]
    cells = tuple(tuple(row[i] for i in kept) for row in rows)
    segments = tuple(tuple(map(float, bar)) for bar in bars)
    return Table(title, tuple(columns[i] for i in kept), cells, frozenset(right), most, segments, tuple(legend))


def filled(tables: Sequence[Table]) -> tuple[Table, ...]:
    """Those with rows."""
    return tuple(each for each in tables if each.rows)
