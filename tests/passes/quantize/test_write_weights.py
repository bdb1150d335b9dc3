"""Integer weights with dynamic or float activations: the kernel that runs, the numbers it gives, the bytes it takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import checker

from onnxcompress.errors import ModelError
from onnxcompress.model import Model
from onnxcompress.model.edit import set_constant, walk
from onnxcompress.model.save import to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.operators.layer import layers
from onnxcompress.passes.quantize.blocks import Blocks, blocks_of
from onnxcompress.passes.quantize.grid import grid_of
from onnxcompress.passes.quantize.pen import Rounded
from onnxcompress.passes.quantize.write_weights import write_weights

from .calibrated import Arrays, db, executed, feeds_of, model_of, rounded_weights, run

rng = np.random.default_rng(3)
KERNELS = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM"}
"""What onnxruntime makes of the dynamic form."""


def normal(*shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / 3).astype(np.float32)


MATMUL = ("agraph (float[2,3,64] x) => (float[2,3,32] y) { h = MatMul(x, w)  y = Add(h, b) }", (64, 32))
GEMM = ("agraph (float[3,64] x) => (float[3,32] y) { y = Gemm<transB=1>(x, w, b) }", (32, 64))
QKV = ("agraph (float[2,3,64] x) => (float[2,3,32] y) { h = MatMul(x, w)  g = MatMul(x, b2)  y = Mul(h, g) }", (64, 32))
IF = (
    "agraph (bool c, float[3,64] x) => (float[3,32] y)"
    " { y = If (c) <then_branch = t () => (float[3,32] p) { p = MatMul(x, w) },"
    " else_branch = e () => (float[3,32] q) { q = Gemm(x, w, b) }> }",
    (64, 32),
)
LSTM = "agraph (float[5,2,16] x) => (float[5,D,2,12] y) { y = LSTM<hidden_size=12, direction=%s>(x, w, r, b) }"
TABLE = "agraph (int64[2,5] i) => (float[2,5,64] y) { y = Gather(t, i) }"


def checked(model: Model) -> Model:
    assert not violations(model)
    checker.check_model(to_bytes(model.ir))
    return model


def stored(model: Model) -> int:
    """Bytes of all constants."""
    return sum(model.array(name).nbytes for name in model.initializers)


def everything(model: Model, form: str, weights: dict | None = None) -> Model:
    names = {layer.name for layer in layers(model)}
    return checked(write_weights(model, dict.fromkeys(names, form), weights or rounded_weights(model, names)))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [MATMUL, GEMM, QKV, IF])
@pytest.mark.parametrize("form", ["dynamic", "weights"])
def test_products(text: tuple[str, tuple[int, ...]], form: str) -> None:
    """Close to the float model; no float product is left in the dynamic form; the weight takes a quarter."""
    constants: Arrays = {"w": normal(*text[1]), "b": normal(32), "b2": normal(64, 32)}
    used = {name: values for name, values in constants.items() if f"{name})" in text[0] or f"{name}," in text[0]}
    model = model_of(text[0], used)
    written = everything(model, form)
    for feed in feeds_of(model):
        assert db(run(model, feed)["y"], run(written, feed)["y"]) > 30
        assert db(run(written, feed, optimise=False)["y"], run(written, feed)["y"]) > 30
    assert stored(written) < 0.4 * stored(model)
    if form == "dynamic":
        ops = {node.op_type for node in walk(written.ir)}
        assert not ops & {"MatMul", "Gemm"}
        assert text is IF or executed(written).keys() & KERNELS


def test_readers_of_one_value_round_it_once() -> None:
    written = everything(model_of(QKV[0], {"w": normal(64, 32), "b2": normal(64, 32)}), "dynamic")
    assert sum(node.op_type == "DynamicQuantizeLinear" for node in written.ir.graph) == 1


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("form", ["dynamic", "weights"])
def test_lstm(directions: int, form: str) -> None:
    constants = {"w": normal(directions, 48, 16), "r": normal(directions, 48, 12), "b": normal(directions, 96)}
    text = LSTM % ('"forward"' if directions == 1 else '"bidirectional"')
    model = model_of(text, constants)
    names = {layer.name for layer in layers(model)}
    weights = {}
    for name in ("w", "r"):
        grid = grid_of(constants[name].min((0, 2)), constants[name].max((0, 2)), "int8", symmetric=True, axis=1)
        weights[name] = Rounded(grid.levels(constants[name]), grid)
    written = checked(write_weights(model, dict.fromkeys(names, form), weights))  # type: ignore[arg-type]
    assert executed(written)["DynamicQuantizeLSTM"] == (form == "dynamic")
    for feed in feeds_of(model):
        assert db(run(model, feed)["y"], run(written, feed)["y"]) > 28


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("y = Conv(x, w)", (6, 8, 3, 3)),
        ("y = ConvTranspose<group=2>(x, w)", (8, 6, 3, 3)),
    ],
)
def test_what_has_no_kernel_is_decoded_when_loaded(text: str, shape: tuple[int, ...]) -> None:
    """Levels in the file, a float weight in the session: nothing is left to do at run time, and the numbers are the grid's."""
    model = model_of(f"agraph (float[2,8,6,6] x) => (float[n,c,h,w] y) {{ {text} }}", {"w": normal(*shape)})
    weights = rounded_weights(model, {layer.name for layer in layers(model)})
    written = everything(model, "weights", weights)
    assert not executed(written).keys() & {"Cast", "Mul", "DequantizeLinear"}
    decoded = model.ir.clone()
    set_constant(decoded, "w", weights["w"].grid.values(weights["w"].levels))
    feed = feeds_of(model)[0]
    assert np.allclose(run(written, feed)["y"], run(replace(model, ir=decoded, _memory={}), feed)["y"], atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_embedding(axis: int | None, symmetric: bool) -> None:
    """Scales of rows, of columns, or one; picked entries are exactly those of the grid."""
    table = normal(40, 64)
    other = None if axis is None else 1 - axis
    grid = grid_of(table.min(other), table.max(other), "int8", symmetric=symmetric, axis=axis)
    model = model_of(TABLE, {"t": table})
    written = everything(model, "weights", {"t": Rounded(grid.levels(table), grid)})
    indices = rng.integers(0, 40, (2, 5))
    assert np.allclose(run(written, {"i": indices})["y"], grid.rounded(table)[indices], rtol=1e-6, atol=1e-7)
    assert len(written.serialized) < len(model.serialized) / 2


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks(bits: int) -> None:
    """Matrices and embeddings, four bits in an eighth of the bytes and a scale a block."""
    table, weight, bias = normal(40, 64), normal(64, 32), normal(32)
    tables, matrix = blocks_of(table, bits, 16), blocks_of(weight.T, bits, 16)
    model = model_of(TABLE, {"t": table})
    written = everything(model, "weights", {"t": tables})
    indices = rng.integers(0, 40, (2, 5))
    assert np.allclose(run(written, {"i": indices})["y"], tables.values()[indices], rtol=1e-6, atol=1e-7)
    model = model_of(MATMUL[0], {"w": weight, "b": bias})
    written = everything(model, "weights", {"w": matrix})
    feed = feeds_of(model)[0]
    wanted = feed["x"] @ matrix.values().T + bias
    assert db(wanted, run(written, feed)["y"]) > 30  # the kernel rounds activations to int8
    assert executed(written) == {"MatMulNBits": 1}
    assert len(written.serialized) < len(model.serialized) * (0.45 if bits == 4 else 0.65)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_round_to_the_nearest(bits: int) -> None:
    """Within half a step but for the entry opposite the furthest, which has one level less; a block of zeros stays zero."""
    matrix = np.vstack([normal(5, 64), np.zeros((1, 64), np.float32)])
    stored = blocks_of(matrix, bits, 16)
    step = np.repeat(np.abs(stored.scale), 16, axis=1)
    assert (np.abs(stored.values() - matrix) <= step * 1.0001).all()
    assert (np.abs(stored.values() - matrix) <= step * 0.5001).mean() > 0.95
    assert not stored.values()[-1].any()


def test_what_cannot_be_written_is_said() -> None:
    gru = model_of(
        "agraph (float[5,2,16] x) => (float[5,1,2,12] y) { y = GRU<hidden_size=12>(x, w, r) }",
        {"w": normal(1, 36, 16), "r": normal(1, 36, 12)},
    )
    with pytest.raises(ModelError, match="GRU has no dynamic form"):
        everything(gru, "dynamic")
    with pytest.raises(ModelError, match="no levels for its weight"):
        write_weights(gru, {layers(gru)[0].name: "weights"}, {})
    conv = model_of("agraph (float[2,8,6,6] x) => (float[n,c,h,w] y) { y = Conv(x, w) }", {"w": normal(6, 8, 3, 3)})
    with pytest.raises(ModelError, match="blocks are for"):
        everything(conv, "weights", {"w": Blocks(np.zeros((6, 72), np.uint8), np.ones((6, 1), np.float32), 8, 72)})
