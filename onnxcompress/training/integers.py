"""Students of integers: constants behind a DequantizeLinear train as floats that are rounded to their grids, and activations are
rounded in the forward pass and not in the backward one (straight-through), as quantization-aware training has it.

    DequantizeLinear(levels) ──▶ a float parameter, of the form `Levels`
    QuantizeLinear(x)        ──▶ c = Clip(x / scale, ends);  c + fixed(Round(c) - c) + zero: levels, held in floats
    nodes on levels          ──▶ the same nodes on floats
    DequantizeLinear(levels) ──▶ (levels - zero) · scale

Jacob et al., CVPR 2018, arXiv:1712.05877; straight-through: Bengio, Léonard, Courville 2013, arXiv:1308.3432. The forward pass is
that of the file: scales and zeros stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx import defs

from onnxcompress.errors import ModelError
from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, input_of, new_constant, set_constant
from onnxcompress.training.kept import Parts

STOP = "onnxcompress.stop"
"""Key of a node's metadata: no gradient goes through it."""


Limit = Callable[[np.ndarray], np.ndarray]
"""Levels less zero, as real numbers -> the integers that stand for them."""


@dataclass(eq=False)
class Levels:
    """Integers on a grid: a latent float behind each takes the gradient of the rounded one, inside the grid's ends.

    name   of the initializer with the levels      levels  its values, int
    scale, zero  in a shape that broadcasts        low, high  ends of the grid
    limit  real levels -> the nearest ones that may be used, where a kernel asks for more than ends
    """

    name: str
    levels: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    low: int
    high: int
    limit: Limit | None = None
    decays: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("",)

    def start(self) -> Parts:
        """What the levels stand for."""
        return {"": (self.levels.astype(np.int64) - self.zero).astype(np.float32) * self.scale}

    def numbers(self, parts: Parts) -> np.ndarray:
        """The nearest levels, as floats."""
        if self.limit is not None and not self.zero.any():
            return self.limit(parts[""] / self.scale)
        return np.clip(np.rint(parts[""] / self.scale) + self.zero, self.low, self.high)

    def values(self, parts: Parts) -> np.ndarray:
        """As DequantizeLinear computes them."""
        return ((self.numbers(parts) - self.zero) * self.scale).astype(np.float32)

    def pull(self, gradient: np.ndarray, parts: Parts) -> Parts:
        """Straight through."""
        return {"": gradient}

    def settle(self, parts: Parts) -> None:
        """No latent number runs away beyond the ends, from where it would not come back."""
        ends = [((end - self.zero) * self.scale).astype(np.float32) for end in (self.low, self.high)]
        np.clip(parts[""], *ends, out=parts[""])

    def write(self, graph: ir.Model, name: str, parts: Parts) -> None:
        """The levels."""
        set_constant(graph, self.name, self.numbers(parts).astype(np.int64))


def in_floats(model: Model, limits: Mapping[str, Limit] | None = None) -> tuple[Model, dict[str, Levels]]:
    """The model with floats in place of levels, and the form of each constant that stands for levels.

    limits  initializer of levels -> what its kernel asks for
    The same model where it holds none. ModelError for grids that are computed, or have an axis where activations are.
    """
    if not any(node.op_type == "DequantizeLinear" and not node.domain for node in model.ir.graph):
        return model, {}
    work = _Floats(model.ir.clone(), limits or {})
    for node in list(work.graph.graph):
        work.convert(node)
    common.RemoveUnusedNodesPass()(work.graph)
    return model.edited(work.graph), work.forms


