"""Reshape and Flatten: axes split into factors and merge from them; one factor of a product is live.

In Flatten, heads and pixel shuffle a position belongs to c *and* h·w, to head *and* dim. Tying both merges everything, so
one factor carries labels: the one already live, else the outer; the others are frozen with that reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from onnxcompress.model.edit import input_of, ints_of
from onnxcompress.operators.flow import LONGEST, Flow, spread
from onnxcompress.operators.shapes import known_sizes, patch_sizes
from onnxcompress.operators.ties import Track
from onnxcompress.operators.view import Size, sizes_of

OTHER_FACTOR = "positions along it belong to another factor of the same axis"


@dataclass(frozen=True)
class Factor:
    """A stretch of the data that lies in one input axis and one output axis. None: an axis of size one on that side."""

    size: Size
    source: int | None
    target: int | None


def reshape(flow: Flow) -> None:
    """See the module."""
    tracks, sizes = flow.opened(0), sizes_of(flow.node.outputs[0])
    if tracks is None or sizes is None:
        flow.refuse("its shape is not known")
        return
    sizes = known_sizes(flow, 1, sizes)
    given = ints_of(input_of(flow.node, 1))
    copied = {axis for axis, size in enumerate(given or []) if size == 0 and not flow.view.number("allowzero", 0)}
    _follow(flow, tracks, sizes, copied)
    lent = {axis: tracks[axis] for axis in copied if axis < len(tracks)}
    patch_sizes(flow, 1, flow.known[flow.node.outputs[0]], lent)


def flatten(flow: Flow) -> None:
    """Two axes: all before `axis`, and all from it on."""
    tracks, sizes = flow.opened(0), sizes_of(flow.node.outputs[0])
    if tracks is None:
        flow.refuse("the rank of its input is not known")
        return
    axis = flow.view.number("axis", 1) % (len(tracks) + 1)
    factors = [Factor(track.size, place, int(place >= axis)) for place, track in enumerate(tracks)]
    _emit(flow, tracks, sizes or (None, None), factors)


def _follow(flow: Flow, tracks: list[Track], sizes: tuple[Size, ...], copied: set[int]) -> None:
    factors = align([track.size for track in tracks], list(sizes), copied)
    _emit(flow, tracks, sizes, factors)


def align(source: list[Size], target: list[Size], copied: set[int]) -> list[Factor]:
    """The factors, outer first, as far as sizes tell: greedily from the left, then from the right; the middle stays unknown.

    copied  target axes written as 0 in the shape: they equal the source axis of the same number
    """
    left, at = _greedy(source, target, copied, forward=True)
    rest = [(place, size) for place, size in enumerate(source) if place >= at[0]]
    goal = [(place, size) for place, size in enumerate(target) if place >= at[1]]
    if not rest and not goal:
        return left
    start, finish = len(source) - len(rest), len(target) - len(goal)
    right, _ = _greedy([s for _, s in rest][::-1], [s for _, s in goal][::-1], set(), forward=False)
    flipped = [
        Factor(
            factor.size,
            None if factor.source is None else start + len(rest) - 1 - factor.source,
            None if factor.target is None else finish + len(goal) - 1 - factor.target,
        )
        for factor in right[::-1]
    ]
    return left + flipped


def _greedy(
    source: list[Size], target: list[Size], copied: set[int], *, forward: bool
) -> tuple[list[Factor], tuple[int, int]]:
    """Whole stretches only: factors of an axis are given once the axes on both sides are used up together."""
    done: list[Factor] = []
    open_: list[Factor] = []
    i = j = 0
    settled = (0, 0)
    a: Size = source[0] if source else None
    b: Size = target[0] if target else None
    while i < len(source) and j < len(target):
        step = _step(a, b, forward and j in copied and i == j)
        if step is None:
            if i < len(source) - 1 and j < len(target) - 1:
                return done, settled
            return done + open_ + _remainder(source, target, (i, j), (a, b)), (len(source), len(target))
        size, a, b = step
        ends_a, ends_b = a == 1, b == 1
        open_.append(Factor(size, i if size != 1 or ends_a else None, j if size != 1 or ends_b else None))
        if ends_a:
            i += 1
            a = source[i] if i < len(source) else None
        if ends_b:
            j += 1
            b = target[j] if j < len(target) else None
        if ends_a and ends_b:
            done, open_, settled = done + open_, [], (i, j)
    for places, size_of, side in ((range(i, len(source)), source, "source"), (range(j, len(target)), target, "target")):
        if not open_ and (i == len(source) or j == len(target)) and all(size_of[place] == 1 for place in places):
            done += [
                Factor(1, place if side == "source" else None, place if side == "target" else None) for place in places
            ]
            settled = (len(source), len(target)) if places else settled
    return done, settled


def _remainder(source: list[Size], target: list[Size], at: tuple[int, int], left: tuple[Size, Size]) -> list[Factor]:
    """One axis left on a side: all that remains of the other lies in it, whatever the sizes."""
    (i, j), (a, b) = at, left
    if j == len(target) - 1:
        return [Factor(a, i, j), *(Factor(source[place], place, j) for place in range(i + 1, len(source)))]
    return [Factor(b, i, j), *(Factor(target[place], i, place) for place in range(j + 1, len(target)))]


def _step(a: Size, b: Size, copied: bool) -> tuple[Size, Size, Size] | None:
    """The next common factor, and what is left of both axes."""
    if copied or (a is not None and a == b):
        return (a if a is not None else b), 1, 1
    if not isinstance(a, int) or not isinstance(b, int) or a < 1 or b < 1:
        if a == 1:
            return 1, 1, b
        return (1, a, 1) if b == 1 else None
    if a % b == 0:
        return b, a // b, 1
    return (a, 1, b // a) if b % a == 0 else None


def _emit(flow: Flow, tracks: list[Track], sizes: tuple[Size, ...], factors: list[Factor]) -> None:
    """Choose the live factor of every labelled input axis, then lay the labels out again."""
    live = {axis: _live(flow, axis, track, factors) for axis, track in enumerate(tracks) if track.labels is not None}
    result = []
    for axis, size in enumerate(sizes):
        mine = [factor for factor in factors if factor.target == axis]
        carrying = [factor for factor in mine if factor.source in live and live[factor.source][0] is factor]  # type: ignore[index]
        for extra in carrying[1:]:
            _, track = live[extra.source]  # type: ignore[index]
            flow.freeze(track, OTHER_FACTOR)
        if not carrying:
            source = next(
                (tracks[f.source] for f in mine if f.source is not None and tracks[f.source].labels is None), None
            )
            result.append(Track(size, reason=source.reason) if source is not None else flow.closed(size, OTHER_FACTOR))
            continue
        _, track = live[carrying[0].source]  # type: ignore[index]
        result.append(_laid_out(flow, track, size, mine, carrying[0]))
    flow.emit(result)


def _laid_out(flow: Flow, track: Track, size: Size, mine: list[Factor], carrying: Factor) -> Track:
    parts = [factor.size for factor in mine]
    if len(mine) == 1:
        return replace(track, size=carrying.size)
    if not all(isinstance(part, int) for part in parts) or track.labels is None or prod(parts) > LONGEST:  # type: ignore[arg-type]
        flow.freeze(track, "it is merged with an axis of unknown size")
        return flow.closed(size, "it is merged with an axis of unknown size")
    labels = spread(track.labels, parts, mine.index(carrying))  # type: ignore[arg-type]
    return replace(track, labels=labels, size=len(labels))


def _live(flow: Flow, axis: int, track: Track, factors: list[Factor]) -> tuple[Factor | None, Track]:
    """The factor of one labelled input axis that stays live, with its labels; all labels frozen where sizes are not known."""
    mine = [factor for factor in factors if factor.source == axis]
    sizes = [factor.size for factor in mine]
    assert track.labels is not None
    if not mine or not all(isinstance(size, int) for size in sizes) or prod(sizes) != len(track.labels):  # type: ignore[arg-type]
        flow.freeze(track, "it is reshaped to sizes that are not known")
        return None, track
    if len(mine) == 1:
        return mine[0], track
    wide = [place for place, factor in enumerate(mine) if factor.size != 1]
    if not wide:
        return mine[0], track
    name = flow.node.name or ""
    order = wide[::-1] if flow.settings.inner else wide
    if len(order) > 1:
        flow.ties.choices[name] = (track.labels, len(order))
    place = order[min(flow.settings.factors.get(name, 0), len(order) - 1)]
    labels = flow.project(track.labels, [int(str(size)) for size in sizes], place)
    return mine[place], replace(track, labels=np.ascontiguousarray(labels), size=mine[place].size)
