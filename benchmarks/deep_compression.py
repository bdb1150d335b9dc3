"""The three stages of Deep Compression without training: prune single weights, share those that are left, code by frequency.

    python -m benchmarks.deep_compression [--models digits ppocr-cls ppocr-rec magika] [--keep]

Han, Mao, Dally, ICLR 2016, arXiv:1510.00149, train after each stage: LeNet-300-100 from 1070 to 27 KB, LeNet-5 1720 to 44, AlexNet 240 MB
to 6.9, VGG-16 552 to 11.3. Here SparseGPT prunes on calibration samples and codebooks are assigned with compensation; no label is
looked at and nothing is trained. Of all shares of zeros and bits that are tried, the smallest packed file counts whose score on the first
half of the samples is within half a point; the score that is shown is of the other half, and should be within one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxcompress
from benchmarks.written import RESULTS, table, write
from onnxcompress.compare import compare
from onnxcompress.data import Data, open_data
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.runtime.session import open_session
from sample_models.fetch import fetch
from sample_models.inputs import inputs, labels, task
from sample_models.metrics import first_answer

ROOT = Path(__file__).parents[1]
MODELS = ("digits", "ppocr-cls", "ppocr-rec", "magika")
CALIBRATION, JUDGED = 48, 200
ZEROS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8)
BITS = (2, 3, 4, 5)
MARGIN = 0.005
"""What the half that chooses may lose, where a point is meant: the smallest of many that pass has passed by chance too."""


@dataclass(frozen=True, eq=False)
class Case:
    """A model, samples to calibrate with, and two halves of labelled ones: the first chooses, the second is shown."""

    path: Path
    calibration: dict[str, np.ndarray]
    halves: tuple[Data, Data]
    truth: tuple[np.ndarray, np.ndarray]
    metric: Callable[..., float]

    def score(self, model: bytes | str | Path, half: int) -> float:
        """0 to 1."""
        told = compare(self.path, model, self.halves[half], metric=self.metric, labels=self.truth[half])
        assert told.score is not None
        return told.score.result


def main() -> int:
    """All models; results/deep_compression.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--keep", action="store_true", help="keep rows of the last page that this run does not replace")
    asked = parser.parse_args()
    page = RESULTS / "deep_compression.json"
    last = json.loads(page.read_text())["rows"] if asked.keep and page.exists() else []
    rows: list[dict[str, Any]] = [row for row in last if row["model"] not in asked.models]
    for name in asked.models:
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
            rows.append(stages(name, opened(name), Path(folder)))
            print(rows[-1], flush=True)
        report(rows)
    return 0


def opened(name: str) -> Case:
    """The samples of a model: those to judge on first, those to calibrate with after them."""
    if name == "digits":
        path = ROOT / "sample_models" / "digits.onnx"
        arrays, truth, metric = (
            dict(np.load(path.with_suffix(".npz"))),
            np.load(path.with_name("digits_labels.npz")),
            first_answer,
        )
        answers = truth[truth.files[0]]
        count = len(answers) - CALIBRATION
    else:
        path, count = fetch(name), JUDGED
        arrays, answers, metric = inputs(name, count + CALIBRATION, 0), labels(name, count + CALIBRATION, 0), task(name)
        assert answers is not None and metric is not None
    ports = open_session(path, name=name).inputs
    edges = (0, count // 2, count)
    halves = tuple(open_data({k: v[a:b] for k, v in arrays.items()}, ports) for a, b in itertools.pairwise(edges))
    truths = tuple(answers[a:b] for a, b in itertools.pairwise(edges))
    return Case(path, {k: v[count:] for k, v in arrays.items()}, halves, truths, metric)  # type: ignore[arg-type]


def stages(name: str, case: Case, folder: Path) -> dict[str, Any]:
    """The best of all shares and bits, stage by stage."""
    wanted = case.score(case.path, 0) - MARGIN
    found: dict[str, Any] = {"packed": np.inf}
    for zeros in ZEROS:
        pruned = case.path if not zeros else sparse(case, zeros)
        if zeros and case.score(to_bytes(finished(pruned)), 0) < wanted:
            break  # more zeros lose more
        for bits in BITS:
            out = folder / "shared.onnx"
            onnxcompress.cluster(pruned, data=case.calibration, bits=bits).save(out)
            if case.score(out, 0) < wanted:
                continue
            row = {"zeros": zeros, "bits": bits, **sizes(pruned, out, folder), "score": case.score(out, 1)}
            print(name, row, flush=True)
            found = row if row["packed"] < found["packed"] else found
            break  # more bits take more room
    return {"model": name, "bytes": case.path.stat().st_size, "before": case.score(case.path, 1), **found}


def sparse(case: Case, zeros: float) -> Any:
    """SparseGPT, then what is left of biases and norms is as it was."""
    return onnxcompress.sparsify(case.path, data=case.calibration, amount=zeros, criterion="sparsegpt").model


def sizes(pruned: Any, shared: Path, folder: Path) -> dict[str, int]:
    """Bytes after each stage, as a packed file, and of the file that onnxruntime runs."""

    def packed(model: Any, entropy: str) -> int:
        out = folder / "packed.onnxz"
        out.unlink(missing_ok=True)
        return onnxcompress.pack(model, out, entropy=entropy).after

    return {
        "pruned": packed(pruned, "huffman"),
        "runnable": shared.stat().st_size,
        "packed": packed(shared, "huffman"),
        "ans": packed(shared, "ans"),
    }


HEADS = ("model", "kB", "zeros", "bits", "pruned", "shared and Huffman", "with ANS", "as .onnx", "times", "score")
ABOUT = (
    "Sizes in kB. *Pruned*: the packed file of the first stage; *shared and Huffman*: of all three; *as .onnx*: the file that "
    "stock onnxruntime runs; *times*: how much smaller the packed and the runnable file are. *Score*: before → after, on samples "
    "that chose nothing. Rows of models that the command does not name are older, made by the code of that time."
)


def report(rows: list[dict[str, Any]]) -> None:
    """One table."""
    shown = []
    for row in rows:
        if "score" not in row:
            shown.append([row["model"], *["-"] * (len(HEADS) - 1)])
            continue
        kilo = [f"{row[key] / 1e3:.1f}" for key in ("pruned", "packed", "ans", "runnable")]
        times = f"{row['bytes'] / row['packed']:.1f}, {row['bytes'] / row['runnable']:.1f}"
        head = [row["model"], f"{row['bytes'] / 1e3:.0f}", f"{row['zeros']:.0%}", str(row["bits"])]
        shown.append([*head, *kilo, times, f"{row['before']:.3f} → {row['score']:.3f}"])
    write(
        "deep_compression", "Deep Compression's stages without training", [ABOUT, table(HEADS, shown)], {"rows": rows}
    )


if __name__ == "__main__":
    sys.exit(main())
