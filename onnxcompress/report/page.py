"""A Page: headline, tables and lines, in the order in which they are shown.

terminal.py, markdown.py, html.py and junit.py turn it into text.

What stands in which column is said here once, a function a kind of page; numbers come from the report as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcompress.report import words
from onnxcompress.report.decided import charts, decided
from onnxcompress.report.parts import MOST_ROWS, Case, Page, Table, filled, table
from onnxcompress.result import Report

if TYPE_CHECKING:
    from onnxcompress.checkup import Checkup
    from onnxcompress.inspection import FormLine, FrozenLine, Inspection
    from onnxcompress.judging import Benchmark
    from onnxcompress.packing import Packing

COSTS = {
    "bytes": ("file size", words.size),
    "parameters": ("parameters", words.count),
    "macs": ("multiply-adds", words.count),
}


def report_page(report: Report) -> Page:
    """Of a run, or of a comparison."""
    tables = [_costs(report)]
    comparison = report.comparison
    if comparison is not None:
        tables.append(_outputs(comparison))
    if report.verdicts:
        tables.append(_budgets(report.verdicts))
    tables += [decided(plan) for plan in report.plans if plan["decisions"]]
    lines = [("note", note) for note in dict.fromkeys(report.notes)]
    if comparison is not None:
        score = comparison["score"]
        if score is not None:
            lines.append(("score", f"{score['metric']}: {score['original']:.4g} before, {score['result']:.4g} after"))
        lines += [("note", note) for note in comparison["notes"]]
        lines.append(("data", comparison["data"]))
    lines.append(("time", words.spans(report.seconds)))
    headline = f"the result {report.headline}" if report.plans and comparison is not None else report.headline
    shown = [chart for plan in report.plans for chart in charts(plan)]
    cases = [Case(each["name"], "" if each["met"] else each["sentence"], each["sentence"]) for each in report.verdicts]
    return Page(
        Path(report.model).name,
        headline,
        report.grade,
        filled(tables),
        tuple(lines),
        tuple(shown),
        tuple(cases) or (Case("answers", more=headline),),
    )


def _costs(report: Report) -> Table:
    rows = []
    for name, (before, after) in report.costs.items():
        title, show = COSTS.get(name, (name, words.count))
        rows.append((title, show(before), show(after), words.times(before, after)))
    columns = ("", "before", "expected" if report.comparison is None else "after", "ratio")
    return replace(table(report.model, columns, rows, columns[1:]), form="tiles")


def _outputs(comparison: Mapping[str, Any]) -> Table:
    rows = [
        (
            out["name"],
            decibel_of(out),
            words.number(out["cosine"], 5),
            words.number(out["max_abs"]),
            words.percent(out["agreement"]),
            words.percent(out["exact"]),
        )
        for out in comparison["outputs"]
    ]
    columns = ("output", "SQNR", "cosine", "max abs error", "agreement", "exact sequences")
    return table("outputs beside the original's", columns, rows, columns[1:])


def decibel_of(out: Mapping[str, Any]) -> str:
    """SQNR, or what stands in its way."""
    return f"{out['not_finite']} not finite" if out["not_finite"] else words.decibel(out["sqnr_db"])


def _budgets(verdicts: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (each["name"], words.number(each["wanted"]), words.number(each["got"]), "met" if each["met"] else "MISSED")
        for each in verdicts
    ]
    return table("budgets", ("budget", "wanted", "found", ""), rows, ("wanted", "found"))


def inspection_page(found: Inspection, *, whole: bool = False) -> Page:
    """Of a look at a model; `whole` shows every row."""
    most = None if whole else MOST_ROWS
    facts = [
        ("file size", words.size(found.bytes)),
        ("parameters", words.count(found.parameters)),
        ("multiply-adds", words.count(found.macs) if found.macs is not None else "unknown"),
        *([] if found.coded_bits is None else [("coded weights", f"{found.coded_bits:.3g} bits each")]),
        ("opset", str(found.opset)),
        ("producer", found.producer),
        *(("input", port) for port in found.inputs),
        *(("output", port) for port in found.outputs),
        ("operators", ", ".join(f"{n} {op}" for op, n in list(found.operators.items())[:MOST_ROWS])),
    ]
    columns = ("layer", "operator", "shape", "stored as", "bits", "parameters", "MACs", "share")
    layers = [
        (
            each.name,
            each.op,
            words.shape(each.shape),
            each.encoding or words.UNKNOWN,
            f"{each.bits:.3g}",
            words.count(each.parameters),
            words.count(each.macs),
            words.percent(each.share),
        )
        for each in found.layers
    ]
    groups = [
        (each.name, str(each.units), str(each.free) if each.free else words.UNKNOWN, _together(each.name, each.members))
        for each in found.groups
    ]
    frozen = _frozen(found.frozen, whole)
    group_columns = ("group", "units", "free", "what goes with them")
    frozen_columns = ("weight", "channels", "why", "by")
    tables = (
        table("model", ("", ""), facts, most=None),
        *([_forms_table(found.forms, most)] if found.forms else []),
        table("layers", columns, layers, columns[4:], most, [(each.share or 0.0,) for each in found.layers]),
        table("channels that can be cut", group_columns, groups, ("units", "free"), most),
        table("channels that cannot be cut", frozen_columns, frozen, ("channels",), most),
    )
    notes = tuple(("note", note) for note in found.notes)
    title = Path(found.name).name
    return Page(title, found.headline, None, filled(tables), notes, cases=(Case("inspect", more=found.headline),))


def _forms_table(forms: Sequence[FormLine], most: int | None) -> Table:
    """What each layer could become at about half of its weights."""
    rows = [
        (
            each.layer,
            each.form,
            each.formula,
            " ".join(map(str, each.ranks)),
            *(f"{number:,}" for number in each.parameters),
            *((words.UNKNOWN, words.UNKNOWN) if each.macs is None else map(words.count, each.macs)),
        )
        for each in forms
    ]
    columns = ("layer", "form", "parameters as a formula", "ranks", "parameters", "left", "MACs", "left")
    title = "forms: groups g, outs o and ins i of a group, k = a·b taps, then ranks"
    return table(title, columns, rows, columns[3:], most)


def _together(name: str, members: Sequence[tuple[str, int, str]]) -> str:
    """Who else writes a group's channels than the tensor that it is called after, and who reads them; what lies between goes along."""
    parts = []
    for role, words_ in (("write", "written by"), ("read", "read by")):
        tensors = list(dict.fromkeys(tensor for tensor, _, own in members if own == role))
        others = [tensor for tensor in tensors if tensor != name] if role == "write" else tensors
        if others:
            parts.append(f"{'also ' if len(others) < len(tensors) else ''}{words_} {words.names(others, 1)}")
    return ", ".join(parts) or f"written by {name}"


