"""Everything that the command line writes: checked before any work, written at the end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxcompress.cli.common import Given, Writing, writing
from onnxcompress.compare import json_safe
from onnxcompress.errors import BudgetError, SettingError
from onnxcompress.files import check_output, write_atomic
from onnxcompress.report import Page, html, junit, markdown, print_page
from onnxcompress.report.terminal import make_console

STANDARD_OUTPUT = "-"
SUMMARY = "GITHUB_STEP_SUMMARY"


def check_outputs(outputs: Iterable[str | None], inputs: Iterable[str | None]) -> None:
    """SettingError where one could not be written, is an input, or is named twice."""
    read = [each for each in inputs if each and Path(each).exists()]
    seen: list[str] = []
    for path in outputs:
        if path:
            place = path if path == STANDARD_OUTPUT else os.path.realpath(path)
            if path != STANDARD_OUTPUT:
                check_output(path, read)
            if place in seen:
                raise SettingError(f"{path}: named for two outputs; choose another name for one")
            seen.append(place)


def check_given(given: Given, model: str, plan_out: str | None, *more: str) -> None:
    """All outputs of a verb against all inputs, before any work."""
    beside = writing(given)
    inputs = [model, *more, given.get("data"), given.get("labels")]
    check_outputs([given.get("output"), beside.json, beside.html, beside.junit, plan_out], inputs)


def gate(missed: Sequence[str]) -> None:
    """BudgetError where there is a sentence about a budget that was missed."""
    if missed:
        raise BudgetError("\n".join(missed))


RENDERED: dict[str, Callable[[Page, Any], str]] = {
    "json": lambda page, value: json.dumps(json_safe(value), indent=2) + "\n",
    "html": lambda page, value: html(page),
    "junit": lambda page, value: junit(page),
}
"""Field of Writing -> its text."""


def show(page: Page, value: Any, beside: Writing, *, done: Iterable[str] = ()) -> None:
    """The page on the terminal, in the CI job's summary and in the files asked for; `done` says what was written."""
    texts = {to: render(page, value) for name, render in RENDERED.items() if (to := getattr(beside, name))}
    if STANDARD_OUTPUT in texts:
        sys.stdout.write(texts.pop(STANDARD_OUTPUT))
    elif beside.quiet:
        print(page.headline)
    else:
        print_page(page)
        for line in done:
            make_console().print(f" {line}", soft_wrap=True, markup=False)
    for to, text in texts.items():
        write_atomic(to, text.encode())
    if summary := os.environ.get(SUMMARY):
        try:
            with open(summary, "a", encoding="utf-8") as file:
                file.write(markdown(page) + "\n")
        except OSError as error:
            raise SettingError(f"${SUMMARY}: {summary} cannot be written ({error.strerror})") from error


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """A callback that draws bars on stderr; None where nobody would see them."""
    if quiet or not sys.stderr.isatty() or os.environ.get("CI"):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report
