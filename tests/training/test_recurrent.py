"""LSTM, GRU and RNN: gradients by all inputs, in every direction, through each output, against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxcompress.errors import ModelError
from tests.training.check import check_row, graph_of, with_gradients

RNG = np.random.default_rng(11)

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INS, HIDDEN = 3, 2, 3, 2


def drawn(kind: str, directions: int, *, states: bool = True) -> dict[str, np.ndarray]:
    width = GATES[kind] * HIDDEN
    shapes = {
        "x": (STEPS, BATCH, INS), "w": (directions, width, INS), "r": (directions, width, HIDDEN), "b": (directions, 2 * width)
    }  # fmt: skip
    if states:
        shapes |= {name: (directions, BATCH, HIDDEN) for name in ("h", "c")[: 2 if kind == "LSTM" else 1]}
    return {name: 0.7 * RNG.normal(size=shape) for name, shape in shapes.items()}


def nodes_of(kind: str, inputs: dict[str, np.ndarray], outputs: int, **attributes: Any) -> list[Any]:
    """The layer, and a value that all of its outputs take part in."""
    given = ["x", "w", "r", "b" if "b" in inputs else "", "", *[name for name in ("h", "c") if name in inputs]]
    made = ["all", "last", "cell"][:outputs]
    layer = helper.make_node(kind, given, made, name="n", hidden_size=HIDDEN, **attributes)
    if outputs == 1:
        return [layer, helper.make_node("Identity", ["all"], ["y"])]
    rest = made[1] if outputs == 2 else "both"
    joined = [helper.make_node("Mul", ["last", "cell"], ["both"])] if outputs == 3 else []
    return [layer, *joined, helper.make_node("Add", ["all", rest], ["y"])]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})],
    ids=["LSTM", "GRU", "GRU, linear before reset", "RNN"],
)
def test_every_direction_and_output(kind: str, more: dict[str, Any], direction: str) -> None:
    both = direction == "bidirectional"
    inputs = drawn(kind, 2 if both else 1)
    nodes = nodes_of(kind, inputs, 3 if kind == "LSTM" else 2, direction=direction, **more)
    check_row(nodes, inputs, float64=False)


@pytest.mark.parametrize("kind", GATES)
def test_in_float64(kind: str) -> None:
    """ONNX's reference knows one direction."""
    inputs = drawn(kind, 1)
    check_row(nodes_of(kind, inputs, 1), inputs)


@pytest.mark.parametrize("kind", GATES)
def test_without_bias_and_first_state(kind: str) -> None:
    inputs = drawn(kind, 1, states=False)
    del inputs["b"]
    check_row(nodes_of(kind, inputs, 1), inputs, float64=False)


def test_only_the_last_state_is_read() -> None:
    inputs = drawn("LSTM", 2)
    layer = helper.make_node(
        "LSTM", ["x", "w", "r", "b", "", "h", "c"], ["", "y"], direction="bidirectional", hidden_size=HIDDEN
    )
    check_row([layer], inputs, float64=False)


def test_other_activations() -> None:
    inputs = drawn("LSTM", 1)
    check_row(nodes_of("LSTM", inputs, 2, activations=["Sigmoid", "Softsign", "Relu"]), inputs, float64=False)


def test_one_step() -> None:
    inputs = {**drawn("GRU", 1), "x": RNG.normal(size=(1, BATCH, INS))}
    check_row(nodes_of("GRU", inputs, 1), inputs, float64=False)


LENGTHS, PEEPHOLES = np.array([3, 2], np.int32), np.ones((1, 3 * HIDDEN), np.float32)


@pytest.mark.parametrize(
    ("constants", "attributes", "said"),
    [
        ({"n": LENGTHS}, {}, "sequences end at different steps"),
        ({"p": PEEPHOLES}, {}, "peepholes"),
        ({}, {"clip": 1.0}, "gates are clipped"),
        ({}, {"input_forget": 1}, "coupled"),
        ({}, {"activations": ["Sigmoid", "Tanh", "Affine"]}, "activations sigmoid, tanh, affine"),
    ],
)
def test_what_is_left_out_is_refused(constants: dict[str, np.ndarray], attributes: dict[str, Any], said: str) -> None:
    inputs = {name: x.astype(np.float32) for name, x in drawn("LSTM", 1).items()}
    given = ["x", "w", "r", "b", "n" if "n" in constants else "", "h", "c", "p" if "p" in constants else ""]
    layer = helper.make_node("LSTM", given, ["y"], name="layer", hidden_size=HIDDEN, **attributes)
    with pytest.raises(ModelError, match=f"LSTM 'layer': .*{said}.*freeze"):
        with_gradients(graph_of([layer], inputs, constants, "y"), np.ones(()), ["x"])


def test_lengths_that_are_all_the_steps_are_none() -> None:
    inputs, constants = drawn("RNN", 1), {"n": np.full(BATCH, STEPS, np.int32)}
    layer = helper.make_node("RNN", ["x", "w", "r", "b", "n", "h"], ["y"], hidden_size=HIDDEN)
    check_row([layer], inputs, constants=constants, float64=False)
