"""If: its gradient is an If; a condition that shapes decide leaves one branch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcompress.errors import ModelError
from onnxcompress.training.fixed import fix
from onnxcompress.training.pen import Pen
from tests.training.check import check_row, graph_of, with_gradients

RNG = np.random.default_rng(5)


def body(name: str, *nodes: Any) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [onnx.ValueInfoProto(name=f"{name}.y")])


def branched(*before: Any) -> list[Any]:
    """y = w x + x where the condition holds, else tanh(x): both branches name an inner value `h`."""
    then = body("then", helper.make_node("Mul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "x"], ["then.y"]))
    other = body("else", helper.make_node("Identity", ["x"], ["h"]), helper.make_node("Tanh", ["h"], ["else.y"]))
    return [*before, helper.make_node("If", ["c"], ["y"], name="n", then_branch=then, else_branch=other)]


@pytest.mark.parametrize("holds", [True, False])
def test_the_branch_that_is_run_gives_the_gradient(holds: bool) -> None:
    """The condition is only known when it runs: the sign of an input."""
    inputs = {"x": RNG.normal(size=(2, 3)), "w": RNG.normal(size=3), "s": np.array(1.0 if holds else -1.0)}
    decided = helper.make_node("Greater", ["s", "zero"], ["c"])
    check_row(branched(decided), inputs, constants={"zero": np.array(0.0)}, by=["x", "w"])


def test_an_if_within_an_if() -> None:
    deep = [helper.make_node("If", ["d"], ["then.y"], name="inner", **dict(zip(
        ("then_branch", "else_branch"),
        (body("deep", helper.make_node("Mul", ["x", "w"], ["deep.y"])), body("other", helper.make_node("Exp", ["x"], ["other.y"]))),
        strict=True,
    )))]  # fmt: skip
    outer = helper.make_node(
        "If", ["c"], ["y"], name="n", then_branch=body("then", *deep), else_branch=body("else", helper.make_node("Sin", ["x"], ["else.y"]))
    )  # fmt: skip
    inputs = {"x": RNG.normal(size=(2, 3)), "w": RNG.normal(size=3), "c": np.array(True), "d": np.array(False)}
    check_row([outer], inputs, by=["x", "w"])


def test_a_condition_on_shapes_leaves_one_branch() -> None:
    """Two Ifs whose branches name their values alike."""
    rows = [
        helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Gather", ["shape", "first"], ["rows"]),
        helper.make_node("Equal", ["rows", "two"], ["c"]),
    ]  # fmt: skip
    again = branched()[0]
    again.output[0], again.name = "z", "again"
    nodes = [*branched(*rows), again, helper.make_node("Add", ["y", "z"], ["sum"])]
    inputs = {"x": RNG.normal(size=(2, 3)), "w": RNG.normal(size=3)}
    constants = {"first": np.array(0), "two": np.array(2)}
    check_row(nodes, inputs, constants=constants, output="sum")
    graph = graph_of(nodes, inputs, constants, "sum")
    fix(Pen(graph), {"x": (2, 3), "w": (3,)})
    assert "If" not in {node.op_type for node in graph.graph}


def test_an_operator_without_a_row_in_a_branch_is_named() -> None:
    loss = helper.make_node("If", ["c"], ["y"], then_branch=body("then", helper.make_node("Det", ["x"], ["then.y"], name="inside")),
        else_branch=body("else", helper.make_node("ReduceSum", ["x"], ["else.y"], keepdims=0)))  # fmt: skip
    inputs = {"x": RNG.normal(size=(3, 3)).astype(np.float32), "c": np.array(True)}
    with pytest.raises(ModelError, match="Det 'inside': no gradient goes through it"):
        with_gradients(graph_of([loss], inputs, {}, "y"), np.ones(()), ["x"])
