"""What calibrating and writing int8 costs, beside onnxruntime's quantize_static on the same samples.

    python -m benchmarks.quantize_cost [--models NAME ...] [--growth NAME] [--keep]

Each run is a process of its own, one thread, whose imports come before the clock. Seconds are CPU seconds of the process and its
children, which a busy machine changes little; megabytes are the largest resident memory above what the imports hold, and what
running children hold for themselves (ours loads in one, and keeps it). Ours does what quantize_static does: read, calibrate,
write. "ours, all" is the verb with the same ranges: it equalizes channels first, and runs the original and the result on samples
that are held out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quantize import SOURCES, raised
from benchmarks.quantize_peers import COSTED, write_feeds
from benchmarks.written import RESULTS, table, write
from onnxcompress.data import open_data
from onnxcompress.runtime.session import open_session

MODELS = ("ppocr-cls", "ppocr-rec", "minilm", "ddddocr", "resnet50")
METHODS = ("MinMax", "Percentile", "Entropy")
SAMPLES = 16
GROWTH = (16, 64, 256)
PATIENCE = 300

Row = dict[str, Any]


def main() -> int:
    """All models, all tools; the page is written anew after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--growth", default="ppocr-rec", help="model that is given more and more samples")
    parser.add_argument("--keep", action="store_true", help="keep the last page's rows that this run does not replace")
    asked = parser.parse_args()
    rows = _last() if asked.keep else []
    jobs = [(name, SAMPLES, list(COSTED)) for name in asked.models]
    jobs += [(asked.growth, count, list(COSTED)) for count in GROWTH[1:] if asked.growth]
    for name, count, names in jobs:
        for row in measured(name, count, names):
            print(row, flush=True)
            rows = [*(each for each in rows if _key(each) != _key(row)), row]
        report(rows)
    return 0


def measured(name: str, count: int, names: Sequence[str]) -> list[Row]:
    """One model with so many samples, each tool in a folder of its own: quantize_static leaves files where it is started."""
    kind = "classic" if name == "resnet50" else "real"
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
        place = Path(folder)
        given, arrays, *_ = SOURCES[kind](name, count, argparse.Namespace())
        feeds = place / "feeds.npz"
        write_feeds(feeds, list(open_data(arrays, open_session(given, name=name).inputs).batches(1)))
        models = {True: raised(given, place / "raised.onnx"), False: given}
        return [
            {"model": name, "samples": count, "tool": tool, **_fresh(tool, models[COSTED[tool].raised], feeds, place)}
            for tool in names
        ]


def _fresh(tool: str, model: Path, feeds: Path, place: Path) -> Row:
    own = place / "own"
    own.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.quantize_peers", tool, str(model), str(feeds)]
    try:
        done = subprocess.run(
            [*command, str(own / "out.onnx")],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=own,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {PATIENCE} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:120]}
    told = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": told["cpu"], "bytes": told["peak"] - told["base"], "imports": told["base"]}


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return {**os.environ, **one, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


# ---- the page


def report(rows: Sequence[Row]) -> None:
    """results/quantize_cost.md and .json."""
    found = {_key(row): row for row in rows}
    heads = ["model", "samples", "method", "quantize_static", "ours", "ours, all", "time", "memory"]
    lines = []
    for name, count in dict.fromkeys((row["model"], row["samples"]) for row in rows):
        for method in METHODS:
            three = [found.get((name, count, f"{who}, {method}")) for who in ("quantize_static", "ours", "ours, all")]
            shares = [_share(three[1], three[0], key) for key in ("seconds", "bytes")]
            lines.append([name, count, method, *map(_shown, three), *shares])
    told = (
        "CPU seconds / MB above the imports, children's own among both. *time*, *memory*: ours over quantize_static's; "
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
