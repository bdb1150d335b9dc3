"""Ways to damage a model: each changes one place of a ModelProto, as a faulty exporter or a hostile file would."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx

NUMBERS = (-(1 << 40), -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 1 << 20, 1 << 40)
"""Sizes, axes, repeats and indices that are wrong, or right by accident."""

OPERATORS = (
    *("Relu", "Sigmoid", "Softmax", "Transpose", "Concat", "Split", "Slice", "Gather", "Reshape", "Flatten", "Squeeze"),
    *("Unsqueeze", "Expand", "Tile", "Pad", "Resize", "Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "Where"),
    *("ReduceMean", "ReduceMax", "GlobalAveragePool", "LSTM", "GRU", "DepthToSpace", "LayerNormalization", "Shape"),
    *(
        "PRelu",
        "BatchNormalization",
        "GroupNormalization",
        "If",
        "Loop",
        "Scan",
        "Constant",
        "Einsum",
        "NoSuchOperator",
    ),
)

Mutation = Callable[[onnx.ModelProto, random.Random], None]


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    return rng.choice(model.graph.node)


def drop_node(model: onnx.ModelProto, rng: random.Random) -> None:
    """A node is missing."""
    del model.graph.node[rng.randrange(len(model.graph.node))]


def repeat_node(model: onnx.ModelProto, rng: random.Random) -> None:
    """A node is there twice, and both write the same values."""
    model.graph.node.insert(rng.randrange(len(model.graph.node) + 1), _node(model, rng))


def move_node(model: onnx.ModelProto, rng: random.Random) -> None:
    """A node stands elsewhere: unsorted, which the door repairs."""
    node = onnx.NodeProto()
    place = rng.randrange(len(model.graph.node))
    node.CopyFrom(model.graph.node[place])
    del model.graph.node[place]
    model.graph.node.insert(rng.randrange(len(model.graph.node) + 1), node)


def _names(model: onnx.ModelProto) -> list[str]:
    written = [name for node in model.graph.node for name in node.output]
    return [*written, *(t.name for t in model.graph.initializer), *(v.name for v in model.graph.input), "", "nowhere"]


def rename_input(model: onnx.ModelProto, rng: random.Random) -> None:
    """A node reads another value, nothing, or one that does not exist (its own output too: a cycle)."""
    node = _node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(_names(model))


def rename_output(model: onnx.ModelProto, rng: random.Random) -> None:
    """A node writes another value's name."""
    node = _node(model, rng)
    if node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(_names(model))


def count_inputs(model: onnx.ModelProto, rng: random.Random) -> None:
    """An input more or less."""
    node = _node(model, rng)
    if node.input and rng.random() < 0.5:
        node.input.pop()
    else:
        node.input.append(rng.choice(_names(model)))


def change_operator(model: onnx.ModelProto, rng: random.Random) -> None:
    """Another operator with the same inputs and attributes."""
    _node(model, rng).op_type = rng.choice(OPERATORS)


def change_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    """Random numbers in an attribute, or another length of a list."""
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    if not attributes:
        return
    attribute = rng.choice(attributes)
    if attribute.ints:
        change = rng.randrange(3)
        if change == 0:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
        elif change == 1:
            attribute.ints.append(rng.choice(NUMBERS))
        else:
            attribute.ints.pop()
    elif attribute.s:
        attribute.s = rng.choice(
            [b"", b"\xff\xfe", b"bij,bjk->bik", b"CRD", b"SAME_UPPER", b"reflect", b"bidirectional"]
        )
    else:
        attribute.i = rng.choice(NUMBERS)
        attribute.f = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e38])


def drop_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    """An attribute is missing."""
    node = _node(model, rng)
    if node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]


def retype_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    """An attribute of another type, perhaps one that does not exist."""
    node = _node(model, rng)
    if node.attribute:
        node.attribute[rng.randrange(len(node.attribute))].type = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13])


def change_dims(model: onnx.ModelProto, rng: random.Random) -> None:
    """An initializer's dims no longer agree with its data."""
    if model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        if tensor.dims and rng.random() < 0.8:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
        else:
            tensor.dims.append(rng.choice(NUMBERS))


