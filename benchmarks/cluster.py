"""Four bits a weight, tools side by side: what is left of the answers, and how large the file is.

    python -m benchmarks.cluster [--models NAME ...] [--tools NAME ...] [--bits 4] [--keep]

Peers: onnxsim's k-means (MatMul and Gemm alone: convolutions and embeddings stay float32), scikit-learn's KMeans over each tensor, and
rounding to the nearest of 2^bits even steps a channel. The last two write no file of their own: their values go into the model, and the
size counts symbols, books and scales. Ours is judged as its own file. Every tool gets the float32 model; those with data the same 16
natural samples, none of which judge.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from sklearn.cluster import KMeans

import onnxcompress
from benchmarks import quantize
from benchmarks.quantize import Case
from benchmarks.quantize_peers import one_line, read_feeds
from benchmarks.written import RESULTS, table, write
from onnxcompress.errors import OnnxCompressError
from onnxcompress.model import Model, load
from onnxcompress.model.edit import set_constant
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.operators.layer import Layer, layers

MODELS = ("ppocr-cls", "ppocr-rec", "ppocr-det", "efficientnet-lite0", "open-nsfw", "minilm", "ddddocr", "magika")
SMALLEST = 4096
"""Bytes of a tensor below which no tool codes it."""

Row = dict[str, Any]


def main() -> int:
    """All models and tools; the page is written anew after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS), metavar="NAME")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--keep", action="store_true", help="keep rows of the last page that this run does not replace")
    asked = parser.parse_args()
    page = RESULTS / "cluster.json"
    rows: list[Row] = json.loads(page.read_text())["rows"] if asked.keep and page.exists() else []
    for name in asked.models:
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
            case = quantize.opened(
                name, argparse.Namespace(calibration=asked.calibration, emulate_samples=0), Path(folder)
            )
            for tool in asked.tools:
                row = {"model": name, "tool": tool, "bits": asked.bits, **made(case, tool, asked.bits, Path(folder))}
                print(row, flush=True)
                rows = [each for each in rows if _key(each) != _key(row)] + [row]
        report(rows)
    return 0


def _key(row: Row) -> tuple[str, str, int]:
    return row["model"], row["tool"], row["bits"]


def made(case: Case, tool: str, bits: int, folder: Path) -> Row:
    """One file, judged; what fails is the note."""
    out = folder / "out.onnx"
    began = time.perf_counter()
    try:
        facts = TOOLS[tool](case, bits, out)
        seconds = time.perf_counter() - began
        told = quantize.judged(case, out)
    except (OnnxCompressError, ValueError, RuntimeError) as error:
        return {"note": one_line(error)}
    size = facts.get("bytes", out.stat().st_size)
    return {"seconds": seconds, "share": size / case.given.stat().st_size, **facts, **told}


# -- the tools -------------------------------------------------------------------------------------------------------


def weights(model: Model) -> list[Layer]:
    """Every weight that tools code, once."""
    once = {layer.weight: layer for layer in layers(model)}
    return [layer for layer in once.values() if model.array(layer.weight).nbytes >= SMALLEST]


Rounding = Callable[[np.ndarray, int], tuple[np.ndarray, int]]
"""Rows [out, n] and bits -> what they become, and bytes of books and scales."""


def valued(rounding: Rounding) -> Callable[[Case, int, Path], Row]:
    """A tool that gives values, and no file."""

    def work(case: Case, bits: int, out: Path) -> Row:
        model = load(case.given)
        graph, size = model.ir.clone(), len(to_bytes(finished(model)))
        for layer in weights(model):
            like = model.array(layer.weight)
            matrix = layer.matrix(like)
            rows, beside = rounding(matrix.reshape(len(matrix), -1), bits)
            set_constant(graph, layer.weight, layer.stored(rows.reshape(matrix.shape), like))
            size -= like.nbytes - like.size * bits // 8 - beside
        out.write_bytes(to_bytes(finished(model.edited(graph))))
        return {"bytes": size}

    return work


