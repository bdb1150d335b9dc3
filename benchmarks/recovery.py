"""What distillation brings back of a compressed model, without labels, from the command line with the defaults of the tool.

    python -m benchmarks.recovery [--rows WORDS ...] [--seeds 0 1 2]

Each row compresses a model, and lets `onnxcompress distill` train the result from the original on inputs that nobody labelled. Scores
are those of the task on other inputs, rendered with a seed of their own, that took no part. Rows of earlier runs stay in the results.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.written import RESULTS, table, write
from onnxcompress.difference import sqnr_db
from onnxcompress.runtime.session import open_session
from sample_models import metrics
from sample_models.fetch import fetch
from sample_models.inputs import answers, inputs, labels, task

DIGITS = Path(__file__).parents[1] / "sample_models" / "digits.onnx"
TESTED = 1000
"""Seed of the inputs that judge."""


@dataclass(frozen=True)
class Row:
    """A compressed student. train, test: samples (a quarter of train only judges in the report); shrink, distill: verbs with options."""

    title: str
    model: str
    train: int
    test: int
    shrink: tuple[str, ...]
    distill: tuple[str, ...]
    asked: str


FACTORS = ("factorize", "--pays", "0", "--limit", "96", "--target-macs")
SHORT, SHORTER = ("--epochs", "8", "--minibatch", "8"), ("--epochs", "4", "--minibatch", "8")
THIRD = ("prune", "--target-macs", "0.33", "--criterion", "taylor")
ROWS = (
    Row("text direction, a third of the multiply-adds", "ppocr-cls", 600, 600, THIRD, (), "95 % of the original's"),
    Row(
        "text reader, half of the multiply-adds", "ppocr-rec", 480, 200, ("prune", "--target-macs", "0.5", "--criterion", "taylor"),
        ("--epochs", "8", "--minibatch", "8"), "95 % of the original's",
    ),
    Row(
        "text reader, 4 bits without data", "ppocr-rec", 480, 200, ("cluster", "--bits", "4", "--rate", "none"),
        ("--keep-encoding", "--move-symbols", "--epochs", "3", "--minibatch", "8"), "half of what was lost",
    ),
    Row(
        "text direction, 3 bits without data", "ppocr-cls", 600, 600, ("cluster", "--bits", "3", "--rate", "none"),
        ("--keep-encoding", "--move-symbols"), "half of what was lost",
    ),
    Row("digits, one bit (BinaryConnect)", "digits", 400, 300, ("binarize", "--terms", "1"), ("--move-symbols",), "within a point"),
    Row("text reader, factors at .5", "ppocr-rec", 480, 200, (*FACTORS, "0.5"), SHORT, "no loss (Jaderberg et al.: 2.5 times)"),
    Row("text reader, factors at .25", "ppocr-rec", 480, 200, (*FACTORS, "0.25"), SHORT, "0.3 points (Zhang et al.: 4 times)"),
    Row("captcha reader, factors at .4", "ddddocr", 240, 200, (*FACTORS, "0.4"), SHORTER, "no loss (Jaderberg et al.: 2.5 times)"),
    Row("captcha reader, factors at .25", "ddddocr", 240, 200, (*FACTORS, "0.25"), SHORTER, "0.3 points (Zhang et al.: 4 times)"),
    Row("text direction, int8", "ppocr-cls", 600, 600, ("quantize", "--no-measure"), (), "keeps its accuracy in int8"),
)  # fmt: skip


def main() -> int:
    """The rows; results/recovery.md, written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", help="only those whose title holds one of these words")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of the training inputs")
    asked = parser.parse_args()
    found = earlier()
    for row in ROWS:
        if asked.rows is None or any(word in row.title for word in asked.rows):
            for seed in asked.seeds:
                found[f"{row.title} / {seed}"] = {"title": row.title, "seed": seed, **measured(row, seed)}
                report(found)
    return 0


def earlier() -> dict[str, dict[str, Any]]:
    """Rows of runs before."""
    path = RESULTS / "recovery.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {f"{row['title']} / {row['seed']}": row for row in rows}


def measured(row: Row, seed: int) -> dict[str, Any]:
    """Scores of the original, the compressed and the recovered model, and what it took."""
    with tempfile.TemporaryDirectory() as folder:
        original, data = material(row, seed, Path(folder))
        small, better = Path(folder) / "small.onnx", Path(folder) / "better.onnx"
        fed = () if "without data" in row.title else ("--data", str(data))
        shrunk = command(*row.shrink[:1], str(original), *row.shrink[1:], *fed, "-o", str(small))
        taught = command(
            "distill", str(small), "--teacher", str(original), "--data", str(data), *row.distill, "-o", str(better),
            "--json", str(Path(folder) / "report.json"),
        )  # fmt: skip
        notes = json.loads((Path(folder) / "report.json").read_text())["notes"]
        scores = judged(row, {"before": original, "small": small, "after": better})
        told = [note for note in notes if note.startswith(("rate ", "the weights of", "the averaged", "no epoch"))]
        sizes = {"bytes_small": small.stat().st_size, "bytes_after": better.stat().st_size}
    return {**scores, **sizes, "shrink": shrunk, "distill": taught, "notes": told}


