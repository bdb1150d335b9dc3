"""The packed file beside what theory allows and what other tools write: bits a weight, speed, memory.

    python -m benchmarks.pack [--models NAME ...] [--ways NAME ...]

Every model as it is, and with its weights coded from themselves: clustered to 16 values a tensor (optimal k-means, values of float16 as
`cluster` writes them), the smallest 80 or 90 % set to zero first, or rounded to 15 even steps a channel. Each is packed with ANS and with
Huffman, unpacked and compared byte for byte. Speed is of the processor's time in a fresh process, in MB of the fp32 file; memory is the
peak of that process above what it holds after its imports.

nncodec (ISO/IEC 15938-17) at equal error: benchmarks/nncodec.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import zstandard
from onnx import numpy_helper

from benchmarks.coverage import RESNET, peak_memory, resnet
from benchmarks.written import table, write
from onnxcompress.model.load import tensors
from onnxcompress.passes.cluster.kmeans import books
from sample_models.fetch import fetch

MODELS = ("digits", "ppocr-rec", "open-nsfw", "minilm", RESNET)
WAYS = ("as it is", "16 values", "80 % zeros, 16 values", "90 % zeros, 16 values", "80 % zeros", "15 steps a channel")
CODES = ("ans", "huffman")
SMALLEST = 4096
"""Bytes of a weight below which it stays as it is."""

DIGITS = Path(__file__).parents[1] / "sample_models" / "digits.onnx"

Row = dict[str, Any]


def main() -> int:
    """Run all and write results/pack.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS, help="names of the manifest, digits, or resnet50's")
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--worker", nargs=4, metavar=("VERB", "CODE", "FROM", "TO"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(worker(*asked.worker)))
        return 0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.models:
            path = _path(name, Path(folder))
            for way in asked.ways:
                rows.append({"model": name, "way": way, **measured(made(path, way, Path(folder)), Path(folder))})
                print(rows[-1], flush=True)
            _report(rows)
    return 0


def _path(name: str, folder: Path) -> Path:
    if name == RESNET:
        return resnet(folder)
    return DIGITS if name == "digits" else fetch(name)


def weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The large float32 tensors of two axes or more."""
    for tensor in tensors(model.graph):
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1 and 4 * np.prod(tensor.dims) >= SMALLEST:
            yield tensor


def made(path: Path, way: str, folder: Path) -> Path:
    """The model with its weights coded that way."""
    if way == "as it is":
        return path
    model = onnx.load(path)
    for tensor in weights(model):
        values = coded(numpy_helper.to_array(tensor).copy(), way)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    target = folder / "coded.onnx"
    onnx.save(model, target)
    return target


def coded(values: np.ndarray, way: str) -> np.ndarray:
    """Weights rounded to few values."""
    if way == "15 steps a channel":
        largest = np.abs(values).reshape(len(values), -1).max(axis=1).astype(np.float32)
        scale = (np.maximum(largest, 1e-12) / 7).reshape(-1, *[1] * (values.ndim - 1)).astype(np.float32)
        return np.rint(values / scale).astype(np.float32) * scale
    kept = np.ones(values.shape, bool)
    if "zeros" in way:
        kept = np.abs(values) > np.quantile(np.abs(values), int(way[:2]) / 100)
        values[~kept] = 0
    if "16 values" in way and kept.any():
        entries = 15 if "zeros" in way else 16
        book = np.unique(books(values[kept], [entries])[entries].astype(np.float16)).astype(np.float32)
        values[kept] = book[np.searchsorted((book[1:] + book[:-1]) / 2, values[kept])]
    return values


def measured(path: Path, folder: Path) -> Row:
    """Sizes by each code and by zip tools; speed and memory of each."""
    whole = path.read_bytes()
    row: Row = {"bytes": len(whole), "ideal huffman": ideal_huffman(path)}
    row["zstd"] = len(zstandard.ZstdCompressor(level=19).compress(whole))
    row["gzip"] = len(zlib.compress(whole, 9))
    for code in CODES:
        packed, back = folder / "m.onnxz", folder / "back.onnx"
        row[code] = _fresh("pack", code, path, packed)
        row[code] |= {f"unpack {key}": value for key, value in _fresh("unpack", code, packed, back).items()}
        row[code]["same"] = back.read_bytes() == whole
    return row


def _fresh(verb: str, code: str, source: Path, target: Path) -> Row:
    command = [sys.executable, "-m", "benchmarks.pack", "--worker", verb, code, str(source), str(target)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])  # type: ignore[no-any-return]


def worker(verb: str, code: str, source: str, target: str) -> Row:
    """In a process of its own: bytes, bits, seconds of the processor, peak memory above the imports."""
    from onnxcompress import packing

    base, began = peak_memory(), time.process_time()
    if verb == "unpack":
        packing.unpack(source, target)
        return {"seconds": time.process_time() - began, "peak": peak_memory() - base}
    done = packing.pack(source, target, entropy=code)
    seconds = time.process_time() - began
    symbols = [line for line in done.lines if line.entropy is not None]
    return {
        "bytes": done.after,
        "symbols": sum(line.values for line in symbols),
        "symbol bytes": sum(line.after for line in symbols),
        "bits": done.bits,
        "entropy": done.entropy,
        "seconds": seconds,
        "peak": peak_memory() - base,
    }


def ideal_huffman(path: Path) -> float | None:
    """Bits a weight of Huffman's code for the values of each weight, tables not counted; None where most values differ."""
    from onnxcompress.weights.huffman import lengths_of

    total = bits = 0
    for tensor in weights(onnx.load(path)):
        values = numpy_helper.to_array(tensor)
        counts = np.unique(values.view(np.uint32), return_counts=True)[1]
        if len(counts) > 256:
            return None
        counts = np.pad(counts, (0, 256 - len(counts)))
        bits += int((counts * np.maximum(lengths_of(counts), len(counts) > 1)).sum())
        total += values.size
    return bits / total if total else None


