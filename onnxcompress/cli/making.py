"""Verbs that make a model. Each parses, calls the function of the same name, and prints; app.py has what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from onnxcompress import verbs
from onnxcompress.cli.common import (
    BUDGETING,
    FEEDING,
    IMAGES,
    JUDGING,
    OUTPUT,
    WRITING,
    Given,
    budgets,
    running,
    writing,
)
from onnxcompress.cli.options import Model, Panel, instance, taken, verb
from onnxcompress.cli.output import check_given, gate, progress, show
from onnxcompress.cli.panels import (
    BINARIZING,
    CLUSTERING,
    DECIDING,
    DISTILLING,
    EQUALIZE,
    FACTORIZING,
    LEARNING,
    MERGING,
    MODE,
    PLANNING,
    PRUNING,
    QUANTIZING,
    REFIT,
    SPARSIFYING,
    TEACHING,
    TRAINING,
    WEIGHING,
)
from onnxcompress.errors import SettingError
from onnxcompress.report import report_page
from onnxcompress.result import Result


@verb(OUTPUT, PRUNING, PLANNING, TRAINING, TEACHING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def prune(model: Model, **given: Any) -> None:
    ways = {**{name: given[name] for name in ("refit", "rounds", "largest")}, **taken([*TRAINING, *TEACHING], given)}
    _compress(verbs.prune, PRUNING, model, given, **ways)


@verb(OUTPUT, SPARSIFYING, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def sparsify(model: Model, **given: Any) -> None:
    _compress(verbs.sparsify, SPARSIFYING, model, given)


@verb(OUTPUT, CLUSTERING, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def cluster(model: Model, **given: Any) -> None:
    _compress(verbs.cluster, CLUSTERING, model, given)


@verb(OUTPUT, MERGING, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def merge(model: Model, **given: Any) -> None:
    _compress(verbs.merge, MERGING, model, given)


@verb(OUTPUT, FACTORIZING, REFIT, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def factorize(model: Model, **given: Any) -> None:
    _compress(verbs.factorize, FACTORIZING, model, given, refit=given["refit"])


@verb(OUTPUT, BINARIZING, REFIT, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def binarize(model: Model, **given: Any) -> None:
    _compress(verbs.binarize, BINARIZING, model, given, refit=given["refit"])


@verb(OUTPUT, MODE, QUANTIZING, EQUALIZE, WEIGHING, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def quantize(model: Model, **given: Any) -> None:
    instance(WEIGHING.settings, WEIGHING, given)
    ways = {"mode": given["mode"], "equalize": given["equalize"], **taken(WEIGHING, given)}
    _compress(verbs.quantize, QUANTIZING, model, given, **ways)


@verb(OUTPUT, LEARNING, DISTILLING, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def distill(model: Model, **given: Any) -> None:
    check_given(given, model, given["save_plan"], *given["teacher"])
    ways = {"teacher": given["teacher"] or None, "checkpoint": given["checkpoint"]}
    _compress(verbs.distill, DISTILLING, model, given, **ways)


def _compress(function: Callable[..., Result], own: Panel, model: str, given: Given, **ways: Any) -> None:
    """What all of them do: check all that can be checked, run, write the plan and the result."""
    settings = {**taken(own, given), **running(given), **budgets(given)}
    dry, output, plan_file = given["dry_run"], given["output"], given["save_plan"]
    if not dry and output is None:
        raise SettingError("no output is named; give -o small.onnx, or --dry-run to decide only")
    instance(own.settings, own, given)
    check_given(given, model, plan_file)
    with progress(given["quiet"]) as bars:
        result = function(model, data=given["data"], dry=dry, progress=bars, **ways, **settings)
    if plan_file is not None:
        verbs.save_plans(result.plans, plan_file)
    _finish(result, given, None if dry else output)


@verb(OUTPUT, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def apply(
    model: Model, plan: Annotated[str, typer.Argument(help="a file of --save-plan", show_default=False)], **given: Any
) -> None:
    if given["output"] is None:
        raise SettingError("no output is named; give -o small.onnx")
    settings = {**running(given), **budgets(given)}
    check_given(given, model, None, plan)
    with progress(given["quiet"]) as bars:
        result = verbs.apply(model, plan, data=given["data"], progress=bars, **settings)
    _finish(result, given, given["output"])


def _finish(result: Result, given: Given, output: str | None) -> None:
    done = []
    if output is not None:
        result.save(output)
        done.append(f"written to {output}")
    if given.get("save_plan"):
        done.append(f"plan written to {given['save_plan']}")
    show(report_page(result.report), result.report.to_json(), writing(given), done=done)
    gate([verdict.sentence for verdict in result.verdicts if not verdict.met])
