"""A Page: headline, tables and lines, in the order in which they are shown.

terminal.py and markdown.py turn it into text.

What stands in which column is said here once, a function a kind of page; numbers come from the report as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcompress.checkup import Checkup
from onnxcompress.inspection import Inspection
from onnxcompress.judging import Benchmark
from onnxcompress.report import words
from onnxcompress.result import Report

MOST_ROWS = 12
COSTS = {
    "bytes": ("file size", words.size),
    "parameters": ("parameters", words.count),
    "macs": ("multiply-adds", words.count),
}


@dataclass(frozen=True)
class Table:
    """right: names of columns with numbers; more: how many rows were left out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()
    more: int = 0


@dataclass(frozen=True)
class Page:
    """grade: 0 good, 1 look at it, 2 bad; None: neither. lines: (what, sentence)."""

    headline: str
    grade: int | None
    tables: tuple[Table, ...]
    lines: tuple[tuple[str, str], ...]


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str] = (),
    most: int | None = MOST_ROWS,
) -> Table:
    """A table of at most `most` rows, without the columns that are empty in all of them."""
    shown = rows if most is None else rows[:most]
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] != words.UNKNOWN for row in shown)]
    cells = tuple(tuple(row[i] for i in kept) for row in shown)
    return Table(title, tuple(columns[i] for i in kept), cells, frozenset(right), len(rows) - len(shown))


def _filled(tables: Sequence[Table]) -> tuple[Table, ...]:
    """Those with rows."""
    return tuple(each for each in tables if each.rows)


def report_page(report: Report) -> Page:
    """Of a run, or of a comparison."""
    tables = [_costs(report)]
    comparison = report.comparison
    if comparison is not None:
        tables.append(_outputs(comparison))
    if report.verdicts:
        tables.append(_budgets(report.verdicts))
    tables += [_decided(plan) for plan in report.plans if plan["decisions"]]
    lines = [("note", note) for note in dict.fromkeys(report.notes)]
    if comparison is not None:
        score = comparison["score"]
        if score is not None:
            lines.append(("score", f"{score['metric']}: {score['original']:.4g} before, {score['result']:.4g} after"))
        lines += [("note", note) for note in comparison["notes"]]
        lines.append(("data", comparison["data"]))
    lines.append(("time", words.spans(report.seconds)))
    headline = f"the result {report.headline}" if report.plans and comparison is not None else report.headline
    return Page(headline, report.grade, _filled(tables), tuple(lines))


def _costs(report: Report) -> Table:
    rows = []
    for name, (before, after) in report.costs.items():
        title, show = COSTS.get(name, (name, words.count))
        rows.append((title, show(before), show(after), words.times(before, after)))
    columns = ("", "before", "expected" if report.comparison is None else "after", "ratio")
    return table(report.model, columns, rows, columns[1:])


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


def _cut(plan: Mapping[str, Any]) -> Table:
    rows = sorted(plan["decisions"], key=lambda each: -len(each["cut"]))
    cells = [
        (
            each["group"],
            str(len(each["cut"])),
            str(each["of"]),
            words.percent(len(each["cut"]) / each["of"], 0),
            str(len(each["free"])) if each.get("free") else words.UNKNOWN,
        )
        for each in rows
    ]
    return table(
        "cuts: units that go together",
        ("group", "cut", "of", "share", "free"),
        cells,
        ("cut", "of", "share", "free"),
    )


def _refitted(plan: Mapping[str, Any]) -> Table:
    rows = sorted(plan["decisions"], key=lambda each: each["before_db"] - each["after_db"])
    cells = [(each["layer"], words.decibel(each["before_db"]), words.decibel(each["after_db"])) for each in rows]
    return table("refits: SQNR of the layer's output", ("layer", "before", "after"), cells, ("before", "after"))


def _plain(plan: Mapping[str, Any]) -> Table:
    cells = [(", ".join(f"{name} {value}" for name, value in each.items())[:100],) for each in plan["decisions"]]
    return table(plan["method"], ("decision",), cells)


def _equalized(plan: Mapping[str, Any]) -> Table:
    rows = sorted(plan["decisions"], key=lambda each: each["before_db"] - each["after_db"])
    cells = [
        (
            ", ".join(each["written_by"]),
            ", ".join(each["read_by"]),
            str(each["channels"]),
            words.decibel(each["before_db"]),
            words.decibel(each["after_db"]),
        )
        for each in rows
    ]
    columns = ("written by", "read by", "channels", "before", "after")
    return table("channels scaled against each other: SQNR on one grid", columns, cells, columns[2:])


def _quantized(plan: Mapping[str, Any]) -> Table:
    """Layers with weights; where errors were measured one by one, every node that computes."""
    ops = {each["node"]: each["op"] for each in plan["decisions"] if "node" in each}
    alone = {each["node"]: each for each in plan["decisions"] if "node" in each and "alone_db" in each}
    weights = {each["layer"]: each for each in plan["decisions"] if "weight" in each}
    sqnr = {name: each["alone_db"] for name, each in alone.items()} or {n: e["sqnr_db"] for n, e in weights.items()}
    cells = [
        _int8_row(name, ops[name], alone.get(name), weights.get(name)) for name in sorted(sqnr, key=sqnr.__getitem__)
    ]
    most = "bring most error" if alone else "lose most"
    title = f"int8: {len(weights)} weights in {len(ops)} nodes, those that {most} first"
    columns = ("layer", "operator", "SQNR alone", "mostly by", "SQNR of the weight", "lost to portability")
    return table(title, columns, cells, ("SQNR alone", *columns[4:]))


