"""Does the clock follow the multiply-adds? Latency ratio beside MAC ratio after pruning, one thread and two.

    python -m benchmarks.latency [--models NAME ...] [--macs 0.7] [--seconds 6]

L2, no data (what is left of the answers is not asked here), round_to at its default (16 in groups of 64 channels and
more, else 8), at 8, 1 and 16. Original and results run in turn (onnxcompress.runtime.clock), and the ratio is the
median of the paired ratios: a busy machine falls on all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.written import table, write
from onnxcompress.data import open_data
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model import load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.operators.cost import cost
from onnxcompress.passes import Prune
from onnxcompress.passes.prune.prune import SHAPES
from onnxcompress.runtime.clock import measure
from onnxcompress.runtime.session import open_session
from sample_models.fetch import fetch
from sample_models.inputs import inputs

MODELS = ("open-nsfw", "efficientnet-lite0", "ppocr-rec", "ddddocr")
THREADS = (1, 2)
MULTIPLES = (None, 8, 1, 16)


def main() -> int:
    """Prune, time, write results/latency.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--macs", type=float, default=0.7, help="share of the multiply-adds that is left")
    parser.add_argument("--seconds", type=float, default=6.0, help="for one model at one number of threads")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in asked.models:
        session = open_session(fetch(name), name=name)
        feed = next(iter(open_data(inputs(name, 1, 0), session.inputs).batches(1)))
        del session
        results, macs = pruned(name, feed, asked.macs)
        for threads in THREADS:
            rows += timed(name, results, macs, feed, threads, asked.seconds)
            print(*rows[-len(macs) :], sep="\n", flush=True)
        _report(rows, asked.macs)
    return 0


def pruned(name: str, feed: Mapping[str, np.ndarray], target: float) -> tuple[dict[str, bytes | str], dict[str, float]]:
    """Original and results by label, and the shares of multiply-adds."""
    original = load(fetch(name))
    shapes = run_shapes(original, feed)
    before = cost(original, shapes).macs or 0
    results: dict[str, bytes | str] = {"original": str(fetch(name))}
    macs = {}
    for each in (Prune(criterion="l2", target_macs=target, round_to=multiple) for multiple in MULTIPLES):
        result = each.apply(original, each.plan(original, {SHAPES: shapes}))
        label = f"round_to {each.round_to or 'by width'}"
        results[label] = to_bytes(finished(result))
        macs[label] = (cost(result, run_shapes(result, feed)).macs or 0) / before
    return results, macs


def timed(
    name: str,
    results: Mapping[str, Any],
    macs: Mapping[str, float],
    feed: Mapping[str, np.ndarray],
    threads: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """One row a result: share of time beside share of multiply-adds."""
    timings = {one.name: one for one in measure(results, feed, threads=threads, seconds=seconds, memory=False)}
    original = timings["original"]
    return [
        {
            "model": name, "threads": threads, "result": label, "macs": macs[label], "time": 1 / timings[label].ratio,
            "original_ms": original.median_ms, "ms": timings[label].median_ms, "runs": original.runs,
            "spread": [timings[label].p10_ms, timings[label].p90_ms],
        }
        for label in macs
    ]  # fmt: skip


def _report(rows: list[dict[str, Any]], target: float) -> None:
    heads = ("model", "threads", "result", "MACs", "time", "original ms", "result ms (p10 to p90)", "runs")
    cells = [
        (
            *(row[key] for key in ("model", "threads", "result")),
            *(f"{row[key]:.3f}" for key in ("macs", "time")),
            f"{row['original_ms']:.2f}",
            f"{row['ms']:.2f} ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})",
            row["runs"],
        )
        for row in rows
    ]
    text = (
        f"Pruned to {target:g} of the multiply-adds. *MACs*, *time*: result / original, one sample a run; time is the "
        "median of paired ratios."
    )
    write("latency", "Latency beside multiply-adds", [text, table(heads, cells)], {"rows": rows})


if __name__ == "__main__":
    sys.exit(main())
