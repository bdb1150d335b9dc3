"""The verbs of the command line. Each parses, calls the function of the same name, and prints."""

from __future__ import annotations

import inspect as signatures
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import onnxcompress
from onnxcompress import judging, packing, verbs
from onnxcompress.checkup import check as checked
from onnxcompress.cli.common import (
    BUDGETING,
    FEEDING,
    IMAGES,
    JUDGING,
    OUTPUT,
    TRAINING,
    WRITING,
    Feeding,
    Judging,
    Writing,
)
from onnxcompress.cli.options import Option, instance, taken
from onnxcompress.cli.output import check_outputs, progress, show
from onnxcompress.cli.panels import (
    ALL_ROWS,
    BENCH_DATA,
    BINARIZING,
    CLUSTERING,
    DECIDING,
    DISTILLING,
    EQUALIZE,
    FACTORIZING,
    INSPECT_DATA,
    LEARNING,
    LOOKING,
    MERGING,
    MODE,
    PACKING,
    PLANNING,
    PRUNING,
    QUANTIZING,
    REFIT,
    SHOW_FORMS,
    SPARSIFYING,
    TIMING,
    WEIGHING,
    WHOLE,
)
from onnxcompress.data import ImageSettings
from onnxcompress.errors import BudgetError, OnnxCompressError, SettingError
from onnxcompress.inspection import inspect as inspected
from onnxcompress.methods.distill import Distill
from onnxcompress.passes.binarize.binarize import Binarize
from onnxcompress.passes.cluster.cluster import Cluster
from onnxcompress.passes.factorize.factorize import Factorize
from onnxcompress.passes.merge.merge import Merge
from onnxcompress.passes.prune.prune import Prune
from onnxcompress.passes.prune.sparsify import Sparsify
from onnxcompress.passes.quantize.quantize import Quantize
from onnxcompress.passes.quantize.weights_only import QuantizeWeights
from onnxcompress.report import benchmark_page, checkup_page, inspection_page, packing_page, report_page
from onnxcompress.result import Result
from onnxcompress.training.builder.place import PACKAGE, VERSION, folder_of, set_up

DONE, MISSED, BAD, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Make any exported ONNX model smaller and faster on CPU, and see on onnxruntime what it costs.",
)

Given = dict[str, Any]
Model = Annotated[str, typer.Argument(help="an .onnx file", show_default=False)]


