"""Verbs that look at models and make none; app.py has what they say of themselves."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from onnxcompress import judging
from onnxcompress.checkup import check as checked
from onnxcompress.cli.common import BUDGETING, FEEDING, IMAGES, JUDGING, WRITING, budgets, running, writing
from onnxcompress.cli.options import Model, instance, verb
from onnxcompress.cli.output import check_given, gate, progress, show
from onnxcompress.cli.panels import ALL_ROWS, BENCH_DATA, INSPECT_DATA, LOOKING, SHOW_FORMS, TIMING, WHOLE
from onnxcompress.data import ImageSettings
from onnxcompress.inspection import inspect as inspected
from onnxcompress.report import benchmark_page, checkup_page, inspection_page, report_page


@verb(WHOLE, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def compare(
    original: Model,
    result: Annotated[str, typer.Argument(help="the .onnx file to judge", show_default=False)],
    **given: Any,
) -> None:
    settings = {**running(given), **budgets(given)}
    check_given(given, original, None, result)
    with progress(given["quiet"]) as bars:
        report = judging.compare_report(
            original, result, data=given["data"], whole=given["whole"], progress=bars, **settings
        )
    show(report_page(report), report.to_json(), writing(given))
    gate([verdict["sentence"] for verdict in report.verdicts if not verdict["met"]])


@verb(LOOKING, SHOW_FORMS, INSPECT_DATA, ALL_ROWS, WRITING, IMAGES)
def inspect(model: Model, **given: Any) -> None:
    check_given(given, model, None)
    images = instance(ImageSettings, IMAGES, given)
    ways = {name: given[name] for name in ("data", "inexact", "inner", "forms")}
    found = inspected(model, images=images, **ways)
    show(inspection_page(found, whole=given["all_rows"]), found.to_json(), writing(given))


@verb(INSPECT_DATA, WRITING)
def check(model: Model, **given: Any) -> None:
    check_given(given, model, None)
    found = checked(model, data=given["data"])
    show(checkup_page(found), found.to_json(), writing(given))
    gate([f"{each.what}; {each.advice}" for each in found.findings if each.severe])


@verb(TIMING, BENCH_DATA, WRITING, IMAGES)
def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(help=".onnx files; the first is what the others are compared with", show_default=False),
    ],
    **given: Any,
) -> None:
    check_given(given, models[0], None, *models[1:])
    images = instance(ImageSettings, IMAGES, given)
    ways = {name: given[name] for name in ("data", "threads", "seconds", "batch", "limit", "seed")}
    with progress(given["quiet"]) as bars:
        found = judging.benchmark(*models, images=images, progress=bars, **ways)
    show(benchmark_page(found), found.to_json(), writing(given))
