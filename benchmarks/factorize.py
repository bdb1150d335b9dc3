"""Half of the multiply-adds of the layers that can be rewritten: factors for weights, for data, plain decompositions, side by side.

    python -m benchmarks.factorize [--models NAME ...] [--tools NAME ...] [--macs 0.5] [--keep] [--clock-only]

Peers are what AIMET and tensorly's users do: one decomposition of every layer, ranks in the same proportion in all layers so that
the whole has the multiply-adds asked for, no data: spatial SVD (its truncated SVD is the best there is), and Tucker-2 by
higher-order SVD; matrices and 1×1 by truncated SVD in both. Ours chooses forms and ranks by layer. Rows named "by the clock" make only
chains that this CPU rewards. Judged on natural samples that no tool saw. Each tool runs in a process of its own; the files that it
wrote stay in the cache's folder, so that --clock-only can time them again on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxcompress
from benchmarks import quantize
from benchmarks.quantize import Case
from benchmarks.quantize_peers import one_line, read_feeds
from benchmarks.written import RESULTS, table, write
from onnxcompress.errors import OnnxCompressError, UnmetError
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.files import cache_folder
from onnxcompress.model import Model, load, save
from onnxcompress.operators.cost import macs_by_layer
from onnxcompress.operators.layer import Shapes
from onnxcompress.passes import Merge
from onnxcompress.passes.factorize.chain import write as write_chain
from onnxcompress.passes.factorize.forms import FORMS, Form
from onnxcompress.passes.factorize.forms.form import proportional
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.factorize.sites import Site, sites
from onnxcompress.runtime.clock import measure
from onnxcompress.runtime.worker import peak_bytes

MODELS = (
    "ddddocr", "ppocr-rec", "open-nsfw", "efficientnet-lite0", "ppocr-cls", "ppocr-det", "minilm", "ddddocr-det", "resnet50",
)  # fmt: skip
HELD_OUT = {
    "ddddocr": 100,
    "ppocr-rec": 200,
    "open-nsfw": 40,
    "efficientnet-lite0": 60,
    "ppocr-cls": 200,
    "ppocr-det": 32,
    "minilm": 420,
    "ddddocr-det": 16,
    "resnet50": 4,
}
"""Samples to judge on. resnet50 has random weights: its row tells time and memory only."""
MUCH, MARGIN = 0.97, 0.02
"""Least share of multiply-adds that is still worth a file; what is asked for above the least, as two measurements of it differ."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What one tool is to do, for a process of its own.

    given, feeds  the model, and samples to calibrate on      out  the file to write      macs  share of the whole model's
    """

    tool: str
    given: str
    feeds: str
    out: str
    macs: float


def main() -> int:
    """All models and tools; the page is written anew after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS), metavar="NAME")
    parser.add_argument("--macs", type=float, default=0.5, help="left, of the layers that can be rewritten")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, for one file beside the original")
    parser.add_argument("--keep", action="store_true", help="keep rows of the last page that this run does not replace")
    parser.add_argument(
        "--clock-only", action="store_true", help="time the files of the last run again; implies --keep"
    )
    asked = parser.parse_args()
    quantize.HELD_OUT.update(HELD_OUT)
    page = RESULTS / "factorize.json"
    rows: list[Row] = json.loads(page.read_text())["rows"] if page.exists() and (asked.keep or asked.clock_only) else []
    for name in asked.models:
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
            case = quantize.opened(
                name, argparse.Namespace(calibration=asked.calibration, emulate_samples=0), Path(folder)
            )
            for tool in asked.tools:
                row: Row = {"model": name, "tool": tool, "asked": asked.macs}
                before = next((each for each in rows if _key(each) == _key(row)), row)
                row = clocked(case, before, asked.seconds) if asked.clock_only else made(case, row, asked.seconds)
                print(row, flush=True)
                rows = [each for each in rows if _key(each) != _key(row)] + [row]
                report(rows)
    return 0


def _key(row: Row) -> tuple[str, str, float]:
    return row["model"], row["tool"], row["asked"]


def _file(row: Row) -> Path:
    folder = cache_folder() / "benchmarks" / "factorize"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{row['model']} {row['tool']} {row['asked']}.onnx"