def _int8_row(name: str, op: str, alone: Mapping[str, Any] | None, weight: Mapping[str, Any] | None) -> tuple[str, ...]:
    return (
        name,
        op,
        words.decibel(alone["alone_db"]) if alone else words.UNKNOWN,
        str(alone["mostly"]) if alone else words.UNKNOWN,
        words.decibel(weight["sqnr_db"]) if weight else words.UNKNOWN,
        f"{weight['portable_db']:.1f} dB" if weight and weight["portable_db"] > 0.05 else words.UNKNOWN,
    )


def _weighed(plan: Mapping[str, Any]) -> Table:
    cells = [
        (
            each["weight"],
            each["op"],
            FORMS[each["form"]],
            str(each["bits"]),
            words.decibel(each["sqnr_db"]),
            words.size(each["bytes"][0] - each["bytes"][1]),
        )
        for each in sorted(plan["decisions"], key=lambda each: each["sqnr_db"])
    ]
    columns = ("weight", "operator", "at run time", "bits", "SQNR", "saved")
    return table(f"integer weights: {len(cells)}, those that lose most first", columns, cells, columns[3:])


FORMS = {"dynamic": "multiplied as integers", "run": "read as integers", "load": "floats, rebuilt at load"}
"""What `passes.QuantizeWeights` does with a weight, in words."""

DECISIONS = {
    "prune": _cut,
    "refit": _refitted,
    "equalize": _equalized,
    "quantize": _quantized,
    "quantize-weights": _weighed,
}
"""Method of a plan -> its table."""


def _decided(plan: Mapping[str, Any]) -> Table:
    return DECISIONS.get(plan["method"], _plain)(plan)


def inspection_page(found: Inspection, *, whole: bool = False) -> Page:
    """Of a look at a model; `whole` shows every row."""
    most = None if whole else MOST_ROWS
    facts = [
        ("file size", words.size(found.bytes)),
        ("parameters", words.count(found.parameters)),
        ("multiply-adds", words.count(found.macs) if found.macs is not None else "unknown"),
        ("opset", str(found.opset)),
        ("producer", found.producer),
        *(("input", port) for port in found.inputs),
        *(("output", port) for port in found.outputs),
        ("operators", ", ".join(f"{n} {op}" for op, n in list(found.operators.items())[:MOST_ROWS])),
    ]
    columns = ("layer", "operator", "shape", "bits", "parameters", "MACs", "share")
    layers = [
        (
            each.name,
            each.op,
            words.shape(each.shape),
            str(each.bits),
            words.count(each.parameters),
            words.count(each.macs),
            words.percent(each.share),
        )
        for each in found.layers
    ]
    groups = [
        (each.name, str(each.units), str(each.free) if each.free else words.UNKNOWN, _together(each.members))
        for each in found.groups
    ]
    frozen = [
        (each.name, str(each.channels), each.why, each.by) for each in sorted(found.frozen, key=lambda f: -f.channels)
    ]
    group_columns = ("group", "units", "free", "what goes with them")
    frozen_columns = ("weight", "channels", "why", "by")
    tables = (
        table("model", ("", ""), facts, most=None),
        table("layers", columns, layers, columns[2:], most),
        table("channels that can be cut", group_columns, groups, ("units", "free"), most),
        table("channels that cannot be cut", frozen_columns, frozen, ("channels",), most),
    )
    return Page(found.headline, None, _filled(tables), tuple(("note", note) for note in found.notes))


def _together(members: Sequence[tuple[str, int, str]]) -> str:
    """Who writes a group's channels and who reads them; what lies between (scales, biases) goes along."""
    parts = []
    for role, words_ in (("write", "written by"), ("read", "read by")):
        tensors = list(dict.fromkeys(tensor for tensor, _, own in members if own == role))
        if tensors:
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            parts.append(f"{words_} {tensors[0]}{more}")
    return ", ".join(parts)


def checkup_page(found: Checkup) -> Page:
    """What is wrong with a quantized file, and what to do."""
    rows = [
        (each.kind, "fault" if each.severe else "slow", each.what, ", ".join(each.where[:3]), each.advice)
        for each in found.findings
    ]
    operators = ", ".join(f"{count} {op}" for op, count in sorted(found.operators.items(), key=lambda o: -o[1]))
    lines = (("runs as", operators),) if operators else ()
    grade = 2 if found.severe else 1 if found.findings or not found.quantized else 0
    columns = ("what", "grade", "found", "where", "what to do")
    return Page(found.headline, grade, _filled([table("findings", columns, rows, most=None)]), lines)


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
    return Page(_fastest(found), None, (table("latency of one run", columns, rows, columns[1:], None),), tuple(lines))


def _fastest(found: Benchmark) -> str:
    """The last model beside the first, under the last number of threads."""
    last, first = found.timings[-1], found.timings[0]
    if last.name == first.name:
        return f"{first.name}: {words.milliseconds(first.median_ms)} a run"
    return f"{last.name} runs {last.ratio:.2f} times as fast as {first.name}"
