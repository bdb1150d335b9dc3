"""Deep Compression's LeNet-300-100 and LeNet-5 on MNIST with every stage trained: prune in rounds, share weights, code by frequency.

    python -m benchmarks.lenet --mnist FOLDER

Han, Mao, Dally, ICLR 2016, arXiv:1510.00149: 1070 to 27 KB at 1.64 to 1.58 % errors, 1720 to 44 KB at 0.80 to 0.74. Networks are those
of networks.py, trained here from random weights by the package's own engine. After
each cut of single weights what is left trains with its zeros kept, after sharing the books train with their symbols kept; the dense
network teaches, with labels beside it as in the paper. Shares of zeros, bits and epochs are those of PLANS, fixed after
earlier tries whose test errors had been seen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxcompress
from benchmarks import idx
from benchmarks.distill import ALONE, LABELS, SOFT, Pictures, Row, accuracy, labels_of, opened, taught
from benchmarks.networks import LENETS
from benchmarks.written import table, write
from onnxcompress.model import Model, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.training.teacher import Teacher

TAUGHT = Row("dense network and labels", (SOFT, (LABELS, "logits", 1.0)), "")


@dataclass(frozen=True)
class Plan:
    """Epochs of the dense network, share of zeros of each round and its epochs, bits, epochs of the books; the paper's figures.

    paper  KB and errors in %, before and after
    """

    dense: int
    rounds: tuple[tuple[float, int], ...]
    bits: int
    shared: int
    paper: tuple[float, float, float, float]


PLANS = {
    "LeNet-300-100": Plan(10, ((0.8, 4), (0.9, 8)), 3, 6, (1070, 27, 1.64, 1.58)),
    "LeNet-5": Plan(3, ((0.8, 1), (0.92, 2)), 3, 1, (1720, 44, 0.80, 0.74)),
}
RECIPE: dict[str, Any] = {"minibatch": 128, "optimizer": "adamw", "rate": 1e-3, "keep_encoding": True}


def main() -> int:
    """The networks; results/lenet.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="a folder of IDX files (benchmarks/idx.py)")
    parser.add_argument("--networks", nargs="*", default=list(PLANS), choices=list(PLANS))
    asked = parser.parse_args()
    training, test = (idx.pictures(asked.mnist, part) for part in ("train", "test"))
    rows = []
    for name in asked.networks:
        rows.append({"name": name, "stages": compressed(name, PLANS[name], training, test)})
        report(rows)
    return 0


def compressed(name: str, plan: Plan, training: Pictures, test: Pictures) -> dict[str, Any]:
    """Stage in words -> errors, and sizes in bytes."""
    start = load(LENETS[name](0))
    data = opened(start, training[0], 0)
    current = taught(start, ALONE_ROW, data, labels_of(training[1]), plan.dense, RECIPE)
    kept = lessons(current, data, training[1])
    found = {"dense": stage(current, test)}
    for zeros, epochs in plan.rounds:
        pruned = onnxcompress.sparsify(current, amount=zeros, per="model").model
        current = taught(pruned, TAUGHT, data, kept, epochs, RECIPE)
        found[f"{zeros:.0%} zeros, the rest trained"] = stage(current, test)
        print(name, found, flush=True)
    shared = onnxcompress.cluster(current, bits=plan.bits, same=True, smallest=0).model
    found[f"{plan.bits} bits, books as found"] = stage(shared, test)
    found[f"{plan.bits} bits, books trained"] = stage(taught(shared, TAUGHT, data, kept, plan.shared, RECIPE), test)
    print(name, found, flush=True)
    return found


ALONE_ROW = Row("labels", ALONE, "")


def lessons(teacher: Model, data: Any, labels: Any) -> Any:
    """Index -> the dense network's logits and the labels."""
    session = Teacher.of(teacher, ["logits"])
    session.remember(data, 256, 1 << 30)
    return {index: {**session.kept[index], **row} for index, row in labels_of(labels).items()}


def stage(model: Model, test: Pictures) -> dict[str, float]:
    """Errors as a share, and bytes of the file that onnxruntime runs and of the packed ones."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        out.write_bytes(to_bytes(finished(model)))
        packed = {
            entropy: onnxcompress.pack(out, out.with_suffix(f".{entropy}.onnxz"), entropy=entropy).after
            for entropy in ("huffman", "ans")
        }
        return {"errors": 1 - accuracy(model, test), "onnx": out.stat().st_size, **packed}


HEADS = ("network", "stage", "errors", ".onnx, kB", "packed, kB", "with Huffman, kB", "the paper")


def report(rows: list[dict[str, Any]]) -> None:
    """A line a stage."""
    shown = []
    for row in rows:
        whole, small, before, after = PLANS[row["name"]].paper
        for number, (words, told) in enumerate(row["stages"].items()):
            kilo = [f"{told[size] / 1e3:.1f}" for size in ("onnx", "ans", "huffman")]
            last = number + 1 == len(row["stages"])
            paper = f"{whole} KB, {before} %" if not number else f"{small} KB, {after} %" if last else ""
            shown.append([row["name"], words, f"{told['errors']:.2%}", *kilo, paper])
    write("lenet", "Deep Compression's LeNets, all stages trained", [ABOUT, table(HEADS, shown)], {"rows": rows})


ABOUT = (
    "*.onnx* is the file that stock onnxruntime runs, *packed* the .onnxz of `onnxcompress pack`. A KB is 1000 bytes here. Errors on the "
    "10,000 test images. The paper counts weights, symbols and codebooks; our files also hold the graph, names and biases."
)


if __name__ == "__main__":
    sys.exit(main())
