"""A step of training beside torch eager: time, with one thread and two, and memory.

    python -m benchmarks.training --torch-python PYTHON [--nets NAME ...] [--threads 1 2] [--rounds 12] [--batch 64]

Each side is a process of its own (training_ours.py, training_peer.py) with the same weights, batch, loss (soft targets of a second
network), BatchNormalization by the batch, SGD with momentum and no clipping; what is timed is a whole step with its update, of ours the
loop that `distill` runs. They take turns in rounds, and the ratio is the median of the rounds' ratios of median steps; below 1
is faster than torch. The mean losses of the first epoch must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.networks import lenet5, lenet300, mobile, resnet8, resnet20, transformer
from benchmarks.written import table, write
from onnxcompress.data import open_data
from onnxcompress.runtime.session import open_session

NETS: dict[str, tuple[Callable[[int], onnx.ModelProto], tuple[int, ...]]] = {
    "MLP 784-300-100": (lenet300, (1, 28, 28)),
    "LeNet-5": (lenet5, (1, 28, 28)),
    "ResNet-8": (lambda seed: resnet8((3, 32, 32), 16, seed), (3, 32, 32)),
    "ResNet-20": (lambda seed: resnet20((3, 32, 32), 16, seed), (3, 32, 32)),
    "MobileNetV2-like": (lambda seed: mobile((3, 32, 32), seed), (3, 32, 32)),
    "transformer": (lambda seed: transformer(64, 128, seed), (64, 128)),
}
"""Name -> (seed -> network), shape of a sample."""

ROUND = 0.35
"""Seconds of torch's steps in one round."""

BATCHES = 4
"""Of the data, which are drawn in a new order in each epoch."""

AGREE = 1e-3
"""Of the mean losses of the first epoch, relative."""

TORCH, OURS = "torch", "ours"


def main() -> int:
    """All networks; results/training.md, written after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", required=True, help="interpreter with torch and numpy")
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in asked.nets:
        with tempfile.TemporaryDirectory() as folder:
            prepared(name, asked.batch, Path(folder))
            for threads in asked.threads:
                rows.append(compared(name, Path(folder), threads, asked.rounds, asked.torch_python))
                print(rows[-1], flush=True)
                report(rows, asked.batch)
    return 0


def prepared(name: str, batch: int, folder: Path) -> None:
    """The networks, the weights for torch and one batch with the teacher's logits."""
    make, shape = NETS[name]
    student, teacher = make(0), make(1)
    for kind, proto in (("student", student), ("teacher", teacher)):
        (folder / f"{kind}.onnx").write_bytes(proto.SerializeToString())
    weights = {each.name: numpy_helper.to_array(each) for each in student.graph.initializer}
    np.savez(
        folder / "weights.npz", **{n: array for n, array in weights.items() if array.ndim and array.dtype.kind == "f"}
    )
    x = np.random.default_rng(5).normal(size=(BATCHES * batch, *shape)).astype(np.float32)
    answers = open_session(teacher.SerializeToString())
    order = open_data({"x": x}, answers.inputs).shuffled(0).indices
    np.savez(folder / "data.npz", x=x, logits=answers.run({"x": x})["logits"], order=order, batch=batch)


class Side:
    """A process that makes steps on command; `first` is what it told after its start."""

    def __init__(self, command: Sequence[str], threads: int) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )  # fmt: skip
        self.first = self._answer()

    def steps(self, count: int) -> dict[str, Any]:
        """Make them; seconds of each and the peak until now."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args}: ended with {self.process.wait(30)}")
        found: dict[str, Any] = json.loads(line)
        return found


def commands_of(name: str, folder: Path, threads: int, torch_python: str) -> dict[str, list[str]]:
    """How both sides are started."""
    peer, last = Path(__file__).with_name("training_peer.py"), [name, str(folder), str(threads)]
    return {
        TORCH: [torch_python, str(peer), *last],
        OURS: [sys.executable, "-m", "benchmarks.training_ours", *last],
    }


def compared(name: str, folder: Path, threads: int, rounds: int, torch_python: str) -> dict[str, Any]:
    """One row."""
    sides = {kind: Side(command, threads) for kind, command in commands_of(name, folder, threads, torch_python).items()}
    one, two = (side.first["loss"] for side in sides.values())
    if abs(one / two - 1) > AGREE:
        raise SystemExit(f"{name}: losses differ: {one}, {two}")
    warm = median(sides[TORCH].steps(3)["wall"])
    count = max(3, round(ROUND / warm))
    told: dict[str, list[dict[str, Any]]] = {kind: [] for kind in sides}
    for number in range(rounds):
        for kind in (TORCH, OURS) if number % 2 else (OURS, TORCH):
            told[kind].append(sides[kind].steps(count))
    for side in sides.values():
        side.end()
    row: dict[str, Any] = {"net": name, "threads": threads, "steps": rounds * count, "losses": [one, two]}
    for clock in ("wall", "cpu"):
        medians = {kind: [median(each[clock]) for each in told[kind]] for kind in sides}
        ratios = sorted(a / b for a, b in zip(medians[OURS], medians[TORCH], strict=True))
        row[clock] = {
            **{f"{kind}_ms": 1e3 * median(medians[kind]) for kind in sides}, "ratio": median(ratios), "spread": [ratios[0], ratios[-1]],
            "fastest": min(min(each[clock]) for each in told[OURS]) / min(min(each[clock]) for each in told[TORCH]),
        }  # fmt: skip
    for kind, side in sides.items():
        row[f"{kind}_mb"] = [told[kind][-1]["peak"] / 2**20, (told[kind][-1]["peak"] - side.first["imports"]) / 2**20]
    return row


def report(rows: Sequence[dict[str, Any]], batch: int) -> None:
    """The page."""
    heads = (
        "network", "threads", "torch ms", "ours ms", "ratio (all rounds)", "of fastest steps", "of CPU time",
        "torch MB (above imports)", "ours MB (above imports)", "ratio (above imports)",
    )  # fmt: skip
    cells = []
    for row in rows:
        wall, (one, one_above), (two, two_above) = row["wall"], row["torch_mb"], row["ours_mb"]
        cells.append(
            (
                row["net"],
                row["threads"],
                f"{wall['torch_ms']:.2f}",
                f"{wall['ours_ms']:.2f}",
                f"{wall['ratio']:.2f} ({wall['spread'][0]:.2f} to {wall['spread'][1]:.2f})",
                f"{wall['fastest']:.2f}",
                f"{row['cpu']['ratio']:.2f}",
                f"{one:.0f} ({one_above:.0f})",
                f"{two:.0f} ({two_above:.0f})",
                f"{two / one:.2f} ({two_above / one_above:.2f})",
            )
        )
    text = (
        f"Batches of {batch}. Forward, loss, gradients and update; *ratio*: ours / torch eager, median of paired rounds of wall time, "
        "below 1 is faster than torch. Memory: the process' peak, and what it has above its imports."
    )
    write("training", "A step of training beside torch eager", [text, table(heads, cells)], {"rows": list(rows)})


if __name__ == "__main__":
    sys.exit(main())
