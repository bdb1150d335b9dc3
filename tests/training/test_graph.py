"""The step graph: parameters, masks and gates as inputs; what is frozen stays; shapes are fixed; refusals name the node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxcompress.errors import ModelError, SettingError
from onnxcompress.model import Model, load
from onnxcompress.model.save import to_bytes
from onnxcompress.runtime.session import open_session
from onnxcompress.training.derivatives import REFUSED
from onnxcompress.training.graph import Criterion, settings_in, step_graph
from onnxcompress.training.losses import mean
from onnxcompress.training.parameters import Layout, parameters_of
from onnxcompress.training.pen import Pen, is_float
from tests.generate.feeds import feeds as feeds_for
from tests.generate.models import models

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"
RNG = np.random.default_rng(2)


def squares(*names: str) -> Criterion:
    """The mean square of these values."""

    def terms(op: Pen, values: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        return {name: mean(op, op.Mul(values[name], values[name])) for name in names}

    return terms


def small(*nodes: onnx.NodeProto, ins: int = 3, out: str = "y", **weights: np.ndarray) -> Model:
    graph = helper.make_graph(
        list(nodes), "small",
        [helper.make_tensor_value_info("x", 1, ["N", ins, 4])], [helper.make_tensor_value_info(out, 1, None)],
        [numpy_helper.from_array(np.asarray(w).astype(np.float32) if np.asarray(w).dtype.kind == "f" else np.asarray(w), name)
         for name, w in weights.items()],
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.fixture(scope="module")
def net() -> Model:
    """Conv, norm, Relu, a Reshape by a computed shape, Gemm."""
    return small(
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Shape", ["r"], ["shape"]), helper.make_node("Gather", ["shape", "zero"], ["n0"]),
        helper.make_node("Unsqueeze", ["n0", "first"], ["n1"]), helper.make_node("Concat", ["n1", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["r", "to"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "h"], ["y"], name="head"),
        w=RNG.normal(size=(6, 3, 3)), b=RNG.normal(size=6), s=RNG.normal(size=6) + 2, t=RNG.normal(size=6), m=RNG.normal(size=6),
        v=np.abs(RNG.normal(size=6)) + 0.5, zero=np.array(0), first=np.array([0]), rest=np.array([-1]),
        g=RNG.normal(size=(24, 5)), h=RNG.normal(size=5),
    )  # fmt: skip


def arrays(model: Model, names: list[str]) -> dict[str, np.ndarray]:
    return {name: model.array(name) for name in names}


def test_loss_and_gradients_of_a_whole_net(net: Model) -> None:
    names, x = parameters_of(net), RNG.normal(size=(2, 3, 4)).astype(np.float32)
    assert set(names) == {"w", "b", "s", "t", "g", "h"}
    session = step_graph(net, {"x": x.shape}, names, squares("y")).open()
    feeds = {"x": x, **arrays(net, names)}
    found = session.run(feeds)
    y = open_session(net.serialized).run({"x": x})["y"]
    assert found["loss"] == pytest.approx((y**2).mean(), rel=1e-5)
    for name in names:
        direction = RNG.normal(size=feeds[name].shape).astype(np.float32)
        ends = [session.run({**feeds, name: feeds[name] + np.float32(h) * direction})["loss"] for h in (1e-3, -1e-3)]
        got = float((found[f"gradient/{name}"] * direction).sum())
        assert got == pytest.approx((float(ends[0]) - float(ends[1])) / 2e-3, rel=0.05, abs=0.02), name


def test_frozen_parts_have_no_gradient_and_stay_constants(net: Model) -> None:
    names = parameters_of(net, ["conv", "t"])
    assert set(names) == {"s", "g", "h"}
    made = step_graph(net, {"x": (2, 3, 4)}, names, squares("y"))
    assert {value.name for value in made.graph.graph.inputs} == {"x", "s", "g", "h"}
    assert made.trained == tuple(names)
    # nothing in front of what trains is differentiated
    assert not [node for node in made.graph.graph if node.op_type == "Conv" and node.name != "conv"]


def test_patterns_that_match_nothing_and_all(net: Model) -> None:
    with pytest.raises(SettingError, match="'cnov' matches no weight and no node; the nearest name is 'conv'"):
        parameters_of(net, ["cnov"])
    with pytest.raises(ModelError, match="all weights are frozen"):
        parameters_of(net, ["*"])


def test_masks_hide_weights_and_their_gradients(net: Model) -> None:
    """Toy of a lottery ticket: a masked weight takes no part, and does not move."""
    names, x = parameters_of(net), RNG.normal(size=(2, 3, 4)).astype(np.float32)
    session = step_graph(net, {"x": x.shape}, names, squares("y"), masks=["g"]).open()
    mask = (RNG.random((24, 5)) > 0.5).astype(np.float32)
    found = session.run({"x": x, **arrays(net, names), "mask/g": mask})
    graph = net.ir.clone()
    graph.graph.initializers["g"].const_value = ir.tensor(net.array("g") * mask, name="g")
    y = open_session(to_bytes(graph)).run({"x": x})["y"]
    assert found["loss"] == pytest.approx((y**2).mean(), rel=1e-5)
    assert not found["gradient/g"][mask == 0].any() and found["gradient/g"][mask == 1].any()
    assert found["gradient/mask/g"].shape == (24, 5)


def test_gates_tell_what_each_channel_is_worth(net: Model) -> None:
    """Toy of Taylor importance: the gradient by a gate is Σ activation x gradient of its channel; a shut gate removes it."""
    names, x = parameters_of(net), RNG.normal(size=(2, 3, 4)).astype(np.float32)
    session = step_graph(net, {"x": x.shape}, names, squares("y"), gates={"r": 1}).open()
    feeds = {"x": x, **arrays(net, names), "gate/r": np.ones(6, np.float32)}
    worth = session.run(feeds)["gradient/gate/r"]
    for channel in range(6):
        ends = []
        for h in (1e-3, -1e-3):
            gate = np.ones(6, np.float32)
            gate[channel] += h
            ends.append(float(session.run({**feeds, "gate/r": gate})["loss"]))
        assert worth[channel] == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=0.05, abs=0.02)


def test_norms_in_training_form_tell_the_statistics_of_the_batch(net: Model) -> None:
    names, x = parameters_of(net), RNG.normal(size=(2, 3, 4)).astype(np.float32)
    made = step_graph(net, {"x": x.shape}, names, squares("y"), norms="training")
    (each,) = made.statistics
    assert (each.mean, each.var, each.count) == ("m", "v", 8)
    found = made.open().run({"x": x, **arrays(net, names)})
    conv = net.ir.clone()
    conv.graph.outputs[:] = [next(node.outputs[0] for node in conv.graph if node.name == "conv")]
    c = open_session(to_bytes(conv)).run({"x": x})["c"]
    np.testing.assert_allclose(found[each.batch_mean], c.mean((0, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[each.batch_var], c.var((0, 2)), rtol=1e-4)
    assert net.array("m").tolist() == load(net.serialized).array("m").tolist()  # the model's own are untouched


def test_a_batch_of_another_size_is_another_graph(net: Model) -> None:
    names = parameters_of(net)
    for count in (1, 3):
        x = RNG.normal(size=(count, 3, 4)).astype(np.float32)
        found = step_graph(net, {"x": x.shape}, names, squares("y")).open().run({"x": x, **arrays(net, names)})
        assert found["loss"] == pytest.approx((open_session(net.serialized).run({"x": x})["y"] ** 2).mean(), rel=1e-5)


def test_constants_that_are_no_weights_do_not_train() -> None:
    model = small(
        helper.make_node("Mul", ["x", "one"], ["a"]), helper.make_node("Add", ["a", "bias"], ["h"]),
        helper.make_node("Clip", ["h", "low", "high"], ["y"]),
        one=np.array(0.3), bias=RNG.normal(size=4), low=np.array(-1.0), high=np.array(1.0),
    )  # fmt: skip
    assert parameters_of(model) == ["bias"]


def test_a_recurrent_layer_trains_and_one_that_is_not_covered_is_named() -> None:
    sizes = {"W": (1, 16, 4), "R": (1, 16, 4)}

    def net_of(**attributes: float) -> Model:
        return small(
            helper.make_node("MatMul", ["x", "w"], ["p"], name="first"),
            helper.make_node("LSTM", ["p", "W", "R"], ["y"], hidden_size=4, name="memory", **attributes),
            **{name: RNG.normal(size=shape) for name, shape in sizes.items()}, w=RNG.normal(size=(4, 4)),
        )  # fmt: skip

    model = net_of()
    assert set(step_graph(model, {"x": (2, 3, 4)}, parameters_of(model), squares("y")).trained) == {"W", "R", "w"}
    clipped = net_of(clip=1.0)
    with pytest.raises(ModelError, match="LSTM 'memory': no gradient is known here: its gates are clipped; freeze"):
        step_graph(clipped, {"x": (2, 3, 4)}, parameters_of(clipped), squares("y"))


def test_a_loss_that_nothing_trained_reaches(net: Model) -> None:
    with pytest.raises(ModelError, match="the loss does not depend on any of the 1 trained parameters"):
        step_graph(net, {"x": (2, 3, 4)}, ["h"], squares("r"))


def test_layout_is_one_buffer_in_order(net: Model) -> None:
    names = parameters_of(net)
    layout = Layout.of(net, names)
    buffer = layout.gathered(arrays(net, names))
    views = layout.views(buffer)
    assert all(np.array_equal(views[name], net.array(name)) for name in names)
    views["h"][0] = 7
    assert 7 in buffer
    assert layout.views(layout.matrices)["g"].all() and not layout.views(layout.matrices)["b"].any()


KNOWN = {*REFUSED}


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(proto=models(), seed=st.integers(0, 9))
def test_generated_models_train_or_say_why(proto: onnx.ModelProto, seed: int) -> None:
    """Any model: the step graph loads and a short step against the gradient lowers the loss, or one line names the operator."""
    model = load(proto)
    feeds = feeds_for(proto, seed)
    outputs = [value.name for value in model.ir.graph.outputs if is_float(value) and value.name]
    try:
        names = parameters_of(model)
        made = step_graph(model, {n: x.shape for n, x in feeds.items()}, names, squares(*outputs[:1]))
    except ModelError as error:
        assert "\n" not in str(error) and any(
            word in str(error) for word in ("no gradient", "nothing", "does not depend")
        )
        return
    session, layout = made.open(), Layout.of(model, names)
    weights = layout.gathered(arrays(model, names))
    found = session.run({**feeds, **layout.views(weights)})
    gradient = layout.gathered({name: found[f"gradient/{name}"] for name in names}).astype(np.float64)
    assert np.isfinite(gradient).all()
    square = float(gradient @ gradient)
    losses = [float(found["loss"])]
    for size in (1e-2, 1e-3, 1e-4, 1e-5):  # of the loss, if it were linear: kinks and curvature want a short one
        moved = (weights - size * losses[0] / max(square, 1e-30) * gradient).astype(np.float32)
        losses.append(float(session.run({**feeds, **layout.views(moved)})["loss"]))
    assert square < 1e-10 or min(losses[1:]) <= losses[0]


def test_weights_that_a_recurrent_layer_reads_through_nodes_train() -> None:
    """As exporters write them: gates put in ONNX's order by Slice, Concat and Unsqueeze. What is computed from data is no weight."""
    parts = [helper.make_node("Slice", ["w", f"{i}", f"{i + 4}", "zero"], [f"w{i}"]) for i in (0, 4)]
    model = small(
        *parts, helper.make_node("Concat", ["w4", "w0"], ["turned"], axis=0), helper.make_node("Unsqueeze", ["turned", "zero"], ["W"]),
        helper.make_node("Concat", ["x", "first"], ["more"], axis=0), helper.make_node("LSTM", ["x", "W", "R"], ["h"], hidden_size=2),
        helper.make_node("MatMul", ["more", "head"], ["z"]), helper.make_node("ReduceSum", ["z"], ["total"]),
        helper.make_node("Add", ["h", "total"], ["y"]),
        w=RNG.normal(size=(8, 4)), R=RNG.normal(size=(1, 8, 2)), head=RNG.normal(size=(4, 2)), first=RNG.normal(size=(1, 3, 4)),
        zero=np.array([0]), **{f"{i}": np.array([i]) for i in (4, 8)}, **{"0": np.array([0])},
    )  # fmt: skip
    assert sorted(parameters_of(model)) == ["R", "head", "w"]
    made = step_graph(model, {"x": (2, 3, 4)}, parameters_of(model), squares("y"))
    found = made.open().run({"x": RNG.normal(size=(2, 3, 4)).astype(np.float32), **arrays(model, parameters_of(model))})
    assert np.abs(found["gradient/w"]).min() > 0


