"""Verbs that judge and make nothing: compare and benchmark; and what the others share with them: settings sorted out, the clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcompress import budgets as gates
from onnxcompress.budgets import BUDGETS
from onnxcompress.compare import Comparison
from onnxcompress.compare import compare as compare_runs
from onnxcompress.data import Data, named_function
from onnxcompress.errors import SettingError
from onnxcompress.evidence.gather import first_shapes
from onnxcompress.model import Loadable, Model, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.operators.cost import Cost, cost
from onnxcompress.result import Report
from onnxcompress.run import How, opened
from onnxcompress.runtime import clock
from onnxcompress.runtime.cpu import cpu
from onnxcompress.settings import check_names, names_of
from onnxcompress.task import read_labels

CLOCKED = {"max_latency": "latency_ms", "max_memory": "memory_bytes"}
"""Budgets that need the clock -> the cost that it measures."""

CLOCK_SECONDS = 4.0

TURNS = 8
"""Feeds that a benchmark takes in turn: enough that no single input decides, few enough to hold."""


def compare(
    original: Loadable, result: Loadable, *, data: Any = None, whole: bool = False, **settings: Any
) -> Comparison:
    """Run two models on the same samples and compare what they answer.

    data      what `open_data` takes; None: synthetic inputs
    whole     all samples, not only those that a run with the same data and seed would hold out
    settings  fields of `run.How`
    """
    _, _, how = sorted_out(settings, None)
    one, two = Runnable.of(original), Runnable.of(result)
    return _compared(one, two, judging_data(one, data, whole, how), how)


def compare_report(
    original: Loadable, result: Loadable, *, data: Any = None, whole: bool = False, **settings: Any
) -> Report:
    """`compare` with costs and budgets (names of BUDGETS among the settings), as the Report that renderers read."""
    _, wanted, how = sorted_out(settings, None)
    start = time.perf_counter()
    one, two = Runnable.of(original), Runnable.of(result)
    judging = judging_data(one, data, whole, how)
    comparison = _compared(one, two, judging, how)
    costs = [_cost(each, judging) for each in (one, two)]
    pairs = {name: (getattr(costs[0], name), getattr(costs[1], name)) for name in ("bytes", "parameters", "macs")}
    known = {name: pair for name, pair in pairs.items() if None not in pair}
    known |= clocked(wanted, one.file, two.file, judging, how)
    verdicts = gates.check(wanted, comparison, known)
    return Report(
        headline=f"{two.model.source.name} {comparison.verdict}",
        grade=comparison.grade,
        model=one.model.source.name,
        costs=pairs,
        comparison=comparison.to_json(),
        verdicts=tuple(verdict.to_json() for verdict in verdicts),
        plans=(),
        notes=judging.notes,
        seconds={"compare": time.perf_counter() - start},
    )


@dataclass(frozen=True)
class Runnable:
    """A model and what a session opens for it: the file as given; of a Model, which may be edited, its own bytes."""

    model: Model
    file: Path | bytes

    @classmethod
    def of(cls, given: Loadable) -> Runnable:
        """ModelError as for `load`."""
        model = load(given)
        return cls(model, to_bytes(finished(model)) if isinstance(given, Model) else model.source.runnable)


def _compared(one: Runnable, two: Runnable, judging: Data, how: How) -> Comparison:
    return compare_runs(
        one.file, two.file, judging,
        metric=how.metric, labels=how.labels, batch=how.batch, threads=how.threads, progress=_shares(how, "compare"),
    )  # fmt: skip


def judging_data(one: Runnable, data: Any, whole: bool, how: How) -> Data:
    found = opened(one.model, data, how)
    return found if whole else found.held_out


def _cost(each: Runnable, data: Data) -> Cost:
    shapes = first_shapes(each.model, data)
    size = len(each.file) if isinstance(each.file, bytes) else clock.size_on_disk(each.file)
    return cost(each.model, shapes, on_disk=size)


@dataclass(frozen=True)
class Benchmark:
    """Timings of models side by side. cpu: name and instruction sets; data: what was fed."""

    cpu: str
    data: str
    notes: tuple[str, ...]
    timings: tuple[clock.Timing, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        timings = [timing.to_json() for timing in self.timings]
        return {"cpu": self.cpu, "data": self.data, "notes": list(self.notes), "timings": timings}


def benchmark(
    *models: Loadable, data: Any = None, threads: Sequence[int] = (1,), seconds: float = 10.0, **settings: Any
) -> Benchmark:
    """Time models on the same inputs, interleaved: latency, load time, peak memory, file size.

    threads   each count is measured by itself       seconds   for all models of one count together
    settings  fields of `run.How`; batch is 1 unless given
    """
    _, _, how = sorted_out({"batch": 1, **settings}, None)
    if not models:
        raise SettingError("name at least one model")
    if seconds <= 0 or any(count < 1 for count in threads):
        raise SettingError("seconds and threads must be more than 0")
    loaded = [Runnable.of(model) for model in models]
    named = _named(loaded)
    opened = judging_data(loaded[0], data, True, how)
    feeds = list(itertools.islice(opened.batches(how.batch), TURNS))
    timings = [
        timing
        for count in threads
        for timing in clock.measure(
            named, feeds, threads=count, seconds=seconds, progress=_shares(how, f"{count} threads")
        )
    ]
    fed = f"{len(feeds)} feeds in turn, from {'synthetic inputs' if opened.synthetic else opened.what}"
    notes = () if opened.synthetic else opened.notes  # that the outputs say little does not matter to a clock
    return Benchmark(str(cpu()), fed, notes, tuple(timings))


def _named(models: Sequence[Runnable]) -> dict[str, Any]:
    """Name -> what runs; a name that comes twice gets a number."""
    named: dict[str, Any] = {}
    for model in models:
        own = model.model.source.name
        names = itertools.chain([own], (f"{own} #{number}" for number in itertools.count(2)))
        named[next(name for name in names if name not in named)] = model.file
    return named


def clocked(wanted: Mapping[str, float], one: Any, two: Any, data: Data, how: How) -> dict[str, tuple[float, float]]:
    """Latency and memory of both, where a budget asks for them."""
    if not CLOCKED.keys() & wanted.keys():
        return {}
    before, after = clock.measure(
        {"original": one, "result": two}, next(iter(data.batches(1))), threads=how.threads, seconds=CLOCK_SECONDS,
        memory="max_memory" in wanted, progress=_shares(how, "clock"),
    )  # fmt: skip
    found = {"latency_ms": (before.median_ms, before.median_ms / after.ratio)}
    if before.memory_bytes and after.memory_bytes:
        found["memory_bytes"] = (float(before.memory_bytes), float(after.memory_bytes))
    return found


def _shares(how: How, what: str) -> Any:
    """A progress callback of shares for one of (done, total, what)."""
    if how.progress is None:
        return None
    report = how.progress
    return lambda share: report(round(1000 * share), 1000, what)


def sorted_out(settings: Mapping[str, Any], each: type | None) -> tuple[dict[str, Any], dict[str, float], How]:
    """Settings of the pass, budgets, and how to run; SettingError for a name that is none of these."""
    own = [] if each is None else names_of(each)
    ways = names_of(How)
    check_names(settings, [*own, *BUDGETS, *ways], "setting")
    wanted = {name: value for name, value in settings.items() if name in BUDGETS and value is not None}
    gates.validate(wanted)
    how = How(**{name: value for name, value in settings.items() if name in ways})
    for name in ("batch", "threads"):
        if getattr(how, name) < 1:
            raise SettingError(f"{name} is {getattr(how, name)}; give 1 or more")
    if how.seed < 0:
        raise SettingError(f"seed is {how.seed}; give 0 or more")
    if isinstance(how.labels, str | Path):  # a wrong name is found now, not after minutes of work
        read_labels(how.labels)
    if isinstance(how.metric, str):
        named_function(how.metric)
    return {name: value for name, value in settings.items() if name in own and name not in ways}, wanted, how
