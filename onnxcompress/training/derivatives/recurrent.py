"""Derivatives of LSTM, GRU and RNN: backpropagation through time over all steps at once, as far as steps do not wait for each other.

The node keeps its own kernel. Its output Y holds every h, so the gates of all steps come again from one product over all of them
(only the cell state of an LSTM is a sum that runs from step to step). What must run backward step by step is a Scan with one product
a step; the gradients of weights and of the input are one product each over all steps.

Every array here is [steps, directions, batch, ...] in the order in which a direction walks: of a reverse one the last step first.
Both directions take each step together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of
from onnxcompress.training.derivatives.site import Gradients, SeveralRule, Site
from onnxcompress.training.lowering import step
from onnxcompress.training.pen import Pen, element_of, shape_of

Dys = Sequence[ir.Value | None]

ACTIVATIONS: dict[str, tuple[str, Callable[[Pen, ir.Value], ir.Value]]] = {
    "sigmoid": ("Sigmoid", lambda op, y: op.Mul(y, op.Sub(1.0, y))),
    "tanh": ("Tanh", lambda op, y: op.Sub(1.0, op.Mul(y, y))),
    "relu": ("Relu", step),
    "softsign": ("Softsign", lambda op, y: op.Mul(op.Sub(1.0, op.Abs(y)), op.Sub(1.0, op.Abs(y)))),
}
"""Activation -> its operator, and its slope from its result."""


@dataclass(frozen=True)
class Layer:
    """A recurrent node: how many gates a step has, which activations, and its sizes.

    before  [steps, directions, batch, h]: the state that each step starts from
    """

    at: Site
    gates: int
    names: tuple[str, ...]
    direction: str
    before: ir.Value

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Steps, directions, batch, hidden units."""
        steps, directions, batch, hidden = shape_of(self.at.y)
        return steps, directions, batch, hidden

    def apply(self, op: Pen, which: int, x: ir.Value) -> ir.Value:
        """Activation number `which`."""
        return getattr(op, ACTIVATIONS[self.names[which]][0])(x)  # type: ignore[no-any-return]

    def slope(self, op: Pen, which: int, y: ir.Value) -> ir.Value:
        """Its slope where it gave y."""
        return ACTIVATIONS[self.names[which]][1](op, y)

    def walked(self, op: Pen, x: ir.Value) -> ir.Value:
        """From the order of time to the order of walking, or back."""
        if self.direction == "forward":
            return x
        if self.direction == "reverse":
            return _turned(op, x)
        ahead, behind = op.Split(x, [1, 1], axis=1, outputs=2)
        return op.Concat(ahead, _turned(op, behind), axis=1)  # type: ignore[no-any-return]

    def rows(self, op: Pen, x: ir.Value) -> ir.Value:
        """[directions, steps batch, ...]: all rows that meet one direction's weights."""
        steps, directions, batch, _ = self.sizes
        return op.Reshape(op.Transpose(x, perm=[1, 0, 2, 3]), [directions, steps * batch, -1])  # type: ignore[no-any-return]

    def product(self, op: Pen, x: ir.Value, weight: ir.Value) -> ir.Value:
        """x [steps, directions, batch, a] by each direction's weight [directions, b, a], transposed."""
        steps, directions, batch, _ = self.sizes
        made = op.MatMul(self.rows(op, x), op.Transpose(weight, perm=[0, 2, 1]))
        apart = op.Reshape(made, [directions, steps, batch, shape_of(weight)[1]])
        return op.Transpose(apart, perm=[1, 0, 2, 3])  # type: ignore[no-any-return]

    def read(self, op: Pen) -> ir.Value:
        """What each gate reads of the input, without bias: [steps, directions, batch, gates h]."""
        steps, directions, batch, hidden = self.sizes
        lined = op.Reshape(self.at.x[1], [directions * self.gates * hidden, -1])
        made = op.MatMul(op.Reshape(self.at.x[0], [steps * batch, -1]), op.Transpose(lined, perm=[1, 0]))
        apart = op.Reshape(made, [steps, batch, directions, self.gates * hidden])
        return self.walked(op, op.Transpose(apart, perm=[0, 2, 1, 3]))

    def biases(self, op: Pen) -> tuple[ir.Value, ir.Value] | None:
        """Of the input's and of the state's side, each [directions, 1, gates h]."""
        if not self.at.has(3):
            return None
        width = self.gates * self.sizes[3]
        parts = op.Split(op.Unsqueeze(self.at.x[3], [1]), [width, width], axis=2, outputs=2)
        return parts[0], parts[1]

    def start(self, op: Pen, index: int) -> ir.Value:
        """The first state, input number `index`."""
        return self.at.x[index] if self.at.has(index) else self.nothing(op)

    def nothing(self, op: Pen) -> ir.Value:
        """Zeros [directions, batch, h]."""
        return op.constant(np.zeros(self.sizes[1:], element_of(self.at.y)))

    def taken_back(self, op: Pen, inward: ir.Value, outward: ir.Value, state: ir.Value) -> list[ir.Value | None]:
        """Gradients of X, W, R, B from those of what each gate reads.

        inward, outward  [steps, directions, batch, gates h]: of the input's and of the state's side      state  what R was multiplied with
        """
        at, (steps, directions, batch, hidden) = self.at, self.sizes
        width = self.gates * hidden
        found: list[ir.Value | None] = [None] * 4
        lined = op.Transpose(self.walked(op, inward), perm=[0, 2, 1, 3])
        flat = op.Reshape(lined, [steps * batch, directions * width])
        if at.wants(0):
            weight = op.Reshape(at.x[1], [directions * width, -1])
            found[0] = op.Reshape(op.MatMul(flat, weight), list(at.shape(0)))
        if at.wants(1):
            x = op.Reshape(at.x[0], [steps * batch, -1])
            found[1] = op.Reshape(op.MatMul(op.Transpose(flat, perm=[1, 0]), x), list(at.shape(1)))
        if at.wants(2):
            found[2] = self.against(op, outward, state)
        if at.wants(3):
            sums = [op.ReduceSum(each, [0, 2], keepdims=0) for each in (inward, outward)]
            found[3] = op.Concat(*sums, axis=1)
        return found

    def against(self, op: Pen, outward: ir.Value, state: ir.Value) -> ir.Value:
        """Sum over steps and batch of outward times state: [directions, a, h]."""
        turned = op.Transpose(self.rows(op, outward), perm=[0, 2, 1])
        return op.MatMul(turned, self.rows(op, state))  # type: ignore[no-any-return]


