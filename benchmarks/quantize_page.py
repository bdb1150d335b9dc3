"""The page of benchmarks/quantize.py: its rows, read back and written as tables."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks import quantize_peak
from benchmarks.quantize_peers import TOOLS
from benchmarks.written import RESULTS, table, write
from onnxcompress.compare import json_safe

NOTHING = "-"
EARLIER = "2026-11-24"  # the run before rows kept dates
OURS = "ours"
DB_APART = 40.0  # what the answers of one file on two CPUs should be apart at least


@dataclass(frozen=True)
class Row:
    """What one tool made of one model; None where it did not come to that.

    runs, loads       the tool wrote a file; stock onnxruntime loads it
    integer           nodes that make, take or compute with integers; 0: the tool changed nothing that matters here
    sqnr_db           of the worst output, held-out samples; logits_db: with probabilities as logits; agreement: share of equal decisions
    before, after     score of the task; error_before, error_after: character error of text readers
    items             that the task was scored on; change_error: standard error of after - before
    speed             time of fp32 / time of the file, median of paired runs; timed: runs of each
    size              bytes / bytes of fp32
    seconds           of the tool's work in a fresh process; peak, base: resident bytes, at its end and after imports
    macs, conv        multiply-adds of one run, and the share of convolutions in them
    products, integers, floats, conversions, held  where the file's time goes (quantize_peak.py), and what takes it
    times_peak        of the CPU's integer units, over fp32; dense, dense_fp32: 1e9 operations a second of one large product
    here_db, there_db, between_db  few samples: SQNR here, on the emulated CPU, and of the one against the other
    judged_at, timed_at  dates of the runs that looked at its answers and at its speed; empty: before dates were kept
    """

    model: str
    tool: str
    runs: bool = False
    loads: bool = False
    integer: int | None = None
    sqnr_db: float | None = None
    logits_db: float | None = None
    agreement: float | None = None
    before: float | None = None
    after: float | None = None
    items: int | None = None
    change_error: float | None = None
    error_before: float | None = None
    error_after: float | None = None
    speed: float | None = None
    fp32_ms: float | None = None
    ms: float | None = None
    timed: int | None = None
    size: float | None = None
    seconds: float | None = None
    peak: int | None = None
    base: int | None = None
    version: str = ""
    here_db: float | None = None
    there_db: float | None = None
    between_db: float | None = None
    macs: int | None = None
    conv: float | None = None
    products: float | None = None
    integers: float | None = None
    floats: float | None = None
    conversions: float | None = None
    held: str = ""
    times_peak: float | None = None
    dense: float | None = None
    dense_fp32: float | None = None
    judged_at: str = ""
    timed_at: str = ""
    note: str = ""


NUMBERS = ("sqnr_db", "logits_db", "here_db", "there_db", "between_db")


def last() -> list[Row]:
    """Rows of the last page."""
    page = RESULTS / "quantize.json"
    rows = json.loads(page.read_text())["rows"] if page.exists() else []
    return [Row(**{**row, **{key: float(row[key]) for key in NUMBERS if row[key] is not None}}) for row in rows]


def with_row(rows: Sequence[Row], row: Row) -> list[Row]:
    """The row in the place of the one of the same model and tool; models in order of coming up, tools as in TOOLS."""
    places = {model: place for place, model in enumerate(dict.fromkeys([*(each.model for each in rows), row.model]))}
    tools = {tool: place for place, tool in enumerate(TOOLS)}
    others = [each for each in rows if (each.model, each.tool) != (row.model, row.tool)]
    return sorted([*others, row], key=lambda each: (places[each.model], tools.get(each.tool, len(tools))))


ABOUT = (
    "{calibration} calibration samples, the same for every tool (ours holds a quarter of them out by itself), in a fresh "
    "process each; figures are of other samples. *Quantized*: files that load and have any "
    "integer node. Static peers: QDQ, per channel, uint8 activations, int8 weights where "
    "the tool lets one choose; *7 bits* is onnxruntime's reduce_range. All but *as given* and ours get the file raised "
    "to opset 17 by onnx's converter where it is older, not on the clock; onnxruntime's own pre-processing is on it, "
    "NNCF gets its result for nothing (it folds no BatchNormalization itself). *SQNR*: of the worst output, dB; "
    "*logits*: likewise, probabilities as logits, so that saturated ones flatter nobody. "
    "*Agree*: same decision. *Task*: score before → after, on so many items, ± the standard error of the change (jackknife over "
    "20 parts of them, both models on the same ones): of two tools less than twice that apart neither is known to be the better. "
    "*Char. error*: of text readers, likewise. *Speed*: time of "
    "fp32 / time of the file, one thread, one sample, median of paired runs in turn. *Size*: of the file, share of "
    "fp32's. *s*, *MB*: time and largest resident memory of the tool's process (in brackets: above the imports). Ours "
    "also compares both models within that time. {emulated}Peers' versions: {versions}."
)
EMULATED = (
    "*Other CPU*: the same file on an emulated CPU, SQNR of logits there against fp32 here, and (in brackets) against "
    "the same file here, on a few samples. "
)


def report(rows: Sequence[Row], calibration: int) -> None:
    """results/quantize.md and .json."""
    emulated = any(row.there_db is not None for row in rows)
    versions = sorted({f"{TOOLS[row.tool].package} {row.version}" for row in rows if row.version and row.tool in TOOLS})
    about = ABOUT.format(
        calibration=calibration, emulated=EMULATED if emulated else "", versions=", ".join(versions) or "none"
    )
    parts = [about, "## Tools", table(TOOL_HEADS, tools(rows)), "## Models", table(MODEL_HEADS, models(rows))]
    reached = quantize_peak.section(rows, OURS)
    if reached is not None:
        told, lines = reached
        parts += ["## Share of the integer peak", told, table(quantize_peak.HEADS, lines)]
    for model in dict.fromkeys(row.model for row in rows):
        heads = [*HEADS[:-1], "other CPU", HEADS[-1]] if emulated else HEADS
        parts += [f"### {model}", table(heads, [shown(row, emulated) for row in rows if row.model == model])]
    write("quantize", "int8 tools side by side", parts, {"rows": json_safe([asdict(row) for row in rows])})


TOOL_HEADS = (
    "tool", "models", "wrote a file", "loads", "quantized", "median logits dB", "slower than fp32", "median speed",
    "same to 40 dB on the other CPU",
)  # fmt: skip


def tools(rows: Sequence[Row]) -> list[list[str]]:
    """One line a tool, over all of its models; medians and speeds of files that load and are quantized at all."""
    lines = []
    for tool in dict.fromkeys([*TOOLS, *(row.tool for row in rows)]):
        mine = [row for row in rows if row.tool == tool]
        if not mine:
            continue
        useful = [row for row in mine if row.loads and row.integer != 0]
        speeds = [row.speed for row in useful if row.speed is not None]
        apart = [row.between_db >= DB_APART for row in useful if row.between_db is not None]
        counts = [len(mine), sum(row.runs for row in mine), sum(row.loads for row in mine), len(useful)]
        lines.append([
            tool, *map(str, counts), number(_median([row.logits_db for row in useful]), 1),
            f"{sum(speed < 1 for speed in speeds)} of {len(speeds)}", number(_median(speeds), 2),
            f"{sum(apart)} of {len(apart)}" if apart else NOTHING,
        ])  # fmt: skip
    return lines


MODEL_HEADS = (
    "model",
    "best peer logits dB",
    "by",
    "ours",
    "fastest peer",
    "by",
    "ours",
    "best peer task",
    "ours",
    "items",
)


def models(rows: Sequence[Row]) -> list[list[str]]:
    """One line a model: the best of the peers' quantized files that load, in each discipline, beside ours.

    Ours may compute in float where the clock said so: that is its answer, and what a user gets.
    """
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model and row.loads]
        peers = [row for row in mine if not row.tool.startswith(OURS) and row.integer != 0]
        own = [row for row in mine if row.tool == OURS]
        (faithful, its), (fastest, time) = _best(peers, "logits_db"), _best(peers, "speed")
        right = max(
            (row for row in peers if row.after is not None), key=lambda row: row.after or 0.0, default=Row(model, "")
        )
        our = own[0] if own else Row(model, OURS)
        items = dict.fromkeys(str(row.items) for row in (right, our) if row.items is not None)
        computes = " (in float)" if our.integer == 0 else ""
        lines.append([
            model, number(its, 1), faithful, number(our.logits_db, 1) + computes, number(time, 2), fastest, number(our.speed, 2),
            scored(right), scored(our), " and ".join(items) or NOTHING,
        ])  # fmt: skip
    return lines


HEADS = ("tool", "loads", "SQNR dB", "logits dB", "agree", "task", "char. error", "speed", "size", "s", "MB", "note")


def shown(row: Row, emulated: bool) -> list[str]:
    """The row as cells."""
    loads = ("yes" if row.loads else "no") if row.runs else "no file"
    memory = (
        NOTHING if row.peak is None or row.base is None else f"{row.peak / 1e6:.0f} ({(row.peak - row.base) / 1e6:.0f})"
    )
    cells = [
        row.tool, loads, number(row.sqnr_db, 1), number(row.logits_db, 1), number(row.agreement, 3), scored(row),
        pair(row.error_before, row.error_after, 4), number(row.speed, 2), number(row.size, 2), number(row.seconds, 1),
        memory,
    ]  # fmt: skip
    if emulated:
        cells.append(NOTHING if row.there_db is None else f"{number(row.there_db, 1)} ({number(row.between_db, 1)})")
    return [*cells, "; ".join(filter(None, [row.note.replace("|", "/"), apart(row)]))]


def apart(row: Row) -> str:
    """That answers and speed are of two runs, where they are of different days."""
    if row.judged_at == row.timed_at or row.sqnr_db is None or row.speed is None:
        return ""
    return f"answers of {row.judged_at or EARLIER}, speed of {row.timed_at or EARLIER}"


def number(value: float | None, digits: int) -> str:
    """With that many digits; inf as such."""
    if value is None or math.isnan(value):
        return NOTHING
    return "inf" if math.isinf(value) else f"{value:.{digits}f}"


def scored(row: Row) -> str:
    """Score before → after, ± the standard error of the change where it is known."""
    told = pair(row.before, row.after)
    return told if row.change_error is None or told == NOTHING else f"{told} ± {row.change_error:.3f}"


def pair(before: float | None, after: float | None, digits: int = 3) -> str:
    """before → after."""
    return NOTHING if before is None or after is None else f"{before:.{digits}f} → {after:.{digits}f}"


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _best(rows: Sequence[Row], figure: str) -> tuple[str, float | None]:
    """Tool and number of the row in which that figure is largest."""
    known = [(getattr(row, figure), row.tool) for row in rows if getattr(row, figure) is not None]
    value, tool = max(known, key=lambda each: each[0], default=(None, NOTHING))
    return tool, value
