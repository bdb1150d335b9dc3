"""Pages keep up with the code: generated ones are the ones that the code makes, and names in the others exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import typer

from onnxcompress.budgets import BUDGETS
from onnxcompress.cli.app import HOME_OF, application
from onnxcompress.operators import FLOWS, SIGNATURES
from onnxcompress.passes.prune.criteria import CRITERIA
from onnxcompress.passes.prune.selection import SELECTIONS
from onnxcompress.passes.prune.weights import WEIGHT_CRITERIA

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
GENERATOR = runpy.run_path(str(DOCS / "make_operators.py"))


def test_operators_page_is_up_to_date() -> None:
    assert (DOCS / "operators.md").read_text() == GENERATOR["page"](), "run: python docs/make_operators.py"


@pytest.mark.parametrize("name", sorted({*SIGNATURES, *FLOWS}))
def test_every_operator_has_a_line(name: str) -> None:
    assert re.search(rf"^\| {re.escape(name)}[ ,]", (DOCS / "operators.md").read_text(), re.M)


def test_flows_on_the_page_are_the_flows_of_the_code() -> None:
    assert GENERATOR["FLOW_FACTS"].keys() == FLOWS.keys()


@pytest.mark.parametrize("name", [*CRITERIA, *SELECTIONS, *WEIGHT_CRITERIA])
def test_every_way_to_choose_is_in_methods(name: str) -> None:
    assert f"`{name}`" in (DOCS / "methods.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "operators.md"], ids=lambda page: page.name)
def test_options_on_the_pages_exist(page: Path) -> None:
    verbs = typer.main.get_command(application(HOME_OF)).commands.values()  # type: ignore[attr-defined]
    known = {flag for verb in verbs for each in verb.params for flag in (*each.opts, *each.secondary_opts)} | {"--help"}
    commands = "\n".join(line for line in page.read_text().splitlines() if "onnxcompress " in line or "`--" in line)
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", commands)):
        assert option in known, f"{page.name} names {option}"


def test_budgets_are_in_the_how_to() -> None:
    text = (DOCS / "howto.md").read_text()
    assert not [name for name in BUDGETS if f"--{name.replace('_', '-')}" not in text]
