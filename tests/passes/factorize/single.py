"""Models of one layer in all the settings that operators have, for the laws about forms."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Conv and ConvTranspose: 1-D to 3-D, strides, pads, dilations, groups, auto_pad, output_padding, bias or none, Relu or none."""
    rank = draw(st.sampled_from([2, 2, 2, 1, 3]))
    transposed, groups = draw(st.booleans()), draw(st.sampled_from([1, 1, 2, 3]))
    outs, ins = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    kernel = [draw(st.sampled_from([1, 2, 3, 4] if rank == 3 else [1, 2, 3, 3, 4, 5, 7])) for _ in range(rank)]
    strides, dilations = [draw(st.integers(1, 2)) for _ in range(rank)], [draw(st.integers(1, 2)) for _ in range(rank)]
    attributes = {"kernel_shape": kernel, "strides": strides, "group": groups}
    padding = draw(st.sampled_from(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding in ("none", "pads"):
        attributes["dilations"] = dilations
    if padding == "pads":
        attributes["pads"] = [draw(st.integers(0, size - 1)) for size in [*kernel, *kernel]]
        if transposed:
            attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
    elif padding != "none":
        attributes["auto_pad"] = padding
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    shape = [groups * ins, outs, *kernel] if transposed else [groups * outs, ins, *kernel]
    constants = {"w": rng.normal(size=shape)}
    if draw(st.booleans()):
        constants["b"] = rng.normal(size=groups * outs)
    reach = [step * (size - 1) + 1 for step, size in zip(attributes.get("dilations", [1] * rank), kernel, strict=True)]
    x = rng.normal(size=[2, groups * ins, *(draw(st.integers(max(each, 5), max(each, 5) + 3)) for each in reach)])
    op = "ConvTranspose" if transposed else "Conv"
    return made(op, ["x", *constants], constants, attributes, x, relu=draw(st.booleans()))


@st.composite
def products(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Gemm with either layout and bias, MatMul of rows or sequences, with the weight on the right or on the left."""
    op = draw(st.sampled_from(["Gemm", "MatMul", "left"]))
    outs, ins = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    turned = draw(st.booleans())
    if op == "left":
        return made("MatMul", ["w", "x"], {"w": rng.normal(size=(outs, ins))}, {}, rng.normal(size=(2, ins, 3)))
    if op == "MatMul":
        return made("MatMul", ["x", "w"], {"w": rng.normal(size=(ins, outs))}, {}, rng.normal(size=(2, 3, ins)))
    constants = {"w": rng.normal(size=(outs, ins) if turned else (ins, outs)), "b": rng.normal(size=outs)}
    return made("Gemm", ["x", "w", "b"], constants, {"transB": int(turned)}, rng.normal(size=(4, ins)))


@st.composite
def lookups(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Embeddings, and LSTM, GRU and RNN one way or both, from either side, with biases or none."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    op, ins, hidden = (
        draw(st.sampled_from(["Gather", "LSTM", "GRU", "RNN"])),
        draw(st.integers(2, 7)),
        draw(st.integers(1, 4)),
    )
    if op == "Gather":
        ids = rng.integers(-ins, ins, size=(2, 5))
        return made("Gather", ["w", "x"], {"w": rng.normal(size=(ins, hidden + 1))}, {}, ids)
    ways, gates = draw(st.integers(1, 2)), {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    constants = {
        "w": rng.normal(size=(ways, gates * hidden, ins)),
        "r": rng.normal(size=(ways, gates * hidden, hidden)),
    }
    if draw(st.booleans()):
        constants["b"] = rng.normal(size=(ways, 2 * gates * hidden))
    direction = "bidirectional" if ways == 2 else draw(st.sampled_from(["forward", "reverse"]))
    x = rng.normal(size=(4, 2, ins))
    return made(op, ["x", *constants], constants, {"hidden_size": hidden, "direction": direction}, x)


def made(op, inputs, constants, attributes, x, *, relu=False):
    """A model of one layer, and a feed."""
    nodes = [helper.make_node(op, inputs, ["h" if relu else "y"], name="layer", **attributes)]
    nodes += [helper.make_node("Relu", ["h"], ["y"], name="act")] if relu else []
    x = x.astype(np.float32) if x.dtype.kind == "f" else x
    graph = helper.make_graph(
        nodes,
        "single",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, {"x": x}
