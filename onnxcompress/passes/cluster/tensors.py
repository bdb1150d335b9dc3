"""Which tensors are clustered, each as rows along one of its axes, and why others stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.model import Model
from onnxcompress.model.edit import coded_of, walk
from onnxcompress.model.twins import twins
from onnxcompress.operators.layer import layers
from onnxcompress.passes.cluster.books import Books
from onnxcompress.passes.cluster.layout import along
from onnxcompress.passes.cluster.trellis import Trellis
from onnxcompress.passes.cluster.vectors import Vectors, stored
from onnxcompress.passes.protect import ends as outermost
from onnxcompress.passes.protect import protected
from onnxcompress.passes.quantize.found import Weight, weights_of
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.trellis import symbols_of

END = "it is a first or a last one"


@dataclass(frozen=True, eq=False)
class Clustered:
    """A weight that is clustered, and the axis along which slices have books and scales of their own.

    tied  names of constants that are this one transposed, and are coded as it is
    """

    weight: Weight
    shape: tuple[int, ...]
    axis: int
    tied: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the initializer."""
        return self.weight.name

    @property
    def size(self) -> int:
        """Weights."""
        return int(np.prod(self.shape))

    def rows(self, values: np.ndarray) -> np.ndarray:
        """A tensor of this shape -> [shape[axis], the rest]; these are the layer's rows where it has some along one axis."""
        return np.ascontiguousarray(np.moveaxis(values, self.axis, 0)).reshape(self.shape[self.axis], -1)

    @property
    def positions(self) -> np.ndarray:
        """Where each weight of the rows lies in memory."""
        return self.rows(np.arange(self.size).reshape(self.shape))

    def coded(self, symbols: np.ndarray, books: Books | Vectors, dtype: np.dtype) -> Coded:
        """Symbols of rows, and their books, as a tensor of this shape has them."""
        scales = None if books.scales is None else books.scales.astype(dtype)
        if isinstance(books, Vectors):
            flat = stored(symbols, books, self.positions)
            return Coded(self.shape, flat, books.entries.astype(dtype)[None], scales, None, self.axis)
        states = books.states if isinstance(books, Trellis) else 1
        if states > 1:
            symbols = symbols_of(symbols.T, states).T
        moved = symbols.reshape(self.shape[self.axis], *np.delete(self.shape, self.axis))
        several = len(books.entries) > 1
        return Coded(
            self.shape,
            np.ascontiguousarray(np.moveaxis(moved, 0, self.axis)).reshape(-1),
            books.entries.astype(dtype)[:, :, None],
            scales,
            books.of(len(symbols)) if several else None,
            self.axis,
            states=states,
        )


def tensors_of(
    model: Model, keep: Sequence[str], ends: str, smallest: int, entries: int
) -> tuple[list[Clustered], dict[str, str]]:
    """The tensors to cluster, in order of the graph; and why others stay as they are.

    keep      names or patterns of weights or of nodes that read them      ends  "keep": the first and the last stay
    smallest  bytes below which a tensor is not even named                 entries  a book of at most so many is left alone
    """
    nodes = [node.name or "" for node in walk(model.ir)]
    kept = protected(keep, [*model.initializers, *nodes], "weight or node")
    found, refused = weights_of(model, kept, dynamic="none", decode="load", smallest=smallest)
    staying = {each.name: "it was to be kept" for each in found if each.name in kept}
    left = [each for each in found if each.name not in staying]
    if ends == "keep":
        outer = outermost(model, layers(model))
        staying |= {each.name: END for each in left if outer.intersection(each.nodes)}
    for each in left:
        why = _done(model, each.name, entries)
        if why:
            staying.setdefault(each.name, why)
    chosen = {each.name: each for each in left if each.name not in staying}
    first = {name: one for name, one in twins(model.ir).items() if name in chosen and one in chosen}
    tied = {one: tuple(name for name, other in first.items() if other == one) for one in first.values()}
    shapes = {name: model.array(name).shape for name in chosen}
    return [
        Clustered(each, shapes[name], _axis(each, shapes[name]), tied.get(name, ()))
        for name, each in chosen.items()
        if name not in first
    ], refused | staying


def _done(model: Model, name: str, entries: int) -> str:
    """Why a tensor that is coded already needs nothing; empty for all others."""
    coded = coded_of(model.initializers[name])
    if coded is None or coded.entries > entries or not np.array_equal(coded.decode(), model.array(name)):
        return ""
    return f"it has a book of {coded.entries} entries already"


def _axis(weight: Weight, shape: tuple[int, ...]) -> int:
    """Of output channels; of a layer whose rows lie along several axes the longest of these, and the first where there is no layer."""
    if weight.layer is None:
        return 0
    own = along(weight.layer)
    return max(weight.layer.order[: weight.layer.outs], key=lambda axis: shape[axis]) if own is None else own
