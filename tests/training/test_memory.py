"""A step's memory from its shapes, and minibatches that run in parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.data import Data
from onnxcompress.errors import SettingError
from onnxcompress.model import Model
from onnxcompress.training import steps
from onnxcompress.training.footprint import run_bytes, samples_that_fit
from onnxcompress.training.lesson import Lesson
from onnxcompress.training.loop import train
from onnxcompress.training.pen import Pen
from tests.training.test_loop import digits, lesson, samples, shaken, weights

__all__ = ["digits", "samples", "shaken"]


def empty() -> Pen:
    return Pen(ir.Model(ir.Graph([], [], nodes=[], name="g", opset_imports={"": 17}), ir_version=8))


def test_values_live_until_their_last_reader() -> None:
    """x [1000] is fed; a stays for the sum with c; Relu writes over b, Add over either."""
    op = empty()
    x = op.input("x", [1000])
    a = op.Transpose(op.Reshape(x, [10, 100]))
    b = op.MatMul(a, op.constant(np.ones((10, 10), np.float32)))
    assert run_bytes(op.graph) == 2 * 4000
    c = op.Relu(b)
    op.graph.graph.outputs.append(op.Add(c, a))
    assert run_bytes(op.graph) == 2 * 4000
    op.graph.graph.outputs.append(op.MatMul(op.Reshape(c, [100, 10]), op.constant(np.ones((10, 20), np.float32))))
    assert run_bytes(op.graph) == 3 * 4000 + 4000  # a, c and their sum, then 8000 in place of a


@given(batch=st.integers(1, 70), fixed=st.integers(0, 50), each=st.integers(1, 20), limit=st.integers(1, 1500))
def test_as_many_samples_as_fit(batch: int, fixed: int, each: int, limit: int) -> None:
    found, taken = samples_that_fit(batch, lambda samples: fixed + each * samples, limit)
    assert 1 <= found <= batch and taken == fixed + each * found
    assert taken <= limit or found == 1
    more = 2 * found + 1
    assert found == batch or fixed + each * more > limit or taken > limit
    assert batch % found == 0 or not any(batch % other == 0 for other in range(-(-found // 2), found))


def in_parts(whole: Lesson, most: int, monkeypatch: pytest.MonkeyPatch) -> Lesson:
    """The same, where a step of more samples than that would take more than --memory."""
    monkeypatch.setattr(steps, "step_bytes", lambda graph, *_: next(iter(graph.graph.inputs)).shape[0] * 10**6)
    return replace(whole, recipe=replace(whole.recipe, memory=most / 1000), graphs={}, rooms={})


@pytest.mark.parametrize(("minibatch", "most"), [(16, 5), (12, 4), (16, 1)])
def test_a_minibatch_in_parts_is_the_minibatch(
    digits: Model, shaken: Model, samples: Data, minibatch: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen statistics: the same weights within rounding, and the report says in which parts."""
    whole = lesson(shaken, digits, samples, minibatch=minibatch, epochs=1, norms="frozen", optimizer="sgd", rate=0.05)
    one = train(whole)
    assert one.memory is not None and f"a step of {minibatch} samples takes about" in one.memory
    two = train(in_parts(whole, most, monkeypatch))
    parts = -(-minibatch // most)
    assert (
        two.memory is not None
        and f"{-(-minibatch // parts)} run at once" in two.memory
        and "--memory allows" in two.memory
    )
    moved = np.abs(weights(one.model) - weights(shaken)).max()
    assert np.abs(weights(one.model) - weights(two.model)).max() < 1e-4 * moved
    assert one.curve[0]["loss"] == pytest.approx(two.curve[0]["loss"], rel=1e-5)


def test_no_room_for_one_sample(digits: Model, shaken: Model, samples: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory was asked for, that is an error; where it is the machine's, the report warns and it is tried."""
    whole = lesson(shaken, digits, samples, epochs=1)
    short = in_parts(whole, 1, monkeypatch)
    short = replace(short, recipe=replace(short.recipe, memory=0.0005))
    with pytest.raises(
        SettingError, match=r"a step of one sample takes about 1 MB, more than the 0\.5 MB that --memory allows"
    ):
        train(short)
    monkeypatch.setattr(steps, "free_bytes", lambda: 1000)
    made = train(replace(whole, graphs={}, rooms={}))
    assert (
        made.memory is not None and "one sample takes about 1 MB, more than the 0.0008 MB that are free" in made.memory
    )
