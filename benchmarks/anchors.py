"""Published accuracies of pruned networks before any fine-tuning, beside the same cuts on small networks of the same layout.

    python -m benchmarks.anchors --data CIFAR10.npz [--networks vgg resnet] [--calibration 512] [--test 2000]

Nobody ships the papers' networks, so `benchmarks.anchors_train` (torch, once) trains smaller ones into the cache and
says how. Network Slimming (Liu et al., ICCV 2017, arXiv:1708.06519) cuts a share of all channels by one threshold on
|γ|; "the paper's rule" does that by zeroing γ and β in place, with no code of the pruning passes, as a check on them.
Channel pruning (He, Zhang, Sun, ICCV 2017, arXiv:1707.06168) chooses by lasso and refits by least squares.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.cifar import pictures, scaled
from benchmarks.written import RESULTS, table, write
from onnxcompress.errors import OnnxCompressError
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.files import cache_folder
from onnxcompress.model import Model, load
from onnxcompress.model.edit import set_constant
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.operators.cost import cost, macs_by_layer
from onnxcompress.operators.layer import layers
from onnxcompress.passes import Prune, Refit
from onnxcompress.run import How, run
from onnxcompress.runtime.session import open_session

HOW = How(batch=64)
Test = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A trained network: what it is beside the paper's; share of the channels that is cut -> the paper's accuracies."""

    title: str
    shares: dict[float, str]


NETWORKS = {
    "vgg": Network(
        "VGG, 16 convolutions, a quarter of the paper's width (1,376 of 5,504 channels), 12 epochs instead of 160",
        {0.4: "", 0.7: "93.3 → 32.5 %"},
    ),
    "resnet": Network(
        "Pre-activation bottleneck ResNet of 20 layers (the paper's has 164), half the widths, 6 epochs instead of 160",
        {0.4: "94.8 → 94.6 %", 0.6: "94.8 → 47.7 %"},
    ),
}
LOST = {1 / 2: "-2.7 points", 1 / 4: "-7.9 points", 1 / 5: "-22.0 points"}
"""He et al., Table 1: share of the multiply-adds -> top-5 of VGG-16 on ImageNet, refitted, not fine-tuned."""


@dataclass(frozen=True)
class Row:
    """One result. Shares of the original's; accuracy on the test pictures; least: channels of the narrowest layer."""

    network: str
    question: str
    method: str
    accuracy: float
    macs: float | None
    channels: float | None
    least: int | None
    paper: str = ""
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """A network with its calibration pictures, test pictures, and what the original costs and scores."""

    name: str
    model: Model
    data: dict[str, np.ndarray]
    test: Test
    macs: int
    channels: int
    accuracy: float