def uniform(rows: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Even steps from -2^(bits-1) to 2^(bits-1) - 1, the largest weight of a channel on the last one."""
    top = 2 ** (bits - 1) - 1
    scale = np.abs(rows).max(axis=1, keepdims=True) / top
    scale[scale == 0] = 1
    return np.clip(np.rint(rows / scale), -top - 1, top) * scale, 4 * len(rows)


def scikit_learn(rows: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """One book for the tensor, k-means++ start, its defaults otherwise."""
    found = KMeans(2**bits, random_state=0).fit(rows.reshape(-1, 1))
    return found.cluster_centers_[found.labels_, 0].reshape(rows.shape), 4 * 2**bits


def onnxsim(case: Case, bits: int, out: Path) -> Row:
    """Its file as it is."""
    from onnxsim.kmeans_quantization import quantize_weight_only_kmeans

    onnx.save(quantize_weight_only_kmeans(str(case.raised), bits=bits), out)
    return {}


def ours(
    only: Callable[[Layer], bool] | None = None, data: bool = False, **settings: Any
) -> Callable[[Case, int, Path], Row]:
    """`onnxcompress cluster`; `only`: of some layers."""

    def work(case: Case, bits: int, out: Path) -> Row:
        feeds = _arrays(case) if data else None
        model = load(case.given)
        keep = [layer.weight for layer in weights(model) if only is not None and not only(layer)]
        result = onnxcompress.cluster(model, data=feeds, bits=bits, keep=keep, **settings)
        result.save(out)
        return {"bits_each": _bits(load(out))}

    return work


def _arrays(case: Case) -> dict[str, np.ndarray]:
    feeds = read_feeds(case.feeds)
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _bits(model: Model) -> float | None:
    """Of a coded weight in the file, books and nodes counted; None where no weight is coded."""
    return onnxcompress.inspect(model).coded_bits


def _of_onnxsim(layer: Layer) -> bool:
    return layer.op in ("MatMul", "Gemm")


TOOLS: dict[str, Callable[[Case, int, Path], Row]] = {
    "uniform, a channel": valued(uniform),
    "scikit-learn, a tensor": valued(scikit_learn),
    "onnxsim (no Conv)": onnxsim,
    "ours, its tensors": ours(_of_onnxsim, same=True),
    "ours, allocation": ours(rate="none"),
    "ours, one price": ours(rate="file"),
    "ours, data": ours(data=True),
    "ours, same bits": ours(same=True),
    "ours, data, same bits": ours(data=True, same=True),
    "ours, data, pairs": ours(data=True, vector=2),
}
HEADS = (
    "model",
    "tool",
    "share of the file",
    "bits",
    "SQNR dB",
    "logits dB",
    "agree",
    "task",
    "char. error",
    "s",
    "note",
)
ABOUT = (
    "*Share*: of the float32 file; *bits*: a coded weight in the file takes, with books, scales and nodes. *SQNR*: of the worst output; "
    "*logits*: probabilities as logits. *Agree*: same decision; *task*: score before → after (exact lines of text readers, labels); "
    "*char. error*: likewise. *s*: of the whole tool; ours with the comparison that it makes by itself. *its tensors*: the matrices that "
    "onnxsim takes, and no others. Without data *one price* is the default from a million weights on, the *allocation* below."
)


def report(rows: list[Row]) -> None:
    """One table, models together."""
    order = {name: place for place, name in enumerate(MODELS)}
    ordered = sorted(rows, key=lambda row: (order.get(row["model"], 99), list(TOOLS).index(row["tool"])))
    shown = [[_cell(row, key) for key in CELLS] for row in ordered]
    write("cluster", "Weights on codebooks, tools side by side", [ABOUT, table(HEADS, shown)], {"rows": ordered})


CELLS: dict[str, Callable[[Row], str | None]] = {
    "model": lambda row: row["model"],
    "tool": lambda row: row["tool"],
    "share": lambda row: _number(row.get("share"), 3),
    "bits": lambda row: _number(row.get("bits_each"), 2),
    "sqnr": lambda row: _number(row.get("sqnr_db"), 1),
    "logits": lambda row: _number(row.get("logits_db"), 1),
    "agree": lambda row: _number(row.get("agreement"), 3),
    "task": lambda row: f"{row['before']:.3f} → {row['after']:.3f}" if "after" in row else None,
    "error": lambda row: f"{row['error_before']:.4f} → {row['error_after']:.4f}" if "error_after" in row else None,
    "seconds": lambda row: _number(row.get("seconds"), 1),
    "note": lambda row: row.get("note", ""),
}


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _cell(row: Row, key: str) -> str:
    found = CELLS[key](row)
    return "-" if found is None else found


if __name__ == "__main__":
    sys.exit(main())
