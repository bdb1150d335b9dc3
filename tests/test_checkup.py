"""check: each row of FAULTS finds its fault, and a sound file has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress import ModelError, check, quantize
from onnxcompress.passes.quantize.unfused import REASONS

DIGITS = Path(__file__).parents[1] / "sample_models" / "digits.onnx"
RNG = np.random.default_rng(0)


def quantized(
    *,
    opset: int = 17,
    zero: type = np.uint8,
    per_channel: bool = True,
    scale: float = 0.02,
    norm: bool = False,
    output: bool = True,
    largest: int = 63,
) -> onnx.ModelProto:
    """x -> Q -> DQ -> Conv -> (BatchNormalization) -> Q -> DQ -> y, with an int8 weight."""
    levels = RNG.integers(-largest, largest + 1, (8, 4, 3, 3)).astype(np.int8)
    constants = {
        "x_scale": np.float32(scale), "x_zero": zero(0 if zero is np.int8 else 128),
        "w": levels, "w_scale": np.full(8, 0.01, np.float32) if per_channel else np.float32(0.01),
        "w_zero": np.zeros(8, np.int8) if per_channel else np.int8(0),
        "y_scale": np.float32(0.1), "y_zero": zero(0 if zero is np.int8 else 128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], name="quantize_x"),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], name="weight", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], name="conv"),
    ]
    last = "c"
    if norm:
        constants |= {name: np.ones(8, np.float32) for name in ("gamma", "beta", "mean", "var")}
        nodes += [
            helper.make_node("QuantizeLinear", ["c", "y_scale", "y_zero"], ["cq"]),
            helper.make_node("DequantizeLinear", ["cq", "y_scale", "y_zero"], ["cd"]),
            helper.make_node("BatchNormalization", ["cd", "gamma", "beta", "mean", "var"], ["n"], name="norm"),
        ]
        last = "n"
    if output:
        nodes += [
            helper.make_node("QuantizeLinear", [last, "y_scale", "y_zero"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "y_scale", "y_zero"], ["y"]),
        ]
    else:
        nodes.append(helper.make_node("Erf", [last], ["y"]))
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def kinds(model: onnx.ModelProto) -> dict[str, bool]:
    return {finding.kind: finding.severe for finding in check(model).findings}


def test_a_sound_file() -> None:
    found = check(quantized())
    assert not found.findings
    assert not found.severe
    assert found.operators["QLinearConv"] == 1
    assert "no fault" in found.headline


def test_scales_a_channel_before_opset_13() -> None:
    found = kinds(quantized(opset=12))
    assert found["opset"]
    assert found["load"]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_no_scales(scale: float) -> None:
    assert kinds(quantized(scale=scale))["scale"]


def test_a_node_that_does_not_fuse() -> None:
    found = check(quantized(output=False))
    (finding,) = found.findings
    assert (finding.kind, finding.severe, finding.where) == ("unfused", False, ("conv",))
    assert "1 Conv" in finding.what


def between(
    op: str, *, first: type = np.uint8, second: type | None = np.uint8, result: type = np.uint8, channels: bool = False
) -> onnx.ModelProto:
    """x -> Q -> DQ and a stored operand (None: in float) -> op -> Q -> DQ -> y, each on levels of its type."""
    scale = np.full(4, 0.02, np.float32) if channels else np.float32(0.02)
    constants = {
        "x_scale": scale, "x_zero": np.zeros(4, first) if channels else first(0), "scale": np.float32(0.02),
        "w": np.ones((4, 4, 1, 1), second or np.float32), "w_zero": (second or np.uint8)(0), "y_zero": result(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], axis=1),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"], axis=1),
        *([helper.make_node("DequantizeLinear", ["w", "scale", "w_zero"], ["wd"])] if second else []),
        helper.make_node(op, ["xd", "wd" if second else "w"], ["r"], name="it"),
        helper.make_node("QuantizeLinear", ["r", "scale", "y_zero"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "scale", "y_zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4, 8, 8]) for name in ("x", "y")]
    held = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "between", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (quantized(output=False), "hand their result on in float"),
        (between("Mul", second=None), "take an input in float"),
        (between("Mul", channels=True), "read activations with a scale a channel"),
        (between("Add", second=np.int8), "have int8 and uint8 operands"),
        (between("ConvTranspose", second=np.int8), "have no integer kernel for their types"),
    ],
)
def test_why_a_node_does_not_fuse(model: onnx.ModelProto, why: str) -> None:
    (finding,) = [each for each in check(model).findings if each.kind == "unfused"]
    assert finding.what.endswith(f": 1 {why}")
    assert finding.advice == REASONS[why]


@pytest.mark.parametrize("op", ["Add", "Mul", "Conv"])
def test_what_is_whole_fuses(op: str) -> None:
    assert "unfused" not in kinds(between(op, second=np.int8 if op == "Conv" else np.uint8))


def test_what_loads_and_does_not_run() -> None:
    (finding,) = check(between("Conv", second=np.int8, channels=True)).findings
    assert (finding.kind, finding.grade) == ("run", "fault")
    assert "QLinearConv" in finding.what


def test_convolutions_that_find_their_grids_at_run_time() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("ConvInteger", ["q", "w", "z"], ["y"], name="conv"),
    ]
    held = [numpy_helper.from_array(np.ones((4, 4, 1, 1), np.uint8), "w")]
    kind = {"x": TensorProto.FLOAT, "y": TensorProto.INT32}
    x, y = (helper.make_tensor_value_info(name, kind[name], [1, 4, 8, 8]) for name in kind)
    graph = helper.make_graph(nodes, "dynamic", [x], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (finding,) = check(model).findings
    assert (finding.kind, finding.grade, finding.where) == ("dynamic", "slow", ("conv",))


def test_a_norm_between_quantized_layers() -> None:
    assert kinds(quantized(norm=True)) == {"norm": False}


def test_signed_activations() -> None:
    assert "signed" in kinds(quantized(zero=np.int8))


def test_products_that_saturate_where_they_meet_large_inputs() -> None:
    model = quantized(largest=127, zero=np.uint8, scale=0.01)
    loud, quiet = (np.full((2, 4, 8, 8), value, np.float32) for value in (1.2, -1.27))
    (finding,) = check(model, data={"x": loud}).findings
    assert (finding.kind, finding.severe, finding.where) == ("portable", True, ("conv",))
    found = check(model, data={"x": quiet})
    (finding,) = found.findings
    assert finding.grade == "small"
    assert found.headline.endswith(": 1 thing that changes answers a little")
    assert "0 do on this data" in finding.what


def spelled_in_kernels(*, zero: type = np.uint8, scale: float = 0.02) -> onnx.ModelProto:
    """x -> Q -> QLinearConv -> DQ -> y."""
    constants = {
        "s": np.float32(scale), "z": zero(0 if zero is np.int8 else 128),
        "w": RNG.integers(-63, 64, (8, 4, 3, 3)).astype(np.int8), "w_scale": np.full(8, 0.01, np.float32),
        "w_zero": np.zeros(8, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="quantize_x"),
        helper.make_node("QLinearConv", ["xq", "s", "z", "w", "w_scale", "w_zero", "s", "z"], ["yq"], name="conv"),
        helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 4, 8, 8]), ("y", None))
    ]
    held = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "kernels", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_faults_of_files_spelled_in_kernels() -> None:
    assert not check(spelled_in_kernels()).findings
    (finding,) = [each for each in check(spelled_in_kernels(zero=np.int8)).findings if each.kind == "signed"]
    assert finding.where == ("quantize_x", "conv")
    assert check(spelled_in_kernels(zero=np.int8)).headline.endswith(": 1 thing that costs time")
    assert kinds(spelled_in_kernels(scale=float("nan")))["scale"]


def test_an_operator_that_onnxruntime_does_not_know() -> None:
    model = quantized()
    model.graph.node[3].domain = "nowhere"
    model.opset_import.add(domain="nowhere", version=1)
    assert kinds(model)["load"]


def test_a_float_model_and_a_damaged_one() -> None:
    assert "nothing in it is quantized" in check(DIGITS).headline


def test_weights_that_are_integers_in_the_file_only(tmp_path: Path) -> None:
    quantize(DIGITS, mode="weights").save(tmp_path / "stored.onnx")
    found = check(tmp_path / "stored.onnx")
    assert found.stored and "stored as integers; it computes in floats" in found.headline


def test_a_damaged_file() -> None:
    with pytest.raises(ModelError):
        check(b"no model")
