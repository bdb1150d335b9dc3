"""A quantized model, whoever wrote it, run as a CPU without VNNI runs it: on any machine, and told node by node.

Nodes whose pairs of products can leave 16 bits (portable.py) are computed by simulate.py; all others run in onnxruntime, without
its graph optimisations, so that QDQ pairs are computed in float and nothing saturates there. A model of portable weights
therefore is one session. An If with such nodes is simulated as the branch that is taken; nodes in the bodies of Loop and Scan, and
DynamicQuantizeLSTM, are run and not simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from onnxcompress.model.edit import bodies_of, branches, constant_of, input_of
from onnxcompress.passes.quantize.grid import LEVELS, Grid
from onnxcompress.passes.quantize.portable import fits, pairing
from onnxcompress.passes.quantize.simulate import Attributes, Operand, finished, sums_of
from onnxcompress.runtime.session import Session, open_session

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Quantized:
    """Where the levels of an operand come from, and its scale and zero; None: 1 and 0."""

    levels: ir.Value
    scale: ir.Value | None
    zero: ir.Value | None

    @property
    def values(self) -> list[ir.Value]:
        """Those that must be known."""
        return [value for value in (self.levels, self.scale, self.zero) if value is not None]


@dataclass(frozen=True, eq=False)
class Product:
    """A node that sums products of levels.

    op    a key of KERNELS            bias  int32 levels, or float32 where `floats`
    out   scale and zero of levels put out; None: the sums themselves, times the scales where `floats`
    floats   the node hands out float32
    """

    node: ir.Node
    op: str
    x: Quantized
    w: Quantized
    bias: ir.Value | None = None
    out: tuple[ir.Value, ir.Value | None] | None = None
    floats: bool = False

    @property
    def reads(self) -> list[ir.Value]:
        """Every value that its sums need."""
        more = [self.bias] if self.bias is not None else []
        return [*self.x.values, *self.w.values, *more, *(value for value in self.out or () if value is not None)]


# -- which nodes run on integers ------------------------------------------------------------------------------------


def _pair(node: ir.Node, levels: int, scale: int | None, zero: int) -> Quantized:
    value = input_of(node, levels)
    assert value is not None
    return Quantized(value, None if scale is None else input_of(node, scale), input_of(node, zero))


def _dequantized(node: ir.Node, index: int) -> Quantized | None:
    value = input_of(node, index)
    source = None if value is None else value.producer()
    return _pair(source, 0, 1, 2) if source is not None and source.op_type == "DequantizeLinear" else None


def _rounded_after(node: ir.Node) -> bool:
    """Is the output quantized at once, or behind a Relu or Clip? Else a convolution runs in float."""
    users = list(node.outputs[0].uses())
    if len(users) != 1:
        return False
    user = users[0][0]
    return user.op_type == "QuantizeLinear" or (user.op_type in ("Relu", "Clip") and _rounded_after(user))


def _qdq(node: ir.Node) -> Product | None:
    x, w = _dequantized(node, 0), _dequantized(node, 1)
    if x is None or w is None or (node.op_type == "Conv" and not _rounded_after(node)):
        return None
    return Product(node, node.op_type, x, w, input_of(node, 2), None, True)


def _qlinear(op: str) -> Callable[[ir.Node], Product]:
    def read(node: ir.Node) -> Product:
        scale = input_of(node, 6)
        assert scale is not None
        out = (scale, input_of(node, 7))
        return Product(node, op, _pair(node, 0, 1, 2), _pair(node, 3, 4, 5), input_of(node, 8), out)

    return read


def _qgemm(node: ir.Node) -> Product | None:
    scale = input_of(node, 7)
    if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_int("transA", 0) != 0:
        return None
    out = None if scale is None else (scale, input_of(node, 8))
    return Product(node, "Gemm", _pair(node, 0, 1, 2), _pair(node, 3, 4, 5), input_of(node, 6), out, scale is None)


def _integer(node: ir.Node) -> Product:
    return Product(node, "MatMul", _pair(node, 0, None, 2), _pair(node, 1, None, 3))


def _to_float(node: ir.Node) -> Product:
    return Product(node, "MatMul", _pair(node, 0, 2, 4), _pair(node, 1, 3, 5), input_of(node, 6), None, True)


FORMS: dict[str, Callable[[ir.Node], Product | None]] = {
    "Conv": _qdq,
    "MatMul": _qdq,
    "Gemm": _qdq,
    "QLinearConv": _qlinear("Conv"),
    "QLinearMatMul": _qlinear("MatMul"),
    "com.microsoft.QGemm": _qgemm,
    "com.microsoft.MatMulIntegerToFloat": _to_float,
    "MatMulInteger": _integer,
}
"""Operator -> what it sums, None where this very node does not run on integers. ConvTranspose always runs in float."""


def products(model: ir.Model) -> list[Product]:
    """The nodes of the main graph, and then of branches, that onnxruntime sums in integers, in order of execution."""
    found = []
    for node in (node for graph in (model.graph, *branches(model)) for node in graph):
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        read = FORMS[op](node) if op in FORMS else None
        if read is not None:
            found.append(read)
    return found


def can_saturate(item: Product) -> bool:
    """Has this node a pair of constant weights that can leave 16 bits with uint8 data?"""
    weight, zero = constant_of(item.w.levels), constant_of(item.x.zero)
    if weight is None or weight.dtype != np.int8 or (zero is not None and zero.dtype != np.uint8):
        return False
    groups = item.node.attributes.get_int("group", 1)
    if item.op == "Conv":
        rows = weight.reshape(len(weight), -1)
        return not fits(rows, pairing("Conv", weight.shape, groups))
    rows = weight if item.node.attributes.get_int("transB", 0) else weight.swapaxes(-1, -2)
    return not fits(rows.reshape(-1, rows.shape[-1]), pairing(item.op, rows.shape[-2:]))


# -- running --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saturation:
    """What happened in one node: its name, the share of pairs that left 16 bits, signal to that error of its sums in dB."""

    node: str
    share: float
    db: float


@dataclass(frozen=True, eq=False)
class Simulated:
    """Outputs by name, and what saturated, node by node."""

    outputs: Arrays
    saturation: list[Saturation]


@dataclass(eq=False)
class Stretch:
    """Nodes that run together in one session: what they need and what later ones need of them."""

    nodes: list[ir.Node] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    gives: list[str] = field(default_factory=list)
    session: Session | None = None


@dataclass(eq=False)
class Fork:
    """An If with nodes that are computed here, and what was made of the branches that were taken so far."""

    node: ir.Node
    ways: dict[bool, Simulation] = field(default_factory=dict)


class Simulation:
    """A model cut at the nodes that are computed here; sessions are made when they are first needed.

    model   sorted; its nodes, initializers and opsets are read        saturate   with 16-bit sums of pairs
    every   compute all integer nodes here, not only those that can saturate
    """

    def __init__(self, model: ir.Model, *, saturate: bool = True, every: bool = False) -> None:
        self.model, self.saturate, self.every = model.clone(), saturate, every
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(self.model)
        wanted = [item for item in products(self.model) if every or (saturate and can_saturate(item))]
        self.simulated = {item.node: item for item in wanted}
        self._constants = {
            name: value.const_value
            for name, value in self.model.graph.initializers.items()
            if value.const_value is not None
        }
        self._steps = self._cut()

    def run(self, feeds: Mapping[str, np.ndarray]) -> Simulated:
        """Outputs for one set of inputs; ModelError where onnxruntime does not run a part."""
        known: Arrays = dict(feeds)
        seen: list[Saturation] = []
        for step in self._steps:
            if isinstance(step, Stretch):
                known.update(self._run(step, known))
            elif isinstance(step, Fork):
                known.update(self._take(step, known, seen))
            else:
                known[step.node.outputs[0].name or ""] = self._compute(step, known, seen)
        names = [value.name or "" for value in self.model.graph.outputs]
        return Simulated({name: self._value(name, known) for name in names}, seen)

    def _cut(self) -> list[Stretch | Fork | Product]:
        """Runs of nodes between those that are computed here."""
        steps: list[Stretch | Fork | Product] = []
        held = branches(self.model)
        forks = {held[each.graph] for each in self.simulated if each.graph in held}  # type: ignore[index]
        while further := {held[each.graph] for each in forks if each.graph in held} - forks:  # type: ignore[index]
            forks |= further
        for node in self.model.graph:
            if node in self.simulated:
                steps.append(self.simulated[node])
            elif node in forks:
                steps.append(Fork(node))
            else:
                if not steps or not isinstance(steps[-1], Stretch):
                    steps.append(Stretch())
                steps[-1].nodes.append(node)  # type: ignore[union-attr]
        wanted = {value.name or "" for value in self.model.graph.outputs}
        for step in reversed(steps):
            if isinstance(step, Stretch):
                made = {value.name or "" for node in step.nodes for value in node.outputs}
                read = {name for node in step.nodes for name in _read(node)}
                step.gives = sorted(made & wanted)
                step.needs = sorted(name for name in read - made if name not in self._constants)
                wanted |= set(step.needs)
            elif isinstance(step, Fork):
                wanted |= set(_read(step.node)) - self._constants.keys()
            else:
                wanted |= {value.name or "" for value in step.reads}
        return steps

    def _run(self, step: Stretch, known: Arrays) -> Arrays:
        if not step.gives:
            return {}
        feeds = {name: known[name] for name in step.needs}
        if step.session is None:
            part = self._model_of(step.nodes, step.gives, feeds)
            step.session = open_session(part.SerializeToString(), optimise=False, name="a part")
        return step.session.run(feeds)

    def _take(self, step: Fork, known: Arrays, seen: list[Saturation]) -> Arrays:
        """The branch that is taken, a model of its own that is fed what it reads from around it."""
        condition = step.node.inputs[0]
        assert condition is not None
        way = bool(self._value(condition.name or "", known))
        body = step.node.attributes["then_branch" if way else "else_branch"].as_graph()
        names = [value.name or "" for value in body.outputs]
        read = {name for node in body for name in _read(node)} | set(names)
        feeds = {name: known[name] for name in sorted(read & known.keys())}
        if way not in step.ways:
            part = self._model_of(list(body), names, feeds, list(body.initializers.values()))
            step.ways[way] = Simulation(ir.from_proto(part), saturate=self.saturate, every=self.every)
        told = step.ways[way].run(feeds)
        seen.extend(told.saturation)
        return {out.name or "": told.outputs[name] for out, name in zip(step.node.outputs, names, strict=True)}

    def _model_of(
        self, part: list[ir.Node], gives: list[str], feeds: Arrays, own: Sequence[ir.Value] = ()
    ) -> onnx.ModelProto:
        """Some nodes as a model; own: constants beside those of the main graph."""
        read = {name for node in part for name in _read(node)}
        held = [ir.serde.serialize_tensor(self._constants[name]) for name in sorted(read & self._constants.keys())]
        for tensor, name in zip(held, sorted(read & self._constants.keys()), strict=True):
            tensor.name = name
        for value in own:
            assert value.const_value is not None
            held.append(ir.serde.serialize_tensor(value.const_value))
            held[-1].name = value.name or ""
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
            for name, array in feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in gives]
        nodes = [ir.serde.serialize_node(node) for node in part]
        graph = helper.make_graph(nodes, "part", inputs, outputs, held)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.model.opset_imports.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.model.ir_version)

    def _compute(self, item: Product, known: Arrays, seen: list[Saturation]) -> np.ndarray:
        x, w = self._operand(item.x, known), self._operand(item.w, known)
        attributes = Attributes.of(item.node)
        sums = sums_of(item.op, attributes, x, w)
        if self.saturate:
            seen.append(Saturation(item.node.name or "", sums.share, sums.db))
        total = sums.saturating if self.saturate else sums.exact
        bias = None if item.bias is None else self._value(item.bias.name or "", known)
        if item.out is None and not item.floats:
            return total.astype(np.int32)
        out = None if item.out is None else self._grid(*item.out, known)
        found = finished(item.op, total, x.grid, w.grid, bias, out)
        return found if out is None else found.astype(out.kind)

    def _operand(self, source: Quantized, known: Arrays) -> Operand:
        levels = self._value(source.levels.name or "", known)
        scale = np.float32(1) if source.scale is None else self._value(source.scale.name or "", known)
        zero = np.zeros((), levels.dtype) if source.zero is None else self._value(source.zero.name or "", known)
        kind = str(levels.dtype)
        return Operand(levels, Grid(np.asarray(scale), zero.astype(np.int64), kind, None, *LEVELS[kind]))  # type: ignore[arg-type]

    def _grid(self, scale: ir.Value, zero: ir.Value | None, known: Arrays) -> Grid:
        level = np.zeros((), np.uint8) if zero is None else self._value(zero.name or "", known)
        kind = str(level.dtype)
        return Grid(self._value(scale.name or "", known), level.astype(np.int64), kind, None, *LEVELS[kind])  # type: ignore[arg-type]

    def _value(self, name: str, known: Arrays) -> np.ndarray:
        return self._constants[name].numpy() if name in self._constants else known[name]


def _read(node: ir.Node) -> Iterator[str]:
    """Names that a node reads, those that its bodies take from around them too."""
    yield from (value.name for value in node.inputs if value is not None and value.name)
    for attribute in node.attributes.values():
        for body in bodies_of(attribute):
            inside = {value.name for value in body.inputs} | set(body.initializers)
            inside |= {value.name for each in body for value in each.outputs}
            within = {name for each in body for name in _read(each)} | {value.name or "" for value in body.outputs}
            yield from sorted(within - inside - {""})