def _frozen(found: Sequence[FrozenLine], whole: bool) -> list[tuple[str, str, str, str]]:
    """Rows of weight, channels, why and by: one a weight, or one a reason with the most channels first."""
    if whole:
        return [(each.name, str(each.channels), each.why, each.by) for each in found]
    reasons: dict[tuple[str, str], list[FrozenLine]] = {}
    for each in found:
        reasons.setdefault((each.why, each.by), []).append(each)
    counted = sorted(((sum(e.channels for e in own), own) for own in reasons.values()), key=lambda pair: -pair[0])
    names = [list(dict.fromkeys(each.name for each in own)) for _, own in counted]
    return [
        (words.names(each, 1), str(total), own[0].why, own[0].by)
        for each, (total, own) in zip(names, counted, strict=True)
    ]


def checkup_page(found: Checkup) -> Page:
    """What is wrong with a quantized file, and what to do."""
    rows = [(each.kind, each.grade, each.what, ", ".join(each.where[:3]), each.advice) for each in found.findings]
    operators = ", ".join(f"{count} {op}" for op, count in sorted(found.operators.items(), key=lambda o: -o[1]))
    lines = (("runs as", operators),) if operators else ()
    grade = 2 if found.severe else 1 if found.findings or not (found.quantized or found.stored) else 0
    columns = ("what", "grade", "found", "where", "what to do")
    cases = [
        Case(each.kind, f"{each.what}; {each.advice}" if each.severe else "", f"{each.what}; {each.advice}")
        for each in found.findings
    ]
    tables = filled([table("findings", columns, rows, most=None)])
    told = tuple(cases) or (Case("check", more=found.headline),)
    return Page(Path(found.name).name, found.headline, grade, tables, lines, cases=told)


