"""Rows of every form of layer: times its weights they are onnxruntime's output, and their fit is scipy's least squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import pytest
from scipy.linalg import lstsq

from onnxcompress.data import open_data
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import Model, load
from onnxcompress.model.edit import set_constant
from onnxcompress.model.save import to_bytes
from onnxcompress.operators.layer import layers
from onnxcompress.passes import Refit
from onnxcompress.passes.refit.rows import rows
from onnxcompress.passes.refit.solver import Sums, regressed
from onnxcompress.runtime.session import open_session


@dataclass(frozen=True)
class Form:
    """One layer as ONNX text; shapes of its input (a batch of it) and constants; the input's channel axis."""

    node: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    bias: tuple[int, ...] = ()
    axis: int = 1


FORMS = {
    "conv 1-D": Form("y = Conv<pads=[1,0], strides=[2]>(x, w, b)", (6, 4, 21), (5, 4, 3), (5,)),
    "conv 2-D": Form("y = Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>(x, w, b)", (6, 4, 9, 8), (5, 4, 3, 3), (5,)),
    "conv 3-D": Form("y = Conv<pads=[1,1,1,1,1,1]>(x, w)", (6, 2, 5, 4, 4), (3, 2, 2, 3, 2)),
    "grouped": Form("y = Conv<group=2, pads=[1,1,1,1]>(x, w, b)", (6, 4, 6, 6), (6, 2, 3, 3), (6,)),
    "depthwise": Form("y = Conv<group=4, pads=[1,1,1,1]>(x, w, b)", (6, 4, 6, 6), (8, 1, 3, 3), (8,)),
    "same, upper": Form('y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', (6, 4, 8, 9), (5, 4, 3, 2)),
    "same, lower": Form('y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)', (6, 4, 8, 9), (5, 4, 3, 2)),
    "valid": Form('y = Conv<auto_pad="VALID">(x, w)', (6, 4, 8, 9), (5, 4, 3, 2)),
    "transposed 1-D": Form("y = ConvTranspose<strides=[2], pads=[1,1]>(x, w, b)", (6, 4, 11), (4, 5, 3), (5,)),
    "transposed 2-D": Form(
        "y = ConvTranspose<strides=[2,3], pads=[1,0,0,1], dilations=[2,1], output_padding=[1,2]>(x, w, b)",
        (6, 4, 5, 6), (4, 5, 3, 2), (5,),
    ),
    "transposed, grouped": Form("y = ConvTranspose<group=2, strides=[2,2]>(x, w, b)", (6, 4, 5, 6), (4, 3, 2, 2), (6,)),
    "transposed, same upper": Form('y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', (6, 4, 5, 6), (4, 5, 3, 3)),
    "transposed, same lower": Form('y = ConvTranspose<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)', (6, 4, 5, 6), (4, 5, 3, 3)),
    "gemm": Form("y = Gemm<transB=1>(x, w, b)", (60, 8), (5, 8), (5,)),
    "matmul": Form("y = MatMul(x, w)", (6, 9, 8), (8, 5), axis=2),
    "matmul and add": Form("m = MatMul(x, w) y = Add(m, b)", (6, 9, 8), (8, 5), (5,), axis=2),
    "weight on the left": Form("y = MatMul(w, x)", (6, 8, 9), (5, 8), axis=1),
}  # fmt: skip


def model_of(form: Form) -> Model:
    dims = ",".join(["N", *map(str, form.x[1:])])
    free = ",".join(f"d{axis}" for axis in range(len(form.x)))
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{dims}] x) => (float[{free}] y) {{ {form.node} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w", form.weight), ("b", form.bias)):
        if shape:
            values = rng.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return load(proto)


def gathered(form: Form, x: np.ndarray, y: np.ndarray, most: int = 10**6) -> tuple[np.ndarray, np.ndarray]:
    model = model_of(form)
    layer = layers(model)[0]
    node = next(node for node in model.ir.graph if node.name == layer.name)
    pieces = list(rows(node, layer, x, y, most, np.random.default_rng(0)))
    taken, wanted = (np.concatenate(part, axis=1) for part in zip(*pieces, strict=True))
    return taken, wanted


def answer(form: Form, x: np.ndarray) -> np.ndarray:
    return open_session(to_bytes(model_of(form).ir)).run({"x": x})["y"]


def fed(form: Form, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(form.x).astype(np.float32)


def grouped_matrix(form: Form, groups: int) -> tuple[np.ndarray, np.ndarray]:
    model = model_of(form)
    layer = layers(model)[0]
    matrix = layer.matrix(model.array(layer.weight)).astype(np.float64)
    bias = model.array("b").astype(np.float64) if form.bias else np.zeros(len(matrix))
    return matrix.reshape(groups, len(matrix) // groups, -1), bias.reshape(groups, -1)


@pytest.mark.parametrize("name", FORMS)
def test_rows_times_weights_are_the_output(name: str) -> None:
    form = FORMS[name]
    x = fed(form)
    taken, wanted = gathered(form, x, answer(form, x))
    matrix, bias = grouped_matrix(form, len(taken))
    np.testing.assert_allclose(taken @ matrix.transpose(0, 2, 1) + bias[:, None], wanted, atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_with_half_of_the_inputs_the_fit_is_the_least_squares_one(name: str) -> None:
    form = FORMS[name]
    whole = fed(form)
    half = whole.copy()
    np.moveaxis(half, form.axis, 0)[::2] = 0
    taken, wanted = gathered(form, half, answer(form, whole))
    sums = Sums()
    sums.add(taken[:, :7], wanted[:, :7])
    sums.add(taken[:, 7:], wanted[:, 7:])
    zero, none = np.zeros((len(taken), wanted.shape[2], taken.shape[2])), np.zeros((len(taken), wanted.shape[2]))
    found = regressed(sums, zero, none, 1e-11, fixed_bias=False)
    assert found is not None
    for group, (x, y) in enumerate(zip(taken, wanted, strict=True)):
        best = lstsq(np.hstack([x, np.ones((len(x), 1))]), y)[0]
        if x.any():  # of a depthwise layer's inputs that are zero nothing but the mean is fitted
            np.testing.assert_allclose(found[0][group], best[:-1].T, atol=1e-5)
        np.testing.assert_allclose(found[1][group], best[-1], atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_spoilt_weights_are_found_again(name: str) -> None:
    form = FORMS[name]
    original = model_of(form)
    graph = original.ir.clone()
    rng = np.random.default_rng(2)
    for constant in ("w", "b") if form.bias else ("w",):
        values = original.array(constant)
        set_constant(graph, constant, values + rng.standard_normal(values.shape).astype(np.float32))
    spoilt = original.edited(graph)
    batches = np.random.default_rng(3).standard_normal((240, *form.x[1:])).astype(np.float32)
    data = open_data({"x": batches}, open_session(to_bytes(original.ir)).inputs)
    plan = Refit().plan(spoilt, {Paired.NEED: Paired(original, spoilt, data)})
    assert len(plan.decisions) == 1
    again = open_session(to_bytes(Refit().apply(spoilt, plan).ir)).run({"x": fed(form)})["y"]
    wanted = answer(form, fed(form))
    assert np.abs(again - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_no_more_positions_than_asked_for_are_drawn() -> None:
    form = FORMS["conv 2-D"]
    x = fed(form)
    y = answer(form, x)
    some, _ = gathered(form, x, y, most=11)
    assert some.shape[1] == 11
    every, _ = gathered(form, x, y)
    assert all((every[0] == row).all(1).any() for row in some[0])
