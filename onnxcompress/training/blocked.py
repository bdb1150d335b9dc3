"""A step graph's convolutions in onnxruntime's blocked layout, where that pays and a self-test says that it is right.

Measured on 64 images (AVX-512, one thread, each with its own reordering): 3x3 of 16 to 64 channels take 0.5 to 0.8 of the time,
depthwise ones 0.02 to 0.5; of 1x1, and where blocks hold much that is padding, the time is the same or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import ModelError
from onnxcompress.model.spec import FLOOR
from onnxcompress.runtime.session import open_session
from onnxcompress.training.blocks import DOMAIN, WASTE, Form, conv, form_of
from onnxcompress.training.derivatives.site import Site
from onnxcompress.training.derivatives.windows import window_of
from onnxcompress.training.pen import Pen, shape_of
from onnxcompress.training.reverse import differentiate

SIZES = (4, 8, 16, 32)
"""Blocks that a CPU may have: floats of a vector register."""

TOLERANCE = 1e-4
"""Of the self-test, of the largest value: sums of 300 products in another order."""


NEAR = 16
"""Nodes for which a tensor in blocks is kept for a second reader: from forward to backward it would take memory instead of a moment."""


@cache
def block_size() -> int | None:
    """Channels of a block in this onnxruntime on this CPU; None where there is no such layout, or it computes something else."""
    try:
        size = _asked()
        return size if size in SIZES and _right(size) else None
    except ModelError:
        return None


def in_blocks(op: Pen) -> int:
    """Rewrite a graph whose nodes are all written, in place: convolutions for which it pays; how many. Nothing where `op.block` is None."""
    graph, count, at = op.graph.graph, 0, dict[ir.Value, int]()
    nodes = list(graph)
    graph.remove(nodes)
    op.in_blocks.clear()
    for number, node in enumerate(nodes):
        for value in [value for value in op.in_blocks if number - at.setdefault(value, number) > NEAR]:
            del op.in_blocks[value]
        x = node.inputs[0] if node.inputs else None
        if node.domain == DOMAIN and node.op_type == "ReorderInput" and x is not None:
            if x in op.in_blocks:
                node.outputs[0].replace_all_uses_with(op.in_blocks[x])
                node.replace_input_with(0, None)
                continue
            op.in_blocks[x] = node.outputs[0]
        form = pays(op, node)
        if form is None:
            graph.append(node)
        else:
            _replaced(op, node, form)
            count += 1
    return count


def pays(op: Pen, node: ir.Node) -> Form | None:
    """The form of a Conv that is faster in blocks; None for all other nodes."""
    x, block = node.inputs[0] if node.inputs else None, op.block
    if block is None or node.op_type != "Conv" or node.domain or x is None or x.dtype != ir.DataType.FLOAT:
        return None
    (_, ins, *extent), (outs, _, *kernel) = shape_of(x), shape_of(node.inputs[1])  # type: ignore[arg-type]
    form = form_of(ins, outs, node.attributes.get_int("group", 1), block) if len(extent) == 2 else None
    if form is None or form.depthwise:
        return form
    return form if prod(kernel) > 1 and form.ins * form.outs <= WASTE * ins * outs else None


def _replaced(op: Pen, node: ir.Node, form: Form) -> None:
    at = Site(node, ())
    window = window_of(at, at.shape(0)[2:], at.shape(1)[2:])
    bias = at.x[2] if at.has(2) else None
    made = conv(
        op, at.x[0], at.x[1], bias, form, shape_of(at.y)[2:], pads=[*window.begins, *window.ends],
        strides=window.strides, dilations=window.dilations,
    )  # fmt: skip
    at.y.replace_all_uses_with(made, replace_graph_outputs=True)
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)


def _asked() -> int:
    """ReorderInput of four channels tells: it adds channels up to a block."""
    op, (x,) = _graph({"x": (1, 4, 1, 1)})
    op.graph.opset_imports[DOMAIN] = 1
    op.graph.graph.outputs[:] = op.holder("ReorderInput", [x], [(x.dtype, (1, 4, 1, 1))], domain=DOMAIN)
    (found,) = _run(op, {"x": np.ones((1, 4, 1, 1), np.float32)})
    return int(found.shape[1])


CASES: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((2, 32, 6, 5), (40, 32, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 36, 7, 7), (32, 36, 3, 3), {"pads": [0, 1, 2, 1], "strides": [2, 2]}),
    ((2, 3, 9, 8), (32, 3, 5, 3), {"pads": [2, 1, 2, 1], "strides": [1, 2]}),
    ((2, 32, 8, 8), (32, 32, 2, 3), {"dilations": [2, 1]}),
    ((2, 64, 5, 5), (64, 32, 3, 3), {"pads": [1, 1, 1, 1], "group": 2}),
    ((2, 36, 7, 6), (36, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 36}),
    ((2, 32, 8, 8), (32, 1, 5, 5), {"pads": [2, 2, 2, 2], "strides": [2, 2], "group": 32}),
    ((32, 12, 5, 6), (28, 12, 3, 2), {"pads": [1, 0, 2, 1], "dilations": [1, 2]}),
)
"""Of the self-test: x, weight, attributes."""


def _right(block: int) -> bool:
    """Do convolutions in blocks, and gradients by x and by the weight, answer like the standard operators?"""
    rng = np.random.default_rng(0)
    sizes = dict[str, tuple[int, ...]]()
    for number, (x, weight, _) in enumerate(CASES):
        sizes |= {f"x{number}": x, f"w{number}": weight}
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    found = []
    for size in (None, block):
        op, inputs = _graph(sizes)
        op.block = size
        ys = [
            op.Conv(*inputs[2 * number : 2 * number + 2], kernel_shape=list(weight[2:]), **attributes)
            for number, (_, weight, attributes) in enumerate(CASES)
        ]
        loss = op.ReduceSum(op.Concat(*(op.Reshape(op.Mul(y, y), [-1]) for y in ys), axis=0), keepdims=0)
        gradients = differentiate(op, loss, inputs)
        op.graph.graph.outputs[:] = [*ys, *(op.Identity(gradients[each]) for each in inputs)]
        in_blocks(op)
        found.append(_run(op, feeds))
    pairs = zip(*found, strict=True)
    return all(float(np.abs(one - two).max()) <= TOLERANCE * float(np.abs(one).max()) for one, two in pairs)


def _graph(sizes: Mapping[str, tuple[int, ...]]) -> tuple[Pen, list[ir.Value]]:
    """An empty one, and its inputs."""
    op = Pen(ir.Model(ir.Graph([], [], nodes=[], name="blocks", opset_imports={"": FLOOR}), ir_version=8))
    return op, [op.input(name, shape) for name, shape in sizes.items()]


def _run(op: Pen, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    session = open_session(ir.to_proto(op.graph).SerializeToString(), name="the self-test of blocked convolutions")
    return list(session.run(feeds).values())
