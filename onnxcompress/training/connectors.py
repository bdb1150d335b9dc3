"""Learned connectors: one linear map of channels from a value of the student to the width of the teacher's, trained with it and then
thrown away. Romero et al., ICLR 2015 (FitNets), arXiv:1412.6550, whose regressor is a convolution; here its kernel is 1.

They are nodes and outputs of the student's own graph while it trains, so that they train, resume and repeat like all other weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxcompress.errors import ModelError
from onnxcompress.model import Model
from onnxcompress.model.edit import new_constant
from onnxcompress.training.losses import LOSSES
from onnxcompress.training.targets import Target

CONNECTOR = "connector/"
"""Before the names of its weights and of what it gives."""

Shapes = Mapping[str, tuple[int, ...]]


def connected(student: Model, targets: Sequence[Target], shapes: tuple[Shapes, Shapes]) -> tuple[Model, list[Target]]:
    """The student with a connector for each term whose loss wants one and whose widths differ, and the terms that read them.

    shapes  of all values of student and teacher for one feed
    ModelError where more than the width differs, or the axis of channels is not known.
    """
    graph, made = student.ir.clone(), []
    values = {value.name: value for node in graph.graph for value in node.outputs}
    for target in targets:
        one, two = shapes[0].get(target.student), shapes[1].get(target.teacher)
        if not LOSSES[target.loss].connects or one is None or two is None or one == two:
            made.append(target)
            continue
        axis = None if target.axis is None or len(one) != len(two) else target.axis % len(one)
        if axis not in (1, len(one) - 1) or any(a != axis and one[a] != two[a] for a in range(1, len(one))):
            raise ModelError(
                f"{target.student!r} is {list(one)} in the student, {target.teacher!r} {list(two)} in the teacher: a connector "
                "changes channels alone, and these must be known; choose other values"
            )
        name = _connector(graph, values[target.student], axis, one[axis], two[axis])
        why = f"{target.why}; a connector brings {one[axis]} channels to {two[axis]}"
        made.append(replace(target, student=name, why=why))
    return (student.edited(graph) if any(a != b for a, b in zip(made, targets, strict=True)) else student), made


def _connector(graph: ir.Model, value: ir.Value, axis: int, width: int, wanted: int) -> str:
    """Nodes after a value; the name of what they give. Weights are drawn from N(0, 1 / width), the bias is zero."""
    name = f"{CONNECTOR}{value.name}"
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind = np.float32 if value.dtype is None else value.dtype.numpy()
    matrix = (rng.standard_normal((wanted, width)) / np.sqrt(width)).astype(kind)
    bias = new_constant(graph, f"{name}.bias", np.zeros(wanted, kind))
    rank = 0 if value.shape is None else len(value.shape)
    if axis == 1 and rank > 2:
        weight = new_constant(graph, f"{name}.weight", matrix.reshape(wanted, width, *[1] * (rank - 2)))
        nodes = [ir.node("Conv", [value, weight, bias], name=name)]
    else:
        weight = new_constant(graph, f"{name}.weight", np.ascontiguousarray(matrix.T))
        product = ir.node("MatMul", [value, weight], name=f"{name}.product")
        nodes = [product, ir.node("Add", [product.outputs[0], bias], name=name)]
    for node in nodes:
        made = node.outputs[0]
        made.name, made.type = f"{node.name}.out", value.type
        sizes = None if value.shape is None else [wanted if a == axis else size for a, size in enumerate(value.shape)]
        made.shape = None if sizes is None else ir.Shape(sizes)
        graph.graph.append(node)
    graph.graph.outputs.append(nodes[-1].outputs[0])
    return nodes[-1].outputs[0].name or ""


def disconnected(model: Model) -> Model:
    """Without connectors; itself where it has none."""
    if not any(name.startswith(CONNECTOR) for name in model.initializers):
        return model
    graph = model.ir.clone()
    graph.graph.outputs[:] = [value for value in graph.graph.outputs if not (value.name or "").startswith(CONNECTOR)]
    common.RemoveUnusedNodesPass()(graph)
    for name in [name for name in graph.graph.initializers if name.startswith(CONNECTOR)]:
        graph.graph.initializers.pop(name)
    return model.edited(graph)


def connector_size(model: Model) -> int:
    """Numbers in connectors."""
    return sum(model.array(name).size for name in model.initializers if name.startswith(CONNECTOR))
