"""Which channels may be multiplied by a positive number each, who writes and reads them, so that nothing changes.

A *slot* is one unit of `channels/` at one value: a factor. Nodes say how the factors of what they read and write hang
together: Relu, pooling, Concat or a residual sum carry them on; a weight ties no two, since it takes what is written into
its rows and what is read into its columns; all other operators hold them at one. RULES is the table, closed by default.
Slots that carry on to each other are one Factor. No topology is matched: residual sums, concatenations, shuffles and
depthwise convolutions come out of the same rules.

Nagel et al. 2019, arXiv:1906.04721 (pairs of layers); Xiao et al. 2022, arXiv:2211.10438 (a norm and its readers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxcompress.channels.analyse import Channels, analyse
from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, input_of, walk
from onnxcompress.operators.view import View

HUGE = 1e30
"""A limit of Clip beyond it limits nothing."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One axis of a constant that is multiplied (`power` 1) or divided (-1) by factors: [size] numbers of them."""

    tensor: str
    axis: int
    factors: np.ndarray
    power: int
    node: str


@dataclass(frozen=True, eq=False)
class Scaling:
    """What may be scaled.

    count    factors, numbered from 0; 0 is one and stays one
    values   value name -> (axis, [size] number of the factor at each position), for values with a free one
    edits    where factors go; what is not free is numbered 0
    limits   (value name, [size] factors, upper limit): a Clip that must not begin to clip
    held     value name -> why some of its channels stay at one, and the node at fault
    """

    count: int
    values: Mapping[str, tuple[int, np.ndarray]]
    edits: tuple[Edit, ...]
    limits: tuple[tuple[str, np.ndarray, float], ...]
    held: Mapping[str, tuple[str, str]]


def scaling(model: Model) -> Scaling:
    """Follow all nodes once."""
    return model.remember("scaling", lambda m: _read_out(m, _follow(m)))


# ---- slots ----


@dataclass(eq=False)
class _Slots:
    """The record of one walk. `of`: value -> (its units, number of the first of its slots)."""

    channels: Channels
    of: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    count: int = 0
    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    held: list[tuple[np.ndarray, str, str]] = field(default_factory=list)
    edits: list[tuple[str, int, np.ndarray, int, str]] = field(default_factory=list)  # slots, -1 for none
    limits: list[tuple[str, float]] = field(default_factory=list)
    fixed: set[str] = field(default_factory=set)  # values whose factors are all held

    def units(self, value: ir.Value | None) -> np.ndarray:
        """The units of a float value, ascending."""
        if value is None or (name := value.name or "") not in self.channels.tracks:
            return np.zeros(0, np.int64)
        if name not in self.of:
            tracks = self.channels.tracks[name] if value.dtype is None or value.dtype.is_floating_point() else []
            labels = [self.channels.unit[track.labels] for track in tracks if track.labels is not None]
            units = np.unique(np.concatenate(labels)) if labels else np.zeros(0, np.int64)
            self.of[name] = units, self.count
            self.count += len(units)
        return self.of[name][0]

    def slots(self, value: ir.Value, units: np.ndarray) -> np.ndarray:
        """The slots of some of its units; -1 where it has none of that unit."""
        own = self.units(value)
        if not len(own):
            return np.full(len(units), -1)
        place = np.minimum(np.searchsorted(own, units), len(own) - 1)
        return np.where(own[place] == units, self.of[value.name or ""][1] + place, -1)

    def hold(self, values: Iterable[ir.Value | None], why: str, node: ir.Node) -> None:
        """All factors of these values are one."""
        for value in values:
            units = self.units(value)
            if value is not None:
                self.fixed.add(value.name or "")
            if len(units):
                self.hold_units(value, units, why, node)  # type: ignore[arg-type]

    def hold_units(self, value: ir.Value, units: np.ndarray, why: str, node: ir.Node) -> None:
        """Some of them are."""
        slots = self.slots(value, units)
        if len(slots := slots[slots >= 0]):
            self.held.append((slots, why, f"{node.op_type} {node.name!r}"))

    def tie(self, one: ir.Value, other: ir.Value) -> None:
        """The units that both have share a factor."""
        units = np.intersect1d(self.units(one), self.units(other))
        self.pairs.append((self.slots(one, units), self.slots(other, units)))

    def sites(self, constant: ir.Value) -> list[tuple[int, np.ndarray, str]]:
        """(axis, unit at each position, role) of the labelled axes of a constant."""
        found = []
        for axis in range(len(constant.shape or ())):
            site = self.channels.ties.sites.get((constant.name or "", axis))
            if site is not None:
                found.append((axis, self.channels.unit[site.labels], site.role))
        return found

    def write(
        self, constant: ir.Value, value: ir.Value, power: int, node: ir.Node, roles: tuple[str, ...] = ()
    ) -> np.ndarray:
        """Put the factors of `value` into `constant` along every axis that has its units; returns the units it could."""
        reached = [np.zeros(0, np.int64)]
        for axis, units, role in self.sites(constant):
            slots = self.slots(value, units)
            if (slots >= 0).any() and (not roles or role in roles):
                self.edits.append((constant.name or "", axis, slots, power, node.name or ""))
                reached.append(units[slots >= 0])
                if len(list(constant.uses())) > 1 or constant.is_graph_output():
                    self.hold_units(value, units, "a constant that it is written into is shared", node)
        return np.unique(np.concatenate(reached))


