"""A Page as Markdown, for a pull request or the summary of a CI job."""

from __future__ import annotations

from onnxcompress.report.parts import Page, Table

SIGNS = {0: "🟢 ", 1: "🟡 ", 2: "🔴 ", None: ""}


def markdown(page: Page) -> str:
    """The page's text; what users named is escaped."""
    parts = [f"### {SIGNS[page.grade]}{_safe(page.headline)}", *(_table(each) for each in page.tables)]
    if page.lines:
        parts.append("\n".join(f"- **{what}**: {_safe(sentence)}" for what, sentence in page.lines))
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    rules = ["--:" if column in table.right else "---" for column in table.columns]
    lines = [_row(table.columns), _row(rules), *(_row([_safe(cell) for cell in row]) for row in table.first)]
    more = f"\n\n... and {table.more} more" if table.more else ""
    return f"**{_safe(table.title)}**\n\n" + "\n".join(lines) + more


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _safe(text: str) -> str:
    for sign in "\\|*_`<":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
