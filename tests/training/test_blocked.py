"""Convolutions in blocks answer as the standard operators do, and where the self-test says no, nothing is written in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from benchmarks.networks import mobile, resnet8
from onnxcompress.errors import ModelError
from onnxcompress.model import load
from onnxcompress.training import blocked, graph
from onnxcompress.training.blocked import block_size, in_blocks
from onnxcompress.training.blocks import DOMAIN
from onnxcompress.training.fixed import fix
from onnxcompress.training.graph import step_graph
from onnxcompress.training.parameters import parameters_of
from onnxcompress.training.pen import Pen, shape_of
from onnxcompress.training.reverse import differentiate
from tests.training.check import Arrays, close, graph_of, run_stock

BLOCK = block_size()
needs_blocks = pytest.mark.skipif(BLOCK is None, reason="this onnxruntime has no blocked layout on this CPU")


def operators(made: ir.Model) -> list[str]:
    """Those in blocks."""
    return [node.op_type for node in made.graph if node.domain == DOMAIN]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[onnx.NodeProto, Arrays]:
    """One Conv, most of them of a kind that is written in blocks, and what it is fed."""
    block, kind = BLOCK or 8, draw(st.sampled_from(["dense", "few", "groups", "depthwise"]))
    groups = {"groups": 2, "depthwise": draw(st.sampled_from([4, block, block + 4, 2 * block]))}.get(kind, 1)
    ins = {"dense": st.sampled_from([block, block + 12, 2 * block]), "few": st.integers(1, block - 1)}.get(kind)
    inner = draw(ins) if ins is not None else block if kind == "groups" else 1
    outs = groups if kind == "depthwise" else draw(st.sampled_from([block, 2 * block, 2 * block - 2])) * groups
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel, "group": groups, "strides": [draw(st.integers(1, 3)) for _ in range(2)],
    }  # fmt: skip
    if draw(st.booleans()):
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in range(2)]
        attributes["pads"] = [draw(st.integers(0, kernel[axis % 2])) for axis in range(4)]
    else:
        attributes["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, attributes.get("dilations", [1, 1]), strict=True)]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    sizes = {
        "x": (
            draw(st.sampled_from([1, 3, block])),
            inner * groups,
            *(size + draw(st.integers(0, 6)) for size in reach),
        ),
        "w": (outs, inner, *kernel),
    }
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    if draw(st.booleans()):
        feeds["b"] = rng.normal(size=outs).astype(np.float32)
    return helper.make_node("Conv", list(feeds), ["y"], name="conv", **attributes), feeds


def with_gradients(node: onnx.NodeProto, feeds: Arrays, block: int | None) -> ir.Model:
    """y, loss and the gradient of sum(y³) by all that is fed."""
    made = graph_of([node], feeds, {}, "y")
    op = Pen(made)
    op.block = block
    fix(op, {value.name or "": shape_of(value) for value in made.graph.inputs})
    inputs, y = list(made.graph.inputs), made.graph.outputs[0]
    found = differentiate(op, op.ReduceSum(op.Mul(op.Mul(y, y), y), keepdims=0), inputs)
    made.graph.outputs[:] = [y, *(op.Identity(found[value]) for value in inputs)]
    in_blocks(op)
    return made


@needs_blocks
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(case=convolutions())
def test_a_convolution_in_blocks_is_the_convolution(case: tuple[onnx.NodeProto, Arrays]) -> None:
    node, feeds = case
    plain, other = (with_gradients(node, feeds, block) for block in (None, BLOCK))
    assert not operators(plain)
    for name, one, two in zip(["y", *feeds], run_stock(other, feeds), run_stock(plain, feeds), strict=True):
        close(one, two, 2e-5, name)


@needs_blocks
@pytest.mark.parametrize(("make", "least"), [(resnet8, 10), (mobile, 14)])
def test_a_step_in_blocks_is_the_step(
    make: Callable[..., onnx.ModelProto], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients of a whole network, and the report says how many there are; without blocks there are none."""
    block = BLOCK or 8
    model = load(make((3, 8, 8), block, 0) if make is resnet8 else make((3, 8, 8), 0))
    names, x = parameters_of(model), np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)
    feeds = {"x": x, **{name: model.array(name) for name in names}}

    def loss(op: Pen, values: Any) -> dict[str, ir.Value]:
        return {"sum": op.ReduceSum(op.Mul(values["logits"], values["logits"]), keepdims=0)}

    def made() -> graph.StepGraph:
        return step_graph(model, {"x": x.shape}, names, loss, norms="training")

    one = made()
    assert operators(one.graph).count("Conv") >= least and f"in blocks of {block} channels" in one.source
    monkeypatch.setattr(graph, "block_size", lambda: None)
    two = made()
    assert not operators(two.graph) and "blocks" not in two.source
    found, wanted = one.open().run(feeds), two.open(threads=2).run(feeds)
    largest = max(float(np.abs(values).max()) for values in wanted.values())
    for name, values in wanted.items():  # a shift before a linear layer and a norm has the gradient 0, and rounding
        np.testing.assert_allclose(
            found[name], values, rtol=0, atol=1e-3 * float(np.abs(values).max()) + 1e-6 * largest, err_msg=name
        )


def test_without_such_operators_there_is_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise ModelError("no kernel")

    monkeypatch.setattr(blocked, "_asked", refused)
    assert block_size.__wrapped__() is None
    monkeypatch.setattr(blocked, "_asked", lambda: 12)
    assert block_size.__wrapped__() is None


@needs_blocks
def test_where_the_operators_answer_otherwise_there_is_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout of weights that this onnxruntime does not have: the self-test sees it."""
    assert block_size.__wrapped__() == BLOCK
    monkeypatch.setattr("onnxcompress.training.blocks.weight_in_blocks", lambda op, weight, form: op.Pad(
        weight, [0] * 4 + [form.outs - shape_of(weight)[0], (1 if form.depthwise else form.ins // form.groups) - shape_of(weight)[1], 0, 0]
    ))  # fmt: skip
    assert block_size.__wrapped__() is None


@needs_blocks
def test_a_tensor_in_blocks_is_not_kept_for_the_way_back() -> None:
    """It would lie in memory twice from forward to backward; forward and gradient reorder x on their own."""
    block = BLOCK or 8
    nodes = [helper.make_node("Conv", ["x", "w"], ["c0"], pads=[1] * 4, kernel_shape=[3, 3], group=block)]
    nodes += [helper.make_node("Tanh", [f"c{i}"], [f"c{i + 1}"]) for i in range(blocked.NEAR + 2)]
    feeds = {"x": np.ones((1, block, 4, 4), np.float32), "w": np.ones((block, 1, 3, 3), np.float32)}
    made = graph_of(nodes, feeds, {}, f"c{blocked.NEAR + 2}")
    op = Pen(made)
    op.block = block
    fix(op, {value.name or "": shape_of(value) for value in made.graph.inputs})
    inputs = list(made.graph.inputs)
    found = differentiate(op, op.ReduceSum(made.graph.outputs[0], keepdims=0), inputs)
    made.graph.outputs[:] = [op.Identity(found[value]) for value in inputs]
    in_blocks(op)
    reorders = [node for node in made.graph if node.op_type == "ReorderInput" and node.inputs[0] is inputs[0]]
    assert len(reorders) == 2
