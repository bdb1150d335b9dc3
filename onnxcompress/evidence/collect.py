"""Runs over data: every Need of every pass, in as few runs as memory allows.

needs ─▶ values, each once ─▶ shapes of one run ─▶ waves under the limit ─▶ each a session, and a run over the data
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.data.store import Data, Feed
from onnxcompress.errors import DataError, SettingError, nearest
from onnxcompress.evidence.expose import exposed, hidden, run_shapes
from onnxcompress.evidence.kinds import BLOCK, KINDS
from onnxcompress.evidence.need import Need
from onnxcompress.model import Model
from onnxcompress.runtime.session import open_session

ROWS = 4096
"""Positions a sample that a Gram reads of one value: 64 x 64 pixels. Neighbours tell little new and take time."""

SAMPLING_STREAM = 3  # keeps the choice of positions apart from other users of the same seed
WORKING = 3  # times a result: one batch's, a block of rows and a block's product, held while a value is updated

Progress = Callable[[int, int, str], None]
"""(samples done, samples in all, over all waves; what is done now)"""


@dataclass(frozen=True)
class Observed:
    """One value and all that is wanted of it.

    marks    the needs of each (kind, axis from the front)    lengths  of these axes, in the first batch
    numbers  elements of the value, in the first batch        width    bytes of each
    exposed  False for an input, which is in memory anyway
    """

    value: str
    marks: dict[tuple[str, int], list[Need]]
    lengths: dict[tuple[str, int], int]
    numbers: int
    width: int
    exposed: bool

    @property
    def results(self) -> list[int]:
        """Bytes of the result of each mark."""
        return [KINDS[kind].bytes(length) for (kind, _), length in self.lengths.items()]

    @property
    def held(self) -> int:
        """Bytes that stay during a wave: the results, and the value itself while a batch is read."""
        return self.exposed * self.numbers * self.width + sum(self.results)

    @property
    def working(self) -> int:
        """Bytes that are needed only while this value is read: moved to rows, and measured in blocks of float64."""
        return self.numbers * self.width + WORKING * (max(self.results) + 8 * min(BLOCK, self.numbers))


@dataclass(frozen=True)
class Limits:
    """Settings of one collection; see `collect`."""

    batch: int
    memory: int
    rows: int
    seed: int
    threads: int


class Collected(Mapping[Need, Any]):
    """Evidence: Need -> Moments, Gram, Range.

    One wave's results stay in memory. Those of several would not fit the limit together: they lie in files of a
    temporary folder that goes with this object, and each is read when it is asked for.
    left_out   value -> why it could not be observed     samples   how many were seen
    """

    def __init__(
        self, samples: int, left_out: Mapping[str, str], folder: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self.samples, self.left_out = samples, dict(left_out)
        self._folder = folder
        self._held: dict[Need, Any] = {}

    def add(self, needs: Sequence[Need], result: Any) -> None:
        """Enter one result for all needs that ask for it."""
        if self._folder is not None:
            path = Path(self._folder.name) / f"{len(self._held)}.npz"
            np.savez(path, **KINDS[needs[0].kind].save(result))  # type: ignore[arg-type]
            result = path
        self._held.update(dict.fromkeys(needs, result))

    def __getitem__(self, need: Need) -> Any:
        result = self._held[need]
        if not isinstance(result, Path):
            return result
        with np.load(result) as arrays:
            return KINDS[need.kind].load(arrays)

    def __iter__(self) -> Iterator[Need]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def collect(
    model: Model,
    needs: Sequence[Need],
    data: Data,
    *,
    batch: int = 8,
    memory_limit: int = 1 << 30,
    rows: int = ROWS,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Collected:
    """What the needs ask for, over all samples of `data`.

    batch          samples a run, where the model takes more than one; halved where one value alone passes the limit
    memory_limit   bytes for results and for the values read out of a batch, beside the runtime's own memory; decides
                   how many waves (each a session and a run over the data) there are. Numbers do not depend on it,
                   except for the last bits of float32: what the runtime fuses depends on what a wave reads
    rows, seed     kinds that are `sampled` read at most so many positions a sample, one at random from each of as many
                   equal stretches: the same ones for all values of equal size
    threads        of the runtime; one gives the same bits on every run

    Needs about values inside If, Loop and Scan bodies and about constants are left out, see `Collected`. ModelError for
    values that do not exist, SettingError for an unknown kind, an axis that a value does not have, or results that do
    not fit the limit; DataError, with the value's name, for NaN and infinity, and for channels whose number changes.
    """
    _check(needs, batch=batch, rows=rows)
    limits = Limits(batch, memory_limit, rows, seed, threads)
    left_out = hidden(model, [need.value for need in needs])
    wanted = [need for need in dict.fromkeys(needs) if need.value not in left_out]
    if not wanted:
        return Collected(0, left_out)
    waves, limits = _planned(model, wanted, data, limits)
    spill = tempfile.TemporaryDirectory(prefix="onnxcompress-") if len(waves) > 1 else None
    found = Collected(data.samples, left_out, spill)
    for number, wave in enumerate(waves):
        what = "collecting" if len(waves) == 1 else f"collecting, wave {number + 1} of {len(waves)}"

        def report(done: int, number: int = number, what: str = what) -> None:
            if progress is not None:
                progress(number * data.samples + min(done, data.samples), len(waves) * data.samples, what)

        _run_wave(model, wave, data, limits, found, report)
    return found


def sampled_rows(count: int, limit: int, seed: int, feed: int) -> np.ndarray | None:
    """Positions to read out of `count`: one at random from each of `limit` equal stretches, ascending; None for all.

    Every position is as likely as any other; a fixed stride would meet the same few columns of an image in every row.
    The same for equal arguments: what is read of two values of equal size belongs together.
    """
    if count <= limit:
        return None
    within = np.random.default_rng([seed, SAMPLING_STREAM, feed, count]).random(limit)
    return np.minimum(((np.arange(limit) + within) * (count / limit)).astype(np.int64), count - 1)


def _check(needs: Sequence[Need], **positive: int) -> None:
    for need in needs:
        if need.kind not in KINDS:
            tail = nearest(need.kind, KINDS)
            raise SettingError(f"value {need.value!r}: no kind of evidence is called {need.kind!r}; {tail}")
    for name, number in positive.items():
        if number < 1:
            raise SettingError(f"{name} is {number}; give 1 or more")


# ---- waves ----


def _planned(model: Model, needs: Sequence[Need], data: Data, limits: Limits) -> tuple[list[list[Observed]], Limits]:
    """The waves, and the limits with the batch that they were planned for."""
    while True:
        observed = _observed(model, needs, next(data.batches(limits.batch)))
        too_large = next((each for each in observed if each.held + each.working > limits.memory), None)
        if too_large is None:
            return _waves(observed, limits.memory), limits
        if limits.batch == 1:
            takes, limit = (too_large.held + too_large.working) / 1e6, limits.memory / 1e6
            raise SettingError(
                f"the evidence on {too_large.value!r} takes {takes:.1f} MB, over the memory limit of {limit:.1f} MB; "
                "give a larger limit"
            )
        limits = replace(limits, batch=limits.batch // 2)


def _observed(model: Model, needs: Sequence[Need], feed: Feed) -> list[Observed]:
    """What is wanted of each value, in graph order, equal needs once."""
    shapes = run_shapes(model, feed, {need.value for need in needs})
    values = {value.name or "": value for value in model.ir.graph.inputs}
    values |= {value.name or "": value for node in model.ir.graph for value in node.outputs}
    place = {name: number for number, name in enumerate(values)}
    found: dict[str, Observed] = {}
    for need in sorted(needs, key=lambda each: (place[each.value], each)):
        shape, dtype = shapes[need.value], values[need.value].dtype
        width = 4 if dtype is None else dtype.itemsize
        fresh = Observed(need.value, {}, {}, prod(shape), int(width), need.value not in feed)
        each = found.setdefault(need.value, fresh)
        mark, length = _mark(need, shape)
        each.marks.setdefault(mark, []).append(need)
        each.lengths[mark] = length
    return list(found.values())


def _mark(need: Need, shape: tuple[int, ...]) -> tuple[tuple[str, int], int]:
    """(kind, axis from the front), and the length of that axis; kinds of the whole tensor have axis 0 of length 1."""
    if not KINDS[need.kind].per_channel:
        return (need.kind, 0), 1
    if not -len(shape) <= need.axis < len(shape):
        raise SettingError(
            f"value {need.value!r} has {len(shape)} axes, its {need.kind} were asked for along axis {need.axis}"
        )
    axis = need.axis % len(shape)
    return (need.kind, axis), shape[axis]


def _waves(observed: Sequence[Observed], limit: int) -> list[list[Observed]]:
    """Values in graph order, as many to a wave as fit: an early wave needs only the beginning of the graph."""
    waves: list[list[Observed]] = []
    held = working = 0
    for each in observed:
        fits = held + each.held + max(working, each.working) <= limit
        if not waves or not fits:
            waves.append([])
            held = working = 0
        waves[-1].append(each)
        held, working = held + each.held, max(working, each.working)
    return waves


# ---- one wave ----


@dataclass
class Meter:
    """The results of one wave as they grow."""

    limits: Limits
    states: dict[tuple[str, str, int], Any] = field(default_factory=dict)

    def read(self, each: Observed, array: np.ndarray, feed: int, samples: int) -> None:
        """Add one batch of one value."""
        if array.dtype.kind not in "fiub":
            raise DataError(f"{each.value!r} holds {array.dtype}, not numbers; nothing can be measured of it")
        for kind, axis in each.marks:
            row, key = KINDS[kind], (each.value, kind, axis)
            moved = np.moveaxis(array, axis, -1) if row.per_channel else array.reshape(-1, 1)
            self._same_channels(each, (kind, axis), moved.shape[-1])
            count, weight = prod(moved.shape[:-1]), 1.0
            chosen = sampled_rows(count, self.limits.rows * samples, self.limits.seed, feed) if row.sampled else None
            if chosen is None:
                rows = moved.reshape(count, moved.shape[-1])
            else:
                rows, weight = moved[np.unravel_index(chosen, moved.shape[:-1])], count / len(chosen)
            self.states[key] = row.update(self.states.get(key), rows, weight)

    @staticmethod
    def _same_channels(each: Observed, mark: tuple[str, int], now: int) -> None:
        first = each.lengths[mark]
        if now != first:
            raise DataError(
                f"{each.value!r} has {first} channels along axis {mark[1]} in one batch and {now} in another; "
                "give samples of equal size, or observe another axis"
            )


def _run_wave(
    model: Model, wave: Sequence[Observed], data: Data, limits: Limits, found: Collected, report: Callable[[int], None]
) -> None:
    """One session over all data; its results go into `found`."""
    meter, done = Meter(limits), 0
    inputs = {value.name or "": value for value in model.ir.graph.inputs}
    joined = [name for name, value in inputs.items() if value.shape and not isinstance(value.shape[0], int)]
    report(0)
    with tempfile.TemporaryDirectory() as folder:
        shown = exposed(model, [each.value for each in wave], Path(folder))
        session = open_session(shown.model, threads=limits.threads, name=model.source.name) if shown.outputs else None
        del shown  # the message: the session has its own copy of the weights
        for number, feed in enumerate(data.batches(limits.batch)):
            samples = len(feed[joined[0]]) if joined else 1
            values = dict(feed) if session is None else {**feed, **session.run(feed)}
            for each in wave:
                array = np.asarray(values.pop(each.value))
                _finite(each.value, array, range(done, done + samples), data)
                meter.read(each, array, number, samples)
            done += samples
            report(done)
        del session
    report(data.samples)
    for each in wave:
        for (kind, axis), needs in each.marks.items():
            state = meter.states.pop((each.value, kind, axis), None)
            if state is not None:
                found.add(needs, state)


def _finite(value: str, array: np.ndarray, samples: range, data: Data) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = "NaN" if np.isnan(array).any() else "infinity"
        raise DataError(
            f"{value!r} becomes {bad} within samples {samples.start} to {samples.stop - 1} of {data.describe()}; "
            "leave these samples out, or look at what feeds that value"
        )
