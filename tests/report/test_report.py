"""Renderers show what the report says, headline first."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from onnxcompress.inspection import FrozenLine, GroupLine, Inspection
from onnxcompress.report import Page, Table, html, inspection_page, junit, markdown, print_page, report_page, words
from onnxcompress.report.parts import Chart, table
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
    verdicts=(
        {"name": "min_sqnr", "wanted": 20.0, "got": 3.0, "met": False, "sentence": "min_sqnr: <3 dB>"},
        {"name": "max_size", "wanted": 0.9, "got": 0.5, "met": True, "sentence": "max_size: 0.5"},
    ),
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


QUANTIZED = {
    "method": "quantize",
    "decisions": [
        *(
            {
                "node": name, "op": "Conv", "form": "product", "alone_db": db, "mostly": "weight",
                "shares": {"weight": share, "what it reads": 0.1, "what it writes": 0.0},
            }
            for name, db, share in (("/late", 30.0, 0.3), ("/<i>early</i>", 20.0, 0.9))
        ),
        {
            "value": "a<b", "alone_db": 25.0, "clipped": 0.01, "bits": 6.5, "seen": [-1.0, 3.0], "range": [-0.5, 2.0],
            "histogram": [1, 100, 0, 10],
        },
        *({"value": f"v{i}", "alone_db": "inf", "clipped": 0.0, "bits": 8.0, "seen": [0.0, 1.0], "range": [0.0, 2.0],
           "histogram": [1, 1]} for i in range(12)),
    ],
}  # fmt: skip


class Seen(HTMLParser):
    """Tags that are open at the end, what links somewhere else, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "input", "rect", "path", "line", "tspan"):
            self.open.append(tag)
        self.outside += [name for name, value in attrs if name in ("src", "href") or "http" in (value or "")]
        assert tag not in ("script", "link", "img", "iframe")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_html(page: Page) -> tuple[str, str]:
    """The file and its text; well nested, self-contained."""
    file, seen = html(page), Seen()
    seen.feed(file)
    assert not seen.open and not seen.outside and "url(" not in file and "@import" not in file
    return file, "".join(seen.text)


def with_plan(plan: dict) -> Report:  # type: ignore[type-arg]
    return Report(**{**vars(REPORT), "plans": (plan,)})


def test_html_shows_all_rows_and_escapes_names() -> None:
    file, text = read_html(report_page(REPORT))
    assert "no longer answers like the original" in text and "var(--bad)" in file
    assert "y|z" in text and "and 8 more" in text and "MISSED" in text
    assert all(f"w{i}" in text for i in range(20))
    assert html(report_page(REPORT)) == file


def test_html_ranks_layers_and_draws_what_was_seen() -> None:
    page = report_page(with_plan(QUANTIZED))
    file, text = read_html(page)
    assert "/<i>early</i>" in text and "<i>early" not in file
    assert text.index("/<i>early</i>") < text.index("/late")
    assert "25.0 dB alone, 1.00 % clipped, 6.5 of 8 bits used" in text
    assert page.charts[0].title == "a<b" and len(page.charts) == 13 and "and 1 more" in text
    assert re.findall(r'style="width:([0-9.]+)%', file)[:3] == ["90.0", "10.0", "0.0"]


def test_a_histogram_is_drawn_over_what_was_seen_and_chosen() -> None:
    chart = Chart("t", "", -1.0, 3.0, (1, 100, 0, 10), (-2.0, 2.0))
    file, text = read_html(Page("m", "h", None, (), (), (chart,)))
    assert '<rect class="band" x="0.0" y="0" width="240.0"' in file  # -2 .. 2 of -2 .. 3 in 300
    (outline,) = re.findall(
        r' d="M60 72V([0-9.]+)H120V0H180V72H240V([0-9.]+)H300V72z"', file
    )  # 100 reach the top, 0 none
    assert 72 > float(outline[0]) > float(outline[1]) > 0
    assert '<line class="zero" x1="120.0"' in file
    assert "seen −1 … 3, range −2 … 2" in text
    empty = Chart("t", "", 1.0, 1.0, (), (1.0, 1.0))
    assert 'd="M0 72V72z"' in html(Page("m", "h", None, (), (), (empty,)))


def test_junit_has_a_case_a_budget() -> None:
    root = ElementTree.fromstring(junit(report_page(REPORT)).encode())
    suite = root[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("name")) == ("2", "1", "onnxcompress a.onnx")
    missed, met = suite
    assert missed.get("name") == "min_sqnr" and missed[0].get("message") == "min_sqnr: <3 dB>"
    assert met.get("name") == "max_size" and met.find("failure") is None


def test_junit_without_budgets_has_one_case_that_passes() -> None:
    page = report_page(Report(**{**vars(REPORT), "verdicts": (), "headline": "odd \x00 name"}))
    (case,) = ElementTree.fromstring(junit(page).encode())[0]
    assert case.find("failure") is None and "odd \ufffd name" in (case.findtext("system-out") or "")


def test_many_names_are_counted() -> None:
    assert words.names(["a", "b"]) == "a, b" and words.names(["a", "b", "c", "d"]) == "a, b and 2 more"


def test_names_of_hundreds_of_letters_lack_their_middle() -> None:
    name = "begin" + "/conv;" * 60 + "end"
    few, every = (
        Page("m", "m", None, (Table("", ("", "n"), ((f"read by {name}", "1"),), most=most),), ()) for most in (9, None)
    )
    assert len(terminal(few).splitlines()) < 8 and "begin" in terminal(few) and "end" in terminal(few)
    assert len(terminal(every).splitlines()) > 8
    assert len(words.within(name)) == words.LONGEST_NAME and words.within("a " * 99) == "a " * 99


def test_what_cannot_be_cut_is_one_row_a_reason() -> None:
    lines = tuple(FrozenLine(f"w{number}", 8 + number, "it is an output of the model", "y") for number in range(3))
    groups = (GroupLine("a", 4, 0, (("a", 0, "write"), ("b", 0, "write"), ("c", 1, "read"))),)
    found = Inspection("m.onnx", 1, 1, 1, 17, "me", (), (), {}, (), groups, lines, 0.5, ())
    text, every = terminal(inspection_page(found)), terminal(inspection_page(found, whole=True))
    assert "w0 and 2 more" in text and " 27 " in text and "w2" not in text
    assert "w2" in every and " 10 " in every
    assert "also written by b, read by c" in text and "in 1 group\n" in text
