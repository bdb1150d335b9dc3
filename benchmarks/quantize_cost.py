"""What calibrating and writing int8 costs, beside onnxruntime's quantize_static on the same samples.

    python -m benchmarks.quantize_cost [--models NAME ...] [--methods NAME ...] [--growth NAME] [--keep]

Each run is a process of its own, one thread, whose imports come before the clock. Seconds are CPU seconds of the process
and its children, which a busy machine changes little; of min-max the median of some runs, all tools in turn. Megabytes are
the largest memory above what the imports hold: of the process alone (the system remembers that), or of it and its children
together as seen every few milliseconds (ours reads the model in one, which then ends), whichever is more. Ours does what
quantize_static does: read, calibrate, write. "ours, all" is the verb with the same ranges: it equalizes channels first, and
runs the original and the result on samples that are held out. Models over LARGE get FEW samples, min-max alone, and one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import classic
from benchmarks.quantize import SOURCES, raised
from benchmarks.quantize_peers import COSTED, write_feeds
from benchmarks.written import RESULTS, table, write
from onnxcompress.data import open_data
from onnxcompress.runtime.session import open_session

MODELS = ("ppocr-cls", "ppocr-rec", "minilm", "ddddocr", "resnet50", "bvlc_alexnet", "zfnet512", "vgg19")
METHODS = ("MinMax", "Percentile", "Entropy")
SAMPLES, RUNS = 16, 3
LARGE, FEW = 200 << 20, 4
GROWTH = (16, 64, 256)
PATIENCE = 600
EVERY = 0.02
"""Seconds between two looks at the memory of a process and its children."""

Row = dict[str, Any]


def main() -> int:
    """All models, all tools; the page is written anew after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--growth", default="ppocr-rec", help="model that is given more and more samples")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--runs", type=int, default=RUNS, help="of min-max")
    parser.add_argument("--keep", action="store_true", help="keep the last page's rows that this run does not replace")
    asked = parser.parse_args()
    rows = _last() if asked.keep else []
    tools = [name for name in COSTED if name.rpartition(", ")[2] in asked.methods]
    jobs = [(name, SAMPLES, tools, asked.runs) for name in asked.models]
    jobs += [(asked.growth, count, tools, 1) for count in GROWTH[1:] if asked.growth]
    for name, count, names, runs in jobs:
        for row in measured(name, count, names, runs):
            print(row, flush=True)
            rows = [*(each for each in rows if _key(each) != _key(row)), row]
        report(rows)
    return 0


def measured(name: str, count: int, names: Sequence[str], runs: int) -> list[Row]:
    """One model with so many samples, each tool in a folder of its own: quantize_static leaves files where it is started."""
    kind = "classic" if name in classic.NAMES else "real"
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
        place = Path(folder)
        given, arrays, *_ = SOURCES[kind](name, count, argparse.Namespace())
        if given.stat().st_size > LARGE:
            arrays, count, runs = {key: array[:FEW] for key, array in arrays.items()}, FEW, 1
            names = [each for each in names if each.endswith(METHODS[0])]
        feeds = place / "feeds.npz"
        write_feeds(feeds, list(open_data(arrays, open_session(given, name=name).inputs).batches(1)))
        models = {True: raised(given, place / "raised.onnx"), False: given}
        found: dict[str, list[Row]] = {tool: [] for tool in names}
        for number in range(runs):
            for tool in names if number == 0 else [each for each in names if each.endswith(METHODS[0])]:
                if not any("error" in row for row in found[tool]):
                    found[tool].append(_fresh(tool, models[COSTED[tool].raised], feeds, place))
        size = given.stat().st_size
        return [
            {"model": name, "samples": count, "tool": t, "file": size, **_median(rows)} for t, rows in found.items()
        ]


def _median(rows: Sequence[Row]) -> Row:
    """Of each number; an error where one run had it."""
    failed = next((row for row in rows if "error" in row), None)
    return failed or {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def _fresh(tool: str, model: Path, feeds: Path, place: Path) -> Row:
    own = place / "own"
    own.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.quantize_peers", tool, str(model), str(feeds), str(own / "out.onnx")]
    began, most = time.monotonic(), 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=own, env=_environment()
    ) as running:
        while running.poll() is None:
            most = max(most, _together(running.pid))
            if time.monotonic() - began > PATIENCE:
                running.kill()
                return {"error": f"not done in {PATIENCE} s"}
            time.sleep(EVERY)
        said, failed = running.communicate()
    if running.returncode:
        return {"error": (failed.strip().splitlines() or ["no message"])[-1][:120]}
    told = json.loads(said.splitlines()[-1])
    return {"seconds": told["cpu"], "bytes": max(told["peak"], most) - told["base"], "imports": told["base"]}


def _together(pid: int) -> int:
    """Resident bytes of a process and its children; what they share counts once. 0 where it has no children, or has ended."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return 0
        rollups = [Path(f"/proc/{each}/smaps_rollup").read_text().splitlines() for each in (str(pid), *children)]
    except OSError:
        return 0
    lines = [line.split() for rollup in rollups for line in rollup]
    return sum(int(words[1]) for words in lines if words[0] == "Pss:") * 1024


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return {**os.environ, **one, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


# ---- the page


def report(rows: Sequence[Row]) -> None:
    """results/quantize_cost.md and .json."""
    found = {_key(row): row for row in rows}
    heads = ["model", "MB", "samples", "method", "quantize_static", "ours", "ours, all", "time", "memory"]
    lines = []
    for name, count in dict.fromkeys((row["model"], row["samples"]) for row in rows):
        for method in METHODS:
            three = [found.get((name, count, f"{who}, {method}")) for who in ("quantize_static", "ours", "ours, all")]
            if three == [None] * 3:
                continue
            size = next((f"{row['file'] / 1e6:.1f}" for row in three if row and "file" in row), "-")
            shares = [_share(three[1], three[0], key) for key in ("seconds", "bytes")]
            lines.append([name, size, count, method, *map(_shown, three), *shares])
    told = (
        f"CPU seconds (of MinMax with {SAMPLES} samples the median of up to {RUNS} runs in turn) "
        "/ MB above the imports, children's among both, on a machine that had other work too. "
        "*time*, *memory*: ours over quantize_static's; "
        "the goal is .50 of both. Neither is asked for its own pre-processing apart: it is on the clock of "
        "quantize_static, as our folding is on ours. Imports are on nobody's clock and in nobody's memory here: "
        f"{_imports(rows)}; onnxsim is among ours alone."
    )
    write("quantize_cost", "What calibrating and writing int8 costs", [told, table(heads, lines)], {"rows": list(rows)})


def _shown(row: Row | None) -> str:
    if row is None:
        return "-"
    return row["error"] if "error" in row else f"{row['seconds']:.1f} / {row['bytes'] / 1e6:.0f}"


def _share(one: Row | None, other: Row | None, key: str) -> str:
    if one is None or other is None or key not in one or key not in other:
        return "-"
    return f"{one[key] / other[key]:.2f}"


def _imports(rows: Sequence[Row]) -> str:
    """The most that the imports of either side hold."""
    most: dict[str, int] = {}
    for row in rows:
        who = row["tool"].split(",")[0]
        most[who] = max(most.get(who, 0), row.get("imports", 0))
    return ", ".join(f"{who}'s hold {size / 1e6:.0f} MB" for who, size in most.items())


def _key(row: Row) -> tuple[str, int, str]:
    return row["model"], row["samples"], row["tool"]


def _last() -> list[Row]:
    path = RESULTS / "quantize_cost.json"
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
