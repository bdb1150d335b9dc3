"""What prune with repair (or quantize, or factorize) takes in memory and time, from the smallest real model to the largest.

    python -m benchmarks.memory [--models NAME ...] [--samples 16 64] [--verbs prune quantize factorize factorize-blind] [--keep]

Every run is a process of its own that does what the command line does, from the file to the judged result, with one thread
for onnxruntime. Peak: largest resident memory of that process, beside what it holds after its imports. Samples are natural
inputs (noise for resnet50, whose weights are random), three quarters of them for calibration.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import classic
from benchmarks.coverage import RESNET, parameters, peak_memory, resnet
from benchmarks.written import RESULTS, table, write

DIGITS = Path(__file__).parents[1] / "sample_models" / "digits.onnx"
MODELS = (
    "digits",
    "ppocr-cls",
    "magika",
    "ppocr-det",
    "ppocr-rec",
    "efficientnet-lite0",
    "open-nsfw",
    "ddddocr",
    RESNET,
)
PATIENCE = 1800
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Row = dict[str, Any]


def main() -> int:
    """Run all, and write results/memory.md anew after each; 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS, help="names of the manifest, digits, or resnet50's")
    parser.add_argument("--samples", nargs="*", type=int, default=[16, 64])
    parser.add_argument("--verbs", nargs="*", choices=VERBS, default=["prune"])
    parser.add_argument(
        "--keep", action="store_true", help="keep the rows of the last page that this run does not replace"
    )
    parser.add_argument("--worker", nargs=3, metavar=("VERB", "MODEL", "DATA"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(worker(*asked.worker)))
        return 0
    rows = _last() if asked.keep else []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.models:
            model = _path(name, Path(folder))
            for samples in asked.samples:
                data = Path(folder) / "data.npz"
                np.savez(data, allow_pickle=False, **_inputs(name, samples))
                for verb in asked.verbs:
                    row = {"model": name, "samples": samples, "verb": verb, **measured(verb, model, data)}
                    row |= needed(model, data) if verb.startswith("factorize") else {}
                    print(row, flush=True)
                    rows = [*(one for one in rows if _key(one) != _key(row)), row]
                    _report(rows)
    return int(any("error" in row for row in rows))


def worker(verb: str, model: str, data: str) -> Row:
    """In a process of its own: seconds a step, and peak memory."""
    import onnxcompress
    from onnxcompress.model.save import to_bytes

    start = VERBS[verb](onnxcompress)
    base, began, used = peak_memory(), time.perf_counter(), time.process_time()
    result = start(model, data)
    to_bytes(result.model.ir)
    seconds = time.perf_counter() - began
    told = result.comparison
    return {
        "seconds": seconds,
        "cpu": time.process_time() - used,
        "steps": dict(result.seconds),
        "peak": peak_memory(),
        "base": base,
        "sqnr_db": None if told is None else told.sqnr_db,
    }


def prune(package: Any) -> Callable[[str, str], Any]:
    """Half of the channels by their norms, then repair."""
    from onnxcompress.passes import Prune, Refit  # noqa: F401 (so that memory after the imports holds them)

    return lambda model, data: package.prune(model, data=data, amount=0.5, criterion="l2")


def quantize(package: Any) -> Callable[[str, str], Any]:
    """int8, as the command line does it."""
    from onnxcompress.passes import Equalize, Fold, Quantize  # noqa: F401

    return lambda model, data: package.quantize(model, data=data)


def factorize(package: Any) -> Callable[[str, str], Any]:
    """REACHED of the multiply-adds, fitted to data, then repair. The clock is not asked: other work on this machine would choose."""
    from onnxcompress.passes import Factorize, Merge, Refit  # noqa: F401

    return lambda model, data: package.factorize(model, data=data, target_macs=REACHED, pays=0)


def factorize_blind(package: Any) -> Callable[[str, str], Any]:
    """The same from the weights alone; data only judge."""
    from onnxcompress.passes import Factorize, Merge  # noqa: F401

    return lambda model, data: package.factorize(
        model, data=data, fit="weights", refit=False, target_macs=REACHED, pays=0
    )


REACHED = 0.7
"""Of the multiply-adds: all models of the page have chains for that."""

VERBS = {"prune": prune, "quantize": quantize, "factorize": factorize, "factorize-blind": factorize_blind}


def measured(verb: str, model: Path, data: Path) -> Row:
    """One fresh process."""
    facts = {"bytes": model.stat().st_size, "parameters": parameters(onnx.load(model))}
    command = [sys.executable, "-m", "benchmarks.memory", "--worker", verb, str(model), str(data)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **ONE_THREAD}
        )
    except subprocess.TimeoutExpired:
        return {**facts, "error": f"not done in {PATIENCE} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {**facts, "error": f"exit code {done.returncode}: {lines[-1][:160] if lines else 'no message'}"}
    return {**facts, **json.loads(done.stdout.splitlines()[-1])}


def needed(model: Path, data: Path) -> Row:
    """Bytes of the largest layer's Gram matrix in float64, of all values that one sample makes, and of the samples themselves."""
    from onnxcompress.evidence.expose import run_shapes
    from onnxcompress.model import load
    from onnxcompress.operators.layer import layers

    loaded = load(model)
    with np.load(data) as stored:
        feed = {key: stored[key][:1] for key in stored.files}
    widths = [
        layer.groups * int(np.prod(layer.matrix(loaded.array(layer.weight)).shape[1:])) ** 2 for layer in layers(loaded)
    ]
    made = {name: shape for name, shape in run_shapes(loaded, feed).items() if name not in loaded.initializers}
    values = sum(4 * int(np.prod(shape)) for shape in made.values())
    return {"gram": 8 * max(widths), "values": values}


def _path(name: str, folder: Path) -> Path:
    from sample_models.fetch import fetch

    if name == RESNET:
        return resnet(folder)
    if name in classic.NAMES:
        return classic.classic(name)
    return DIGITS if name == "digits" else fetch(name)


def _inputs(name: str, samples: int) -> dict[str, np.ndarray]:
    from sample_models.inputs import inputs

    if name == RESNET:
        noise = np.random.default_rng(0).standard_normal((samples, 3, 224, 224))
        return {"gpu_0/data_0": noise.astype(np.float32)}
    if name in classic.NAMES:
        return classic.inputs(name, samples)
    if name == "digits":
        with np.load(DIGITS.with_suffix(".npz")) as stored:
            return {key: stored[key][:samples] for key in stored.files}
    return inputs(name, samples)


def _last() -> list[Row]:
    """Rows of the last page."""
    page = RESULTS / "memory.json"
    return list(json.loads(page.read_text())["rows"]) if page.exists() else []


def _key(row: Row) -> tuple[Any, ...]:
    return row["parameters"], row["model"], row["verb"], row["samples"]


HEADS = (
    "model", "file MB", "samples", "verb", "s", "CPU s", "of it", "peak MB", "above the imports",
    "over the file", "largest Gram MB", "values MB", "SQNR dB",
)  # fmt: skip
ABOUT = (
    "From the file to the judged result, a fresh process each, one thread; models from smallest to largest. *prune*: half of "
    "the channels, then repair by least squares; *quantize*: int8; *factorize*: .7 of the multiply-adds, fitted to data, then repair; "
    "*factorize-blind*: from the weights alone. "
    "*Over the file*: what is above the imports, in bytes of the file; *largest Gram*: of what one "
    "layer reads, in float64; *values*: all that one sample makes. *Peak*: largest resident memory of the process, onnxruntime "
    "and activations included. *S*: of the wall clock, so a busy machine shows; *CPU s*: of the process; *of it*: the slowest steps. "
    "With --keep in the command, other rows are of earlier runs of the same command."
)


def _report(rows: Sequence[Row]) -> None:
    rows = sorted(rows, key=_key)
    shown = [_shown(row) for row in rows]
    write(
        "memory",
        "Memory and time, from the smallest model to the largest",
        [ABOUT, table(HEADS, shown)],
        {"rows": rows},
    )


def _shown(row: Row) -> list[str]:
    head = [row["model"], f"{row['bytes'] / 1e6:.1f}", str(row["samples"]), row["verb"]]
    if "error" in row:
        return [*head, row["error"], *[""] * (len(HEADS) - len(head) - 1)]
    slowest = sorted(row["steps"].items(), key=lambda step: -step[1])[:2]
    steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in slowest)
    memory = [f"{row['peak'] / 1e6:.0f}", f"{(row['peak'] - row['base']) / 1e6:.0f}"]
    fidelity = "-" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
    above = f"{(row['peak'] - row['base']) / row['bytes']:.1f}"
    facts = [f"{row[name] / 1e6:.0f}" if name in row else "-" for name in ("gram", "values")]
    cpu = f"{row['cpu']:.1f}" if "cpu" in row else "-"
    return [*head, f"{row['seconds']:.1f}", cpu, steps, *memory, above, *facts, fidelity]


if __name__ == "__main__":
    sys.exit(main())