def clocked(case: Case, row: Row, seconds: float) -> Row:
    """The row with new times; as it is where there is no file."""
    out = _file(row)
    return {**row, **timed(case, out, seconds)} if "share" in row and out.exists() else row


def made(case: Case, row: Row, seconds: float) -> Row:
    """One file, judged and timed; a refusal is a row too."""
    model, shapes = _merged(case)
    whole, mine = sum(macs_by_layer(model, shapes).values()), _rewritable(sites(model, [], shapes)[0])
    out = _file(row)
    target = 1 - (1 - row["asked"]) * mine / whole
    job = Job(row["tool"], str(case.given), str(case.feeds), str(out), target)
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        found = alone.apply(run, (job,))
    row = {**row, **found}
    if "share" not in found:
        return row
    row["share_of_layers"] = 1 - (1 - found["share"]) * whole / mine
    judged = {} if case.name == "resnet50" else quantize.judged(case, out)
    return {**row, **judged, **timed(case, out, seconds)}


def timed(case: Case, out: Path, seconds: float) -> Row:
    """One thread, one sample a run; the original, the same after merging alone, and the file, in turn."""
    merged = case.feeds.with_name("merged.onnx")
    if not merged.exists():
        save(_merged(case)[0], merged)
    files = {"fp32": str(case.given), "merged": str(merged), "file": str(out)}
    one, two, three = measure(files, next(iter(case.held.batches(1))), seconds=seconds, memory=False)
    return {"speed": three.ratio, "merged_speed": two.ratio, "fp32_ms": one.median_ms, "ms": three.median_ms}


def run(job: Job) -> Row:
    """The tool, in a fresh process: what it says of its file, CPU seconds, and the most memory above that of the imports."""
    started, held = time.process_time(), peak_bytes() or 0
    try:
        found = TOOLS[job.tool](job)
    except OnnxCompressError as error:
        return {"note": one_line(str(error))}
    return {**found, "cpu_s": time.process_time() - started, "peak_mb": ((peak_bytes() or 0) - held) / 1e6}


def _merged(case: Case) -> tuple[Model, Shapes]:
    given = load(case.given)
    model = Merge().apply(given, Merge().plan(given, {}))
    return model, run_shapes(model, next(iter(case.held.batches(1))))


def _rewritable(found: Sequence[Site]) -> int:
    return sum(site.macs([site.whole]) or 0 for site in found)


def ours(**ways: Any) -> Callable[[Job], Row]:
    """The verb; where the target is out of reach, the least that is not."""

    def tool(job: Job) -> Row:
        feeds = read_feeds(Path(job.feeds))
        arrays = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        data = None if ways.get("fit") == "weights" else arrays
        target, behind = job.macs, ""
        try:
            result = onnxcompress.factorize(job.given, data=data, target_macs=target, **ways)
        except UnmetError as error:
            if error.least >= MUCH:
                raise
            target, behind = error.least + MARGIN, f"; of {job.macs:.2f} asked this CPU rewards {error.least:.2f}"
            result = onnxcompress.factorize(job.given, data=data, target_macs=target, **ways)
        result.save(Path(job.out))
        plan = next(plan for plan in result.plans if plan.method == "factorize")
        forms = [each["form"] for each in plan.decisions]
        counted = ", ".join(f"{forms.count(form)} {form}" for form in dict.fromkeys(forms))
        declined = sum(refusal.why.startswith("not made: ") for refusal in plan.refusals)
        told = f"{counted}; {declined} declined by the clock" if declined else counted
        return {"share": (result.after.macs or 0) / (result.before.macs or 1), "forms": told + behind}

    return tool


def plain(names: Sequence[str]) -> Callable[[Job], Row]:
    """One decomposition in all layers, in one proportion, weights alone."""

    def tool(job: Job) -> Row:
        given = load(job.given)
        model = Merge().apply(given, Merge().plan(given, {}))
        shapes = run_shapes(model, read_feeds(Path(job.feeds))[0])
        whole = sum(macs_by_layer(model, shapes).values())
        chosen = [(site, form) for site in sites(model, [], shapes)[0] if (form := _first(names, site))]
        low, high = 0.02, 1.0
        for _ in range(12):
            share = (low + high) / 2
            left = whole - sum(_saved(site, form, share) for site, form in chosen)
            low, high = (share, high) if left <= job.macs * whole else (low, share)
        save(_written(model, chosen, low), Path(job.out))
        left = whole - sum(_saved(site, form, low) for site, form in chosen)
        return {"share": left / whole, "forms": f"{len(chosen)} layers"}

    return tool