def command(*line: str) -> dict[str, Any]:
    """Run the tool; its command, CPU and wall seconds. RuntimeError where it fails."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "onnxcompress", *line, "-q"], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}: {done.stderr or done.stdout}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    shown = " ".join(Path(word).name if "/" in word else word for word in line)
    return {"command": shown, "cpu": round(cpu, 1), "wall": round(time.perf_counter() - begun, 1)}


def material(row: Row, seed: int, folder: Path) -> tuple[Path, Path]:
    """The model's file, and one with inputs to train on."""
    data = folder / f"{row.model}.npz"
    if row.model == "digits":
        with np.load(DIGITS.with_suffix(".npz")) as stored:
            np.savez(data, image=stored["image"][: row.train])
        return DIGITS, data
    np.savez(data, **inputs(row.model, row.train, seed))  # type: ignore[arg-type]
    return Path(fetch(row.model)), data


def judged(row: Row, paths: dict[str, Path]) -> dict[str, float]:
    """On inputs that took no part: the task's score of each file, and how near its outputs are to the original's, in dB."""
    if row.model == "digits":
        with np.load(DIGITS.with_suffix(".npz")) as stored, np.load(DIGITS.with_name("digits_labels.npz")) as named:
            images, truth = stored["image"][row.train :], named["labels"][row.train :]
        outputs = {name: open_session(path).run({"image": images}) for name, path in paths.items()}
        metric = metrics.first_answer
    else:
        given, truth, metric = inputs(row.model, row.test, TESTED), labels(row.model, row.test, TESTED), task(row.model)  # type: ignore[assignment]
        outputs = {name: answers(row.model, given, open_session(path).run) for name, path in paths.items()}
    (right,) = outputs["before"].values()
    near = {}
    for name in paths:
        (found,) = outputs[name].values()
        near[f"{name}_db"] = sqnr_db(float((right**2).sum()), float(((right - found) ** 2).sum()))
    return {name: float(metric(each, truth)) for name, each in outputs.items()} | {
        n: d for n, d in near.items() if n != "before_db"
    }


HEADS = (
    "student",
    "seed",
    "original",
    "compressed",
    "distilled",
    "of the original's",
    "won back",
    "SQNR, dB",
    "CPU s",
    "asked",
)


def report(found: dict[str, dict[str, Any]]) -> None:
    """A line a student and seed; the commands below."""
    asked = {row.title: row for row in ROWS}
    shown = [_line(told, asked[told["title"]]) for told in found.values() if told["title"] in asked]
    lines = [
        f"- {told['title']}, seed {told['seed']}: `{told['shrink']['command']}`, `{told['distill']['command']}`; {'; '.join(told['notes'])}"
        for told in found.values()
    ]
    parts = [ABOUT, table(HEADS, shown), *_spread(list(found.values())), "\n".join(lines)]
    write("recovery", "What distillation brings back, without labels", parts, {"rows": list(found.values())})


def _line(told: dict[str, Any], row: Row) -> list[str]:
    lost, won = told["before"] - told["small"], told["after"] - told["small"]
    share = f"{won / lost:.0%}" if lost > 0 else ""
    return [
        row.title, str(told["seed"]), *(f"{told[name]:.1%}" for name in ("before", "small", "after")),
        f"{told['after'] / told['before']:.1%}", share,
        f"{told['small_db']:.1f} → {told['after_db']:.1f}" if "small_db" in told else "", f"{told['distill']['cpu']:.0f}", row.asked,
    ]  # fmt: skip


def _spread(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Mean and standard deviation of what has several seeds."""
    said = []
    for title in dict.fromkeys(row["title"] for row in rows):
        shares = [row["after"] / row["before"] for row in rows if row["title"] == title]
        if len(shares) > 1:
            said.append(f"{title}: {np.mean(shares):.1%} ± {np.std(shares, ddof=1):.1%} over {len(shares)} seeds.")
    return [" ".join(said)] if said else []


ABOUT = (
    "Scores: share of lines with the right direction, of lines read exactly (spaces ignored), of digits told right. Lines are rendered; "
    "those that train have the row's seed, those that judge another one. *won back*: of what compression lost. *SQNR*: outputs beside the "
    "original's, compressed and distilled. CPU seconds of `distill` alone, teacher, trials of rates and judging included. "
    "Codebooks without data are those of `--rate none`, which the command shows only since it is no longer the default of large models."
)


if __name__ == "__main__":
    sys.exit(main())