def main() -> int:
    """All networks and questions; the page is written anew after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as one .npz, see benchmarks/cifar.py")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--calibration", type=int, default=512, help="pictures of the training set, without labels")
    parser.add_argument("--test", type=int, default=2000, help="pictures of the test set")
    parser.add_argument("--keep", action="store_true", help="keep the last page's rows of networks not asked for")
    asked = parser.parse_args()
    images = scaled(pictures(asked.data, "train", asked.calibration)[0])
    shown, labels = pictures(asked.data, "test", asked.test)
    test = scaled(shown), labels
    rows = [row for row in _last() if row.network not in asked.networks] if asked.keep else []
    for name in asked.networks:
        case = opened(name, images, test)
        for question in (slimming, channel_pruning):
            for row in question(case):
                print(row, flush=True)
                rows.append(row)
                _report(rows, asked.calibration, asked.test)
    return 0


def _last() -> list[Row]:
    """Rows of the last page."""
    page = RESULTS / "anchors.json"
    return [Row(**row) for row in json.loads(page.read_text())["rows"]] if page.exists() else []


def opened(name: str, images: np.ndarray, test: Test) -> Case:
    """The trained network out of the cache, counted and scored."""
    path = cache_folder() / "anchors" / f"{name}.onnx"
    if not path.exists():
        raise SystemExit(f"{path} is missing; train it first: python -m benchmarks.anchors_train --networks {name}")
    model = load(path)
    (port,) = (value.name for value in model.ir.graph.inputs)
    data = {str(port): images}
    macs, widths = counted(model, images)
    return Case(name, model, data, test, macs, sum(widths), accuracy(model, test))


def counted(model: Model, images: np.ndarray) -> tuple[int, list[int]]:
    """Multiply-adds of one picture, and the channels of every BatchNormalization (those that the paper counts)."""
    (port,) = (value.name for value in model.ir.graph.inputs)
    shapes = run_shapes(model, {str(port): images[:1]})
    return cost(model, shapes).macs or 0, [len(gamma) for _, gamma in scales(model)]


def scales(model: Model) -> list[tuple[ir.Node, np.ndarray]]:
    """All BatchNormalizations with their γ."""
    found = [node for node in model.ir.graph if node.op_type == "BatchNormalization"]
    return [(node, model.array(node.inputs[1].name)) for node in found]  # type: ignore[union-attr,arg-type]


def accuracy(model: Model, test: Test) -> float:
    """Share of the pictures that are put into their class."""
    session = open_session(to_bytes(finished(model)), threads=1, name="result")
    hits = 0
    for start in range(0, len(test[1]), 250):
        (scores,) = session.run({session.inputs[0].name: test[0][start : start + 250]}).values()
        hits += int((scores.argmax(1) == test[1][start : start + 250]).sum())
    return hits / len(test[1])


# -- Network Slimming ----------------------------------------------------------------------------------------------


def slimming(case: Case) -> Iterator[Row]:
    """Shares of all channels, by one threshold on |γ|; then the best choice with as many multiply-adds."""
    yield original(case)
    for share, found in NETWORKS[case.name].shares.items():
        question = f"{share:.0%} of the channels"
        masked, macs = by_masks(case, share)
        score, method = accuracy(masked, case.test), "the paper's rule, γ and β zeroed"
        yield Row(case.name, question, method, score, macs, 1 - share, None, found)
        gamma = {"criterion": "bn_scale", "ranking": "global", "amount": share, "round_to": 1}
        paper = Prune(**gamma, normalise="none", floor=0.0)
        floored = Prune(**gamma, normalise="none", floor=0.1)
        best = Prune(criterion="backward", target_macs=macs, round_to=1)
        tries: list[tuple[str, Sequence[Any]]] = [
            ("bn_scale, one threshold", [paper]),
            ("bn_scale, one threshold + refit", [paper, Refit()]),
            ("the same, every group keeps a tenth + refit", [floored, Refit()]),
            ("the same, scores of mean 1 a group + refit", [Prune(**gamma), Refit()]),
            ("backward + refit, MACs of the paper's rule", [best, Refit()]),
        ]
        for each, passes in tries:
            yield judged(case, question, each, passes)


def by_masks(case: Case, share: float) -> tuple[Model, float]:
    """γ and β of that share of all channels zeroed, smallest |γ| first; and the share of MACs that a cut would leave.

    In the ResNet the first BatchNormalization of a block selects which channels of the stream the block reads.
    """
    model = case.model
    ordered = np.sort(np.concatenate([np.abs(gamma) for _, gamma in scales(model)]))
    threshold = ordered[int(len(ordered) * share)]
    graph, left = model.ir.clone(), {}
    for node, gamma in scales(model):
        stays = np.abs(gamma) > threshold
        left[node.name] = float(stays.mean())
        for parameter in node.inputs[1:3]:
            name = parameter.name  # type: ignore[union-attr]
            set_constant(graph, name, model.array(name) * stays)  # type: ignore[arg-type]
    macs = macs_by_layer(model, run_shapes(model, {name: rows[:1] for name, rows in case.data.items()}))
    summed = sum(macs[layer.name, layer.weight] * _left(model, layer, left) for layer in layers(model))
    return model.edited(graph), summed / case.macs


def _left(model: Model, layer: Any, left: dict[str | None, float]) -> float:
    """Share of one layer that a cut at the masks would leave: inputs behind a BatchNormalization, outputs before one."""
    made = {value.name: node for node in model.ir.graph for value in node.outputs}
    node, inputs, outputs = made.get(layer.reads), 1.0, 1.0
    while node is not None and node.op_type not in ("BatchNormalization", "Conv", "Add"):
        node = made.get(node.inputs[0].name)  # type: ignore[union-attr]
    if node is not None and node.op_type == "BatchNormalization":
        inputs = left[node.name]
    users = [user for user in model.ir.graph if any(v is not None and v.name == layer.writes for v in user.inputs)]
    if len(users) == 1 and users[0].op_type == "BatchNormalization":
        outputs = left[users[0].name]
    return inputs * outputs


# -- channel pruning -----------------------------------------------------------------------------------------------


def channel_pruning(case: Case) -> Iterator[Row]:
    """2, 4 and 5 times fewer multiply-adds: the paper's lasso without and with its least squares, and our best."""
    if case.name != "vgg":
        return
    for target, lost in LOST.items():
        question = f"{1 / target:g} times fewer MACs"
        lasso = Prune(criterion="lasso", target_macs=target, round_to=1)
        best = Prune(criterion="backward", target_macs=target, round_to=1)
        yield judged(case, question, "lasso", [lasso])
        yield judged(case, question, "lasso + refit (what the paper does)", [lasso, Refit()], lost)
        yield judged(case, question, "backward + refit", [best, Refit()])
        yield judged(case, question, "backward + refit, three rounds", rounds(target, 3))


