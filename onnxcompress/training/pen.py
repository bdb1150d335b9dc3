"""A Pen writes nodes at the end of a graph and knows the type and shape of all that it writes, by ONNX's own inference.

    y = op.Mul(op.Exp(x), 0.5)          # operands: a Value, a number or an array of x's type, a list of integers (int64)
    parts = op.Split(x, [1, 2], axis=1, outputs=2)

Shapes are fixed numbers everywhere: a training step is made for one batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import count
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import defs, helper, numpy_helper, shape_inference

from onnxcompress.errors import ModelError
from onnxcompress.training.shapes import ALIKE, TOLD

Step = Callable[["Pen", Sequence[ir.Value], Sequence[ir.Value]], tuple[Sequence[ir.Value], Sequence[ir.Value]]]
"""What one step of a loop does: (op, states, slices) -> new states, what is written."""

Operand = ir.Value | np.ndarray | float | Sequence[int] | None

SMALL = 1024
"""Numbers in a constant up to which inference reads its values: shapes, axes and pads are small."""


class Pen:
    """Appends nodes to `graph`; equal constants are written once. `Pen.OpType(*operands, **attributes)` gives the output.

    block, in_blocks  channels of a block where convolutions may be written in blocks, and what is there in blocks (blocks.py)
    """

    def __init__(self, graph: ir.Model, prefix: str = "~") -> None:
        self.graph, self.prefix = graph, prefix
        self.block: int | None = None
        self.in_blocks: dict[ir.Value, ir.Value] = {}
        self.stops: set[ir.Value] = set()
        self._made: dict[tuple[Any, ...], ir.Value] = {}
        self._records: list[list[ir.Node]] = []
        self._number = count(1)
        self._into = graph.graph
        self._opset = [helper.make_opsetid(domain, version) for domain, version in graph.opset_imports.items()]
        self._version = graph.opset_imports[""]

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return lambda *operands, **attributes: self.node(op_type, operands, **attributes)

    def node(
        self, op_type: str, operands: Sequence[Operand], *, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> Any:
        """A new node's output, or the list of them where there are several."""
        first = next((each for each in operands if isinstance(each, ir.Value)), None)
        dtype = np.dtype(np.float32) if first is None else element_of(first)
        inputs = [self._operand(each, dtype) for each in operands]
        made = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=self.fresh())
        for number, value in enumerate(made.outputs):
            value.name = f"{made.name}.{number}"
        self.infer(made)
        self._into.append(made)
        for each in self._records:
            each.append(made)
        return made.outputs[0] if outputs == 1 else list(made.outputs)

    def inside(self, body: ir.Graph) -> Pen:
        """A Pen that writes into a body of one of the graph's nodes; its constants stand in the graph itself."""
        other = copy(self)
        other._into, other._records, other.in_blocks = body, [], {}
        return other

    def body(self, inputs: Sequence[ir.Value] = ()) -> tuple[Pen, ir.Graph]:
        """A new body, and the Pen that writes into it."""
        name = self.fresh()
        made = ir.Graph(inputs, [], nodes=[], name=name, opset_imports=self.graph.graph.opset_imports)
        return self.inside(made), made

    def holder(
        self,
        op_type: str,
        operands: Sequence[ir.Value],
        shapes: Sequence[tuple[Any, Sequence[int]]],
        *,
        domain: str = "",
        **held: Any,
    ) -> list[ir.Value]:
        """A new node of which ONNX's inference does not tell enough, as one with bodies; its outputs' types and shapes are given."""
        made = ir.node(op_type, operands, held, domain=domain, num_outputs=len(shapes), name=self.fresh())
        for number, (value, (dtype, shape)) in enumerate(zip(made.outputs, shapes, strict=True)):
            value.name = f"{made.name}.{number}"
            value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        self._into.append(made)
        for each in self._records:
            each.append(made)
        return list(made.outputs)

    def scan(
        self, states: Sequence[ir.Value], reads: Sequence[ir.Value], step: Step, *, back: bool = False
    ) -> list[ir.Value]:
        """A loop over the first axis of `reads`, from the end where `back`: the last states, and what each step writes, stacked.

        step(op, states, slices) -> new states, what is written
        """
        steps = shape_of(reads[0])[0]
        sizes = [shape_of(each) for each in states] + [shape_of(each)[1:] for each in reads]
        taken = [
            ir.val(self.fresh(), dtype=each.dtype, shape=ir.Shape(size))
            for each, size in zip([*states, *reads], sizes, strict=True)
        ]
        inner, body = self.body(taken)
        new, written = step(inner, taken[: len(states)], taken[len(states) :])
        body.outputs[:] = [inner.Identity(each) for each in (*new, *written)]
        shapes = [(each.dtype, shape_of(each)) for each in new] + [
            (each.dtype, (steps, *shape_of(each))) for each in written
        ]
        return self.holder(
            "Scan", [*states, *reads], shapes, body=body, num_scan_inputs=len(reads),
            scan_input_directions=[int(back)] * len(reads), scan_output_directions=[int(back)] * len(written),
        )  # fmt: skip

    @contextmanager
    def written(self) -> Iterator[list[ir.Node]]:
        """The list of nodes that are written meanwhile."""
        nodes: list[ir.Node] = []
        self._records.append(nodes)
        try:
            yield nodes
        finally:
            self._records = [each for each in self._records if each is not nodes]

    def stopped(self, value: ir.Value) -> ir.Value:
        """The value as a constant: no gradient goes through it."""
        found: ir.Value = self.Identity(value)
        self.stops.add(found)
        return found

    def constant(self, values: np.ndarray) -> ir.Value:
        """An initializer, shared by all who want the same values."""
        values = np.asarray(values, order="C")
        key = (values.dtype.name, values.shape, values.tobytes())
        made = self._made.get(key)
        if made is None or made.name not in self.graph.graph.initializers:  # a clean-up took it away
            name = self.fresh()
            value = ir.val(name, const_value=ir.tensor(values, name=name))
            self.graph.graph.register_initializer(value)
            self._made[key] = value
        return self._made[key]

    def input(self, name: str, shape: Sequence[int], dtype: np.dtype[Any] | type = np.float32) -> ir.Value:
        """A new input of the graph."""
        value = ir.val(name, dtype=ir.DataType.from_numpy(np.dtype(dtype)), shape=ir.Shape(shape))
        self.graph.graph.inputs.append(value)
        return value

    def _operand(self, operand: Operand, dtype: np.dtype[Any]) -> ir.Value | None:
        if operand is None or isinstance(operand, ir.Value):
            return operand
        if isinstance(operand, list | tuple):
            return self.constant(np.array(operand, np.int64))
        values = np.asarray(operand)
        return self.constant(values if values.dtype.kind in "iub" and values.ndim else values.astype(dtype))

    def fresh(self) -> str:
        """A name that nothing else in the graph has."""
        return f"{self.prefix}{next(self._number)}"

    def infer(self, node: ir.Node) -> None:
        """Give each output of a node its type and shape; ModelError where ONNX cannot say them."""
        key = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        if key in TOLD:
            _tell(node, TOLD[key](node))
            return
        op_type, domain = (ALIKE[key], "") if key in ALIKE else (node.op_type, node.domain)
        if not defs.has(op_type, self._version, domain):
            raise ModelError(f"{key} {node.name!r}: its shape cannot be found: ONNX does not know the operator")
        schema = defs.get_schema(op_type, self._version, domain)
        inputs = {value.name or "": value for value in node.inputs if value is not None}
        types = {name: _type_proto(value) for name, value in inputs.items()}
        known = {
            name: numpy_helper.from_array(value.const_value.numpy())
            for name, value in inputs.items()
            if value.const_value is not None and value.const_value.size <= SMALL
        }
        try:
            found = shape_inference.infer_node_outputs(
                schema,
                _message(node, op_type, domain),
                types,
                known,
                opset_imports=self._opset,
                ir_version=self.graph.ir_version,
            )
        except (shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{node.op_type} {node.name!r}: its shape cannot be found: {error}") from error
        _apply(found, node)
        if node.attributes.get_int("ceil_mode", 0):
            self._without_lost_windows(node)

    def _without_lost_windows(self, node: ir.Node) -> None:
        """A pool with ceil_mode: onnxruntime leaves out a window that begins beyond the input, which ONNX's inference counts, also
        the one that runs when the graph is loaded. Without ceil_mode all agree on what is run; ModelError where another axis needs it.
        """
        run = _windows_run(node)
        if run == shape_of(node.outputs[0])[2:]:
            return
        node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)
        self.infer(node)
        if run != shape_of(node.outputs[0])[2:]:
            raise ModelError(
                f"{node.op_type} {node.name!r}: ceil_mode gives windows that begin beyond the input; export it with pads"
            )


