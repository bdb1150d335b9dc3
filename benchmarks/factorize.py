"""Half of the multiply-adds: factors for weights alone, for data, and the plain decompositions, side by side.

    python -m benchmarks.factorize [--models NAME ...] [--tools NAME ...] [--macs 0.5] [--keep]

Peers are what AIMET and tensorly's users do: one decomposition of every convolution, ranks in the same proportion in all layers so
that the whole has the multiply-adds asked for, no data: spatial SVD (its truncated SVD is the best there is), and Tucker-2 by
higher-order SVD; matrices and 1×1 by truncated SVD in both. Ours chooses forms and ranks by layer. Rows named "by the clock" make only
chains that this CPU rewards. Judged on natural samples that no tool saw.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxcompress
from benchmarks import quantize
from benchmarks.cluster import _arrays
from benchmarks.quantize import Case
from benchmarks.quantize_peers import one_line
from benchmarks.written import RESULTS, table, write
from onnxcompress.errors import OnnxCompressError
from onnxcompress.evidence.gather import first_shapes
from onnxcompress.model import Model, load, save
from onnxcompress.operators.cost import macs_by_layer
from onnxcompress.passes import Merge
from onnxcompress.passes.factorize.chain import write as write_chain
from onnxcompress.passes.factorize.forms import FORMS, Form
from onnxcompress.passes.factorize.forms.form import proportional
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.factorize.sites import Site, sites

MODELS = ("ddddocr", "open-nsfw", "ppocr-rec", "ppocr-cls", "ppocr-det", "efficientnet-lite0")
Row = dict[str, Any]


def main() -> int:
    """All models and tools; the page is written anew after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS), metavar="NAME")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--calibration", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing, for one file beside the original")
    parser.add_argument("--keep", action="store_true", help="keep rows of the last page that this run does not replace")
    asked = parser.parse_args()
    for name in asked.models:
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
            case = quantize.opened(
                name, argparse.Namespace(calibration=asked.calibration, emulate_samples=0), Path(folder)
            )
            for tool in asked.tools:
                row = {"model": name, "tool": tool, "asked": asked.macs, **made(case, tool, asked, Path(folder))}
                print(row, flush=True)
                page = RESULTS / "factorize.json"
                rows: list[Row] = json.loads(page.read_text())["rows"] if page.exists() else []
                report([each for each in rows if _key(each) != _key(row)] + [row])
    return 0


def _key(row: Row) -> tuple[str, str, float]:
    return row["model"], row["tool"], row["asked"]


def made(case: Case, tool: str, asked: argparse.Namespace, folder: Path) -> Row:
    """One file, judged and timed; a refusal is a row too."""
    out = folder / "small.onnx"
    start = time.perf_counter()
    try:
        found = TOOLS[tool](case, asked.macs, out)
    except OnnxCompressError as error:
        return {"note": one_line(str(error))}
    found["seconds"] = time.perf_counter() - start
    return {**found, **quantize.judged(case, out), **quantize.timed(case, out, asked.seconds)}


def ours(**ways: Any) -> Callable[[Case, float, Path], Row]:
    """The verb."""

    def run(case: Case, macs: float, out: Path) -> Row:
        result = onnxcompress.factorize(case.given, data=_arrays(case), target_macs=macs, limit=48, **ways)
        result.save(out)
        forms = [each["form"] for plan in result.plans if plan.method == "factorize" for each in plan.decisions]
        counted = ", ".join(f"{forms.count(form)} {form}" for form in dict.fromkeys(forms))
        return {"share": (result.after.macs or 0) / (result.before.macs or 1), "forms": counted}

    return run


def plain(names: Sequence[str]) -> Callable[[Case, float, Path], Row]:
    """One decomposition in all layers, in one proportion, weights alone."""

    def run(case: Case, macs: float, out: Path) -> Row:
        given = load(case.given)
        model = Merge().apply(given, Merge().plan(given, {}))
        shapes = first_shapes(model, case.held)
        whole = sum(macs_by_layer(model, shapes).values())
        chosen = [(site, form) for site in sites(model, [], shapes)[0] if (form := _first(names, site))]
        low, high = 0.02, 1.0
        for _ in range(12):
            share = (low + high) / 2
            left = whole - sum(_saved(site, form, share) for site, form in chosen)
            low, high = (share, high) if left <= macs * whole else (low, share)
        save(_written(model, chosen, low), out)
        left = whole - sum(_saved(site, form, low) for site, form in chosen)
        return {"share": left / whole, "forms": f"{len(chosen)} layers"}

    return run


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


TOOLS: dict[str, Callable[[Case, float, Path], Row]] = {
    "plain spatial SVD": plain(("spatial", "lowrank")),
    "plain Tucker-2": plain(("tucker", "lowrank")),
    "ours, weights": ours(fit="weights", refit=False, pays=0),
    "ours, data": ours(pays=0),
    "ours, data, by the clock": ours(),
}

HEADS = ("model", "tool", "MACs left", "SQNR", "logits", "agree", "task", "speed", "s", "forms")
ABOUT = (
    "*MACs left*: of the whole model. *SQNR*, *logits*: dB at the worst output, probabilities as logits in the second. *agree*: same "
    "decision; *task*: score before → after. *speed*: times as fast as the original, one thread. *s*: of the whole tool; ours with the "
    "comparison that it makes by itself."
)


def report(rows: list[Row]) -> None:
    """One table, models together."""
    order = {name: place for place, name in enumerate(MODELS)}
    ordered = sorted(rows, key=lambda row: (order.get(row["model"], 99), row["asked"], list(TOOLS).index(row["tool"])))
    write(
        "factorize",
        "Factors, tools side by side",
        [ABOUT, table(HEADS, [_cells(row) for row in ordered])],
        {"rows": ordered},
    )


def _cells(row: Row) -> list[str]:
    def number(key: str, digits: int) -> str:
        value = row.get(key)
        return "-" if value is None else f"{value:.{digits}f}"

    task = f"{row['before']:.3f} → {row['after']:.3f}" if "after" in row else "-"
    numbers = (number("share", 2), number("sqnr_db", 1), number("logits_db", 1), number("agreement", 3))
    told = row.get("note", row.get("forms", ""))
    return [row["model"], row["tool"], *numbers, task, number("speed", 2), number("seconds", 0), told]


if __name__ == "__main__":
    sys.exit(main())