def _turned(op: Pen, x: ir.Value) -> ir.Value:
    """The first axis from its end."""
    return op.Slice(x, [-1], [-(1 << 31)], [0], [-1])  # type: ignore[no-any-return]


def _shifted(op: Pen, first: ir.Value, x: ir.Value) -> ir.Value:
    """What stood before each step: the first state, then x without its last."""
    lined = op.Unsqueeze(first, [0])
    steps = shape_of(x)[0]
    return lined if steps == 1 else op.Concat(lined, op.Slice(x, [0], [steps - 1], [0]), axis=0)


def _layer(op: Pen, at: Site, gates: int, usual: tuple[str, ...]) -> Layer:
    """Refuses what is not covered, in one line each."""
    steps, lengths = at.shape(0)[0], constant_of(at.x[4]) if at.has(4) else None
    direction = str(at.attribute("direction", "forward"))
    given = [str(name).lower() for name in at.attribute("activations", [])]
    names = tuple(given[: len(usual)]) or usual
    fixed = not at.has(4) or (lengths is not None and bool((lengths == steps).all()))
    peepholes = constant_of(at.x[7]) if at.has(7) else np.zeros(1)
    refusals = {
        "its sequences end at different steps (sequence_lens)": not fixed,
        "layout 1, which onnxruntime does not run": at.attribute("layout", 0),
        "its gates are clipped": "clip" in at.node.attributes,
        "its input and forget gates are coupled": at.attribute("input_forget", 0),
        "it has peepholes": peepholes is None or bool(peepholes.any()),
        f"activations {', '.join(given)}": given
        and (given != [*names] * (len(given) // len(names)) or not {*names} <= ACTIVATIONS.keys()),
    }
    for why, holds in refusals.items():
        if holds:
            raise at.refused(why)
    if not at.y.name:  # only its last state was asked for
        at.y.name = f"{at.node.name}~all"
        op.infer(at.node)
    layer = Layer(at, gates, names, direction, at.y)
    first = layer.start(op, 5)
    return Layer(at, gates, names, direction, _shifted(op, first, layer.walked(op, at.y)))


def _given(op: Pen, layer: Layer, dys: Dys) -> tuple[ir.Value, list[ir.Value]]:
    """dy of every step, and of the last states."""
    first = dys[0]
    if first is None:
        zero = op.constant(np.zeros([1] * 4, element_of(layer.at.y)))
        first = op.Expand(zero, list(layer.sizes))
    return layer.walked(op, first), [layer.nothing(op) if each is None else each for each in dys[1:]]


def _lstm(op: Pen, at: Site, dys: Dys) -> Gradients:
    """Gates i, o, f by activation 0, c̃ by 1: c = f c' + i c̃, h = o a(c) with activation 2."""
    layer = _layer(op, at, 4, ("sigmoid", "tanh", "tanh"))
    hidden, first = layer.sizes[3], layer.start(op, 6)
    read = op.Add(layer.read(op), layer.product(op, layer.before, at.x[2]))
    for bias in layer.biases(op) or ():
        read = op.Add(read, bias)
    opened, inner = op.Split(read, [3 * hidden, hidden], axis=3, outputs=2)
    gates, fresh = layer.apply(op, 0, opened), layer.apply(op, 1, inner)
    let_in, let_out, kept = op.Split(gates, [hidden] * 3, axis=3, outputs=3)
    cells = _cells(op, first, kept, op.Mul(let_in, fresh))
    shown, earlier = layer.apply(op, 2, cells), _shifted(op, first, cells)
    by_gate = op.Mul(op.Concat(fresh, shown, earlier, axis=3), layer.slope(op, 0, gates))
    slopes = op.Concat(by_gate, op.Mul(let_in, layer.slope(op, 1, fresh)), axis=3)
    opening = op.Mul(let_out, layer.slope(op, 2, shown))

    def back(op: Pen, states: Sequence[ir.Value], slices: Sequence[ir.Value]) -> tuple[list[ir.Value], list[ir.Value]]:
        (from_h, from_c), (dy, opening, slopes, kept) = states, slices
        dh = op.Add(dy, from_h)
        dc = op.Add(op.Mul(dh, opening), from_c)
        read = op.Mul(op.Concat(dc, dh, dc, dc, axis=2), slopes)
        return [op.MatMul(read, at.x[2]), op.Mul(dc, kept)], [read]

    dy, last = _given(op, layer, [*dys, None, None][:3])
    dh, dc, read = op.scan(last, [dy, opening, slopes, kept], back, back=True)
    return [*layer.taken_back(op, read, read, layer.before), None, dh, dc, None][: len(at.node.inputs)]


def _cells(op: Pen, first: ir.Value, kept: ir.Value, added: ir.Value) -> ir.Value:
    """c = f c' + i c̃ of every step."""

    def on(op: Pen, states: Sequence[ir.Value], slices: Sequence[ir.Value]) -> tuple[list[ir.Value], list[ir.Value]]:
        cell = op.Add(op.Mul(states[0], slices[0]), slices[1])
        return [cell], [cell]

    return op.scan([first], [kept, added], on)[1]


def _gru(op: Pen, at: Site, dys: Dys) -> Gradients:
    """Gates z, r by activation 0, h̃ by 1: h = (1 - z) h̃ + z h'."""
    layer = _layer(op, at, 3, ("sigmoid", "tanh"))
    return (_gru_after if at.attribute("linear_before_reset", 0) else _gru_before)(op, layer, dys)


def _gru_after(op: Pen, layer: Layer, dys: Dys) -> Gradients:
    """h̃ = a(x + r (R h' + b)): all gates read one product with the state."""
    at, hidden = layer.at, layer.sizes[3]
    read, recalled = layer.read(op), layer.product(op, layer.before, at.x[2])
    biases = layer.biases(op)
    if biases is not None:
        read, recalled = op.Add(read, biases[0]), op.Add(recalled, biases[1])
    from_x, from_h = (op.Split(each, [2 * hidden, hidden], axis=3, outputs=2) for each in (read, recalled))
    gates = layer.apply(op, 0, op.Add(from_x[0], from_h[0]))
    kept, reset = op.Split(gates, [hidden] * 2, axis=3, outputs=2)
    fresh = layer.apply(op, 1, op.Add(from_x[1], op.Mul(reset, from_h[1])))
    inner = op.Mul(op.Sub(1.0, kept), layer.slope(op, 1, fresh))
    by_gate = op.Concat(op.Sub(layer.before, fresh), op.Mul(inner, from_h[1]), axis=3)
    by_gate = op.Mul(by_gate, layer.slope(op, 0, gates))
    slopes = op.Concat(by_gate, op.Mul(inner, reset), axis=3)

    def back(op: Pen, states: Sequence[ir.Value], slices: Sequence[ir.Value]) -> tuple[list[ir.Value], list[ir.Value]]:
        dy, kept, slopes = slices
        dh = op.Add(dy, states[0])
        read = op.Mul(op.Concat(dh, dh, dh, axis=2), slopes)
        return [op.Add(op.MatMul(read, at.x[2]), op.Mul(dh, kept))], [dh, read]

    dy, last = _given(op, layer, [*dys, None][:2])
    first, dh, outward = op.scan(last, [dy, kept, slopes], back, back=True)
    gates_only = op.Split(outward, [2 * hidden, hidden], axis=3, outputs=2)[0]
    inward = op.Concat(gates_only, op.Mul(dh, inner), axis=3)
    return [*layer.taken_back(op, inward, outward, layer.before), None, first][: len(at.node.inputs)]


def _gru_before(op: Pen, layer: Layer, dys: Dys) -> Gradients:
    """h̃ = a(x + R (r h') + b): a second product with the state, after its reset."""
    at, hidden = layer.at, layer.sizes[3]
    weights = op.Split(at.x[2], [2 * hidden, hidden], axis=1, outputs=2)
    read = layer.read(op)
    for bias in layer.biases(op) or ():
        read = op.Add(read, bias)
    from_x = op.Split(read, [2 * hidden, hidden], axis=3, outputs=2)
    gates = layer.apply(op, 0, op.Add(from_x[0], layer.product(op, layer.before, weights[0])))
    kept, reset = op.Split(gates, [hidden] * 2, axis=3, outputs=2)
    recalled = op.Mul(reset, layer.before)
    fresh = layer.apply(op, 1, op.Add(from_x[1], layer.product(op, recalled, weights[1])))
    inner = op.Mul(op.Sub(1.0, kept), layer.slope(op, 1, fresh))
    by_kept, by_reset = op.Split(layer.slope(op, 0, gates), [hidden] * 2, axis=3, outputs=2)
    by_kept = op.Mul(by_kept, op.Sub(layer.before, fresh))
    by_reset = op.Mul(by_reset, layer.before)

    def back(op: Pen, states: Sequence[ir.Value], slices: Sequence[ir.Value]) -> tuple[list[ir.Value], list[ir.Value]]:
        dy, kept, reset, inner, by_kept, by_reset = slices
        dh = op.Add(dy, states[0])
        fresh = op.Mul(dh, inner)
        recalled = op.MatMul(fresh, weights[1])
        gates = op.Concat(op.Mul(dh, by_kept), op.Mul(recalled, by_reset), axis=2)
        direct = op.Add(op.Mul(dh, kept), op.Mul(recalled, reset))
        return [op.Add(op.MatMul(gates, weights[0]), direct)], [op.Concat(gates, fresh, axis=2)]

    dy, last = _given(op, layer, [*dys, None][:2])
    first, read = op.scan(last, [dy, kept, reset, inner, by_kept, by_reset], back, back=True)
    found = layer.taken_back(op, read, read, layer.before)
    if at.wants(2):
        gates_only, fresh_only = op.Split(read, [2 * hidden, hidden], axis=3, outputs=2)
        parts = layer.against(op, gates_only, layer.before), layer.against(op, fresh_only, recalled)
        found[2] = op.Concat(*parts, axis=1)
    return [*found, None, first][: len(at.node.inputs)]


def _rnn(op: Pen, at: Site, dys: Dys) -> Gradients:
    """h = a(W x + R h' + b)."""
    layer = _layer(op, at, 1, ("tanh",))
    slopes = layer.slope(op, 0, layer.walked(op, at.y))

    def back(op: Pen, states: Sequence[ir.Value], slices: Sequence[ir.Value]) -> tuple[list[ir.Value], list[ir.Value]]:
        read = op.Mul(op.Add(slices[0], states[0]), slices[1])
        return [op.MatMul(read, at.x[2])], [read]

    dy, last = _given(op, layer, [*dys, None][:2])
    first, read = op.scan(last, [dy, slopes], back, back=True)
    return [*layer.taken_back(op, read, read, layer.before), None, first][: len(at.node.inputs)]


RECURRENT: dict[str, SeveralRule] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