@dataclass(eq=False)
class _Floats:
    """A graph on its way. levels: value that held levels -> float value with the same numbers."""

    graph: ir.Model
    limits: Mapping[str, Limit]
    forms: dict[str, Levels] = field(default_factory=dict)
    levels: dict[ir.Value, ir.Value] = field(default_factory=dict)
    made: int = 0

    def convert(self, node: ir.Node) -> None:
        """One node, in order."""
        if node.op_type == "QuantizeLinear" and not node.domain:
            self._rounded(node)
        elif node.op_type == "DequantizeLinear" and not node.domain:
            source = node.inputs[0]
            if source in self.levels:
                self._read(node)
            elif constant_of(source) is not None:
                self._parameter(node)
        elif any(value in self.levels for value in node.inputs):
            self._on_floats(node)

    def _parameter(self, node: ir.Node) -> None:
        """A constant of levels becomes one of floats, under the name of what reads them."""
        levels, output = node.inputs[0], node.outputs[0]
        assert levels is not None and levels.name is not None
        if node.attributes.get_int("block_size", 0) or output.is_graph_output():
            return
        stored = constant_of(levels)
        assert stored is not None
        scale, zero = self._grid(node, stored.ndim)
        low, high = _ends(stored)
        form = Levels(levels.name, stored.astype(np.int64), scale, zero, low, high, self.limits.get(levels.name))
        name, output.name = output.name or "", f"{output.name}.before"
        constant = new_constant(self.graph, name, form.start()[""])
        output.replace_all_uses_with(constant)
        self.graph.graph.remove(node, safe=True)
        self.forms[constant.name or name] = form

    def _rounded(self, node: ir.Node) -> None:
        """x -> levels, in floats."""
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        scale, zero = self._grid(node, 0 if node.attributes.get_int("axis", 1) == 1 else 1)
        given = constant_of(input_of(node, 2))
        low, high = _ends(np.zeros((), np.uint8) if given is None else given)
        far = self._node("Div", node, value, scale)
        inside = self._node("Clip", node, far, np.float32(low - zero), np.float32(high - zero))
        error = self._node("Sub", node, self._node("Round", node, inside), inside)
        fixed = self._node("Identity", node, error)
        made = fixed.producer()
        assert made is not None
        made.metadata_props[STOP] = "1"
        centred = self._node("Add", node, inside, fixed)
        self.levels[output] = self._node("Add", node, centred, np.float32(zero))

    def _read(self, node: ir.Node) -> None:
        """Levels in floats -> what they stand for, under the same name."""
        output = node.outputs[0]
        scale, zero = self._grid(node, 0)
        centred = self._node("Sub", node, self.levels[node.inputs[0]], np.float32(zero))  # type: ignore[index]
        made = self._node("Mul", node, centred, scale)
        made.type, made.shape = output.type, output.shape
        name, output.name = output.name, f"{output.name}.before"
        made.name = name
        output.replace_all_uses_with(made, replace_graph_outputs=True)

    def _on_floats(self, node: ir.Node) -> None:
        """A node that moves or clips levels: all that has their type by the operator's definition is in floats from now on."""
        reads, writes = _of_one_type(node, [index for index, value in enumerate(node.inputs) if value in self.levels])
        for index, value in enumerate(node.inputs):
            if value in self.levels:
                node.replace_input_with(index, self.levels[value])
            elif index in reads and value is not None and (stored := constant_of(value)) is not None:
                made = new_constant(self.graph, f"{value.name}.float", stored.astype(np.float32))
                node.replace_input_with(index, made)
        for output in (node.outputs[index] for index in writes):
            output.type = ir.TensorType(ir.DataType.FLOAT)
            self.levels[output] = output

    def _grid(self, node: ir.Node, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero of a node: of a constant, in a shape that broadcasts; of an activation (rank 0), scalars."""
        scale, zero = constant_of(node.inputs[1]), constant_of(input_of(node, 2))
        computed = scale is None or (zero is None and input_of(node, 2) is not None)
        if scale is None or computed or (rank == 0 and scale.size != 1):
            why = "its grid is computed" if computed else "it has a scale for each channel of an activation"
            raise ModelError(f"{node.op_type} {node.name!r}: {why}; only constant grids train, one for an activation")
        zero = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64)
        scale = scale.astype(np.float32)
        if scale.size == 1:
            return scale.reshape(()), zero.reshape(())
        lined = [1] * rank
        lined[node.attributes.get_int("axis", 1) % rank] = -1
        return scale.reshape(lined), zero.reshape(lined)

    def _node(self, op_type: str, before: ir.Node, *operands: ir.Value | np.ndarray | np.float32) -> ir.Value:
        """A node of floats before another one."""
        inputs = [
            each if isinstance(each, ir.Value) else new_constant(self.graph, f"{before.name}.number", np.asarray(each))
            for each in operands
        ]
        self.made += 1
        made = ir.node(op_type, inputs, name=f"{before.name}~{self.made}")
        value = made.outputs[0]
        value.name, value.type = made.name, ir.TensorType(ir.DataType.FLOAT)
        self.graph.graph.insert_before(before, made)
        return value


def _of_one_type(node: ir.Node, places: list[int]) -> tuple[set[int], set[int]]:
    """Inputs and outputs whose type is that of the inputs at these places, as ONNX defines the operator."""
    if node.domain or not defs.has(node.op_type):
        return set(), set()
    schema = defs.get_schema(node.op_type)
    kinds = {_kind(schema.inputs, place) for place in places}
    reads, writes = (
        {index for index in range(len(values)) if _kind(formal, index) in kinds}
        for formal, values in ((schema.inputs, node.inputs), (schema.outputs, node.outputs))
    )
    return reads, writes


def _kind(formal: Sequence[defs.OpSchema.FormalParameter], index: int) -> str:
    """The name of a parameter's type; the last one may stand for several."""
    return str(formal[min(index, len(formal) - 1)].type_str)


def _ends(stored: np.ndarray) -> tuple[int, int]:
    """Least and largest level. Levels of weights that never use int8's least one keep to that: -w is there for every w."""
    info = ml_dtypes.iinfo(stored.dtype)
    least = info.min + 1 if info.min < 0 and (not stored.size or int(stored.min()) > info.min) else info.min
    return int(least), int(info.max)
