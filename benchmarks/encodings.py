"""What each form of coded weights costs: bytes of the file, time and memory of loading it, latency after that.

    python -m benchmarks.encodings [--models NAME ...] [--seconds 6]

All weights of 256 numbers or more are coded from themselves, without data; how well the models still answer is another page. Files of
one model are run in turn, one sample a run, at one thread and at two; loading is the median of several, in turn too; memory is that
of a fresh process for each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.coverage import RESNET, resnet
from benchmarks.written import table, write
from onnxcompress.data import open_data
from onnxcompress.model import Model, load
from onnxcompress.model.edit import narrow_tensor, set_coded
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.passes.binarize.terms import approximated
from onnxcompress.passes.cluster.books import Books
from onnxcompress.passes.cluster.sharing import placed, shared
from onnxcompress.passes.cluster.tensors import tensors_of
from onnxcompress.runtime.clock import measure
from onnxcompress.runtime.session import open_session
from sample_models.fetch import fetch
from sample_models.inputs import inputs

MODELS = ("ppocr-rec", "efficientnet-lite0", "open-nsfw", "minilm", "ddddocr", RESNET)
THREADS = (1, 2)
SMALLEST = 256


@dataclass(frozen=True)
class Way:
    """How the weights of a model are coded: form of FORMS, entries of a book, how books are shared, share of zeros."""

    form: str
    entries: int
    sharing: str = "tensor"
    zeros: float = 0.0

    def __str__(self) -> str:
        zeros = f", {self.zeros:.0%} zeros" if self.zeros else ""
        return f"{self.form}, {self.entries} entries a {self.sharing}{zeros}"


WAYS = (
    Way("bytes", 256, "grid"),
    Way("bytes", 16),
    Way("uint4", 16),
    Way("packed", 16),
    Way("packed", 16, "scaled"),
    Way("packed", 16, "channel"),
    Way("planes", 8),
    Way("packed", 4),
    Way("uint2", 4),
    Way("packed", 3, "ternary"),
    Way("packed", 2, "binary"),
    Way("tunstall", 16),
    Way("huffman", 16),
    Way("tunstall", 16, zeros=0.8),
    Way("sparse", 16, zeros=0.8),
    Way("huffman", 16, zeros=0.8),
)


def main() -> int:
    """Code, write, time; results/encodings.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--seconds", type=float, default=6.0, help="of running, for each model and number of threads")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in asked.models:
        model, feed = opened(name)
        files = {"float32": to_bytes(finished(model)), "float16 behind Cast": to_bytes(finished(halved(model)))}
        bits: dict[str, dict[str, float]] = {}
        for way in WAYS:
            files[str(way)], bits[str(way)] = written(model, way)
        for threads in THREADS:
            rows += timed(name, files, bits, feed, threads, asked.seconds)
            print(*rows[-len(files) :], sep="\n", flush=True)
        report(rows)
    return 0


def opened(name: str) -> tuple[Model, Mapping[str, np.ndarray]]:
    """The model and one natural sample (noise for random weights)."""
    if name == RESNET:
        noise = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            return load(resnet(Path(folder)).read_bytes()), {"gpu_0/data_0": noise}
    session = open_session(fetch(name), name=name)
    return load(fetch(name)), next(iter(open_data(inputs(name, 1, 0), session.inputs).batches(1)))


def halved(model: Model) -> Model:
    """All weights as float16 in the file."""
    graph = model.ir.clone()
    for name, value in graph.graph.initializers.items():
        values = value.const_value.numpy()  # type: ignore[union-attr]
        if values.dtype == np.float32 and values.size >= SMALLEST:
            value.const_value = narrow_tensor(values, ir.DataType.FLOAT16, name)
    return model.edited(graph)


def written(model: Model, way: Way) -> tuple[bytes, dict[str, float]]:
    """The file, and bits a coded weight: of the form with all that goes with it, and the entropy of the symbols."""
    graph, counts = model.ir.clone(), []
    for tensor in tensors_of(model, (), "as others", 4 * SMALLEST, 1)[0]:
        like = model.array(tensor.name)
        each = tensor.coded(*symbols(tensor.rows(like).astype(np.float64), way), like.dtype)
        set_coded(graph, tensor.name, replace(each, form=way.form))
        counts.append((each.size, each.entropy()))
    data = to_bytes(finished(model.edited(graph)))
    weights = sum(size for size, _ in counts)
    dense = len(to_bytes(finished(model))) - 4 * weights
    return data, {
        "bits": 8 * (len(data) - dense) / weights,
        "entropy": sum(size * entropy for size, entropy in counts) / weights,
    }


