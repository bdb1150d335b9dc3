"""Students of integers: the floats that train compute what the file does, roundings let gradients through, grids stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.errors import ModelError
from onnxcompress.model import Model, load
from onnxcompress.model.edit import set_constant
from onnxcompress.runtime.session import open_session
from onnxcompress.training.graph import step_graph
from onnxcompress.training.integers import in_floats
from onnxcompress.training.losses import mse
from onnxcompress.training.parameters import Parameters

FOLDER = Path(__file__).parents[2] / "sample_models"
MODEL, DATA = str(FOLDER / "digits.onnx"), str(FOLDER / "digits.npz")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("int8") / "int8.onnx"
    onnxcompress.quantize(MODEL, data=DATA, measure=False, rounding="nearest", limit=64).save(place)
    return place


def test_floats_compute_what_integers_do(quantized: Path) -> None:
    """Within a step of the last grids: the file's kernels round half up in other places."""
    student = load(quantized)
    floats, forms = in_floats(student)
    kinds = {node.op_type for node in floats.ir.graph}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"} and len(forms) >= 18
    x = np.load(DATA)["image"][:32].astype(np.float32)
    exact, found = (open_session(each).run({"image": x})["logits"] for each in (student.serialized, floats.serialized))
    assert np.abs(exact - found).max() < 0.02 * np.abs(exact).max()
    assert [value.name for value in floats.ir.graph.outputs] == [value.name for value in student.ir.graph.outputs]
    for form in forms.values():
        assert np.array_equal(form.numbers(form.start()), form.levels)


def small(axis: int = 0, scale: float = 0.5, **extra: np.ndarray) -> Model:
    """y = DQ(Q(x)) · DQ(w), three levels of uint8 x at -0.5, 0, 0.5 ..., int8 w."""
    tensors = {"s": np.array(scale, np.float32), "z": np.array(3, np.uint8), "w": np.array([[2, -4], [100, -127]], np.int8),
               "ws": np.array([0.1, 0.2], np.float32), "wz": np.zeros(2, np.int8), **extra}  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["f"], axis=axis), helper.make_node("MatMul", ["d", "f"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", 1, ["N", 2])], [helper.make_tensor_value_info("y", 1, ["N", 2])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_levels_move_through_several_nodes() -> None:
    """As attention moves them: a Reshape, a Transpose and a Concat with levels of the file between one Q and its DQ."""
    tensors = {
        "s": np.array(0.5, np.float32),
        "z": np.array(3, np.uint8),
        "to": np.array([2, 1, 3]),
        "more": np.full((1, 3, 1), 7, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("Reshape", ["q", "to"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[1, 2, 0]), helper.make_node("Split", ["t"], ["one", "two"], axis=2),
        helper.make_node("Concat", ["two", "one", "more"], ["c"], axis=2),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "moves", [helper.make_tensor_value_info("x", 1, [2, 3])], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = {"x": np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)}
    before, after = (open_session(each.serialized).run(x)["y"] for each in (model, in_floats(model)[0]))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_go_straight_through_roundings_and_stop_at_the_ends(axis: int) -> None:
    held = Parameters.of(small(axis))
    (name,) = held.forms
    scales = np.array([0.1, 0.2], np.float32).reshape((2, 1) if axis == 0 else (1, 2))
    weight = np.array([[2, -4], [100, -127]]) * scales
    start = held.start()
    np.testing.assert_allclose(held.arrays(start)[name], weight, rtol=1e-6)
    x = np.array([[0.7, -9.0], [200.0, 0.2]], np.float32)  # levels 4 (1.4 -> 1) and 0; 255 and 3
    session = step_graph(
        held.model, {"x": (2, 2)}, [name], lambda op, v: {"loss": mse(op, v["y"], op.input("t", (2, 2)))}
    ).open()
    found = session.run({"x": x, name: weight.astype(np.float32), "t": np.zeros((2, 2), np.float32)})
    inside = np.array([[0.5, -1.5], [126.0, 0.0]])
    y = inside @ weight
    assert found["loss"] == pytest.approx((y**2).mean(), rel=1e-5)
    np.testing.assert_allclose(found[f"gradient/{name}"], inside.T @ (2 * y / y.size), rtol=1e-5)


def test_a_latent_number_stays_within_the_grid() -> None:
    held = Parameters.of(small())
    buffer = held.start()
    buffer += np.float32(0.04)  # less than half a step: no level moves
    (form,) = held.forms.values()
    parts = {"": held.layout.views(buffer)[next(iter(held.forms))]}
    assert np.array_equal(form.numbers(parts), form.levels)  # type: ignore[attr-defined]
    parts[""][:] = [[100.0, -100.0], [0.31, 0.5]]
    held.settle(buffer)
    np.testing.assert_allclose(parts[""], [[12.7, -12.7], [0.31, 0.5]], rtol=1e-5)
    graph = small().ir.clone()
    held.write(graph, buffer)
    stored = graph.graph.initializers["w"].const_value
    assert stored is not None and stored.numpy().dtype == np.int8 and stored.numpy().tolist() == [[127, -127], [2, 2]]


def test_a_grid_that_is_computed_is_refused() -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1)
    graph = helper.make_graph(
        [node, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1)], "channels",
        [helper.make_tensor_value_info("x", 1, ["N", 2])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.ones(2, np.float32), "s"), numpy_helper.from_array(np.zeros(2, np.uint8), "z")],
    )  # fmt: skip
    other = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(ModelError, match="it has a scale for each channel of an activation"):
        in_floats(other)


def test_levels_that_were_shaken_come_back_and_stay_safe_on_every_cpu(quantized: Path, tmp_path: Path) -> None:
    student = load(quantized)
    graph, rng = student.ir.clone(), np.random.default_rng(0)
    for name in student.initializers:
        levels = student.array(name)
        if levels.dtype == np.int8 and levels.ndim > 1:
            moved = levels + rng.integers(-6, 7, levels.shape)
            set_constant(graph, name, np.clip(moved, -64, 64))  # 64 + 64 at 255 is within 16 bits
    shaken = student.edited(graph)
    before = onnxcompress.compare(MODEL, shaken, data=DATA)
    result = onnxcompress.distill(shaken, teacher=MODEL, data=DATA, epochs=6, rate=2e-3)
    after, place = result.comparison, tmp_path / "better.onnx"
    result.save(place)
    assert any("integers: they stay integers" in note for note in result.report.notes)
    assert after is not None and after.sqnr_db > before.sqnr_db + 6
    assert place.stat().st_size < 1.05 * quantized.stat().st_size
    assert not [fault for fault in onnxcompress.check(place, data=DATA).findings if fault.kind == "portable"]
