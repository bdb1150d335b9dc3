"""How gradients are checked: the written graph against central differences in float64, and onnxruntime against the float64 graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import op_scan

from onnxcompress.runtime.session import open_session
from onnxcompress.training.fixed import fix
from onnxcompress.training.pen import Pen, shape_of
from onnxcompress.training.reverse import differentiate

Arrays = Mapping[str, np.ndarray]

NEVER = {"ScatterND"}
"""Its sums race with two threads."""

COARSE = 1e-2
"""Step of differences in float32: what is linear in each input loses nothing by it."""


def graph_of(
    nodes: Sequence[onnx.NodeProto], inputs: Arrays, constants: Arrays, output: str, opset: int = 17
) -> ir.Model:
    """A graph that computes `output`; the inputs' types and shapes are those of their arrays."""
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in inputs.items()
    ]
    made = helper.make_graph(
        nodes, "row", infos, [onnx.ValueInfoProto(name=output)],
        [numpy_helper.from_array(np.asarray(x), name) for name, x in constants.items()],
    )  # fmt: skip
    return ir.from_proto(
        helper.make_model(
            made, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)], ir_version=8
        )
    )


def with_gradients(graph: ir.Model, weights: np.ndarray, by: Sequence[str]) -> tuple[ir.Model, list[str]]:
    """The graph with outputs [loss, gradients]: loss is the sum of its output times `weights`."""
    op = Pen(graph)
    fix(op, {value.name: shape_of(value) for value in graph.graph.inputs})
    loss = op.ReduceSum(op.Mul(graph.graph.outputs[0], weights), keepdims=0)
    inputs = {value.name: value for value in graph.graph.inputs}
    found = differentiate(op, loss, [inputs[name] for name in by])
    graph.graph.outputs[:] = [loss, *(op.Identity(found[inputs[name]]) for name in by)]
    return graph, [value.name or "" for value in graph.graph.outputs]


class Scan(op_scan.Scan):
    """ONNX's reference walks forward along first axes only: what is read and what is written is turned round and moved."""

    def __init__(self, onnx_node: onnx.NodeProto, run_params: dict[str, Any]) -> None:
        plain, self.given = onnx.NodeProto(), dict[str, list[int]]()
        plain.CopyFrom(onnx_node)
        del plain.attribute[:]
        for each in onnx_node.attribute:
            if each.name.endswith(("_directions", "_axes")):
                self.given[each.name] = list(each.ints)
            else:
                plain.attribute.append(each)
        super().__init__(plain, run_params)

    def _turned(self, kind: str, arrays: Sequence[np.ndarray], back: bool) -> list[np.ndarray]:
        ways, axes = (self.given.get(f"scan_{kind}_{what}", [0] * len(arrays)) for what in ("directions", "axes"))
        found = []
        for array, way, axis in zip(arrays, ways, axes, strict=True):
            x = array if back else np.moveaxis(array, axis, 0)
            x = x[::-1] if way else x
            found.append(np.moveaxis(x, 0, axis) if back else x)
        return found

    def _run(self, *args: np.ndarray, **more: Any) -> tuple[np.ndarray, ...]:
        states = len(args) - self.num_scan_inputs
        found = super()._run(*args[:states], *self._turned("input", args[states:], False), **more)
        return (*found[:states], *self._turned("output", found[states:], True))


def run_float64(graph: ir.Model, feeds: Arrays) -> list[np.ndarray]:
    """In numpy, by ONNX's reference."""
    return ReferenceEvaluator(ir.to_proto(graph), new_ops=[Scan]).run(None, dict(feeds))


def run_stock(graph: ir.Model, feeds: Arrays, threads: int = 1) -> list[np.ndarray]:
    """In onnxruntime."""
    session = open_session(ir.to_proto(graph).SerializeToString(), threads=threads)
    return list(session.run(feeds).values())


def check_row(
    nodes: Sequence[onnx.NodeProto],
    inputs: Arrays,
    *,
    constants: Arrays | None = None,
    by: Sequence[str] | None = None,
    output: str = "y",
    opset: int = 17,
    seed: int = 0,
    float64: bool = True,
    step: float = 1e-6,
    exact: float = 1e-6,
    tolerance: float = 2e-3,
) -> None:
    """The gradient of sum(w y), w random, by each input of floats: differences in float64, then onnxruntime in float32.

    step, exact  of the differences, and how near they come in float64
    float64  False where ONNX's reference does not compute the operator rightly: differences in onnxruntime's float32 then
    """
    by = [name for name, x in inputs.items() if x.dtype.kind == "f"] if by is None else list(by)
    rng = np.random.default_rng(seed)

    def made(dtype: Any) -> tuple[ir.Model, Arrays, Arrays]:
        """Forward with `sum(w y)`, and the same with gradients; constants and inputs of floats in this type."""
        cast = {n: x.astype(dtype) if x.dtype.kind == "f" else x for n, x in inputs.items()}
        fixed = {
            n: np.asarray(x).astype(dtype) if np.asarray(x).dtype.kind == "f" else np.asarray(x)
            for n, x in (constants or {}).items()
        }
        return graph_of(nodes, cast, fixed, output, opset), cast, fixed

    forward, feeds32, _ = made(np.float32)
    shape = run_stock(forward, feeds32)[0].shape
    weights = rng.normal(size=shape)
    stock, _ = with_gradients(made(np.float32)[0], weights, by)
    assert not {node.op_type for node in list(stock.graph)[len(nodes) :]} & NEVER
    got = run_stock(stock, feeds32)[1:]
    if float64:
        forward, feeds, _ = made(np.float64)
        doubled, _ = with_gradients(made(np.float64)[0], weights, by)
        wanted = run_float64(doubled, feeds)[1:]
        for name, gradient in zip(by, wanted, strict=True):
            close(gradient, differences(lambda f: run_float64(forward, f)[0], feeds, name, weights, step), exact, name)
    else:
        wanted = [differences(lambda f: run_stock(forward, f)[0], feeds32, name, weights, COARSE) for name in by]
    for name, one, other in zip(by, got, wanted, strict=True):
        close(one, other, tolerance, name)


def differences(run: Any, feeds: Arrays, name: str, weights: np.ndarray, step: float) -> np.ndarray:
    """Central differences of sum(weights run) by one input."""
    x = feeds[name]
    found = np.zeros(x.shape, np.float64)
    for index in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            ends.append((run({**feeds, name: moved}).astype(np.float64) * weights).sum())
        found[index] = (ends[0] - ends[1]) / (2 * step)
    return found


def close(one: np.ndarray, other: np.ndarray, tolerance: float, name: str) -> None:
    """Within `tolerance` of the largest value."""
    assert one.shape == other.shape, f"{name}: {one.shape} and {other.shape}"
    scale = max(float(np.abs(other).max(initial=0.0)), 1e-3)
    worst = float(np.abs(one - other).max(initial=0.0))
    assert worst <= tolerance * scale, f"gradient by {name}: off by {worst:.3g}, largest value {scale:.3g}"