def symbols(rows: np.ndarray, way: Way) -> tuple[np.ndarray, Books]:
    """By k-means, by signs, or on a grid of 256 levels."""
    if way.zeros:
        rows = np.where(np.abs(rows) > np.quantile(np.abs(rows), way.zeros), rows, 0.0)
    if way.sharing in ("binary", "ternary"):
        found, books = approximated(rows, way.sharing, 1)
        return found, books.halved()
    if way.sharing == "grid":
        step = np.abs(rows).max(axis=1) / 127
        levels = np.rint(np.divide(rows, step[:, None], out=np.zeros_like(rows), where=step[:, None] > 0))
        return (levels + 128).astype(np.uint8), Books(np.arange(-128.0, 128)[None], scales=step)
    books = shared(rows, way.entries, way.sharing)
    return placed(rows, books), books


def timed(
    name: str,
    files: Mapping[str, bytes],
    bits: Mapping[str, Mapping[str, float]],
    feed: Mapping[str, np.ndarray],
    threads: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """A row a file."""
    return [
        {
            "model": name, "threads": threads, "way": one.name, "bytes": one.file_bytes, **bits.get(one.name, {}),
            "share": one.file_bytes / len(files["float32"]), "load_ms": one.load_ms, "memory": one.memory_bytes,
            "time": 1 / one.ratio, "ms": one.median_ms, "runs": one.runs,
        }
        for one in measure(files, feed, threads=threads, seconds=seconds, memory=threads == 1)
    ]  # fmt: skip


HEADS = (
    "weights",
    "file MB",
    "share",
    "bits",
    "entropy",
    "load ms",
    "ms per MB of float32",
    "memory MB",
    "time, 1 thread",
    "2 threads",
)
ABOUT = (
    "Every weight of 256 numbers or more is coded, embeddings too. *Bits*: of the file for each coded weight, books, tables and nodes "
    "included; *entropy*: of the symbols, order 0, without the books. *Load*: from the file to a session, and what that is more than "
    "for float32, by the size of the float32 file. *Memory*: that a fresh process takes to load and run it. *Time*: latency beside the "
    "float32 file's, median of paired runs: after loading there is no difference between the graphs, so that what differs from 1 is "
    "noise, or where the allocator put the weights."
)


def report(rows: list[dict[str, Any]]) -> None:
    """A table a model."""
    parts = [ABOUT]
    for name in dict.fromkeys(row["model"] for row in rows):
        one = [row for row in rows if row["model"] == name and row["threads"] == 1]
        two = {row["way"]: row for row in rows if row["model"] == name and row["threads"] == 2}
        parts += [f"## {name}", table(HEADS, [_cells(row, one[0], two.get(row["way"])) for row in one])]
    worst = [(abs(row["time"] - 1), row) for row in rows if row["way"] != "float32"]
    share = sum(gap <= 0.03 for gap, _ in worst) / len(worst)
    median = np.median([gap for gap, _ in worst])
    parts.insert(
        1, f"Within 3 % of float32's latency: {share:.0%} of {len(worst)} rows; the median gap is {median:.1%}."
    )
    write("encodings", "Forms of coded weights", parts, {"rows": rows})


def _cells(row: Mapping[str, Any], first: Mapping[str, Any], other: Mapping[str, Any] | None) -> tuple[str, ...]:
    more = (row["load_ms"] - first["load_ms"]) / (first["bytes"] / 1e6)
    return (
        row["way"],
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['share']:.3f}",
        f"{row['bits']:.2f}" if "bits" in row else "-",
        f"{row['entropy']:.2f}" if "entropy" in row else "-",
        f"{row['load_ms']:.0f}",
        f"{more:+.1f}",
        "-" if row["memory"] is None else f"{row['memory'] / 1e6:.0f}",
        f"{row['time']:.3f}",
        "-" if other is None else f"{other['time']:.3f}",
    )


if __name__ == "__main__":
    sys.exit(main())