def rounds(target: float, count: int) -> list[Any]:
    """Prune and refit in equal ratios; each target is a share of what the round before left."""
    each = Prune(criterion="backward", target_macs=target ** (1 / count), round_to=1)
    return [each, Refit()] * count


# -- rows ----------------------------------------------------------------------------------------------------------


def original(case: Case) -> Row:
    """The row of the trained network."""
    _, widths = counted(case.model, next(iter(case.data.values())))
    return Row(case.name, "", "original", case.accuracy, 1.0, 1.0, min(widths))


def judged(case: Case, question: str, method: str, passes: Sequence[Any], paper: str = "") -> Row:
    """One run of the loop, on the test pictures."""
    start = time.perf_counter()
    try:
        result = run(case.model, passes, case.data, how=HOW)
    except OnnxCompressError as error:
        return Row(case.name, question, method, float("nan"), None, None, None, paper, note=str(error))
    seconds = time.perf_counter() - start
    macs, widths = counted(result.model, next(iter(case.data.values())))
    return Row(
        case.name, question, method, accuracy(result.model, case.test), macs / case.macs,
        sum(widths) / case.channels, min(widths), paper, seconds,
    )  # fmt: skip


HEADS = ("cut", "method", "accuracy", "points", "paper", "MACs", "channels", "narrowest", "s")


def _report(rows: Sequence[Row], calibration: int, test: int) -> None:
    parts = [
        f"Accuracy on {test:,} test pictures of CIFAR-10, no fine-tuning; {calibration} training pictures without labels "
        "for calibration. **The networks are smaller than the papers' and trained far more briefly** "
        "(`benchmarks/anchors_train.py`), so the papers' figures stand beside ours for scale, not as rivals: a narrow "
        "network has less to spare. *MACs*, *channels*: shares that are left, channels as the paper counts them (of every "
        "BatchNormalization). *Narrowest*: channels of the narrowest of these. Channel counts are not rounded. With --keep in "
        "the command, other networks' rows are of an earlier run of the same command.",
        "The paper's ResNet selects, block by block, which channels of the stream a block reads; masks do that here. Prune "
        "cuts a channel of the stream for all that write and read it, so at the same share of channels its result has far "
        "fewer multiply-adds: compare the rows of equal MACs.",
    ]
    for name in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == name]
        parts += [f"## {NETWORKS[name].title}", table(HEADS, [_shown(row, own[0].accuracy) for row in own])]
        parts += [f"- {row.method}: {row.note}" for row in own if row.note]
    write("anchors", "Anchors: accuracy before fine-tuning", parts, {"rows": [asdict(row) for row in rows]})


def _shown(row: Row, before: float) -> list[str]:
    def number(value: float | None, shape: str) -> str:
        return "-" if value is None or value != value else format(value, shape)

    return [
        row.question, row.method, number(100 * row.accuracy, ".1f"), number(100 * (row.accuracy - before), "+.1f"),
        row.paper, number(row.macs, ".3f"), number(row.channels, ".3f"), number(row.least, "d"), number(row.seconds, ".0f"),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
