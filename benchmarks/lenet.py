"""Deep Compression's LeNet-300-100 and LeNet-5 on MNIST with every stage trained: prune in rounds, share weights, code by frequency.

    python -m benchmarks.lenet --mnist FOLDER [--work FOLDER]

Han, Mao, Dally, ICLR 2016, arXiv:1510.00149: 1070 to 27 KB at 1.64 to 1.58 % errors, 1720 to 44 KB at 0.80 to 0.74. Networks are those
of networks.py, trained here from random weights by the package's own engine. After
each cut of single weights what is left trains with its zeros kept, after sharing the books train with their symbols kept; the dense
network teaches, with labels beside it as in the paper. 5000 of the training images do not train: shares of zeros, entries and epochs
of PLANS were chosen by their errors.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
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
    """Epochs of the dense network, zeros and epochs of each round, entries of a book, epochs of the books; the paper's figures.

    decay  of weights, from the first round on
    paper  KB and errors in %, before and after
    """

    dense: int
    rounds: tuple[tuple[float, int], ...]
    entries: int
    shared: int
    decay: float
    paper: tuple[float, float, float, float]


PLANS = {
    "LeNet-300-100": Plan(
        20,
        ((0.5, 2), (0.7, 2), (0.8, 2), (0.86, 2), (0.9, 3), (0.92, 12)),
        *(6, 3, 0.05),
        (1070, 27, 1.64, 1.58),
    ),
    "LeNet-5": Plan(8, ((0.6, 1), (0.8, 2), (0.88, 2), (0.92, 6)), 8, 3, 0.05, (1720, 44, 0.80, 0.74)),
}
RECIPE: dict[str, Any] = {"minibatch": 128, "optimizer": "adamw", "rate": 1e-3, "keep_encoding": True}
HELD_OUT = 5000
"""Training images that do not train."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Images that train, that chose the plan, and that judge it."""

    training: Pictures
    held_out: Pictures
    test: Pictures


def main() -> int:
    """The networks; results/lenet.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="a folder of IDX files (benchmarks/idx.py)")
    parser.add_argument("--networks", nargs="*", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of images")
    parser.add_argument(
        "--work", type=Path, help="a folder where models are kept after each round, so that a run goes on"
    )
    asked = parser.parse_args()
    (images, labels), test = (idx.pictures(asked.mnist, part) for part in ("train", "test"))
    held_out = (images[:HELD_OUT], labels[:HELD_OUT])
    parts = Parts((images[HELD_OUT:], labels[HELD_OUT:]), held_out, test)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = asked.work or Path(folder)
        work.mkdir(exist_ok=True)
        for name in asked.networks:
            rows.append({"name": name, "stages": compressed(name, PLANS[name], parts, work, asked.seed)})
            report(rows)
    return 0


def compressed(name: str, plan: Plan, parts: Parts, work: Path, seed: int) -> dict[str, Any]:
    """Stage in words -> errors, and sizes in bytes."""
    start, (images, labels) = load(LENETS[name](seed)), parts.training
    data, recipe = opened(start, images, seed), {**RECIPE, "decay": plan.decay}
    key = f"{name}-{seed}-{plan.dense}"
    current = kept_as(
        work / f"{key}.onnx", lambda: taught(start, ALONE_ROW, data, labels_of(labels), plan.dense, RECIPE)
    )
    kept = lessons(current, data, labels)
    found = {"dense": stage(current, parts)}
    for zeros, epochs in plan.rounds:
        key, before = f"{key}-{zeros}-{epochs}", current

        def trained(before: Model = before, zeros: float = zeros, epochs: int = epochs) -> Model:
            pruned = onnxcompress.sparsify(before, amount=zeros, per="model").model
            return taught(pruned, TAUGHT, data, kept, epochs, recipe)

        current = kept_as(work / f"{key}.onnx", trained)
    found[f"{plan.rounds[-1][0]:.0%} zeros, the rest trained"] = stage(current, parts)
    shared = onnxcompress.cluster(current, clusters=plan.entries, smallest=0).model
    found[f"{plan.entries} entries, books as found"] = stage(shared, parts)
    found[f"{plan.entries} entries, books trained"] = stage(
        taught(shared, TAUGHT, data, kept, plan.shared, recipe), parts
    )
    print(name, found, flush=True)
    return found


def kept_as(place: Path, make: Callable[[], Model]) -> Model:
    """A model from its file, which is made where it is not there."""
    if not place.exists():
        place.write_bytes(to_bytes(finished(make())))
    return load(place)


ALONE_ROW = Row("labels", ALONE, "")


def lessons(teacher: Model, data: Any, labels: Any) -> Any:
    """Index -> the dense network's logits and the labels."""
    session = Teacher.of(teacher, ["logits"])
    session.remember(data, 256, 1 << 30)
    return {index: {**session.kept[index], **row} for index, row in labels_of(labels).items()}


def stage(model: Model, parts: Parts) -> dict[str, float]:
    """Errors as a share, and bytes of the file that onnxruntime runs and of the packed ones."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        out.write_bytes(to_bytes(finished(model)))
        packed = {
            entropy: onnxcompress.pack(out, out.with_suffix(f".{entropy}.onnxz"), entropy=entropy).after
            for entropy in ("huffman", "ans")
        }
        errors = {"errors": 1 - accuracy(model, parts.test), "held_out": 1 - accuracy(model, parts.held_out)}
        return {**errors, "onnx": out.stat().st_size, **packed}


HEADS = ("network", "stage", "errors", "held out", ".onnx, kB", "packed, kB", "with Huffman, kB", "the paper")


def report(rows: list[dict[str, Any]]) -> None:
    """A line a stage."""
    shown = []
    for row in rows:
        whole, small, before, after = PLANS[row["name"]].paper
        for number, (words, told) in enumerate(row["stages"].items()):
            kilo = [f"{told[size] / 1e3:.1f}" for size in ("onnx", "ans", "huffman")]
            last = number + 1 == len(row["stages"])
            paper = f"{whole} KB, {before} %" if not number else f"{small} KB, {after} %" if last else ""
            shown.append([row["name"], words, f"{told['errors']:.2%}", f"{told['held_out']:.2%}", *kilo, paper])
    write("lenet", "Deep Compression's LeNets, all stages trained", [ABOUT, table(HEADS, shown)], {"rows": rows})


ABOUT = (
    "*.onnx* is the file that stock onnxruntime runs, *packed* the .onnxz of `onnxcompress pack`. A KB is 1000 bytes here. *Errors* on the "
    "10,000 test images (one figure's standard error: 0.13 points of LeNet-300-100, 0.09 of LeNet-5); *held out*: on 5000 training images "
    "that did not train, and by which plans were chosen. LeNet-300-100's among "
    "three: 95 % zeros in eight rounds, 2.32 % of these wrong after books of 3 bits had trained; 92 % in six, 1.94 in 8 entries; with "
    "weight decay 1.96 in 8, 2.08 in 6, 2.16 in 4, of which 6 were taken for their size. LeNet-5's among three: 96 % zeros in four rounds "
    "of an epoch and one of four, 1.28 in 28.6 kB; 92 % in four longer ones, 1.14 in 43.1; 93 % in three, 1.20 in 39.6. Errors on the "
    "test images were printed beside these, and so were seen while plans were tried. One seed. Each network was trained and cut in a "
    "process of its own; this page is of a run that found the models which these had kept, and trained the books again. "
    "LeNet-5's rounds began with a dense network that the same functions had made before; made anew it was the same to the byte. "
    "The paper counts weights, symbols and codebooks; our files also hold the graph, names and biases."
)


if __name__ == "__main__":
    sys.exit(main())
