"""Why channel counts are rounded to 8: latency of a 3x3 convolution by its number of channels, one thread.

    python -m benchmarks.round_to [--first 24] [--last 40] [--size 28] [--seconds 8]

Three convolutions in a row, 32 -> C -> C -> 32, each with the Relu that fuses into it, as pruning leaves them; all
counts run in turn. onnxruntime computes convolutions in blocks of channels (8 with AVX2, 16 with AVX-512) where their
counts allow it, and otherwise in the plain layout.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.written import table, write
from onnxcompress.runtime.clock import measure

ENDS = 32


def main() -> int:
    """Time all counts, write results/round_to.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=24)
    parser.add_argument("--last", type=int, default=40)
    parser.add_argument("--size", type=int, default=28, help="height and width")
    parser.add_argument("--seconds", type=float, default=8.0)
    asked = parser.parse_args()
    counts = range(asked.first, asked.last + 1)
    models = {str(count): network(count, asked.size) for count in counts}
    feed = {"x": np.random.default_rng(0).standard_normal((1, ENDS, asked.size, asked.size)).astype(np.float32)}
    timings = measure(models, feed, threads=1, seconds=asked.seconds, memory=False)
    rows = []
    for count, timing in zip(counts, timings, strict=True):
        macs = asked.size**2 * 9 * (2 * ENDS * count + count**2)
        rows.append({"channels": count, "ms": timing.median_ms, "macs": macs, "gmacs": macs / timing.median_ms / 1e6})
        print(rows[-1], flush=True)
    heads = ("channels", "ms", "MACs, millions", "billion MACs a second", "")
    cells = [
        (r["channels"], f"{r['ms']:.3f}", f"{r['macs'] / 1e6:.1f}", f"{r['gmacs']:.1f}", _mark(r["channels"]))
        for r in rows
    ]
    text = (
        f"3x3 convolutions {ENDS} -> C -> C -> {ENDS} with Relu on {asked.size}x{asked.size}, one sample, one thread, "
        f"{timings[0].runs} rounds."
    )
    write("round_to", "Latency by number of channels", [text, table(heads, cells), conclusion(rows)], {"rows": rows})
    return 0


def _mark(channels: int) -> str:
    return next((f"multiple of {n}" for n in (16, 8, 4) if channels % n == 0), "")


def conclusion(rows: list[dict[str, float]]) -> str:
    """One sentence out of the figures: mean speed of multiples of 16, 8, 4 and of the rest."""
    classes = {
        "multiples of 16": lambda c: c % 16 == 0,
        "other multiples of 8": lambda c: c % 16 == 8,
        "other multiples of 4": lambda c: c % 8 == 4,
        "the rest": lambda c: c % 4 != 0,
    }
    means = {
        name: float(np.mean([row["gmacs"] for row in rows if fits(row["channels"])] or [np.nan]))
        for name, fits in classes.items()
    }
    return "Mean billion MACs a second: " + ", ".join(f"{name} {mean:.1f}" for name, mean in means.items()) + "."


def network(channels: int, size: int) -> bytes:
    """Convolution and Relu three times: ENDS -> channels -> channels -> ENDS, random weights."""
    rng = np.random.default_rng(0)
    widths = [ENDS, channels, channels, ENDS]
    nodes, weights = [], []
    for number, (taken, given) in enumerate(itertools.pairwise(widths)):
        values = (rng.standard_normal((given, taken, 3, 3)) / np.sqrt(9 * taken)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        source, target = f"v{number}" if number else "x", f"v{number + 1}" if number + 2 < len(widths) else "y"
        nodes.append(helper.make_node("Conv", [source, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [target]))
    shape = [1, ENDS, size, size]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in "xy"]
    graph = helper.make_graph(nodes, "convolutions", ends[0], ends[1], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    sys.exit(main())