def _message(node: ir.Node, op_type: str, domain: str) -> onnx.NodeProto:
    """The node as a message, under the name that ONNX's inference knows."""
    found = ir.serde.serialize_node(node)
    if (found.op_type, found.domain) != (op_type, domain):
        found.op_type, found.domain = op_type, domain
        kept = [each for each in found.attribute if not each.name.startswith("activation")]
        del found.attribute[:]
        found.attribute.extend(kept)
    return found


def _tell(node: ir.Node, shape: list[int | None] | None) -> None:
    """The first output has the type of the first input and this shape; a fourth one, the sum that a norm was of, alike."""
    first = node.inputs[0]
    assert first is not None
    for value in (*node.outputs[:1], *node.outputs[3:4]):
        value.type = first.type
        value.shape = None if shape is None else ir.Shape(shape)


def _apply(found: Mapping[str, onnx.TypeProto], node: ir.Node) -> None:
    for value in node.outputs:
        kind = found.get(value.name or "")
        if kind is None or not kind.tensor_type.elem_type:
            continue
        value.type = ir.TensorType(ir.DataType(kind.tensor_type.elem_type))
        if kind.tensor_type.HasField("shape"):
            sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim]
            value.shape = ir.Shape(sizes)


def _windows_run(node: ir.Node) -> tuple[int, ...]:
    """How many windows of a pool begin within the input and the pads before it, by spatial axis."""
    sizes, counts = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]  # type: ignore[arg-type]
    strides, begins = (
        node.attributes[name].as_ints() if name in node.attributes else [plain] * len(sizes)
        for name, plain in (("strides", 1), ("pads", 0))
    )
    places = zip(counts, sizes, strides, begins[: len(sizes)], strict=True)
    return tuple(out - ((out - 1) * stride >= size + begin) for out, size, stride, begin in places)


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    """Type and shape for ONNX's inference."""
    known = value if value.const_value is None else value.const_value
    if known.dtype is None:
        raise ModelError(f"value {value.name!r} has no element type; export the model again")
    sizes = None if known.shape is None else [size if isinstance(size, int) else None for size in known.shape]
    return helper.make_tensor_type_proto(int(known.dtype), sizes)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Its sizes, all of them numbers; ModelError where one is not known."""
    sizes = None if value.shape is None else list(value.shape)
    if sizes is None or not all(isinstance(size, int) for size in sizes):
        node = value.producer()
        maker = "" if node is None else f" of {node.op_type} {node.name!r}"
        raise ModelError(
            f"value {value.name!r}{maker} has no fixed shape ({value.shape}); a training step needs every size"
        )
    return tuple(int(size) for size in sizes)  # type: ignore[arg-type]


def element_of(value: ir.Value) -> np.dtype[Any]:
    """numpy's type of its elements."""
    if value.dtype is None:
        raise ModelError(f"value {value.name!r} has no element type; export the model again")
    return np.dtype(value.dtype.numpy())


def is_float(value: ir.Value | None) -> bool:
    """Whether it is a tensor of floating-point numbers."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()