def _data(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and constant_of(value) is None]


# ---- rules: how the factors of inputs and outputs hang together ----

Rule = Callable[[_Slots, ir.Node], None]


def _stays(slots: _Slots, node: ir.Node) -> None:
    """The rule of all that has no other: everything is held."""
    slots.hold([*node.inputs, *node.outputs], f"{node.op_type} does not carry a factor on", node)


def _carries(slots: _Slots, node: ir.Node) -> None:
    """f(s x) = s f(x): what goes in comes out. What only goes in is mixed with the rest, what only comes out is new."""
    for value in _data(node):
        for output in node.outputs:
            slots.tie(value, output)
        gone = [slots.units(output) for output in node.outputs]
        slots.hold_units(value, np.setdiff1d(slots.units(value), np.concatenate(gone)), "positions are mixed", node)
    seen = np.concatenate([np.zeros(0, np.int64), *(slots.units(value) for value in _data(node))])
    for output in node.outputs:
        slots.hold_units(output, np.setdiff1d(slots.units(output), seen), "it comes from elsewhere", node)
        if all((value.name or "") in slots.fixed for value in _data(node)):
            slots.fixed.add(output.name or "")


def _joins(slots: _Slots, node: ir.Node) -> None:
    """Sums and extremes: all operands share the factor, constants are multiplied by it."""
    _carries(slots, node)
    output = node.outputs[0]
    for value in node.inputs:
        values = constant_of(value)
        if value is None or (values is not None and not values.any()):
            continue
        has = slots.units(value) if values is None else slots.write(value, output, 1, node)
        slots.hold_units(output, np.setdiff1d(slots.units(output), has), "an operand has one number for all", node)


def _concat(slots: _Slots, node: ir.Node) -> None:
    """Along the axis each part brings its own; along the others all parts share."""
    _carries(slots, node)
    output = node.outputs[0]
    tracks = slots.channels.tracks.get(output.name or "", [])
    axis = node.attributes.get_int("axis", 0) % max(len(tracks), 1)
    for place, track in enumerate(tracks):
        units = np.zeros(0, np.int64) if track.labels is None else np.unique(slots.channels.unit[track.labels])
        for value in node.inputs:
            if constant_of(value) is not None:
                slots.hold_units(output, units, "a constant is joined to it", node)
            elif place != axis:
                slots.hold_units(output, np.setdiff1d(units, slots.units(value)), "a part lacks the channel", node)


def _layer(slots: _Slots, node: ir.Node) -> None:
    """A weight: reads along its input axes, writes along its output axes; depthwise both along one."""
    weight = next((value for value in node.inputs[:2] if constant_of(value) is not None), None)
    bias = input_of(node, 2)
    data, output = [value for value in _data(node) if value is not bias], node.outputs[0]
    if weight is None or len(data) > 1 or (bias is not None and constant_of(bias) is None):
        _stays(slots, node)
        return
    written = slots.write(weight, output, 1, node, ("write",))
    kept = written
    for value in data:
        read = slots.write(weight, value, -1, node, ("read",))
        through = np.setdiff1d(np.intersect1d(slots.units(value), written), read)
        if len(through):  # depthwise: the row that writes the channel is also the one that reads it
            read = np.union1d(read, slots.write(weight, value, -1, node, ("write",)))
        carried = np.setdiff1d(np.intersect1d(slots.units(value), slots.units(output)), np.union1d(read, written))
        slots.pairs.append((slots.slots(value, carried), slots.slots(output, carried)))
        lost = np.setdiff1d(slots.units(value), np.union1d(read, carried))
        slots.hold_units(value, lost, "no weight reads it alone", node)
        kept = np.union1d(kept, carried)
    slots.hold_units(output, np.setdiff1d(slots.units(output), kept), "no weight writes it alone", node)
    if bias is not None and constant_of(bias).any():  # type: ignore[union-attr]
        lacking = np.setdiff1d(slots.units(output), slots.write(bias, output, 1, node))
        slots.hold_units(output, lacking, "its bias is one number for all", node)


