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
from onnxcompress.evidence.branches import hand_out
from onnxcompress.evidence.expose import answer, exposed, hidden, run_shapes
from onnxcompress.evidence.inside import INSIDE, Taps
from onnxcompress.evidence.kinds import KINDS
from onnxcompress.evidence.need import Need
from onnxcompress.evidence.waves import Limits, Mark, Observed, Shape, joined, planned
from onnxcompress.model import Model
from onnxcompress.runtime.loose import loose
from onnxcompress.runtime.memory import give_back
from onnxcompress.runtime.session import Session, open_session

ROWS = 4096
"""Positions a sample that a Gram reads of one value: 64 x 64 pixels. Neighbours tell little new and take time."""

SAMPLING_STREAM = 3  # keeps the choice of positions apart from other users of the same seed
FEW = 16
"""Results of all waves stay in memory where they take less than this part of the limit."""

Progress = Callable[[int, int, str], None]
"""(samples done, samples in all, over all waves; what is done now)"""


class Collected(Mapping[Need, Any]):
    """Evidence: Need -> Moments, Gram, Range.

    Results stay in memory where they are few. Those of several waves may not fit the limit together: they then lie in files
    of a temporary folder that goes with this object, and each is read when it is asked for.
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
    alone: int = 0,
    rows: int = ROWS,
    seed: int = 0,
    threads: int = 1,
    shapes: Mapping[str, Shape] | None = None,
    progress: Progress | None = None,
) -> Collected:
    """What the needs ask for, over all samples of `data`.

    batch          at most so many samples a run, where the model takes more than one; fewer where one value alone passes
                   the limit, where that saves a wave, and where values are large (LARGEST)
    memory_limit   bytes for results and for the values read out of a batch, beside the runtime's own memory; decides
                   how many waves (each a session and a run over the data) there are. Numbers do not depend on it,
                   except for the last bits of float32: what the runtime fuses depends on what a wave reads
    alone          bytes that one value may take, in a wave of its own, where it is more than the limit
    rows, seed     kinds that are `sampled` read at most so many positions a sample, one at random from each of as many
                   equal stretches: the same ones for all values of equal size
    threads        of the runtime; one gives the same bits on every run
    shapes         of all values on the first sample, where they are known

    Needs about values inside Loop and Scan bodies and about constants are left out, see `Collected`; those about a branch of an If
    that no sample takes are met by nothing. ModelError for
    values that do not exist, SettingError for an unknown kind, an axis that a value does not have, or results that do
    not fit the limit; DataError, with the value's name, for NaN and infinity, and for channels whose number changes.
    """
    _check(needs, batch=batch, rows=rows)
    limits = Limits(batch, memory_limit, rows, seed, threads, max(alone, memory_limit))
    left_out = hidden(model, [need.value for need in needs])
    wanted = [need for need in dict.fromkeys(needs) if need.value not in left_out]
    if not wanted:
        return Collected(0, left_out)
    first = next(iter(data.batches(1)))
    if shapes is None or any(need.value not in shapes for need in wanted):
        shapes = run_shapes(model, first, {need.value for need in wanted})
    waves, limits = planned(model, wanted, first, shapes, limits)
    whole = sum(sum(each.results) for wave in waves for each in wave)
    spill = (
        tempfile.TemporaryDirectory(prefix="onnxcompress-") if len(waves) > 1 and FEW * whole > memory_limit else None
    )
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


def by_sample(array: np.ndarray, shape: Shape, samples: int) -> np.ndarray:
    """[entries, samples] of a value; [entries, 1] where none of its axes is as many times longer than one sample's.

    shape  of the value of one sample
    """
    axes = (axis for axis, (now, one) in enumerate(zip(array.shape, shape, strict=False)) if now == samples * one > 0)
    axis = next(axes, None)
    if samples == 1 or axis is None:
        return array.reshape(-1, 1)
    split = array.reshape(*array.shape[:axis], samples, -1, *array.shape[axis + 1 :])
    return np.moveaxis(split, axis, 0).reshape(samples, -1).T


def _check(needs: Sequence[Need], **positive: int) -> None:
    for need in needs:
        if need.kind not in KINDS:
            tail = nearest(need.kind, KINDS)
            raise SettingError(f"value {need.value!r}: no kind of evidence is called {need.kind!r}; {tail}")
    for name, number in positive.items():
        if number < 1:
            raise SettingError(f"{name} is {number}; give 1 or more")


# ---- one wave ----


@dataclass
class Meter:
    """The results of one wave as they grow, and the length of each axis that was asked for as it was first met."""

    limits: Limits
    states: dict[tuple[str, str, int], Any] = field(default_factory=dict)
    lengths: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def read(self, each: Observed, array: np.ndarray, feed: int, samples: int) -> None:
        """Add one batch of one whole value."""
        if array.dtype.kind not in "fiub":
            raise DataError(f"{each.value!r} holds {array.dtype}, not numbers; nothing can be measured of it")
        if each.inside and not array.size:  # another branch was taken
            return
        for kind, axis in each.whole:
            row, key = KINDS[kind], (each.value, kind, axis)
            moved = np.moveaxis(array, axis, -1) if row.per_channel else by_sample(array, each.shape, samples)
            if row.per_channel:
                self._same_channels(key, moved.shape[-1])
            count, weight = prod(moved.shape[:-1]), 1.0
            chosen = sampled_rows(count, self.limits.rows * samples, self.limits.seed, feed) if row.sampled else None
            if chosen is None:
                rows = moved.reshape(count, moved.shape[-1])
            else:
                rows, weight = moved[np.unravel_index(chosen, moved.shape[:-1])], count / len(chosen)
            self.states[key] = row.update(self.states.get(key), rows, weight)

    def add(self, each: Observed, mark: Mark, arrays: Sequence[np.ndarray]) -> None:
        """Add what left the run of one batch of a value that was measured inside."""
        key = (each.value, *mark)
        found = INSIDE[mark[0]].read(arrays)
        if KINDS[mark[0]].per_channel:
            self._same_channels(key, arrays[0].size)
        self.states[key] = KINDS[mark[0]].merge(self.states.get(key), found)

    def _same_channels(self, key: tuple[str, str, int], now: int) -> None:
        first = self.lengths.setdefault(key, now)
        if now != first:
            raise DataError(
                f"{key[0]!r} has {first} channels along axis {key[2]} in one batch and {now} in another; "
                "give samples of equal size, or observe another axis"
            )


@dataclass(frozen=True, eq=False)
class Probe:
    """A session that gives what is wanted of a wave, and the outputs that belong to each mark of a value; None: the value, whole."""

    session: Session | None
    parts: list[tuple[Observed, Mark | None, int]]

    @classmethod
    def of(cls, model: Model, wave: Sequence[Observed], threads: int) -> Probe:
        """The graph with taps, its weights shared with the model."""
        taps, outputs = Taps(model.ir.clone()), []
        hand_out(taps.graph, [each.value for each in wave])
        parts: list[tuple[Observed, Mark | None, int]] = []
        values = {value.name or "": value for node in taps.graph.graph for value in node.outputs}
        for each in wave:
            if each.exposed and each.whole:
                outputs.append(values[each.value])
                parts.append((each, None, 1))
            for mark in each.marks if each.exposed else ():
                if mark not in each.whole:
                    made = INSIDE[mark[0]].taps(taps, values[each.value], len(each.shape), mark[1])
                    outputs += made
                    parts.append((each, mark, len(made)))
        if not outputs:
            return cls(None, [])
        answer(taps.graph, outputs)
        session = open_session(
            loose(taps.graph), threads=threads, early=True, lean=True, as_given=True, name=model.source.name
        )
        return cls(session, parts)

    def run(self, feed: Feed) -> Iterator[tuple[Observed, Mark | None, list[np.ndarray]]]:
        """What came out, mark by mark."""
        if self.session is not None:
            stream = self.session.stream(feed)
            for each, mark, count in self.parts:
                yield each, mark, [next(stream)[1] for _ in range(count)]


def _run_wave(
    model: Model, wave: Sequence[Observed], data: Data, limits: Limits, found: Collected, report: Callable[[int], None]
) -> None:
    """One session over all data; its results go into `found`."""
    meter, done, together = Meter(limits), 0, joined(model)
    report(0)
    probe = Probe.of(model, wave, limits.threads)
    for number, feed in enumerate(data.batches(limits.batch)):
        samples = len(feed[together[0]]) if together else 1
        which = range(done, done + samples)
        for each in wave:
            if not each.exposed:
                _finite(each.value, feed[each.value], which, data)
                meter.read(each, np.asarray(feed[each.value]), number, samples)
        for each, mark, arrays in probe.run(feed):
            if mark is None:
                _finite(each.value, arrays[0], which, data)
                meter.read(each, arrays[0], number, samples)
            elif all(np.isfinite(array).all() for array in arrays):
                meter.add(each, mark, arrays)
            else:
                meter.read(*_closely(model, each, mark, feed, which, data, limits), number, samples)
        done += samples
        report(done)
    del probe
    give_back()
    report(data.samples)
    for each in wave:
        for (kind, axis), needs in each.marks.items():
            state = meter.states.pop((each.value, kind, axis), None)
            if state is not None:
                found.add(needs, state)


def _closely(
    model: Model, each: Observed, mark: Mark, feed: Feed, samples: range, data: Data, limits: Limits
) -> tuple[Observed, np.ndarray]:
    """The whole value, where a reduction of it was not finite: sums of large numbers overflow, the numbers themselves need not."""
    session = open_session(exposed(model, [each.value]).model, threads=limits.threads, name=model.source.name)
    array = session.run(feed)[each.value]
    _finite(each.value, array, samples, data)
    return replace(each, marks={mark: each.marks[mark]}, floats=False), array


def _finite(value: str, array: np.ndarray, samples: range, data: Data) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = "NaN" if np.isnan(array).any() else "infinity"
        raise DataError(
            f"{value!r} becomes {bad} within samples {samples.start} to {samples.stop - 1} of {data.describe()}; "
            "leave these samples out, or look at what feeds that value"
        )