def benchmark_page(found: Benchmark) -> Page:
    """Of timings; the number of threads has a column where there are several."""
    several = len({each.threads for each in found.timings}) > 1
    columns = ("model", "threads", "median", "p10-p90", "faster", "load", "peak", "file")
    rows = [
        (
            each.name,
            str(each.threads) if several else words.UNKNOWN,
            words.milliseconds(each.median_ms),
            f"{words.milliseconds(each.p10_ms)}-{words.milliseconds(each.p90_ms)}",
            f"{each.ratio:.2f}x",
            words.milliseconds(each.load_ms),
            words.size(each.peak_bytes),
            words.size(each.file_bytes),
        )
        for each in found.timings
    ]
    first = found.timings[0]
    runs = f"{first.runs} of each model, interleaved" + ("" if several else f", {first.threads} thread(s)")
    lines = [("runs", runs), ("cpu", found.cpu), ("data", found.data), *(("note", note) for note in found.notes)]
    lines.append(("peak", "memory of a fresh process that loads and runs the model"))
    bars = [(each.median_ms,) for each in found.timings]
    shown = table("latency of one run", columns, rows, columns[1:], None, bars)
    headline = _fastest(found)
    return Page(
        Path(first.name).name, headline, None, (shown,), tuple(lines), cases=(Case("benchmark", more=headline),)
    )


def _fastest(found: Benchmark) -> str:
    """The last model beside the first, under the last number of threads."""
    last, first = found.timings[-1], found.timings[0]
    if last.name == first.name:
        return f"{first.name}: {words.milliseconds(first.median_ms)} a run"
    return f"{last.name} runs {last.ratio:.2f} times as fast as {first.name}"


def packing_page(found: Packing, *, whole: bool = False) -> Page:
    """What each tensor takes in a packed file, the largest first, beside its entropy and other codes."""
    rows = [
        (
            each.name,
            each.type or words.UNKNOWN,
            words.shape(each.shape) if each.shape else words.UNKNOWN,
            words.size(each.before),
            words.size(each.after),
            f"{each.bits:.3f}",
            *(words.UNKNOWN if bits is None else f"{bits:.3f}" for bits in (each.entropy, each.gzip, each.zstd)),
            each.form,
        )
        for each in sorted(found.lines, key=lambda line: -line.after)
    ]
    columns = (
        "tensor",
        "type",
        "shape",
        "before",
        "packed",
        "bits a value",
        "entropy",
        "gzip -9",
        "zstd -19",
        "stored as",
    )
    lines = [("code", found.coder)]
    if found.bits is not None and found.entropy is not None:
        share = f", {found.bits / found.entropy:.4f} of it" if found.entropy else ""
        lines.append(
            (
                "symbols",
                f"{found.bits:.4f} bits a value with everything around them; entropy {found.entropy:.4f}{share}",
            )
        )
    shown = table("tensors", columns, rows, columns[3:9], None if whole else MOST_ROWS)
    name = Path(found.model).name
    return Page(name, found.headline, None, (shown,), tuple(lines), cases=(Case("pack", more=found.headline),))
