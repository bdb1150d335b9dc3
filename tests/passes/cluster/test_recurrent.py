"""Recurrent layers on data: what a stop sums up is what the gates add up, in every direction and layout; their codes are no worse."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.data import open_data
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import load
from onnxcompress.model.edit import walk
from onnxcompress.operators.layer import layers
from onnxcompress.passes import Cluster
from onnxcompress.passes.cluster.recurrent import can_be_fitted, fitting
from onnxcompress.runtime.session import open_session

INS, STEPS = 6, 7
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


TOLD = np.random.default_rng(9).normal(size=(2, 2, 5)).astype(np.float32)
"""States before the first step, [directions, samples, hidden]."""


def recurrent(op: str, direction: str, seed: int = 0, hidden: int = 5, told: bool = False) -> onnx.ModelProto:
    """A Relu, so that what is read has a mean, and one recurrent node."""
    rng, count = np.random.default_rng(seed), 2 if direction == "bidirectional" else 1
    gates = GATES[op] * hidden
    arrays = {"W": (count, gates, INS), "R": (count, gates, hidden), "B": (count, 2 * gates)}
    if told:
        arrays["H"] = (count, 2, hidden)
    node = helper.make_node(
        op, ["z", "W", "R", "B", *(["", "H"] if told else [])], ["y"], "cell", direction=direction, hidden_size=hidden
    )
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"], "relu"), node],
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, "n", INS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            onnx.numpy_helper.from_array(TOLD[:count] if n == "H" else rng.normal(size=s).astype(np.float32), n)
            for n, s in arrays.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sequences(count: int = 10) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{"x": rng.normal(size=(STEPS, 2, INS)).astype(np.float32)} for _ in range(count)]


def met(
    proto: onnx.ModelProto, feed: dict[str, np.ndarray], states: bool, backwards: bool, number: int, told: bool
) -> np.ndarray:
    """[steps, samples, k], step by step, what a direction's weight is multiplied by."""
    if not states:
        return np.maximum(feed["x"], 0)
    y = open_session(proto.SerializeToString()).run(feed)["y"][:, number]
    before = [
        y[step + 1 if backwards else step - 1] for step in range(STEPS) if step != (STEPS - 1 if backwards else 0)
    ]
    first = TOLD[number] if told else np.zeros_like(y[0])
    return np.stack([*before, first] if backwards else [first, *before])


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("which, told", [("W", False), ("R", False), ("R", True)])
def test_the_error_is_that_of_what_gates_add_up(op: str, direction: str, which: str, told: bool) -> None:
    proto, feeds = recurrent(op, direction, told=told), sequences()
    other = recurrent(op, direction, seed=1, told=told)
    model, current = load(proto), load(other)
    inputs = open_session(proto.SerializeToString()).inputs
    (layer,) = [each for each in layers(model) if each.weight == which]
    node = next(node for node in walk(model.ir) if node.name == "cell")
    assert can_be_fitted(model, layer, node)
    (pair,) = Paired(model, current, open_data(feeds, inputs), batch=2).walk(["cell"])
    at = fitting(model, layer, node, pair, 10**6, 0)
    assert at is not None
    weight = model.array(which).astype(np.float64)
    tried = weight + np.random.default_rng(5).normal(size=weight.shape)
    wanted = 0.0
    for feed in feeds:
        for number, (own, each) in enumerate(zip(weight, tried, strict=True)):
            backwards = direction == "reverse" or number == 1
            x, now = (met(one, feed, which == "R", backwards, number, told) for one in (proto, other))
            wanted += np.square(x @ own.T - now @ each.T).sum()
    flat = np.moveaxis(tried, 0, 1).reshape(at.weight.shape)
    found = sum(sums.error(flat, at.offset) for sums in (at.fit, at.judge))
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("op, direction", [("LSTM", "bidirectional"), ("GRU", "reverse")])
def test_codes_of_recurrent_weights_are_found_on_data(op: str, direction: str) -> None:
    proto = recurrent(op, direction, hidden=64)
    model, data = load(proto), open_data(sequences(20), open_session(proto.SerializeToString()).inputs)
    each = Cluster(assign="compensated", same=True, bits=2, share="scaled", smallest=0)
    plan = each.plan(model, {Paired.NEED: Paired(model, model, data)})
    judged = {one["weight"]: (one["plain_db"], one["held_out_db"]) for one in plan.decisions}
    assert judged.keys() == {"W", "R"}
    assert all(after >= before for before, after in judged.values())
    assert sum(after - before for before, after in judged.values()) > 1