def _gather(slots: _Slots, node: ir.Node) -> None:
    """Rows looked up in a constant are written by it; a constant selection carries on."""
    if constant_of(input_of(node, 0)) is None:
        _only_if(lambda node: constant_of(input_of(node, 1)) is not None)(slots, node)
        return
    written = slots.write(node.inputs[0], node.outputs[0], 1, node, ("write",))  # type: ignore[arg-type]
    slots.hold_units(node.outputs[0], np.setdiff1d(slots.units(node.outputs[0]), written), "it is looked up", node)


def _batch_norm(slots: _Slots, node: ir.Node) -> None:
    """γ (x - μ) / σ + β: γ and β are written; γ is divided by what comes in, μ multiplied."""
    x, gamma, beta, mean, _ = node.inputs
    if any(constant_of(value) is None for value in node.inputs[1:]) or len(node.outputs) > 1:
        _stays(slots, node)
        return
    for value, parts in ((x, ((gamma, -1), (mean, 1))), (node.outputs[0], ((gamma, 1), (beta, 1)))):
        reached = [slots.write(constant, value, power, node) for constant, power in parts]  # type: ignore[arg-type]
        every = np.intersect1d(reached[0], reached[1])
        slots.hold_units(value, np.setdiff1d(slots.units(value), every), "it is normalised", node)  # type: ignore[arg-type]


def _norm(slots: _Slots, node: ir.Node) -> None:
    """What goes in is held (ε is added to its variance); scale and shift write what comes out."""
    slots.hold(_data(node), f"{node.op_type} adds a constant to its variance", node)
    output = node.outputs[0]
    for index in (1, 2):
        constant = input_of(node, index)
        if index == 2 and constant is None:
            continue
        known = constant is not None and constant_of(constant) is not None
        reached = slots.write(constant, output, 1, node) if known else np.zeros(0, np.int64)  # type: ignore[arg-type]
        slots.hold_units(output, np.setdiff1d(slots.units(output), reached), "its scale or shift is shared", node)
    slots.hold(node.outputs[1:], "it is a statistic", node)


def _product(slots: _Slots, node: ir.Node) -> None:
    """Times a constant: that takes both factors, or carries on where it is one number. Times a gate: the gate is held."""
    data, output = _data(node), node.outputs[0]
    power = 1
    if node.op_type == "Div":
        power = -1
        if data and data[-1] is node.inputs[1]:  # something is divided by it
            slots.hold([node.inputs[1]], "something is divided by it", node)
            data = data[:-1]
    if not data or (len(data) == 2 and data[0] is data[1]):
        _stays(slots, node)
        return
    if len(data) == 2:
        gate = next((value for value in data[::-1] if (value.name or "") in slots.fixed), data[1])
        slots.hold([gate], "it is multiplied with another value", node)
        data = [value for value in data if value is not gate]
    x = data[0]
    constant = next((value for value in node.inputs if constant_of(value) is not None), None)
    if constant is not None:
        boundary = slots.write(constant, output, power, node)
        slots.write(constant, x, -power, node)
    else:
        boundary = np.zeros(0, np.int64)
    both = np.intersect1d(slots.units(x), slots.units(output))
    carried = np.setdiff1d(both, boundary)
    slots.pairs.append((slots.slots(x, carried), slots.slots(output, carried)))
    for value in (x, output):
        slots.hold_units(value, np.setdiff1d(slots.units(value), both), "it is repeated", node)