@pytest.mark.parametrize("rate", [8, 16])
def test_a_whole_number_that_is_fed_chooses_the_branch(rate: int) -> None:
    """Only the branch that it chooses has a gradient."""

    def scaled(branch: str, w: str) -> onnx.GraphProto:
        result = [helper.make_tensor_value_info(branch, 1, None)]
        return helper.make_graph([helper.make_node("Mul", ["x", w], [branch])], branch, [], result)

    bodies = {"then_branch": scaled("then_branch", "a"), "else_branch": scaled("else_branch", "b")}
    inputs = [helper.make_tensor_value_info("x", 1, [2, 3]), helper.make_tensor_value_info("rate", 7, [])]
    graph = helper.make_graph(
        [helper.make_node("Equal", ["rate", "high"], ["c"]), helper.make_node("If", ["c"], ["y"], name="choice", **bodies)],
        "rates", inputs, [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.array(16), "high")]
        + [numpy_helper.from_array(RNG.normal(size=(1, 3)).astype(np.float32), name) for name in "ab"],
    )  # fmt: skip
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    # Mul's constants of several numbers are weights, in bodies too
    feed = {"x": RNG.normal(size=(2, 3)).astype(np.float32), "rate": np.array(rate)}
    names = parameters_of(model)
    assert sorted(names) == ["a", "b"]
    made = step_graph(model, {n: x.shape for n, x in feed.items()}, names, squares("y"), known=settings_in(feed))
    assert "If" not in {node.op_type for node in made.graph.graph}
    found = made.open().run({**feed, **arrays(model, names)})
    chosen, other = ("a", "b") if rate == 16 else ("b", "a")
    assert np.abs(found[f"gradient/{chosen}"]).min() > 0 and not found[f"gradient/{other}"].any()
