"""How an array's axes become samples: the rules, on shapes alone.

A *sample* is the least that a model can be fed at once. For an input (port) of rank r and an array of rank d:

    d = r      the first axis is the batch: one row a sample (b rows, where the model fixes the first dimension to b)
    d = r + 1  each entry along the first axis is a whole feed (states [2,N,128] given as [samples,2,1,128]; scalars
               given as [samples])
    d = r - 1  one sample without its batch axis (a single image [3,224,224])

An input given once, where others have more samples, is repeated for each of them. Samples may be joined into one feed
along the first axis where every input allows it.

Graphs have no batch axis: nodes, edges, ... are counted by first axes with names of their own. Arrays of different length that
these names explain are one sample, whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxcompress.errors import DataError
from onnxcompress.runtime.session import Port

Shape = tuple[int, ...]

BATCH = re.compile(r"batch|^[nb]$|unk|^\W*$|dim", re.I)
"""What exporters call a first axis that is, or may be, the batch."""


@dataclass(frozen=True)
class View:
    """One input's array seen as [count, *feed].

    count     samples; 1 for what is repeated            shape    of the view, [count, *feed]
    rows      first-axis rows that one sample takes      dropped  rows at the end that fill no sample
    joins     samples may be laid end to end along the feed's first axis
    constant  the same whole array belongs to every feed, however many samples it joins
    """

    count: int
    shape: Shape
    rows: int = 1
    dropped: int = 0
    joins: bool = False
    constant: bool = False


@dataclass(frozen=True)
class Layout:
    """What one piece of data holds: samples, the view of each input, and whether samples may be joined.

    rows is how many rows of the first batched input one sample takes, given how many the piece has: labels follow them.
    """

    samples: int
    joins: bool
    views: Mapping[str, View]
    rows: int
    given: int

    @property
    def dropped(self) -> int:
        """Rows at the end that fill no sample."""
        return self.given - self.rows * self.samples


def arrange(shapes: Mapping[str, Shape], ports: Sequence[Port], where: str) -> Layout:
    """The layout of arrays of these shapes, by input name; DataError where they do not fit the ports or each other."""
    views = {port.name: _view(tuple(shapes[port.name]), port, where) for port in ports}
    if _is_graph({name: tuple(shape) for name, shape in shapes.items()}, ports, views):
        whole = {name: View(1, (1, *shapes[name])) for name in views}
        return Layout(1, False, whole, 1, 1)
    samples = max((view.count for view in views.values()), default=0)
    for port in ports:
        view = views[port.name]
        if view.count not in (1, samples):
            other = next(name for name, each in views.items() if each.count == samples)
            raise DataError(
                f"{where}: input {port.name!r} has {view.count} samples, input {other!r} has {samples}; "
                "give as many of each, or one that is used for all"
            )
        if view.count == 1 and samples > 1 and port.static:
            views[port.name] = View(1, view.shape, constant=True)
    moving = [view for view in views.values() if view.count == samples and not view.constant]
    rows = moving[0].rows if moving else 1
    given = moving[0].rows * samples + moving[0].dropped if moving else samples
    joins = all(view.joins or view.constant for view in views.values())
    return Layout(samples, joins, views, rows, given)


def _is_graph(shapes: Mapping[str, Shape], ports: Sequence[Port], views: Mapping[str, View]) -> bool:
    """Are lengths of first axes different, and each that of its axis's name, which is no batch's?"""
    lengths: dict[str, set[int]] = {}
    for port in ports:
        if port.rank != len(shapes[port.name]):
            return False
        if port.rank and not isinstance(port.shape[0], int):
            lengths.setdefault(str(port.shape[0] or ""), set()).add(shapes[port.name][0])
    named = all(len(each) == 1 and not BATCH.search(name) for name, each in lengths.items())
    return named and len(lengths) > 1 and len({view.count for view in views.values()} - {1}) > 1


def _view(shape: Shape, port: Port, where: str) -> View:
    """One array beside one port."""
    extra, first = len(shape) - port.rank, port.shape[0] if port.rank else None
    if extra == 1 and shape[0] > 0 and _fits(shape[1:], port.shape):
        return View(shape[0], shape, constant=port.rank == 0 and shape[0] == 1)
    if extra == 0 and port.rank == 0:
        return View(1, (1,), constant=True)
    if extra == 0 and shape[0] > 0 and _fits(shape[1:], port.shape[1:]):
        size = first if isinstance(first, int) else 1
        count, dropped = divmod(shape[0], max(size, 1))
        if count:
            view = (count, size, *shape[1:])
            return View(count, view, rows=size, dropped=dropped, joins=not isinstance(first, int))
    if extra == -1 and (first == 1 or not isinstance(first, int)) and _fits(shape, port.shape[1:]):
        return View(1, (1, 1, *shape), joins=first != 1)
    raise DataError(
        f"{where}: input {port.name!r} takes {port}, an array {_shown(shape)} does not fit; {_advice(shape, port)}"
    )


def _fits(shape: Sequence[int], dims: Sequence[int | str | None]) -> bool:
    return len(shape) == len(dims) and all(
        have == want for have, want in zip(shape, dims, strict=True) if isinstance(want, int)
    )


def _advice(shape: Shape, port: Port) -> str:
    if 0 in shape[:1]:
        return "it is empty"
    rest = ",".join("any" if not isinstance(dim, int) else str(dim) for dim in port.shape[1:])
    return f"give [samples{',' if rest else ''}{rest}]" if port.rank else "give one number, or one a sample"


def _shown(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"