HEADS = (
    *(
        "model",
        "weights",
        "fp32 MB",
        "zstd -19",
        "gzip -9",
        "ANS",
        "Huffman",
        "bits a symbol",
        "entropy",
        "of it",
        "Huffman bits",
        "ideal",
        "of it",
    ),
    *("pack MB/s", "unpack MB/s", "peak of pack", "of unpack"),
)
ABOUT = (
    "*zstd*, *gzip*, *ANS*, *Huffman*: share of the fp32 file. *Bits a symbol*: of tensors that are symbols, frequencies, books, "
    "scales, gaps and their part of the table included; *entropy*: Shannon's of the symbols of each tensor, without anything beside "
    "it (less is possible where blocks of a tensor differ, or zeros come in runs). *Ideal*: Huffman's code for the values of each "
    "weight, tables not counted. *MB/s*: of the fp32 file by the processor's time, one core, ANS; *peak*: above the imports, as a "
    "share of the fp32 file."
)


def _report(rows: Sequence[Row]) -> None:
    write("pack", "The packed file", [ABOUT, table(HEADS, [_shown(row) for row in rows])], {"rows": rows})


def _shown(row: Row) -> list[str]:
    size, ans, huffman = row["bytes"], row["ans"], row["huffman"]
    same = "" if ans["same"] and huffman["same"] else " NOT THE SAME"
    cells = [row["model"] + same, row["way"], f"{size / 1e6:.2f}"]
    cells += [f"{part / size:.4f}" for part in (row["zstd"], row["gzip"], ans["bytes"], huffman["bytes"])]
    ideal = row["ideal huffman"]
    cells += [_number(ans["bits"]), _number(ans["entropy"]), _ratio(ans["bits"], ans["entropy"])]
    cells += [_number(huffman["bits"]), _number(ideal), _ratio(huffman["bits"], ideal)]
    cells += [f"{size / 1e6 / ans[key]:.0f}" for key in ("seconds", "unpack seconds")]
    return [*cells, *(f"{ans[key] / size:.2f}" for key in ("peak", "unpack peak"))]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _ratio(value: float | None, of: float | None) -> str:
    return "-" if not value or not of else f"{value / of:.4f}"


if __name__ == "__main__":
    sys.exit(main())
