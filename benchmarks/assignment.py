"""What each step of assigning weights to codebooks on data brings, layer by layer on held-out rows; and bits against error.

    python -m benchmarks.assignment [MODEL ...]

Every fifth or so of a model's layers below LARGEST weights, each fed what the original feeds it (no errors of layers before), 16
entries or 256 pairs: SQNR of its output on rows that the fit has not seen, means in dB; seconds of all steps together. Then the entropy of
the symbols against the SQNR of the weights themselves, without data, one book a tensor: k-means beside `rated`.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from onnxcompress.data.sources import open_data
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import load
from onnxcompress.model.edit import walk
from onnxcompress.model.save import to_bytes
from onnxcompress.operators.layer import layers
from onnxcompress.passes.cluster import assign, vectors
from onnxcompress.passes.cluster.books import Books, loss, refitted, shrunk
from onnxcompress.passes.cluster.rate import Tensor, entropy, rated
from onnxcompress.passes.cluster.sharing import shared
from onnxcompress.passes.refit.goals import kept
from onnxcompress.passes.refit.refit import bias_of, unsuited
from onnxcompress.passes.refit.rows import gathered
from onnxcompress.passes.refit.solver import in_db
from onnxcompress.runtime.session import open_session
from sample_models.fetch import fetch
from sample_models.inputs import inputs

MODELS = ("ppocr-rec", "open-nsfw", "efficientnet-lite0")
LARGEST = 400_000
SAMPLES = 32

Layers = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]]


def measured(name: str) -> Layers:
    """Rows [out, row], where they lie in memory, Gram to fit on, Gram to judge on, power of the output on those rows."""
    model = load(fetch(name))
    data = open_data(inputs(name, SAMPLES), open_session(to_bytes(model.ir)).inputs)
    nodes = {node.name or "": node for node in walk(model.ir)}
    found = {layer.name: layer for layer in layers(model) if not unsuited(layer, nodes[layer.name], model)}
    chosen = list(found)[1 :: max(1, len(found) // 10)]
    for pair in Paired(model, model, data.calibration).walk(chosen):
        layer, node = found[pair.node], nodes[pair.node]
        stored = model.array(layer.weight)
        positions = layer.matrix(np.arange(stored.size).reshape(stored.shape)).reshape(len(layer.matrix(stored)), -1)
        told = bias_of(model, layer, node, len(positions))
        fit, judge = gathered(node, layer, pair.read(layer.reads), kept(model, told.value, pair), 4096, 0)
        if stored.size > LARGEST or layer.groups > 1 or isinstance(vectors.direction(positions, 2), str):
            continue
        free = told.free and told.name is not None
        grams = [(sums.centred()[0] if free else sums.gram)[0] / sums.count for sums in (fit, judge)]
        rows = stored.reshape(-1)[positions].astype(np.float64)
        yield rows, positions, *grams, float(judge.power.sum()) / judge.count


def steps(rows: np.ndarray, positions: np.ndarray, gram: np.ndarray) -> Iterator[tuple[str, np.ndarray, float]]:
    """Name, decoded weights and seconds of each way."""
    gram = shrunk(gram)
    for sharing in ("channel", "scaled"):
        plain, books = (shared(rows, 16, sharing, weights) for weights in (None, np.diagonal(gram)))
        symbols = assign.compensated(rows, books, gram)
        yield f"{sharing}: nearest", plain.values(assign.nearest(rows, plain)), 0.0
        yield f"{sharing}: by the diagonal", books.values(assign.nearest(rows, books)), 0.0
        yield f"{sharing}: compensated", books.values(symbols), 0.0
        yield f"{sharing}: refitted", refitted(rows, symbols, books, gram).values(symbols), 0.0
        began = time.perf_counter()
        symbols, each = assign.alternated(rows, books, gram)
        yield f"{sharing}: all steps", each.values(symbols), time.perf_counter() - began
    began = time.perf_counter()
    scales, across = np.sqrt((rows**2).mean(axis=1)), bool(vectors.direction(positions, 2))
    found = vectors.trained(rows, 2, 256, gram, across=across, scales=scales)
    symbols, found = vectors.alternated(rows, found, gram)
    yield "pairs, scaled: all steps", found.values(symbols), time.perf_counter() - began


def curve(tensors: list[np.ndarray]) -> Iterator[str]:
    """Bits a weight against the mean SQNR of tensors."""

    def row(name: str, found: list[tuple[np.ndarray, Books]]) -> str:
        bits = sum(entropy(np.bincount(symbols.reshape(-1))) * symbols.size for symbols, _ in found)
        powers = [
            in_db(float((rows**2).sum()), float(loss(rows, symbols, books, None).sum()))
            for rows, (symbols, books) in zip(tensors, found, strict=True)
        ]
        return f"| {name} | {bits / sum(rows.size for rows in tensors):.2f} | {np.mean(powers):.1f} |"

    for entries in (4, 8, 16, 32):
        books = [shared(rows, entries, "tensor") for rows in tensors]
        yield row(f"k-means {entries}", [(assign.nearest(r, b), b) for r, b in zip(tensors, books, strict=True)])
    for decibel in (8, 12, 18, 22, 26):
        prices = [2 * np.log(2) * (rows**2).mean() * 10 ** (-decibel / 10) for rows in tensors]
        found = [rated(Tensor(rows), price) for rows, price in zip(tensors, prices, strict=True)]
        yield row(f"rate-aware, {decibel} dB asked", [(each.symbols, each.books) for each in found])


def main(names: list[str]) -> None:
    """Print both tables of each model."""
    for name in names or MODELS:
        decibel, seconds, tensors = defaultdict(list), defaultdict(float), []
        for rows, positions, gram, judge, power in measured(name):
            tensors.append(rows)
            for way, values, took in steps(rows, positions, gram):
                error = values - rows
                decibel[way].append(in_db(power, float(np.einsum("ok,ok->", error @ judge, error))))
                seconds[way] += took
        print(f"## {name}: {len(tensors)} layers, {sum(rows.size for rows in tensors):,} weights\n")
        print("| way | dB | s |\n|---|---|---|")
        for way, values in decibel.items():
            print(f"| {way} | {np.mean(values):.1f} | {f'{seconds[way]:.1f}' if seconds[way] else ''} |")
        print("\n| code | bits a weight | dB |\n|---|---|---|")
        print(*curve(tensors), sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