def verb(*options: Option | Sequence[Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function (arguments, **given) as a verb with these options."""
    flat = [each for part in options for each in ([part] if isinstance(part, Option) else part)]

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = [
            p for p in signatures.signature(function, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD
        ]
        parameters = [*own, *(option.parameter() for option in flat)]

        def command(**given: Any) -> None:
            function(**given)

        command.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(function.__name__.replace("_", "-"), help=signatures.getdoc(function))(command)
        return function

    return register


@verb(OUTPUT, PRUNING, PLANNING, TRAINING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def prune(model: Model, **given: Any) -> None:
    """Remove whole channels, repair what is left, train it where asked, and compare the result with the original."""
    ways = {**{name: given[name] for name in ("refit", "rounds", "largest")}, **taken(TRAINING, given)}
    _compress(verbs.prune, Prune, PRUNING, model, given, **ways)


@verb(OUTPUT, SPARSIFYING, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def sparsify(model: Model, **given: Any) -> None:
    """Set single weights to zero; the file gets smaller only with an encoding that stores zeros well."""
    _compress(verbs.sparsify, Sparsify, SPARSIFYING, model, given)


@verb(OUTPUT, CLUSTERING, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def cluster(model: Model, **given: Any) -> None:
    """Store weights as indices into small codebooks: a file of a seventh, which runs as fast as before once it is loaded."""
    _compress(verbs.cluster, Cluster, CLUSTERING, model, given)


@verb(OUTPUT, MERGING, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def merge(model: Model, **given: Any) -> None:
    """Merge linear layers that stand side by side (norms, branches, chains) where one costs less; the outputs stay the same."""
    _compress(verbs.merge, Merge, MERGING, model, given)


@verb(OUTPUT, FACTORIZING, REFIT, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def factorize(model: Model, **given: Any) -> None:
    """Layers become chains of smaller ones (low rank, Tucker, spatial, depthwise separable), where that is faster on this CPU."""
    _compress(verbs.factorize, Factorize, FACTORIZING, model, given, refit=given["refit"])


@verb(OUTPUT, BINARIZING, REFIT, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def binarize(model: Model, **given: Any) -> None:
    """One bit a weight, three values, or sums of such terms; without training much accuracy is lost, and the report says how much."""
    _compress(verbs.binarize, Binarize, BINARIZING, model, given, refit=given["refit"])


@verb(OUTPUT, MODE, QUANTIZING, EQUALIZE, WEIGHING, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def quantize(model: Model, **given: Any) -> None:
    """int8 weights and activations, where that is faster on this CPU, in a file that answers the same on every other."""
    instance(QuantizeWeights, WEIGHING, given)
    ways = {"mode": given["mode"], "equalize": given["equalize"], **taken(WEIGHING, given)}
    _compress(verbs.quantize, Quantize, QUANTIZING, model, given, **ways)


@verb(OUTPUT, LEARNING, DISTILLING, DECIDING, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def distill(model: Model, **given: Any) -> None:
    """Fine-tune a compressed model until it answers like the one that it was made from; labels are not needed, but may help."""
    _check(given, model, given["save_plan"], *given["teacher"])
    ways = {"teacher": given["teacher"] or None, "checkpoint": given["checkpoint"]}
    _compress(verbs.distill, Distill, DISTILLING, model, given, **ways)


def _compress(
    function: Callable[..., Result], settings_of: type, own: Sequence[Option], model: str, given: Given, **ways: Any
) -> None:
    """What every verb that makes a smaller model does: check all that can be checked, run, write the plan and the result."""
    settings = {**taken(own, given), **_running(given), **_budgets(given)}
    dry, output, plan_file = given["dry_run"], given["output"], given["save_plan"]
    if not dry and output is None:
        raise SettingError("no output is named; give -o small.onnx, or --dry-run to decide only")
    instance(settings_of, own, given)
    _check(given, model, plan_file)
    with progress(given["quiet"]) as bars:
        result = function(model, data=given["data"], dry=dry, progress=bars, **ways, **settings)
    if plan_file is not None:
        verbs.save_plans(result.plans, plan_file)
    _finish(result, given, None if dry else output)


@verb(OUTPUT, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def apply(
    model: Model, plan: Annotated[str, typer.Argument(help="a file of --save-plan", show_default=False)], **given: Any
) -> None:
    """Carry out a saved plan on the model that it was made for."""
    if given["output"] is None:
        raise SettingError("no output is named; give -o small.onnx")
    settings = {**_running(given), **_budgets(given)}
    _check(given, model, None, plan)
    with progress(given["quiet"]) as bars:
        result = verbs.apply(model, plan, data=given["data"], progress=bars, **settings)
    _finish(result, given, given["output"])


@verb(WHOLE, FEEDING, JUDGING, BUDGETING, WRITING, IMAGES)
def compare(
    original: Model,
    result: Annotated[str, typer.Argument(help="the .onnx file to judge", show_default=False)],
    **given: Any,
) -> None:
    """Run two models on the same inputs and compare what they answer."""
    settings = {**_running(given), **_budgets(given)}
    _check(given, original, None, result)
    with progress(given["quiet"]) as bars:
        report = judging.compare_report(
            original, result, data=given["data"], whole=given["whole"], progress=bars, **settings
        )
    show(report_page(report), report.to_json(), _writing(given))
    _gate([verdict["sentence"] for verdict in report.verdicts if not verdict["met"]])


@verb(LOOKING, SHOW_FORMS, INSPECT_DATA, ALL_ROWS, WRITING, IMAGES)
def inspect(model: Model, **given: Any) -> None:
    """Show what a model is made of, what can be cut, and which operator froze the rest."""
    _check(given, model, None)
    images = instance(ImageSettings, IMAGES, given)
    ways = {name: given[name] for name in ("data", "inexact", "inner", "forms")}
    found = inspected(model, images=images, **ways)
    show(inspection_page(found, whole=given["all_rows"]), found.to_json(), _writing(given))


@verb(INSPECT_DATA, WRITING)
def check(model: Model, **given: Any) -> None:
    """Find what is wrong with a quantized file: does it load, do its nodes fuse, does it answer the same on every CPU."""
    _check(given, model, None)
    found = checked(model, data=given["data"])
    show(checkup_page(found), found.to_json(), _writing(given))
    _gate([f"{each.what}; {each.advice}" for each in found.findings if each.severe])


@verb(TIMING, BENCH_DATA, WRITING, IMAGES)
def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(help=".onnx files; the first is what the others are compared with", show_default=False),
    ],
    **given: Any,
) -> None:
    """Time models on this CPU, interleaved: latency, load time, memory, file size."""
    _check(given, models[0], None, *models[1:])
    images = instance(ImageSettings, IMAGES, given)
    ways = {name: given[name] for name in ("data", "threads", "seconds", "batch", "limit", "seed")}
    with progress(given["quiet"]) as bars:
        found = judging.benchmark(*models, images=images, progress=bars, **ways)
    show(benchmark_page(found), found.to_json(), _writing(given))


@verb(OUTPUT, PACKING, ALL_ROWS, WRITING)
def pack(model: Model, **given: Any) -> None:
    """Write a model as one packed file (.onnxz), smaller than any zip of it; unpack gives back the same bytes."""
    output = given["output"]
    if output is None:
        raise SettingError("no output is named; give -o small.onnxz")
    _check(given, model, None)
    with progress(given["quiet"]) as bars:
        done = packing.pack(model, output, entropy=given["entropy"], peers=given["peers"], progress=bars)
    page = packing_page(done, whole=given["all_rows"])
    show(page, done.to_json(), _writing(given), done=[f"written to {output}"])


@verb(OUTPUT)
def unpack(packed: Annotated[str, typer.Argument(help="a file of pack", show_default=False)], **given: Any) -> None:
    """Write the model that was packed, byte for byte, with its external data."""
    if given["output"] is None:
        raise SettingError("no output is named; give -o model.onnx")
    check_outputs([given["output"]], [packed])
    for path in packing.unpack(packed, given["output"]):
        print(f"written to {path}")


@verb()
def setup_training(
    wheel: Annotated[str | None, typer.Option(help="the .whl file, where there is no network")] = None,
    folder: Annotated[str | None, typer.Option("--dir", help="where to; default in the cache folder")] = None,
    **given: Any,
) -> None:
    """Put onnxruntime-training beside the stock onnxruntime, as a second source of gradients for distill --gradients."""
    print(f"{PACKAGE} {VERSION} works, in {set_up(folder_of(folder), wheel)}")


def _running(given: Given) -> Given:
    """Fields of `run.How`, checked."""
    feeding, judging = instance(Feeding, FEEDING, given), instance(Judging, JUDGING, given)
    ways = {name: value for name, value in {**vars(feeding), **vars(judging)}.items() if name != "data"}
    return {**ways, "images": instance(ImageSettings, IMAGES, given)}


def _budgets(given: Given) -> Given:
    return {option.name: given[option.name] for option in BUDGETING if given[option.name] is not None}


def _check(given: Given, model: str, plan_out: str | None, *more: str) -> None:
    """All outputs against all inputs, before any work."""
    writing = _writing(given)
    inputs = [model, *more, given.get("data"), given.get("labels")]
    check_outputs([given.get("output"), writing.json, writing.html, writing.junit, plan_out], inputs)


def _writing(given: Given) -> Writing:
    found: Writing = instance(Writing, WRITING, given)
    return found


def _finish(result: Result, given: Given, output: str | None) -> None:
    """Save, show, and fail on a missed budget after that."""
    done = []
    if output is not None:
        result.save(output)
        done.append(f"written to {output}")
    if given.get("save_plan"):
        done.append(f"plan written to {given['save_plan']}")
    show(report_page(result.report), result.report.to_json(), _writing(given), done=done)
    _gate([verdict.sentence for verdict in result.verdicts if not verdict.met])


def _gate(missed: Sequence[str]) -> None:
    if missed:
        raise BudgetError("\n".join(missed))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        print(onnxcompress.__version__)
        raise typer.Exit(DONE)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``onnxcompress``: one line on stderr for whatever goes wrong, and the exit code."""
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # what it warns of in a damaged model, our own error says
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    """0 done, 1 budget missed, 2 bad input or usage, 130 interrupted."""
    try:
        code = app(args=arguments, prog_name="onnxcompress", standalone_mode=False)
        return code if isinstance(code, int) else DONE
    except BudgetError as error:
        for line in str(error).splitlines():
            print(f"budget missed: {line}", file=sys.stderr)
        return MISSED
    except (OnnxCompressError, typer.TyperException) as error:
        return _say(error.format_message() if isinstance(error, typer.TyperException) else str(error))
    except BrokenPipeError:  # the reader of our output went away: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        return _say(f"{error.filename or 'the system'}: {error.strerror or error}; free space or choose another place")
    except MemoryError:
        return _say("out of memory; give fewer samples (--limit), or a machine with more")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _say(message: str) -> int:
    print(f"error: {' '.join(message.split()) or 'give a verb; see onnxcompress --help'}", file=sys.stderr)
    return BAD
