"""The one loop: needs, evidence, plan, apply, for each pass; then original and result on the same held-out inputs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcompress import budgets as gates
from onnxcompress import training
from onnxcompress.compare import Comparison, compare
from onnxcompress.data import Data, ImageSettings, open_data
from onnxcompress.evidence.expose import Watched
from onnxcompress.evidence.gather import PROVIDERS, Sources, first_shapes, gather
from onnxcompress.evidence.kinds import KINDS
from onnxcompress.evidence.need import Evidence
from onnxcompress.model import Loadable, Model, guard, load
from onnxcompress.model.save import finished
from onnxcompress.operators.cost import Cost, cost, uncounted
from onnxcompress.passes.protocol import Pass
from onnxcompress.plan import Plan
from onnxcompress.result import Result
from onnxcompress.runtime.loose import Loose, loose
from onnxcompress.runtime.memory import give_back, spared
from onnxcompress.weights.beside import read_beside
from onnxcompress.weights.filed import let_go_of_all

Progress = Callable[[int, int, str], None]
"""done, total, what."""

SYNTHETIC_SAMPLES = 16


@dataclass(frozen=True)
class How:
    """How a run is carried out; nothing here changes what a pass decides, except the seed and the data's limit.

    batch         samples fed at once             threads       of the sessions
    memory_limit  bytes for evidence, beside onnxruntime's own; one value alone may take half of what the system has free
    limit         at most so many samples         seed          of the split, of synthetic inputs
    """

    batch: int = 8
    threads: int = 1
    memory_limit: int = 256 << 20
    limit: int | None = None
    seed: int = 0
    images: ImageSettings | None = None
    metric: str | None = None
    labels: Any = None
    progress: Progress | None = None


@spared()
def run(
    model: Loadable,
    passes: Sequence[Pass],
    data: Any = None,
    *,
    budgets: Mapping[str, float] | None = None,
    plans: Sequence[Plan] = (),
    dry: bool = False,
    how: How | None = None,
) -> Result:
    """Carry out passes one after another and judge the result against the original on onnxruntime.

    model    path, bytes, ModelProto, onnx_ir.Model or Model
    data     what `open_data` takes; None: synthetic inputs, and the report says so
    budgets  name -> limit, rows of BUDGETS; the Result says which were met
    plans    saved plans to replay, one a pass, instead of planning
    dry      decide and count what is left, and leave the judging out
    Errors: ModelError, DataError, SettingError, each before anything is written.
    """
    how = how or How()
    wanted = dict(budgets or {})
    gates.validate(wanted)
    clock = Clock()
    with clock("load"):
        original = read(model)
        feed = opened(original, data, how)
    current, made = original, []
    for number, each in enumerate(passes):
        with clock(each.name), _bar(how.progress, each.name):
            if number < len(plans):
                plan = plans[number]
            else:
                plan = each.plan(current, evidence_for(each, original, current, feed, how))
            made.append(plan)
            current = each.apply(current, plan)
        let_go_of_all(original.ir, current.ir)
        _clear_away()
    before, after = costs(original, current, feed)
    notes = (*feed.notes, *filter(None, [uncounted(original, first_shapes(original, feed.calibration))]))
    _clear_away()
    if dry:
        return Result(original, original, tuple(made), before, after, notes=notes, seconds=clock.seconds)
    with clock("compare"):
        comparison = judged(original, current, feed, how)
    amounts = {name: (getattr(before, name), getattr(after, name)) for name in ("bytes", "parameters", "macs")}
    verdicts = gates.check(wanted, comparison, {name: pair for name, pair in amounts.items() if None not in pair})
    return Result(original, current, tuple(made), before, after, comparison, tuple(verdicts), notes, clock.seconds)


def read(model: Loadable) -> Model:
    """`load`, after which the door's second process ends, whoever began it: it would hold tens of megabytes as long as the run takes."""
    loaded = load(model)
    guard.forget()
    return loaded


def opened(model: Model, data: Any, how: How) -> Data:
    """The data of a run, checked against what onnxruntime says that the model takes; it is run once, for the shapes of its values."""
    watched = Watched.of(model, how.threads)
    found = open_data(
        data,
        watched.session.inputs,
        seed=how.seed,
        samples=SYNTHETIC_SAMPLES,
        images=how.images,
        limit=how.limit,
        session=watched.session,
    )
    first_shapes(model, found.calibration, watched=watched)
    del watched
    give_back()
    return found


def evidence_for(each: Pass, original: Model, current: Model, data: Data, how: How) -> Evidence:
    """What the pass wants to know about the model as it now is, from calibration data."""
    sources = Sources(
        original, current, data.calibration, how.batch, how.threads, how.memory_limit, how.seed, how.progress
    )
    needs = each.needs(current)
    backward = any(need.kind not in PROVIDERS and need.kind not in KINDS for need in needs)
    return gather(sources, needs, training.GRADIENTS if backward else None)


def judged(original: Model, current: Model, data: Data, how: How) -> Comparison:
    """Original and result on the held-out samples."""
    return compare(
        _as_read(original, current),
        loose(finished(current)),
        data.held_out,
        metric=how.metric,
        labels=how.labels,
        batch=how.batch,
        threads=how.threads,
    )


def _as_read(original: Model, current: Model) -> Path | bytes | Loose:
    """The original as the user gave it, for a session; of a large file none of whose weights is left, with these beside it.

    onnxruntime reads a file into a copy, and packs its matrices into another: for a while that is 1.8 times the file.
    """
    source = original.source
    left = {id(value.const_value) for value in current.initializers.values()}
    large = [
        v.const_value for v in original.initializers.values() if v.const_value and v.const_value.nbytes > LARGE / 100
    ]
    if source.path is None or source.data is not None or source.size < LARGE or any(id(each) in left for each in large):
        return source.runnable
    message, arrays, _ = read_beside(source.path)
    whole = sum(array.nbytes for array in arrays.values()) > 0.9 * source.size  # else they lie in files beside it
    return Loose(message, arrays) if whole else source.runnable


LARGE = 64 << 20
"""Bytes of a file that is not read as a whole to be compared with."""


def costs(original: Model, current: Model, data: Data) -> tuple[Cost, Cost]:
    """Of both, on the first calibration sample: the one that a pass with a target of multiply-adds counted on."""
    seen = data.calibration
    before = cost(original, first_shapes(original, seen), on_disk=original.source.size)
    return before, before if current is original else cost(current, first_shapes(current, seen, original))


@contextmanager
def _bar(progress: Progress | None, name: str) -> Iterator[None]:
    """What a pass does beside what its evidence reports may take minutes: its name stands there meanwhile."""
    if progress is not None:
        progress(0, 1, name)
    yield
    if progress is not None:
        progress(1, 1, name)


def _clear_away() -> None:
    """Graphs are cycles, which wait for the collector with all the weights that only they hold."""
    gc.collect()
    give_back()


class Clock:
    """Seconds a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start