def _clip(slots: _Slots, node: ir.Node) -> None:
    """From zero, or without a lower limit: carries on up to the upper limit, which is noted."""
    view = View(node)
    if any(view.has(index) and view.constant(index) is None for index in (1, 2)):
        _stays(slots, node)
        return
    low = -np.inf if not view.has(1) else float(view.constant(1).reshape(-1)[0])  # type: ignore[union-attr]
    high = np.inf if not view.has(2) else float(view.constant(2).reshape(-1)[0])  # type: ignore[union-attr]
    if (low != 0 and low > -HUGE) or high <= 0:
        _stays(slots, node)
        return
    _carries(slots, node)
    if high < HUGE:
        slots.limits.append((node.inputs[0].name or "", high))  # type: ignore[union-attr]


def _only_if(scales: Callable[[ir.Node], bool]) -> Rule:
    """Carries on where that is true of the node."""
    return lambda slots, node: (_carries if scales(node) else _stays)(slots, node)


def _padded_with_zeros(node: ir.Node) -> bool:
    """Or with what is there."""
    fill = View(node).constant(2)
    plain = View(node).text("mode", "constant") != "constant" or input_of(node, 2) is None
    return plain or (fill is not None and not fill.any())


def _nothing_from_outside(node: ir.Node) -> bool:
    """Resampling is linear; only the value put outside the picture is not."""
    return View(node).text("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _layer),
    "Gather": _gather,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "InstanceNormalization"), _norm
    ),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(("Add", "Sub", "Sum", "Max", "Min", "Mean"), _joins),
    "Concat": _concat,
    "PRelu": _only_if(lambda node: constant_of(input_of(node, 1)) is not None),
    "Clip": _clip,
    "Pad": _only_if(_padded_with_zeros),
    "Resize": _only_if(_nothing_from_outside),
    **dict.fromkeys(
        (
            *("Relu", "LeakyRelu", "Abs", "Neg", "Identity", "Dropout"),
            *("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"),
            *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"),
            *("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Tile"),
            *("DepthToSpace", "SpaceToDepth"),
        ),
        _carries,
    ),
}
"""Operator -> its rule; all others hold what they touch."""


def _follow(model: Model) -> _Slots:
    slots = _Slots(analyse(model))
    for node in walk(model.ir):
        if node.op_type in ("Shape", "Size") and not node.domain:
            continue  # they read no numbers
        known = node.graph is model.ir.graph and not node.domain
        (RULES.get(node.op_type, _stays) if known else _stays)(slots, node)
    for value in (*model.ir.graph.inputs, *model.ir.graph.outputs):
        if len(units := slots.units(value)):
            slots.held.append((slots.slots(value, units), "it is an input or output of the model", value.name or ""))
    return slots


# ---- read out ----


def _read_out(model: Model, slots: _Slots) -> Scaling:
    """Number the connected slots that nothing holds from one on."""
    left = np.concatenate([np.zeros(0, np.int64), *(pair[0] for pair in slots.pairs)])
    right = np.concatenate([np.zeros(0, np.int64), *(pair[1] for pair in slots.pairs)])
    both = (left >= 0) & (right >= 0)
    graph = coo_array((np.ones(both.sum(), np.int8), (left[both], right[both])), shape=(slots.count, slots.count))
    part = connected_components(graph, directed=False)[1] if slots.count else np.zeros(0, np.int64)
    reason = np.full(int(part.max(initial=-1)) + 1, -1)
    for number in range(len(slots.held) - 1, -1, -1):
        reason[part[slots.held[number][0]]] = number
    free = reason < 0
    factor = np.append(np.where(free, np.cumsum(free), 0)[part] if slots.count else np.zeros(0, np.int64), 0)
    values, held = {}, {}
    for name, (units, first) in slots.of.items():
        stopped = reason[part[first : first + len(units)]]
        if (stopped >= 0).any():
            held[name] = slots.held[int(stopped[stopped >= 0][0])][1:]
        for axis, track in enumerate(slots.channels.tracks[name]):
            if track.labels is not None:
                numbers = factor[first + np.searchsorted(units, slots.channels.unit[track.labels])]
                if numbers.any():
                    values[name] = axis, numbers
    edits = tuple(
        Edit(tensor, axis, factor[found], power, node)
        for tensor, axis, found, power, node in slots.edits
        if factor[found].any()
    )
    limits = tuple((name, values[name][1], limit) for name, limit in slots.limits if name in values)
    return Scaling(int(free.sum()) + 1, values, edits, limits, held)
