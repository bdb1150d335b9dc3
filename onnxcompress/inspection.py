"""inspect: what a model is made of, what it costs, which channels go together, which operator froze the rest."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from onnxcompress.channels import Channels, Group, analyse
from onnxcompress.compare import json_safe
from onnxcompress.data import open_data
from onnxcompress.errors import DataError, ModelError
from onnxcompress.evidence.gather import first_shapes
from onnxcompress.model import Loadable, Model, load
from onnxcompress.model.edit import FILE_TYPE
from onnxcompress.model.load import read
from onnxcompress.model.save import written_as
from onnxcompress.operators import Settings
from onnxcompress.operators.cost import macs_by_layer, parameters, uncounted
from onnxcompress.operators.layer import Layer, Shapes, all_layers
from onnxcompress.passes.factorize.forms import FORMS
from onnxcompress.passes.factorize.sites import sites
from onnxcompress.passes.prune.free import free_cuts
from onnxcompress.runtime.session import open_session
from onnxcompress.weights.forms import bytes_of, chosen


@dataclass(frozen=True)
class LayerLine:
    """One weight of one node: shape as [out, in/groups, *kernel]; macs of one sample, None where unknown.

    bits      of one weight in the file, books and nodes counted where it is coded
    encoding  how a coded one is stored; empty: as numbers of a type
    """

    name: str
    op: str
    weight: str
    shape: tuple[int, ...]
    parameters: int
    macs: int | None
    share: float | None
    bits: float
    encoding: str = ""


@dataclass(frozen=True)
class GroupLine:
    """Units that may be cut, how many of them for nothing, and (tensor, axis, role) of all that goes with one."""

    name: str
    units: int
    free: int
    members: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True)
class FrozenLine:
    """Channels that cannot go: the weight, how many, why, and the operator at fault."""

    name: str
    channels: int
    why: str
    by: str


@dataclass(frozen=True)
class FormLine:
    """A form that could stand for a layer, with ranks that leave half of its weights: its own formula, and what it counts to."""

    layer: str
    form: str
    formula: str
    ranks: tuple[int, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None


HALF = 0.5
"""Of a layer's weights, for which forms are shown."""


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` shows.

    opset, producer   of the file      operators, layers, groups, frozen   of the normalised graph
    macs              of one sample; None where the model could not be run
    free_share        of all channels that layers write, the share that may be cut
    """

    name: str
    bytes: int
    parameters: int
    macs: int | None
    opset: int
    producer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: dict[str, int]
    layers: tuple[LayerLine, ...]
    groups: tuple[GroupLine, ...]
    frozen: tuple[FrozenLine, ...]
    free_share: float
    notes: tuple[str, ...]
    forms: tuple[FormLine, ...] = ()

    @property
    def headline(self) -> str:
        """The first line."""
        free = sum(group.units for group in self.groups)
        narrow = sum(layer.bits < 16 and not layer.encoding for layer in self.layers)
        if narrow:
            return f"{self.name}: already quantized, {narrow} of {len(self.layers)} weights have 8 bits or fewer"
        total = free + sum(frozen.channels for frozen in self.frozen)
        if not free:
            return f"{self.name}: no channel can be cut"
        share = int(100 * self.free_share)  # rounded down: 100 % is all of them
        groups = f"{len(self.groups)} group{'' if len(self.groups) == 1 else 's'}"
        return f"{self.name}: {free} of {total} channels can be cut ({share} %), in {groups}"

    @property
    def coded_bits(self) -> float | None:
        """Bits of a weight in the file, over all that are coded, each counted once; None where none is."""
        once = {line.weight: line for line in self.layers if line.encoding}
        sizes = {name: prod(line.shape) for name, line in once.items()}
        total = sum(sizes.values())
        return sum(sizes[name] * line.bits for name, line in once.items()) / total if total else None

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return json_safe({**dataclasses.asdict(self), "headline": self.headline, "coded_bits": self.coded_bits})  # type: ignore[no-any-return]


def inspect(
    model: Loadable,
    *,
    data: Any = None,
    inexact: bool = False,
    inner: bool = False,
    forms: bool = False,
    images: Any = None,
) -> Inspection:
    """Look at a model without changing it.

    data      inputs of which one sample is run, for the multiply-adds; None: synthetic ones
    inexact   also count axes where a cut changes what is left (norms, softmax, means)
    forms     also tell by which chains of smaller layers each layer could be replaced, and what these cost
    inner     the inner factor of a product: dimensions of all heads instead of heads

    ModelError where the model cannot be read; one that cannot be run keeps its multiply-adds unknown, with a note.
    """
    loaded = load(model)
    ports, shapes, notes = _seen(loaded, data, images)
    channels = analyse(loaded, Settings(inexact, inner))
    lines = _layers(loaded, shapes)
    free = sum(group.size for group in channels.groups)
    kept = sum(frozen.channels for frozen in channels.frozen)
    proto, _ = read(loaded.source.runnable)
    known = [line.macs for line in lines if line.macs is not None]
    unseen = uncounted(loaded, shapes) if shapes else ""
    return Inspection(
        name=loaded.source.name,
        bytes=loaded.source.size,
        parameters=parameters(loaded),
        macs=sum(known) if shapes else None,
        opset=next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), 0),
        producer=" ".join(filter(None, [proto.producer_name, proto.producer_version])) or "unknown",
        inputs=ports[0],
        outputs=ports[1],
        operators=dict(Counter(node.op_type for node in loaded.ir.graph.all_nodes()).most_common()),
        layers=lines,
        groups=tuple(_group(loaded, channels, group, exact=not inexact) for group in channels.groups),
        frozen=tuple(FrozenLine(each.name, each.channels, each.why, each.by) for each in channels.frozen),
        free_share=free / (free + kept) if free + kept else 0.0,
        notes=(*loaded.notes, *notes, *filter(None, [unseen])),
        forms=tuple(_forms(loaded, shapes)) if forms else (),
    )


def _forms(model: Model, shapes: Shapes) -> Iterator[FormLine]:
    """Every form of every layer that has some."""
    for site in sites(model, [], shapes)[0]:
        shape, whole = site.shape, site.macs([site.whole])
        for name, form in FORMS.items():
            ladder = [] if form.unfit(shape) else form.ladder(shape)
            if not ladder:
                continue
            ranks = min(ladder, key=lambda each: abs(form.size(shape, each) - HALF * shape.size))
            left = site.macs(form.parts(shape, ranks))
            macs = None if whole is None or left is None else (whole, left)
            yield FormLine(site.layer.name, name, form.formula, ranks, (shape.size, form.size(shape, ranks)), macs)


def _seen(
    model: Model, data: Any, images: Any
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], Shapes, tuple[str, ...]]:
    """Inputs and outputs in words, the shapes of one run (empty where it cannot run), and notes."""
    try:
        session = open_session(model.source.runnable, name=model.source.name)
        ports = (tuple(map(str, session.inputs)), tuple(map(str, session.outputs)))
    except ModelError as error:
        named = tuple(
            tuple(f"{value.name} {str(value.type).lower()}{value.shape}" for value in values)
            for values in (model.ir.graph.inputs, model.ir.graph.outputs)
        )
        return (
            (named[0], named[1]),
            {},
            (f"it does not load in onnxruntime, so the multiply-adds are unknown: {error}",),
        )
    try:
        opened = open_data(data, session.inputs, samples=1, images=images, session=session)
        return ports, first_shapes(model, opened), ()
    except (ModelError, DataError) as error:
        if data is not None:
            raise
        return (
            ports,
            {},
            (f"it does not run on synthetic inputs, so the multiply-adds are unknown; give --data: {error}",),
        )


def _layers(model: Model, shapes: Shapes) -> tuple[LayerLine, ...]:
    macs = macs_by_layer(model, shapes)
    total = sum(macs.values())
    lines = []
    for layer in all_layers(model):
        values = model.array(layer.weight) if layer.bits is None else np.broadcast_to(np.float32(0), layer.shape)
        bias = 0 if layer.bias is None else model.array(layer.bias).size
        bits, encoding = _stored(model, layer)
        own = macs.get((layer.name, layer.weight)) if shapes else None
        share = own / total if own is not None and total else None
        lines.append(
            LayerLine(
                layer.name,
                layer.op,
                layer.weight,
                layer.matrix(values).shape,
                values.size + bias,
                own,
                share,
                bits,
                encoding,
            )
        )
    return tuple(lines)


def _stored(model: Model, layer: Layer) -> tuple[float, str]:
    """Bits of a weight in the file, and in words how it is coded."""
    value = model.initializers[layer.weight]
    coded = None if layer.bits else written_as(value)
    form = None if coded is None else chosen(coded, model.ir.opset_imports[""])
    if coded is None or form is None:
        narrow = None if value.const_value is None else value.const_value.meta.get(FILE_TYPE)
        return float(layer.bits or 8 * (narrow or value.dtype).itemsize), ""  # type: ignore[union-attr]
    size = bytes_of(coded, form)
    assert size is not None
    vectors = f" of {coded.width}" if coded.width > 1 else ""
    books = f"{coded.books.shape[0]} books of " if coded.groups is not None else ""
    return 8 * size / coded.size, f"{form}, {books}{coded.entries} entries{vectors}"


def _group(model: Model, channels: Channels, group: Group, *, exact: bool) -> GroupLine:
    free = int(free_cuts(model, channels, group, exact=exact).all.sum()) if group.size > 1 else 0
    return GroupLine(
        group.name, group.size, free, tuple((member.tensor, member.axis, member.role) for member in group.members)
    )
