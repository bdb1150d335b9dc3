"""One node being followed: its inputs as tracks of labels, and the tools with which rows and functions follow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of, input_of
from onnxcompress.operators.ties import Keep, Patch, Reason, Ties, Track
from onnxcompress.operators.view import Size, View, sizes_of

LONGEST = 1 << 26
"""Positions of the longest axis that is labelled (a Flatten of 64 million numbers); a longer one is closed."""


@dataclass
class Settings:
    """What the user may choose about the analysis.

    inexact   allow cuts that change what is left (Softmax, means, norms)
    inner     the inner factor of a product is live instead of the outer one
    factors   node name -> which live factor to try, where the first one came out frozen
    """

    inexact: bool = False
    inner: bool = False
    factors: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class Flow:
    """One node being followed: its inputs as tracks, and the record that it writes to."""

    node: ir.Node
    ties: Ties
    known: dict[ir.Value, list[Track]]
    settings: Settings

    @property
    def view(self) -> View:
        """The node as the rows see it."""
        return View(self.node, self.known)

    @property
    def name(self) -> str:
        """For messages: operator and node name."""
        return f"{self.node.op_type} {self.node.name!r}"

    def tracks(self, index: int) -> list[Track] | None:
        """The axes of input `index`; None where it is left out or its rank is unknown."""
        value = input_of(self.node, index)
        if value is None:
            return None
        if value in self.known:
            return self.known[value]
        sizes = sizes_of(value)
        if sizes is None:
            return None
        if constant_of(value) is None:
            return [Track(size, reason=Reason("its rank or origin is not known", value.name or "")) for size in sizes]
        sites = [self.ties.sites.get((value.name or "", axis)) for axis in range(len(sizes))]
        return [
            Track(size, None if site is None else site.labels, rests=True)
            for size, site in zip(sizes, sites, strict=True)
        ]

    def opened(self, index: int) -> list[Track] | None:
        """The same; a constant of numbers gets labels of its own, so that what it meets later can tie it."""
        value, tracks = input_of(self.node, index), self.tracks(index)
        constant = constant_of(value)
        if value is None or tracks is None or constant is None or constant.dtype.kind != "f":
            return tracks
        for axis, track in enumerate(tracks):
            if track.labels is None and isinstance(track.size, int) and track.size > 1:
                self.ties.bind(value.name or "", axis, self.ties.fresh(track.size), "bias", self.node.name or "")
        return self.tracks(index)

    def is_constant(self, index: int) -> bool:
        """Is input `index` a stored tensor?"""
        return constant_of(input_of(self.node, index)) is not None

    def emit(self, tracks: Sequence[Track], output: int = 0) -> None:
        """Say what the axes of an output are."""
        if output < len(self.node.outputs):
            self.known[self.node.outputs[output]] = list(tracks)

    def closed(self, size: int | str | None, why: str) -> Track:
        """An axis along which nothing is cut, for a reason that lies in this node."""
        return Track(size, reason=Reason(why, self.name))

    def freeze(self, track: Track, why: str, by: str = "") -> None:
        """Freeze what is labelled along an axis."""
        if track.labels is not None:
            self.ties.freeze(track.labels, Reason(why, by or self.name))

    def end(self, track: Track, size: Size, why: str) -> Track:
        """What is labelled along an axis goes no further: frozen here, and the axis is closed behind this node."""
        self.freeze(track, why)
        return Track(size, reason=track.reason if track.labels is None else Reason(why, self.name))

    def patch(self, apply: Callable[[ir.Model, ir.Node, Keep], None]) -> None:
        """Register what this node needs when something is cut: apply(graph, node, keep)."""
        self.ties.patches.append(Patch(self.node.name or "", apply))

    def refuse(self, why: str) -> None:
        """This node is not understood: all that is labelled on its inputs is frozen, its constants and outputs are closed."""
        for index, value in enumerate(self.node.inputs):
            for axis, track in enumerate(self.tracks(index) or []):
                self.freeze(track, why)
                if value is not None and self.is_constant(index):
                    self.ties.close(value.name or "", axis, Reason(why, self.name))
        for index, output in enumerate(self.node.outputs):
            sizes = sizes_of(output)
            if sizes is not None:
                self.emit([self.closed(size, why) for size in sizes], index)

    def meet(self, tracks: Sequence[Track]) -> Track:
        """Axes that are one axis: labels are tied; what is closed in one is frozen in all; an axis of size one is repeated."""
        wide = [track for track in tracks if track.size != 1]
        for track in tracks:
            if wide and track.size == 1:
                self.freeze(track, "it is repeated by broadcasting")
        met = wide or list(tracks)
        labelled = [track for track in met if track.labels is not None]
        if not labelled:
            return met[0]
        first = labelled[0]
        for other in met:
            if other.labels is None:
                for track in labelled:
                    self.ties.freeze(track.labels, other.reason)  # type: ignore[arg-type]
            elif len(other.labels) == len(first.labels):  # type: ignore[arg-type]
                self.ties.same(first.labels, other.labels)  # type: ignore[arg-type]
            else:
                for track in labelled:
                    self.freeze(track, "sizes differ")
        return first

    def project(self, labels: np.ndarray, sizes: Sequence[int], live: int) -> np.ndarray:
        """Labels of one factor of a product axis: all positions with the same index along it go together."""
        rows = np.moveaxis(labels.reshape(sizes), live, 0).reshape(sizes[live], -1)
        self.ties.same(rows[:, :1], rows)
        return rows[:, 0]


def spread(labels: np.ndarray, sizes: Sequence[int], live: int) -> np.ndarray:
    """The labels of a product axis when only factor `live` carries any: the inverse of `project`."""
    if prod(sizes) > LONGEST:
        raise ValueError(f"an axis of {prod(sizes)} positions is longer than {LONGEST}")
    shape = [1] * len(sizes)
    shape[live] = sizes[live]
    return np.broadcast_to(labels.reshape(shape), sizes).reshape(-1)
