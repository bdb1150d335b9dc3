"""A Page on a terminal, by rich."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from onnxcompress.report import words
from onnxcompress.report.parts import Page, Table

COLOURS = {0: "bold green", 1: "bold yellow", 2: "bold red", None: "bold"}
PIPE_WIDTH = 120
"""Columns where nobody's terminal says how wide it is."""


def print_page(page: Page, console: Console | None = None) -> None:
    """Headline first."""
    console = console or make_console()
    console.print(Text(page.headline, style=COLOURS[page.grade]), soft_wrap=True)
    for table in page.tables:
        console.print()
        console.print(Text(f" {table.title}", style="bold"))
        console.print(_grid(table))
        if table.more:
            console.print(Text(f"  ... and {table.more} more", style="dim"))
    if page.lines:
        console.print()
    width = max((len(what) for what, _ in page.lines), default=0)
    for what, sentence in page.lines:
        line = Grid.grid(padding=(0, 2, 0, 0))
        line.add_column(width=width, style="dim", no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(Text(what), Text(sentence))
        console.print(Padding(line, (0, 0, 0, 1), expand=False))


def make_console() -> Console:
    """Of standard output."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def _grid(table: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=True, show_edge=False, show_header=any(table.columns))
    for column in table.columns:  # names fold where the terminal is narrow, numbers do not
        right = column in table.right
        grid.add_column(
            column, justify="right" if right else "left", no_wrap=right, overflow="fold", header_style="dim"
        )
    for row in table.first:
        shown = row if table.most is None else [words.within(cell) for cell in row]
        grid.add_row(*(Text(cell, style="bold red" if cell == "MISSED" else "") for cell in shown))
    return grid