def reorder_dims(model: onnx.ModelProto, rng: random.Random) -> None:
    """An initializer of the same size and another shape: legal by itself, and often not where it is read."""
    if model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        dims = list(tensor.dims)
        rng.shuffle(dims)
        if len(dims) > 1 and rng.random() < 0.3:
            dims[:2] = [dims[0] * dims[1]]
        del tensor.dims[:]
        tensor.dims.extend(dims)


def change_integers(model: onnx.ModelProto, rng: random.Random) -> None:
    """Another number in a shape, an axis, a split or an index."""
    found = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT64]
    if found:
        tensor = rng.choice(found)
        values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 8 * 8], np.int64).copy()
        if values.size:
            values[rng.randrange(values.size)] = rng.choice(NUMBERS)
            tensor.raw_data = values.tobytes()


def drop_initializer(model: onnx.ModelProto, rng: random.Random) -> None:
    """A weight is missing."""
    if model.graph.initializer:
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


def retype_initializer(model: onnx.ModelProto, rng: random.Random) -> None:
    """A weight of another element type, perhaps one that does not exist."""
    if model.graph.initializer:
        rng.choice(model.graph.initializer).data_type = rng.choice([0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 17, 22, 99])


def truncate_initializer(model: onnx.ModelProto, rng: random.Random) -> None:
    """A weight whose data end early."""
    if model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]


def move_weight_outside(model: onnx.ModelProto, rng: random.Random) -> None:
    """A weight said to lie in a file."""
    if model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = rng.choice(
            [("location", "/etc/passwd"), ("location", ""), ("offset", "-1"), ("x", "")]
        )


def change_declared(model: onnx.ModelProto, rng: random.Random) -> None:
    """An input or output of another shape or type."""
    value = rng.choice([*model.graph.input, *model.graph.output])
    kind = value.type.tensor_type
    if kind.shape.dim and rng.random() < 0.7:
        kind.shape.dim[rng.randrange(len(kind.shape.dim))].dim_value = rng.choice(NUMBERS)
    elif rng.random() < 0.5:
        kind.ClearField("shape")
    else:
        kind.elem_type = rng.choice([0, 1, 6, 7, 8, 9, 10, 99])


def change_opset(model: onnx.ModelProto, rng: random.Random) -> None:
    """Another opset, one twice, one that is unknown, or none."""
    if rng.random() < 0.8 and model.opset_import:
        model.opset_import[0].version = rng.choice([-1, 0, 1, 7, 9, 11, 12, 13, 15, 17, 18, 20, 23, 99, 1 << 40])
    elif rng.random() < 0.5:
        del model.opset_import[:]
    else:
        model.opset_import.add().domain = rng.choice(["", "ai.onnx", "my.domain"])


def change_ir_version(model: onnx.ModelProto, rng: random.Random) -> None:
    """Another version of the format."""
    model.ir_version = rng.choice([0, 1, 3, 4, 8, 10, 13, 99])


MUTATIONS: tuple[Mutation, ...] = (
    *(drop_node, repeat_node, move_node, rename_input, rename_output, count_inputs, change_operator, change_attribute),
    *(drop_attribute, retype_attribute, change_dims, reorder_dims, change_integers, drop_initializer),
    *(retype_initializer, truncate_initializer, move_weight_outside, change_declared, change_opset, change_ir_version),
)


def mutated(model: onnx.ModelProto, rng: random.Random, times: int) -> onnx.ModelProto:
    """`times` mutations one after another; `model` itself is changed."""
    for _ in range(times):
        if model.graph.node:
            rng.choice(MUTATIONS)(model, rng)
    return model


def shuffled(content: bytes, rng: random.Random, times: int) -> bytes:
    """The same for bytes: flipped, removed, repeated, cut off."""
    data = bytearray(content)
    for _ in range(times):
        place, kind = rng.randrange(max(len(data), 1)), rng.random()
        if kind < 0.65 and data:
            data[place] = rng.randrange(256)
        elif kind < 0.8:
            del data[place : place + rng.randint(1, 20)]
        elif kind < 0.95:
            data[place:place] = data[place : place + rng.randint(1, 40)]
        else:
            del data[place:]
    return bytes(data)