def _first(names: Sequence[str], site: Site) -> Form | None:
    return next((FORMS[name] for name in names if not FORMS[name].unfit(site.shape)), None)


def _saved(site: Site, form: Form, share: float) -> int:
    ranks = proportional(form, site.shape, form.full(site.shape), share)
    return max(0, (site.macs([site.whole]) or 0) - (site.macs(form.parts(site.shape, ranks)) or 0))


def _written(model: Model, chosen: Sequence[tuple[Site, Form]], share: float) -> Model:
    graph = model.ir.clone()
    for site, form in chosen:
        if not _saved(site, form, share):
            continue
        ranks = proportional(form, site.shape, form.full(site.shape), share)
        factors = form.start(site.shape, site.weight(model.array(site.layer.weight)), ranks, Metric())
        parts = form.parts(site.shape, ranks)
        write_chain(graph, site.layer, site.shape, form.name, parts, form.links(site.shape, factors))
    return model.edited(graph)


TOOLS: dict[str, Callable[[Job], Row]] = {
    "plain spatial SVD": plain(("spatial", "lowrank")),
    "plain Tucker-2": plain(("tucker", "lowrank")),
    "ours, weights": ours(fit="weights", pays=0),
    "ours, data": ours(pays=0),
    "ours, data, by the clock": ours(),
}

HEADS = (
    "model",
    "tool",
    "MACs left",
    "of layers",
    "SQNR",
    "logits",
    "agree",
    "task",
    "time",
    "shown",
    "CPU s",
    "MB",
    "forms",
)
ABOUT = (
    "*MACs left*: of the whole model, and of the layers that can be rewritten (asked: one half of these). *SQNR*, *logits*: dB at the "
    "worst output, probabilities as logits in the second. *agree*: same decision; *task*: score before → after. *time*: of one sample "
    "beside the original's, one thread; *shown*: of the saved multiply-adds, the share that the clock shows, beside the model with norms "
    "merged, since that alone takes 0.70 of ppocr-cls's time. *CPU s*, *MB*: of the whole "
    "tool in a process of its own, memory above the imports; ours with the comparison that it makes by itself. resnet50 has random "
    "weights: its rows tell time and memory only."
)
PUBLISHED = (
    "Published, on other networks: Jaderberg et al. 2014, spatial, fitted to data, scene text: 2.5 times faster at no loss, 4.5 times "
    "under 1 % loss. Zhang et al. 2016, VGG-16: 4 times at 0.3 % top-5 lost, with fine-tuning. Kim et al. 2016, Tucker-2: 1.4 to 3.7 "
    "times measured on a phone, about 50 points lost before fine-tuning. None of the rows here is fine-tuned."
)


def report(rows: list[Row]) -> None:
    """One table, models together."""
    order = {name: place for place, name in enumerate(MODELS)}
    ordered = sorted(rows, key=lambda row: (order.get(row["model"], 99), row["asked"], list(TOOLS).index(row["tool"])))
    write(
        "factorize",
        "Factors, tools side by side",
        [ABOUT, table(HEADS, [_cells(row) for row in ordered]), PUBLISHED],
        {"rows": ordered},
    )


def _cells(row: Row) -> list[str]:
    def number(key: str, digits: int) -> str:
        value = row.get(key)
        return "-" if value is None else f"{value:.{digits}f}"

    task = f"{row['before']:.3f} → {row['after']:.3f}" if "after" in row else "-"
    numbers = [
        number(key, digits) for key, digits in (("share", 2), ("share_of_layers", 2), ("sqnr_db", 1), ("logits_db", 1))
    ]
    clock = ["-", "-"]
    if "speed" in row:
        merged = 1 / row.get("merged_speed", 1.0)
        clock = [f"{1 / row['speed']:.2f}", f"{(1 - 1 / row['speed'] / merged) / (1 - row['share']):.2f}"]
    told = row.get("note", row.get("forms", ""))
    cost = [number("cpu_s", 0), number("peak_mb", 0)]
    return [row["model"], row["tool"], *numbers, number("agreement", 3), task, *clock, *cost, told]


if __name__ == "__main__":
    sys.exit(main())
