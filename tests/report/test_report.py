"""Renderers show what the report says, headline first."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onnxcompress.report import Page, Table, markdown, print_page, report_page, words
from onnxcompress.report.page import table
from onnxcompress.result import Report

REPORT = Report(
    headline="no longer answers like the original (SQNR 3.0 dB)",
    grade=2,
    model="a.onnx",
    costs={"bytes": (2_000_000, 1_000_000), "parameters": (500, 250), "macs": (None, None)},
    comparison={
        "outputs": [
            {
                "name": "y|z",
                "sqnr_db": 3.0,
                "cosine": 0.5,
                "max_abs": 1.0,
                "agreement": None,
                "exact": None,
                "not_finite": 0,
            }
        ],
        "score": None,
        "notes": [],
        "data": "4 synthetic samples",
    },
    verdicts=({"name": "min_sqnr", "wanted": 20.0, "got": 3.0, "met": False},),
    plans=(
        {"method": "prune", "decisions": [{"group": f"w{i}", "of": 8, "cut": [0, 1]} for i in range(20)]},
        {"method": "later", "decisions": [{"layer": "x", "bits": 4}]},
    ),
    notes=("a note", "a note"),
    seconds={"prune": 1.0},
)


def terminal(page: Page) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_page(page, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_terminal() -> None:
    text = terminal(report_page(REPORT))
    assert "no longer answers like the original" in text.splitlines()[0]
    for shown in ("2.00x smaller", "2.00 MB", "MISSED", "... and 8 more", "4 synthetic samples", "bits 4"):
        assert shown in text
    assert text.count("a note") == 1 and "agreement" not in text


def test_markdown_escapes_what_users_named() -> None:
    text = markdown(report_page(REPORT))
    assert text.startswith("### 🔴 ") and "| y\\|z | 3.0 dB |" in text
    assert "... and 8 more" in text


def test_empty_columns_are_left_out() -> None:
    assert table("t", ("a", "b", "c"), [("1", "-", "2")]) == Table("t", ("a", "c"), (("1", "2"),))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1_200_000, "1.20 MB"), (13_000, "13.0 kB"), (999_999, "1,000 kB")],
)
def test_sizes(value: float | None, shown: str) -> None:
    assert words.size(value) == shown
