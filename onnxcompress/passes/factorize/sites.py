"""Which layers may be factorized, as forms see them, and what a chain of parts costs there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.analyse import not_finite
from onnxcompress.model import Model
from onnxcompress.model.edit import coded_of, walk
from onnxcompress.operators.layer import RECURRENT, Layer, Shapes, layers
from onnxcompress.passes.factorize.forms import Part, Shape
from onnxcompress.passes.factorize.forms.form import lengths
from onnxcompress.passes.merge.linear import window_of
from onnxcompress.passes.protect import protected
from onnxcompress.passes.refit.refit import unsuited
from onnxcompress.plan import Refusal

SMALLEST = 512
"""Weights below which a layer stays: what it costs is the call."""


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that may be factorized.

    read, written  shapes of what it reads and writes in one run; None: not seen
    """

    layer: Layer
    node: ir.Node
    shape: Shape
    read: tuple[int, ...] | None = None
    written: tuple[int, ...] | None = None

    def weight(self, values: np.ndarray) -> np.ndarray:
        """Stored values -> [groups, out, in, taps], float64."""
        shape = self.shape
        return self.layer.matrix(values).astype(np.float64).reshape(shape.groups, shape.outs, shape.ins, shape.taps)

    def stored(self, weight: np.ndarray, like: np.ndarray) -> np.ndarray:
        """[groups, out, in, taps] -> the layout and type of `like`."""
        shape = self.shape
        matrix = weight.reshape(shape.groups * shape.outs, shape.ins, *shape.kernel)
        return np.ascontiguousarray(self.layer.stored(matrix, like).astype(like.dtype))

    def macs(self, parts: Sequence[Part]) -> int | None:
        """Multiply-adds of a chain in one run; None where the layer was not seen to run."""
        total = 0
        for number, part in enumerate(parts):
            positions = self._positions(parts, number)
            if positions is None:
                return None
            total += part.size(self.shape) * positions
        return total

    @property
    def seen(self) -> bool:
        """Was it seen to run?"""
        return self.read is not None and (self.written is not None or self.layer.op in RECURRENT)

    @property
    def whole(self) -> Part:
        """The layer as it is, as a part."""
        shape = self.shape
        outs, ins = shape.groups * shape.outs, shape.groups * shape.ins
        return Part(outs, ins, shape.groups, tuple(range(len(shape.kernel))))

    def _positions(self, parts: Sequence[Part], number: int) -> int | None:
        """How often the weights of a part are used: at every place of what it writes (reads, where it is transposed)."""
        if self.read is None or not self.seen:
            return None
        if self.layer.op in RECURRENT:
            return prod(self.read[:-1])
        if self.layer.op == "Gather":
            return prod(self.read) if number else 0
        assert self.written is not None
        if not self.shape.kernel:
            return prod(self.written) // max(self.shape.outs, 1)
        sizes: list[list[object]] = [list(self.read[2:])]
        sizes += lengths(self.shape, parts, self.read[2:], self.written[2:])
        spread = self.shape.transposed and parts[number].axes
        return self.read[0] * prod(int(str(size)) for size in sizes[number if spread else number + 1])


def sites(model: Model, keep: Sequence[str], shapes: Shapes) -> tuple[list[Site], list[Refusal]]:
    """The layers that may be factorized, in order of the graph; and why others stay as they are."""
    nodes = {node.name or "": node for node in walk(model.ir)}
    kept = protected(keep, [*model.initializers, *nodes], "weight or node")
    found: list[Site] = []
    refused: list[Refusal] = []
    for layer in layers(model):
        node = nodes[layer.name]
        why = _why(model, layer, node, kept)
        if why:
            refused.append(Refusal(layer.weight, why, layer.name))
        else:
            shape = shape_of(layer, node, model.array(layer.weight))
            found.append(Site(layer, node, shape, shapes.get(layer.reads), shapes.get(layer.writes)))
    return found, refused


def shape_of(layer: Layer, node: ir.Node, values: np.ndarray) -> Shape:
    """As forms see it."""
    outs, ins, *kernel = layer.matrix(values).shape
    if "Conv" not in layer.op:
        return Shape(1, outs, values.size // outs, ())
    sizes = layer.groups, outs // layer.groups, ins, tuple(kernel)
    return Shape(*sizes, layer.op == "ConvTranspose", room_of(node), window_of(node, kernel))


def room_of(node: ir.Node) -> tuple[int, ...]:
    """Taps along each axis that lie in the padding at both ends; none where it is worked out from sizes."""
    pads = list(node.attributes.get_ints("pads") or [])
    steps = node.attributes.get_ints("dilations") or [1] * (len(pads) // 2)
    if not pads or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return ()
    return tuple(min(pair) // step for *pair, step in zip(pads[: len(steps)], pads[len(steps) :], steps, strict=True))


def _table(layer: Layer, node: ir.Node) -> str:
    """Rows of an embedding: looked up in a narrow table, then made wide by a product."""
    return "" if layer.order == (1, 0) else "its rows lie along axis 1"


def _recurrent(layer: Layer, node: ir.Node) -> str:
    """What is fed can be squeezed before the operator; its state is multiplied within."""
    own = node.inputs[1] is not None and node.inputs[1].name == layer.weight
    return "" if own else f"{layer.op} multiplies its state with it at every step, and takes no factors for that"


LOOKED_UP: Mapping[str, Callable[[Layer, ir.Node], str]] = {
    "Gather": _table,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}
"""Operators beside those that Refit fits -> why one of their weights has no form."""


def layer_at(model: Model, node: str, weight: str) -> Layer | None:
    """The layer of a node that has this weight."""
    return next((each for each in layers(model) if (each.name, each.weight) == (node, weight)), None)


def _why(model: Model, layer: Layer, node: ir.Node, kept: set[str] | frozenset[str]) -> str:
    if layer.weight in kept or layer.name in kept:
        return "it was to be kept"
    own = LOOKED_UP.get(layer.op)
    why = unsuited(layer, node, model).replace("is not refitted", "has no form") if own is None else own(layer, node)
    if own is not None and node.graph is not model.ir.graph:
        why = "it lies in the body of an If or Loop"
    if own is not None and len(list(model.initializers[layer.weight].uses())) > 1:
        why = "its weight is shared"
    if why:
        return why
    if coded_of(model.initializers[layer.weight]) is not None:
        return "its weight is in codebooks"
    if model.array(layer.weight).size < SMALLEST:
        return f"it has fewer than {SMALLEST} weights"
    if layer.weight in not_finite(model):
        return "it holds Inf or NaN"
    if "output_shape" in node.attributes:
        return "its padding follows from output_shape"
    return ""
