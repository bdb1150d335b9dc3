"""How long one tensor takes to be clustered into 16 entries: ours beside scikit-learn's KMeans.

    python -m benchmarks.kmeans_speed [--models NAME ...] [--runs 3]

Real weights, book and symbols, in one process on one thread; medians of the processor's time. scikit-learn as users call it
(`KMeans(16, random_state=0)`), and at its fastest: sixteen even starts, one run of Lloyd's algorithm over float32. The last row is 25
million weights, those of the largest tensor repeated with noise, for ours alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from benchmarks.written import table, write
from onnxcompress.model import load
from onnxcompress.operators.layer import layers
from onnxcompress.passes.cluster.sharing import placed, shared
from sample_models.fetch import fetch

MODELS = ("ppocr-rec", "open-nsfw", "efficientnet-lite0")
ENTRIES, LARGE = 16, 25_000_000
Way = Callable[[np.ndarray], float]


def ours(rows: np.ndarray) -> float:
    """Squared error of the optimal book and its symbols."""
    books = shared(rows, ENTRIES, "tensor")
    return float(np.square(books.values(placed(rows, books)) - rows).sum())


def as_called(rows: np.ndarray) -> float:
    """Of scikit-learn's defaults."""
    return float(KMeans(ENTRIES, random_state=0).fit(rows.reshape(-1, 1)).inertia_)


def fastest(rows: np.ndarray) -> float:
    """Of one run from even starts."""
    flat = rows.astype(np.float32).reshape(-1, 1)
    starts = np.linspace(flat.min(), flat.max(), ENTRIES, dtype=np.float32).reshape(-1, 1)
    return float(KMeans(ENTRIES, init=starts, n_init=1, algorithm="lloyd").fit(flat).inertia_)


def timed(way: Way, rows: np.ndarray, runs: int) -> tuple[float, float]:
    """Median seconds of the processor, and the error."""
    seconds, error = [], 0.0
    for _ in range(runs):
        began = time.process_time()
        error = way(rows)
        seconds.append(time.process_time() - began)
    return float(np.median(seconds)), error


def tensors(names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """A middle and the largest weight of each model, as rows."""
    for name in names:
        model = load(fetch(name))
        found = {each.weight: model.array(each.weight).size for each in layers(model)}
        order = sorted(found, key=lambda each: found[each])
        for weight in (order[len(order) // 2], order[-1]):
            values = model.array(weight).astype(np.float64)
            yield name, values.reshape(len(values), -1)


def main() -> int:
    """Measure and write results/kmeans_speed.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    facts, lines = [], []
    with threadpool_limits(1):
        largest = np.zeros((0, 0))
        for name, rows in tensors(asked.models):
            largest = max(largest, rows, key=lambda each: each.size)
            each = [timed(way, rows, asked.runs) for way in (ours, as_called, fastest)]
            facts.append({"model": name, "weights": rows.size, "seconds and error": each})
            own, error = each[0]
            cells = [
                cell for took, lost in each[1:] for cell in (f"{took:.2f}", f"{took / own:.0f}", f"{lost / error:.4f}")
            ]
            lines.append([name, f"{rows.size:,}", f"{own:.3f}", *cells])
            print(*lines[-1], flush=True)
        rng = np.random.default_rng(0)
        many = np.resize(largest, LARGE) * (1 + 0.01 * rng.standard_normal(LARGE))
        took, _ = timed(ours, many.reshape(5000, -1), 1)
    facts.append({"model": "25 million", "weights": LARGE, "seconds and error": [[took, None]]})
    lines.append(["repeated with noise", f"{LARGE:,}", f"{took:.1f}", *["-"] * 6])
    heads = (
        "weights of",
        "how many",
        "ours s",
        "scikit-learn s",
        "times",
        "its error",
        "fastest s",
        "times",
        "its error",
    )
    about = (
        "*Times*: scikit-learn's time by ours. *Its error*: squared error by ours, which is the least that there is."
    )
    write("kmeans_speed", "Time of clustering a tensor", [about, table(heads, lines)], {"rows": facts})
    return 0


if __name__ == "__main__":
    sys.exit(main())
