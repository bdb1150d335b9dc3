"""Scan, and Loop with a fixed number of steps: the gradient is a Scan from the last step to the first."""

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

RNG = np.random.default_rng(6)

CELL = [
    helper.make_node("MatMul", ["h", "r"], ["hr"]), helper.make_node("MatMul", ["s", "w"], ["sw"]),
    helper.make_node("Add", ["hr", "sw"], ["sum"]), helper.make_node("Tanh", ["sum"], ["next"]),
    helper.make_node("Mul", ["next", "s"], ["told"]),
]  # fmt: skip
"""A recurrent cell: state h [2, 3], slice s [2, 3], weights r and w [3, 3] from outside; it tells next s."""

INPUTS = {
    "first": RNG.normal(size=(2, 3)), "x": RNG.normal(size=(4, 2, 3)),
    "r": RNG.normal(size=(3, 3)), "w": RNG.normal(size=(3, 3)),
}  # fmt: skip


def infos(*names: str) -> list[onnx.ValueInfoProto]:
    return [onnx.ValueInfoProto(name=name) for name in names]


def ends(*before: onnx.NodeProto) -> list[onnx.NodeProto]:
    """y: what all steps tell, the last state added."""
    return [*before, helper.make_node("Add", ["all", "last"], ["y"])]


@pytest.mark.parametrize("directions", [None, [1]])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_scan_goes_back_from_its_last_step(directions: list[int] | None, axis: int) -> None:
    """The sequence along either axis, from either end; what is told is stacked from either end."""
    given: dict[str, Any] = {"scan_input_axes": [axis]}
    if directions is not None:
        given |= {"scan_input_directions": directions, "scan_output_directions": [1]}
    cell = helper.make_graph(CELL, "cell", infos("h", "s"), infos("next", "told"))
    scan = helper.make_node("Scan", ["first", "x"], ["last", "all"], body=cell, num_scan_inputs=1, **given)
    check_row(ends(scan), {**INPUTS, "x": np.moveaxis(INPUTS["x"], 0, axis)})


def counted(goes: list[onnx.NodeProto], *, start: str = "", tells: bool = True) -> list[onnx.NodeProto]:
    """A Loop over x by step number, as torch writes one; without `tells` y is the last state."""
    scalars = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("on", 9))]
    nodes = [helper.make_node("Gather", ["x", "i"], ["s"], axis=0), *CELL, *goes]
    given = infos("goes", "next", "told") if tells else infos("goes", "next")
    body = helper.make_graph(nodes, "body", [*scalars, *infos("h")], given)
    outputs = ["last", "all"] if tells else ["y"]
    loop = helper.make_node("Loop", ["steps", start, "first"], outputs, name="loop", body=body)
    return ends(loop) if tells else [loop]


@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize("on", ["Identity", "Cast"])
def test_a_loop_with_a_fixed_number_of_steps(on: str, tells: bool) -> None:
    """ONNX's reference does not stack what a Loop tells: there differences are onnxruntime's."""
    goes = helper.make_node(on, ["on"], ["goes"], **({"to": 9} if on == "Cast" else {}))
    constants = {"steps": np.array(3), "true": np.array(True)}
    check_row(counted([goes], start="true", tells=tells), INPUTS, constants=constants, float64=not tells)


def test_a_loop_that_data_end_is_refused_in_one_line() -> None:
    goes = [
        helper.make_node("ReduceSum", ["next"], ["total"], keepdims=0), helper.make_node("Less", ["total", "most"], ["goes"]),
    ]  # fmt: skip
    graph = graph_of(counted(goes), INPUTS, {"steps": np.array(3), "most": np.array(99.0)}, "y")
    with pytest.raises(ModelError, match="Loop 'loop': how often it runs depends on the data"):
        with_gradients(graph, np.ones((3, 2, 3)), ["r"])


def test_a_state_that_grows_is_refused() -> None:
    cell = helper.make_graph(
        [helper.make_node("Concat", ["h", "s"], ["next"], axis=0)], "cell", infos("h", "s"), infos("next")
    )
    scan = helper.make_node("Scan", ["first", "x"], ["y"], name="grows", body=cell, num_scan_inputs=1)
    with pytest.raises(ModelError, match=r"'grows': state 'h' is \[2, 3\] before a step and \[4, 3\] after it"):
        fix(Pen(graph_of([scan], INPUTS, {}, "y")), {name: x.shape for name, x in INPUTS.items()})
