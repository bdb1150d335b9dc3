"""What is wanted of each value, and in how many waves: as many values are read in one run over the data as fit the limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import onnx_ir as ir

from onnxcompress.data.store import Feed
from onnxcompress.errors import SettingError
from onnxcompress.evidence.inside import INSIDE
from onnxcompress.evidence.kinds import BLOCK, KINDS
from onnxcompress.evidence.need import Need
from onnxcompress.model import Model
from onnxcompress.model.edit import walk

WORKING = 3  # times a result: one batch's, a block of rows and a block's product, held while a value is updated

LARGEST = 1 << 20
"""Numbers that one value holds in a batch, where the batch can be smaller: more at once is no faster, and takes memory."""

Shape = tuple[int, ...]
Mark = tuple[str, int]
"""Kind, and axis from the front."""


@dataclass(frozen=True)
class Observed:
    """One value and all that is wanted of it.

    shape    of one sample                            batch    samples at once
    marks    the needs of each (kind, axis)           results  bytes of the result of each mark
    width    bytes of an entry
    floats   the run can measure it where it stands      exposed  False for an input, which is in memory anyway
    inside   it lies in a branch of an If, and is empty where another is taken
    """

    value: str
    shape: Shape
    batch: int
    width: int
    floats: bool
    exposed: bool
    inside: bool = False
    marks: dict[Mark, list[Need]] = field(default_factory=dict)

    @property
    def whole(self) -> list[Mark]:
        """The marks that are measured on the value itself; the others are measured inside the run."""
        return [mark for mark in self.marks if not self.exposed or not self.floats or mark[0] not in INSIDE]

    @property
    def numbers(self) -> int:
        """Entries of a batch."""
        return self.batch * prod(self.shape)

    @property
    def results(self) -> list[int]:
        """Bytes of the result of each mark."""
        return [KINDS[kind].bytes(self.channels((kind, axis))) for kind, axis in self.marks]

    @property
    def held(self) -> int:
        """Bytes that stay during a wave: the results, and what leaves the run while a batch is read."""
        return bool(self.whole and self.exposed) * self.numbers * self.width + sum(self.results)

    @property
    def working(self) -> int:
        """Bytes that are needed only while this value is read: moved to rows, and measured in blocks of float64."""
        if not self.whole:
            return WORKING * max(self.results)
        return self.numbers * self.width + WORKING * (max(self.results) + 8 * min(BLOCK, self.numbers))

    def channels(self, mark: Mark) -> int:
        """Length of its axis; kinds of the whole tensor have axis 0 of length 1."""
        if not KINDS[mark[0]].per_channel:
            return 1
        return self.shape[mark[1]] if prod(self.shape) else 0


@dataclass(frozen=True)
class Limits:
    """Settings of one collection; see `collect`."""

    batch: int
    memory: int
    rows: int
    seed: int
    threads: int
    alone: int


def planned(
    model: Model, needs: Sequence[Need], feed: Feed, shapes: Mapping[str, Shape], limits: Limits
) -> tuple[list[list[Observed]], Limits]:
    """The fewest waves, and the limits with the largest batch that gives them."""
    most = limits.batch if joined(model) else 1
    largest = max(prod(shapes[need.value]) for need in needs)
    most = max(1, min(most, LARGEST // max(largest, 1)))
    best: list[list[Observed]] | None = None
    for size in [most >> halved for halved in range(most.bit_length())]:
        observed = _observed(model, needs, feed, shapes, size)
        too_large = next((each for each in observed if each.held + each.working > limits.alone), None)
        waves = None if too_large is not None else _waves(observed, limits.memory)
        if waves is not None and (best is None or len(waves) < len(best)):
            best, limits = waves, replace(limits, batch=size)
        if best is not None and len(best) == 1:
            break
    if best is None:
        assert too_large is not None
        takes, limit = (too_large.held + too_large.working) / 1e6, limits.alone / 1e6
        raise SettingError(
            f"the evidence on {too_large.value!r} takes {takes:.1f} MB, over the memory limit of {limit:.1f} MB; "
            "give a larger limit"
        )
    return best, limits


def joined(model: Model) -> list[str]:
    """The inputs along whose first axis samples are put together."""
    return [value.name or "" for value in model.ir.graph.inputs if value.shape and not isinstance(value.shape[0], int)]


def _observed(
    model: Model, needs: Sequence[Need], feed: Feed, shapes: Mapping[str, Shape], batch: int
) -> list[Observed]:
    """What is wanted of each value, in graph order, equal needs once."""
    values = {value.name or "": value for value in model.ir.graph.inputs}
    values |= {value.name or "": value for node in walk(model.ir) for value in node.outputs}
    main = {value.name for node in model.ir.graph for value in node.outputs}
    place = {name: number for number, name in enumerate(values)}
    found: dict[str, Observed] = {}
    for need in sorted(needs, key=lambda each: (place[each.value], each)):
        name, shape, dtype = need.value, shapes[need.value], values[need.value].dtype
        width = 4 if dtype is None else dtype.itemsize
        within = name not in feed and name not in main
        floats = dtype == ir.DataType.FLOAT and prod(shape) > 0 and not within
        fresh = Observed(name, shape, batch, int(width), floats, name not in feed, within)
        mark = (
            (need.kind, need.axis) if within and not prod(shape) else _mark(need, shape)
        )  # its axes may be unknown yet
        found.setdefault(name, fresh).marks.setdefault(mark, []).append(need)
    return list(found.values())


def _mark(need: Need, shape: Shape) -> Mark:
    """Kind, and axis from the front; kinds of the whole tensor have axis 0."""
    if not KINDS[need.kind].per_channel:
        return need.kind, 0
    if not -len(shape) <= need.axis < len(shape):
        raise SettingError(
            f"value {need.value!r} has {len(shape)} axes, its {need.kind} were asked for along axis {need.axis}"
        )
    return need.kind, need.axis % len(shape)


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
