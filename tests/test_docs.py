"""Generated pages are the ones that the code makes."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_operators_page_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "make_operators.py"))["page"]
    assert (DOCS / "operators.md").read_text() == page(), "run: python docs/make_operators.py"
