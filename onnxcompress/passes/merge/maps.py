"""Linear maps of channels with a window, and what two of them are together: one after the other, or added.

A product of matrices is a window without axes; a scale and shift of channels has as many groups as channels and a kernel of one tap.

  second ∘ first   tap a of the first and tap b of the second meet at dilation₁·a + stride₁·dilation₂·b; strides multiply
  one + other      taps at the same distance from the output's position add up; strides must be equal

Padding stands in the way of the first where the second reads zeros beyond the edge, and the first would have put something there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import gcd, prod

import numpy as np

Ints = tuple[int, ...]
Arrays = tuple[np.ndarray, np.ndarray]
"""Weight [out, in/groups, *kernel] and bias [out], float64."""


@dataclass(frozen=True)
class Window:
    """How a kernel moves: a number an axis; begins and ends are the padding."""

    kernel: Ints = ()
    strides: Ints = ()
    dilations: Ints = ()
    begins: Ints = ()
    ends: Ints = ()

    @property
    def reach(self) -> Ints:
        """The distance of the last tap from the first."""
        return tuple(d * (k - 1) for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def surplus(self) -> Ints:
        """An axis of n entries gives ⌊(n + surplus) / stride⌋ + 1 of them."""
        return tuple(b + e - r - 1 for b, e, r in zip(self.begins, self.ends, self.reach, strict=True))

    def length(self, axis: int, entries: int) -> int:
        """Positions along an axis of so many entries."""
        return (entries + self.surplus[axis]) // self.strides[axis] + 1

    @property
    def padded(self) -> bool:
        """Does it read zeros beyond an edge?"""
        return any((*self.begins, *self.ends))

    @property
    def idle(self) -> bool:
        """One tap, everywhere."""
        return self == still(len(self.kernel))


def still(axes: int) -> Window:
    """The window of what looks at each position alone."""
    ones, zeros = (1,) * axes, (0,) * axes
    return Window(ones, ones, ones, zeros, zeros)


@dataclass(frozen=True, eq=False)
class Map:
    """y = W x + b over a window.

    arrays_of  gives weight and bias when they are first asked for: most maps are only counted
    spread     a transposed convolution: its window lies over the output
    """

    outs: int
    ins: int
    groups: int
    window: Window
    arrays_of: Callable[[], Arrays] = field(repr=False)
    spread: bool = False

    @cached_property
    def arrays(self) -> Arrays:
        """Weight [out, in/groups, *kernel] and bias [out]."""
        return self.arrays_of()

    @property
    def shifts(self) -> bool:
        """Is there a bias?"""
        return bool(self.arrays[1].any())

    @property
    def size(self) -> int:
        """Numbers of the weight."""
        return self.outs * self.ins // self.groups * prod(self.window.kernel)

    @property
    def channelwise(self) -> bool:
        """A factor for each channel."""
        return self.groups == self.outs == self.ins and self.window.idle


def channelwise(scale: np.ndarray, shift: np.ndarray, axes: int) -> Map:
    """The map of a scale and shift of channels; both [channels]."""
    count = len(scale)
    return Map(count, count, count, still(axes), lambda: (scale.reshape(-1, 1, *[1] * axes), shift))


def identity(channels: int, axes: int) -> Map:
    """What changes nothing."""
    return channelwise(np.ones(channels), np.zeros(channels), axes)


def regrouped(weight: np.ndarray, groups: int, wanted: int) -> np.ndarray:
    """[out, in/groups, *kernel] with fewer groups (a divisor of their number): zeros between what was apart."""
    if groups == wanted:
        return weight
    outs, width, each = len(weight), weight.shape[1], groups // wanted
    found = np.zeros((outs, width * each, *weight.shape[2:]))
    for group in range(groups):
        rows = slice(group * outs // groups, (group + 1) * outs // groups)
        first = group % each * width
        found[rows, first : first + width] = weight[rows]
    return found


# -- one after the other -------------------------------------------------------------------------------------------


def chained(first: Map, second: Map) -> Map | str:
    """`second` of what `first` gives, as one map; else why that is none."""
    window = _joined(first, second)
    if isinstance(window, str):
        return window
    if second.window.padded and first.shifts:
        return "the padding in between is zero, where the first one's bias would be"
    if second.spread and first.shifts and not second.window.idle:
        return "positions of a transposed convolution add up different numbers of taps, and of the first one's bias"
    groups = gcd(first.groups, second.groups)
    return Map(
        second.outs,
        first.ins,
        groups,
        window,
        lambda: _contracted(first, second, groups, window),
        first.spread or second.spread,
    )


def _joined(first: Map, second: Map) -> Window | str:
    """The window of both."""
    one, other = first.window, second.window
    if first.spread or second.spread:
        idle, spread = (other, one) if first.spread else (one, other)
        if first.spread and second.spread:
            return "both are transposed convolutions"
        return spread if idle.idle else "a transposed convolution is only joined with what looks at each position alone"
    found: list[Ints] = []
    for axis, stride in enumerate(one.strides):
        padding = other.begins[axis], other.ends[axis]
        if any(padding) and (one.kernel[axis] > 1 or one.begins[axis] or one.ends[axis]):
            return "the padding in between is zero, where the first one has more to give"
        steps = [
            window.dilations[axis] * factor for window, factor in ((one, 1), (other, stride)) if window.kernel[axis] > 1
        ]
        step = gcd(*steps) if steps else 1
        found.append(
            (
                (one.reach[axis] + stride * other.reach[axis]) // step + 1,
                stride * other.strides[axis],
                step,
                one.begins[axis] + stride * padding[0],
                one.ends[axis] + stride * padding[1],
            )
        )
    return Window(*zip(*found, strict=True)) if found else Window()


def _contracted(first: Map, second: Map, groups: int, window: Window) -> Arrays:
    """W[o, i, t] = Σ over m and all taps a, b that meet at t of second[o, m, b] · first[m, i, a]."""
    (one, shift), (other, bias) = first.arrays, second.arrays
    axes = len(window.kernel)
    if second.channelwise:
        weight = one * other.reshape(-1, *[1] * (axes + 1))
        return weight, other.reshape(-1) * shift + bias
    columns = _by_group(shift[:, None], second.groups)  # [groups, in/groups, 1]
    summed = _by_group(other.sum(axis=tuple(range(2, axes + 2))), second.groups)
    bias = bias + (summed @ columns).reshape(-1)
    if first.channelwise:
        scale = _by_group(one.reshape(-1, 1), second.groups)[:, None, :, 0]
        rows = other.reshape(second.groups, -1, *other.shape[1:])
        return (rows * scale.reshape(*scale.shape, *[1] * axes)).reshape(other.shape), bias
    one, other = regrouped(one, first.groups, groups), regrouped(other, second.groups, groups)
    found = np.zeros((*window.kernel, groups, second.outs // groups, first.ins // groups))
    one, other = _taps_first(one), _taps_first(other)
    for a, b in product(np.ndindex(one.shape[:-2]), np.ndindex(other.shape[:-2])):
        found[_tap(first, second, window, a, b)] += _by_group(other[b], groups) @ _by_group(one[a], groups)
    flat = found.reshape(*window.kernel, second.outs, first.ins // groups)
    return np.moveaxis(flat, (-2, -1), (0, 1)), bias


def _taps_first(weight: np.ndarray) -> np.ndarray:
    """[out, in, *kernel] -> a view [*kernel, out, in]."""
    return np.moveaxis(weight, (0, 1), (-2, -1))


def _tap(first: Map, second: Map, window: Window, a: Ints, b: Ints) -> Ints:
    if first.spread or second.spread:  # one of both has a single tap
        return tuple(i + j for i, j in zip(a, b, strict=True))
    one, other = first.window, second.window
    return tuple(
        (one.dilations[axis] * i + one.strides[axis] * other.dilations[axis] * j) // window.dilations[axis]
        for axis, (i, j) in enumerate(zip(a, b, strict=True))
    )


def _by_group(matrix: np.ndarray, groups: int) -> np.ndarray:
    """[rows, columns] -> [groups, rows/groups, columns]."""
    return matrix.reshape(groups, -1, *matrix.shape[1:])


# -- side by side --------------------------------------------------------------------------------------------------


def added(one: Map, other: Map) -> Map | str:
    """What both give of the same input, added, as one map; else why that is none."""
    if (one.outs, one.ins, one.spread) != (other.outs, other.ins, other.spread):
        return "their channels differ"
    window = _covering(one.window, other.window, one.spread)
    if isinstance(window, str):
        return window
    groups = gcd(one.groups, other.groups)

    def arrays() -> Arrays:
        placed = [_placed(each, groups, window) for each in (one, other)]
        return placed[0] + placed[1], one.arrays[1] + other.arrays[1]

    return Map(one.outs, one.ins, groups, window, arrays, one.spread)


def _covering(one: Window, other: Window, spread: bool) -> Window | str:
    """The smallest window with all taps of both."""
    if spread:
        return one if one == other else "the windows of transposed convolutions differ"
    if one.strides != other.strides:
        return "their strides differ"
    if one.surplus != other.surplus:
        return "they end at different positions"
    found: list[Ints] = []
    for axis, stride in enumerate(one.strides):
        starts = [-window.begins[axis] for window in (one, other)]
        steps = [window.dilations[axis] for window in (one, other) if window.kernel[axis] > 1]
        step = gcd(*steps, abs(starts[0] - starts[1])) or 1
        last = max(start + window.reach[axis] for start, window in zip(starts, (one, other), strict=True))
        begin, reach = -min(starts), last - min(starts)
        found.append((reach // step + 1, stride, step, begin, one.surplus[axis] + reach + 1 - begin))
    if any(end < 0 for *_, end in found):
        return "one of them leaves out the last positions"
    return Window(*zip(*found, strict=True)) if found else Window()


def _placed(each: Map, groups: int, window: Window) -> np.ndarray:
    """Its weight within the larger window."""
    weight = regrouped(each.arrays[0], each.groups, groups)
    if each.window == window:
        return weight
    found = np.zeros((*weight.shape[:2], *window.kernel))
    places = []
    for axis, size in enumerate(each.window.kernel):
        first = window.begins[axis] - each.window.begins[axis]
        places.append([(first + tap * each.window.dilations[axis]) // window.dilations[axis] for tap in range(size)])
    _taps_first(found)[np.ix_(*places)] = _taps_first(weight)
    return found


def stacked(maps: list[Map]) -> Map | str:
    """What all give of the same input, one behind the other."""
    first = maps[0]
    if any((each.ins, each.window) != (first.ins, first.window) or each.spread for each in maps):
        return "their windows differ"
    if any(each.groups > 1 for each in maps):
        return "their groups would no longer lie together"

    def arrays() -> Arrays:
        weights, biases = zip(*(each.arrays for each in maps), strict=True)
        return np.concatenate(weights), np.concatenate(biases)

    return Map(sum(each.outs for each in maps), first.ins, 1, first.window, arrays)
