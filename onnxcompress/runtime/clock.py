"""Latency, load time, memory and size of models side by side.

Models are run in turn, A B A B, so that whatever else the machine does falls on all of them; figures are medians, and
`ratio` is the median of the paired ratios round by round, which cancels a drift that a ratio of two medians keeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from onnxcompress.errors import ModelError
from onnxcompress.runtime.loose import Loose
from onnxcompress.runtime.session import Feeds, Session, open_session

LOADS = 3  # a median needs three
FEWEST_RUNS = 5  # below this a p90 says nothing
MOST_RUNS = 1000
WORKER_SECONDS = 600


@dataclass(frozen=True)
class Timing:
    """What one model costs on this machine.

    median_ms, p10_ms, p90_ms   of one run
    ratio          median of (time of the first model / time of this one), paired by round: above 1 is faster
    load_ms        from the file to a session
    peak_bytes     of a fresh process that loads and runs it; memory_bytes: of that, what the model added (None: not
                   measurable on this system)
    file_bytes     with external data
    """

    name: str
    threads: int
    runs: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float
    load_ms: float
    peak_bytes: int | None
    memory_bytes: int | None
    file_bytes: int

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return asdict(self)


def measure(
    models: Mapping[str, bytes | str | os.PathLike[str]],
    feeds: Feeds | Sequence[Feeds],
    *,
    threads: int = 1,
    runs: int | None = None,
    warmup: int = 3,
    seconds: float = 10.0,
    memory: bool = True,
    progress: Callable[[float], None] | None = None,
) -> list[Timing]:
    """Time models on the same feeds, interleaved.

    models     path or bytes of each, by name; the first is what the others are compared with
    feeds      one feed, or several that are used in turn (the same one for all models of a round)
    runs       timed runs of each model; None: as many as fit into `seconds` for all models together
    memory     False leaves the memory out (it needs a fresh process for each model)
    progress   called with the share that is done, 0 to 1

    ModelError or DataError where a model does not load or does not run.
    """
    turns = [feeds] if isinstance(feeds, Mapping) else list(feeds)
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
        paths = {name: _on_disk(model, Path(folder) / f"{i}.onnx") for i, (name, model) in enumerate(models.items())}
        sessions, loads = _load(paths, threads)
        used = {name: _memory(path, turns[0], threads, Path(folder)) if memory else {} for name, path in paths.items()}
        sizes = {name: size_on_disk(path) for name, path in paths.items()}
    for _ in range(warmup):
        for session in sessions.values():
            session.run(turns[0])
    times = _interleaved(list(sessions.values()), turns, runs, seconds, progress) * 1e3
    return [
        _timing(name, threads, times[:, i], times[:, 0], loads[name], used[name], sizes[name])
        for i, name in enumerate(paths)
    ]


def paired_ms(
    models: Mapping[str, bytes | Loose],
    feeds: Sequence[Feeds],
    *,
    threads: int = 1,
    seconds: float = 10.0,
    warmup: int = 1,
) -> dict[str, float]:
    """Milliseconds of one run of each, from the ratios to the first one's, round by round; nothing but runs is measured.

    seconds  for all models together; each runs FEWEST_RUNS times at least
    """
    sessions = [open_session(model, threads=threads, name=name) for name, model in models.items()]
    for session in sessions:
        for _ in range(warmup):
            session.run(feeds[0])
    times = _interleaved(sessions, feeds, None, seconds, None) * 1e3
    first = float(np.median(times[:, 0]))
    return {name: first / float(np.median(times[:, 0] / times[:, i])) for i, name in enumerate(models)}


def size_on_disk(path: str | os.PathLike[str]) -> int:
    """Bytes of a model file and of the external data files that it names."""
    total = os.stat(path).st_size
    try:
        model = onnx_ir.load(path)  # external data stays on the disk
    except Exception:  # whatever the parser says: onnxruntime loaded it, and the file itself has a size
        return total
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    beside = {os.path.realpath(tensor.path) for tensor in tensors if isinstance(tensor, onnx_ir.ExternalTensor)}
    return total + sum(os.stat(file).st_size for file in sorted(beside))


def _on_disk(model: bytes | str | os.PathLike[str], spare: Path) -> Path:
    if not isinstance(model, bytes):
        return Path(model)
    spare.write_bytes(model)
    return spare


def _load(paths: Mapping[str, Path], threads: int) -> tuple[dict[str, Session], dict[str, float]]:
    """A session of each model and the median seconds of loading it, interleaved like the runs."""
    sessions: dict[str, Session] = {}
    taken: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(LOADS):
        for name, path in paths.items():
            sessions.pop(name, None)  # two sessions of one model would double the memory
            start = time.perf_counter()
            sessions[name] = open_session(path, threads=threads)
            taken[name].append(time.perf_counter() - start)
    return {name: sessions[name] for name in paths}, {name: float(np.median(each)) for name, each in taken.items()}


def _interleaved(
    sessions: Sequence[Session],
    turns: Sequence[Feeds],
    runs: int | None,
    seconds: float,
    progress: Callable[[float], None] | None,
) -> np.ndarray:
    """Seconds of each run, [rounds, models].

    Each round has an order of its own: a file's time hangs on whom it follows (EfficientNet-Lite0: two equal files 1.11 apart).
    """
    rows: list[list[float]] = []
    began, orders = time.perf_counter(), np.random.default_rng(0)
    while len(rows) < (runs or MOST_RUNS):
        feeds, row = turns[len(rows) % len(turns)], [0.0] * len(sessions)
        for place in orders.permutation(len(sessions)):
            start = time.perf_counter()
            sessions[place].run(feeds)
            row[place] = time.perf_counter() - start
        rows.append(row)
        spent = time.perf_counter() - began
        if progress is not None:
            progress(min(1.0, len(rows) / runs if runs else spent / seconds))
        if runs is None and spent > seconds and len(rows) >= FEWEST_RUNS:
            break
    return np.array(rows)


def _memory(path: Path, feeds: Feeds, threads: int, folder: Path) -> dict[str, int | None]:
    """What worker.py says about one model; empty where it says nothing (killed, no memory for it)."""
    stored = folder / "feeds.npz"
    np.savez(stored, *feeds.values())
    task = {"model": str(path.resolve()), "feeds": str(stored), "names": list(feeds), "threads": threads}
    roots = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with contextlib.suppress(subprocess.SubprocessError, OSError, ValueError):
        done = subprocess.run(
            [sys.executable, "-m", "onnxcompress.runtime.worker"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=WORKER_SECONDS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
        )
        said = json.loads(done.stdout)
        if "error" in said:
            raise ModelError(said["error"])
        return dict(said)
    return {}


def _timing(
    name: str,
    threads: int,
    times: np.ndarray,
    first: np.ndarray,
    load: float,
    used: Mapping[str, int | None],
    size: int,
) -> Timing:
    p10, median, p90 = np.percentile(times, [10, 50, 90])
    peak, base = used.get("peak"), used.get("base")
    return Timing(
        name=name,
        threads=threads,
        runs=len(times),
        median_ms=float(median),
        p10_ms=float(p10),
        p90_ms=float(p90),
        ratio=float(np.median(first / times)),
        load_ms=load * 1e3,
        peak_bytes=peak,
        memory_bytes=None if peak is None or base is None else max(0, peak - base),
        file_bytes=size,
    )
