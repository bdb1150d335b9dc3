"""What is left of the answers at equal multiply-adds: beside onnxsim and Torch-Pruning, one shot, no training.

    python -m benchmarks.fidelity [--models NAME ...] [--macs 0.5 0.7] [--samples 48] [--torch-python PYTHON]

Every method gets the same file and must come out at the same share of the multiply-adds, counted by the same function
(onnxcompress.operators.cost) on the shapes of a run: the peers' amount is searched by bisection, and where no amount
gets there, the row says what they reach. A final Softmax or Sigmoid is taken off first, so that saturated probabilities
flatter nobody. Samples are natural inputs; a quarter of them is held out, and all figures are of these. --torch-python
is an interpreter that has torch, torch-pruning and onnx2torch; without it the rows say that it was not run.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.written import RESULTS, table, write
from onnxcompress.compare import compare
from onnxcompress.data import open_data
from onnxcompress.errors import OnnxCompressError
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model import load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.operators.cost import cost
from onnxcompress.passes import Prune, Refit
from onnxcompress.run import run
from onnxcompress.runtime.session import open_session
from sample_models.fetch import fetch
from sample_models.inputs import inputs, labels, task

MODELS = ("efficientnet-lite0", "ppocr-cls", "open-nsfw", "ppocr-rec", "ddddocr")
NOTHING = "-"
STEPS = 9  # of the bisection: amounts to 0.2 %
TORCH_PATIENCE = 40  # seconds for one amount


@dataclass(frozen=True, eq=False)
class Case:
    """One model without its last Softmax, and its samples."""

    name: str
    content: bytes
    data: Any
    rows: np.ndarray | None
    feed: dict[str, np.ndarray]
    macs: int


@dataclass(frozen=True)
class Row:
    """What one method left of one model. macs and parameters as shares; score of the task before and after."""

    model: str
    target: float
    method: str
    macs: float | None = None
    parameters: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    before: float | None = None
    after: float | None = None
    seconds: float | None = None
    note: str = ""


def main() -> int:
    """All models, targets and methods; the page is written anew after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument(
        "--macs", nargs="*", type=float, default=[0.5, 0.7], help="shares of the multiply-adds that are left"
    )
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--torch-python", help="interpreter with torch, torch-pruning and onnx2torch")
    parser.add_argument("--methods", nargs="*", help="as the page calls them; all, if left out")
    parser.add_argument(
        "--keep", action="store_true", help="keep the rows of the last page that this run does not replace"
    )
    asked = parser.parse_args()
    unknown = set(asked.methods or ()) - methods(asked.torch_python).keys()
    if unknown:
        parser.error(f"no method is called {sorted(unknown)}; there are {sorted(methods(asked.torch_python))}")
    rows = _last() if asked.keep else []
    for target in asked.macs:
        for name in asked.models:
            case = opened(name, asked.samples)
            for method, make in methods(asked.torch_python).items():
                if asked.methods and method not in asked.methods:
                    continue
                row = judged(case, target, method, make)
                print(row, flush=True)
                rows = _with(rows, row)
                _report(rows, asked.samples)
    return 0


def _last() -> list[Row]:
    """Rows of the last page."""
    page = RESULTS / "fidelity.json"
    return [Row(**row) for row in json.loads(page.read_text())["rows"]] if page.exists() else []


def _with(rows: Sequence[Row], row: Row) -> list[Row]:
    """The row in the place of the one that asked the same question, or at the end."""
    same = [(each.model, each.target, each.method) == (row.model, row.target, row.method) for each in rows]
    return [row if again else each for each, again in zip(rows, same, strict=True)] + ([] if any(same) else [row])


Make = Callable[[Case, float], tuple[bytes, str]]
"""(case, share of MACs) -> the result's bytes and a note; ValueError or an error of a tool where it cannot."""


def methods(torch_python: str | None) -> dict[str, Make]:
    """Method -> how it is done, peers first."""
    return {
        "onnxsim 0.8.1, L2": onnxsim,
        "Torch-Pruning, L2": lambda case, target: torch_pruning(case, target, torch_python),
        "l2": lambda case, target: ours(case, target, [Prune(criterion="l2", target_macs=target)]),
        "l2 + refit": lambda case, target: ours(case, target, [Prune(criterion="l2", target_macs=target), Refit()]),
        "backward + refit": lambda case, target: ours(
            case, target, [Prune(criterion="backward", target_macs=target), Refit()]
        ),
        "auto + refit": lambda case, target: ours(case, target, [Prune(criterion="auto", target_macs=target), Refit()]),
    }


def opened(name: str, samples: int) -> Case:
    """The model without final Softmax, with its samples split."""
    model = without_final(onnx.load(fetch(name)))
    session = open_session(model.SerializeToString(), name=name)
    data = open_data(inputs(name, samples, 0), session.inputs, seed=0)
    feed = next(iter(data.batches(1)))
    content = with_true_rank(model, session.run(feed))
    macs, _ = counted(content, feed)
    return Case(name, content, data, labels(name, samples, 0), feed, macs)


def without_final(model: onnx.ModelProto) -> onnx.ModelProto:
    """Softmax or Sigmoid before the output becomes Identity, in place."""
    graph = model.graph
    wanted = {output.name for output in graph.output}
    for node in reversed(graph.node):
        if wanted & set(node.output):
            if node.op_type == "Identity":
                wanted |= set(node.input)
            elif node.op_type in ("Softmax", "Sigmoid"):
                node.op_type = "Identity"
                del node.attribute[:]
    return model


