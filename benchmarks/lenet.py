"""Deep Compression's LeNet-300-100 and LeNet-5 on MNIST with every stage trained: prune in rounds, share weights, code by frequency.

    python -m benchmarks.lenet --mnist FOLDER

Han, Mao, Dally, ICLR 2016, arXiv:1510.00149: 1070 to 27 KB at 1.64 to 1.58 % errors, 1720 to 44 KB at 0.80 to 0.74. Networks are those
of networks.py, trained here from random weights by the package's own engine. After each cut of single weights what is left trains with
its zeros kept, after sharing the books train with their symbols kept; the dense network teaches, with labels beside it as in the paper.
The last round of a ladder whose errors on 5,000 training images that trained nothing are no more than the dense network's and one
standard error is shared and packed; errors shown are of the 10,000 test images, which chose nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxcompress
from benchmarks import distill, idx
from benchmarks.distill import ALONE, LABELS, SOFT, Pictures, Row, accuracy, labels_of, opened, taught
from benchmarks.networks import LENETS
from benchmarks.written import table, write
from onnxcompress.model import Model, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.training.teacher import Teacher

VALIDATION = 5000
CLOSE = 0.002
"""One standard error of 2 % errors on so many images."""
TAUGHT = Row("dense network and labels", (SOFT, (LABELS, "logits", 1.0)), "")


@dataclass(frozen=True)
class Plan:
    """Epochs of the dense network, shares of zeros of each round and their epochs, bits that are tried, epochs of the books."""

    dense: int
    zeros: tuple[float, ...]
    epochs: int
    bits: tuple[int, ...]
    shared: int
    paper: tuple[float, float, float, float]


PLANS = {
    "LeNet-300-100": Plan(10, (0.8, 0.9, 0.94, 0.96), 8, (4, 3), 6, (1070, 27, 1.64, 1.58)),
    "LeNet-5": Plan(6, (0.8, 0.92, 0.96, 0.975, 0.985), 2, (4, 3), 2, (1720, 44, 0.80, 0.74)),
}
RECIPE: dict[str, Any] = {"minibatch": 128, "optimizer": "adamw", "rate": 1e-3, "keep_encoding": True}


def main() -> int:
    """Both networks; results/lenet.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="a folder of IDX files (benchmarks/idx.py)")
    asked = parser.parse_args()
    training, test = (idx.pictures(asked.mnist, part) for part in ("train", "test"))
    distill.RECIPE = RECIPE
    rows = []
    for name, plan in PLANS.items():
        rows.append({"name": name, **compressed(name, plan, training, test)})
        report(rows)
    return 0


def compressed(name: str, plan: Plan, training: Pictures, test: Pictures) -> dict[str, Any]:
    """Sizes in bytes and errors as shares, stage by stage."""
    cut = VALIDATION if len(training[1]) > 2 * VALIDATION else len(training[1]) // 5
    judging, seen = ((part[0][s], part[1][s]) for part, s in ((training, slice(cut)), (training, slice(cut, None))))
    start = load(LENETS[name](0))
    data = opened(start, seen[0], 0)
    dense = taught(start, ALONE_ROW, data, labels_of(seen[1]), plan.dense)
    kept = lessons(dense, data, seen[1])
    allowed = 1 - accuracy(dense, judging) + CLOSE
    found = {"dense": stage(dense, judging, test)}
    best = current = dense
    for zeros in plan.zeros:
        pruned = onnxcompress.sparsify(current, amount=zeros, per="model").model
        current = taught(pruned, TAUGHT, data, kept, plan.epochs)
        told = stage(current, judging, test)
        print(name, "zeros", zeros, told, flush=True)
        if told["validation"] > allowed:
            break
        best, found["pruned"] = current, {"zeros": zeros, **told}
    for bits in plan.bits:
        shared = onnxcompress.cluster(best, bits=bits, same=True, smallest=0).model
        books = taught(shared, TAUGHT, data, kept, plan.shared)
        before, told = stage(shared, judging, test), stage(books, judging, test)
        print(name, "bits", bits, before, told, flush=True)
        if "shared" not in found or told["validation"] <= allowed:
            found |= {"untrained": {"bits": bits, **before}, "shared": {"bits": bits, **told}}
    return found


ALONE_ROW = Row("labels", ALONE, "")


def lessons(teacher: Model, data: Any, labels: Any) -> Any:
    """Index -> the dense network's logits and the labels."""
    session = Teacher.of(teacher, ["logits"])
    session.remember(data, 256, 1 << 30)
    return {index: {**session.kept[index], **row} for index, row in labels_of(labels).items()}


def stage(model: Model, judging: Pictures, test: Pictures) -> dict[str, float]:
    """Errors, and bytes of the file that onnxruntime runs and of the packed ones."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        out.write_bytes(to_bytes(finished(model)))
        packed = {}
        for entropy in ("huffman", "ans"):
            packed[entropy] = onnxcompress.pack(out, out.with_suffix(f".{entropy}.onnxz"), entropy=entropy).after
        return {
            "validation": 1 - accuracy(model, judging), "errors": 1 - accuracy(model, test),
            "onnx": out.stat().st_size, **packed,
        }  # fmt: skip


HEADS = ("network", "stage", "errors", ".onnx, kB", "packed, kB", "with Huffman, kB", "the paper")


def report(rows: list[dict[str, Any]]) -> None:
    """A line a stage."""
    shown = []
    for row in rows:
        plan = PLANS[row["name"]]
        whole, small, before, after = plan.paper
        names = {
            "dense": ("dense", f"{whole} KB, {before} %"),
            "pruned": (f"{row['pruned']['zeros']:.1%} zeros, trained in rounds", ""),
            "untrained": (f"{row['shared']['bits']} bits, books as found", ""),
            "shared": (f"{row['shared']['bits']} bits, books trained", f"{small} KB, {after} %"),
        }
        for key, (words, paper) in names.items():
            told = row[key]
            kilo = [f"{told[size] / 1e3:.1f}" for size in ("onnx", "ans", "huffman")]
            shown.append([row["name"], words, f"{told['errors']:.2%}", *kilo, paper])
    write("lenet", "Deep Compression's LeNets, all stages trained", [ABOUT, table(HEADS, shown)], {"rows": rows})


ABOUT = (
    "*.onnx* is the file that stock onnxruntime runs, *packed* the .onnxz of `onnxcompress pack`. A KB is 1000 bytes here. Errors on the "
    "10,000 test images. The paper counts weights, symbols and codebooks; our files also hold the graph, names and biases."
)


if __name__ == "__main__":
    sys.exit(main())