def with_true_rank(model: onnx.ModelProto, answers: dict[str, np.ndarray]) -> bytes:
    """ddddocr's file declares its output with two axes and gives three: then each axis is declared as unknown."""
    for output in model.graph.output:
        shape = output.type.tensor_type.shape
        if len(shape.dim) != answers[output.name].ndim:
            shape.ClearField("dim")
            for axis in range(answers[output.name].ndim):
                shape.dim.add().dim_param = f"axis{axis}"
    return model.SerializeToString()


def counted(content: bytes, feed: dict[str, np.ndarray]) -> tuple[int, int]:
    """Multiply-adds of one run on that sample, and parameters."""
    model = load(content)
    found = cost(model, run_shapes(model, feed))
    return found.macs or 0, found.parameters


def judged(case: Case, target: float, method: str, make: Make) -> Row:
    """Make, count, and compare on the held-out samples."""
    start = time.perf_counter()
    try:
        content, note = make(case, target)
        seconds = time.perf_counter() - start
        macs, parameters = counted(content, case.feed)
        of_original = counted(case.content, case.feed)[1]
        metric = task(case.name)
        told = compare(case.content, content, case.data.held_out, metric=metric, labels=case.rows if metric else None)
    except (OnnxCompressError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        return Row(case.name, target, method, note=" ".join(str(error).split())[-200:])
    score = told.score
    return Row(
        case.name,
        target,
        method,
        macs / case.macs,
        parameters / of_original,
        told.sqnr_db,
        told.agreement,
        score.original if score else None,
        score.result if score else None,
        seconds,
        note,
    )


def ours(case: Case, target: float, passes: Sequence[Any]) -> tuple[bytes, str]:
    """The one loop, on the calibration samples."""
    result = run(case.content, passes, case.data)
    told = [note for note in result.plan.notes if note.startswith("units are ranked")]
    return to_bytes(finished(result.model)), "".join(told)


def onnxsim(case: Case, target: float) -> tuple[bytes, str]:
    """simplify, then structured pruning with the amount that gives these multiply-adds."""
    import onnxsim as peer

    simple, _ = peer.simplify(onnx.load_from_string(case.content))
    return searched(case, target, lambda amount: peer.apply_structured_pruning(simple, amount).SerializeToString())


def torch_pruning(case: Case, target: float, python: str | None) -> tuple[bytes, str]:
    """In the other interpreter, with the simplified file, of which onnx2torch reads more than of the original."""
    if python is None:
        raise ValueError("not run: no --torch-python was given")
    import onnxsim as peer

    with tempfile.TemporaryDirectory() as folder:
        model, feeds, out = (Path(folder) / name for name in ("model.onnx", "feeds.npz", "out.onnx"))
        onnx.save(peer.simplify(onnx.load_from_string(case.content))[0], model)
        np.savez(feeds, allow_pickle=False, **case.feed)
        script = str(Path(__file__).with_name("torch_pruning_peer.py"))

        def at(amount: float) -> bytes:
            command = [python, script, str(model), str(feeds), str(amount), str(out)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_PATIENCE)
            except subprocess.TimeoutExpired as error:
                raise ValueError(f"failed: not done after {TORCH_PATIENCE} s") from error
            if done.returncode:
                raise ValueError(f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
            return out.read_bytes()

        return searched(case, target, at)


def searched(case: Case, target: float, at: Callable[[float], bytes]) -> tuple[bytes, str]:
    """The result whose multiply-adds come nearest to the target, by bisection over the amount."""
    low, high = 0.0, 0.98
    tried: list[tuple[float, float, bytes]] = []

    def share(amount: float) -> float:
        content = at(amount)
        tried.append((counted(content, case.feed)[0] / case.macs, amount, content))
        return tried[-1][0]

    if share(high) > target + 0.01:
        return tried[0][2], f"cannot reach it: {tried[0][0]:.3f} of the MACs at amount {high}"
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) > target else (low, middle)
    _, amount, content = min(tried, key=lambda one: abs(one[0] - target))
    return content, f"amount {amount:.3f}"


def _report(rows: Sequence[Row], samples: int) -> None:
    parts = [
        f"{samples} natural samples a model, three quarters for calibration, the rest held out; figures are of the "
        "held-out ones, on logits. *MACs*, *parameters*: shares of the original. *SQNR*: of the worst output. *Agree*: "
        "same decision (for text readers of each time step). *Task*: score of the original, then of the result "
        "(accuracy; for text readers exact lines). With few held-out samples a share moves in coarse steps. "
        "With --keep in the command, other rows are of earlier runs of the same command."
    ]
    for target in dict.fromkeys(row.target for row in rows):
        parts += [f"## MACs {target:g}", table(HEADS, [_shown(row) for row in rows if row.target == target])]
    write("fidelity", "Fidelity at equal multiply-adds, no training", parts, {"rows": [asdict(row) for row in rows]})


HEADS = ("model", "method", "MACs", "parameters", "SQNR dB", "agree", "task", "s", "note")


def _shown(row: Row) -> list[str]:
    scores = NOTHING if row.before is None or row.after is None else f"{row.before:.3f} → {row.after:.3f}"
    numbers = [_number(row.macs, 3), _number(row.parameters, 3), _number(row.sqnr_db, 1), _number(row.agreement, 3)]
    return [row.model, row.method, *numbers, scores, _number(row.seconds, 0), row.note]


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
