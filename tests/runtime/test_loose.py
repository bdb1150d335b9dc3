"""Graphs with their arrays beside them: the same answers, the same memory."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from generate import feeds
from zoo import ZOO

from onnxcompress.model import load
from onnxcompress.model.save import to_bytes
from onnxcompress.runtime.loose import loose
from onnxcompress.runtime.session import open_session

SEVERAL = (
    "conv_bn",
    "mlp_matmul",
    "attention_static",
    "lstm",
    "float16",
    "double",
    "if_branches",
    "loop_matmul",
    "unet",
)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("smallest", [64, 1024])
def test_answers_are_those_of_the_whole_message(name: str, smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcompress.runtime.loose.SMALLEST", smallest)
    proto = ZOO[name]()
    model, feed = load(proto), feeds(proto, seed=0)
    wanted = open_session(to_bytes(model.ir)).run(feed)
    found = open_session(loose(model.ir)).run(feed)
    assert all(np.array_equal(found[key], wanted[key], equal_nan=True) for key in wanted)


def test_arrays_are_the_model_s_own_and_the_graph_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcompress.runtime.loose.SMALLEST", 0)
    model = load(ZOO["conv_bn"]())
    before = to_bytes(model.ir)
    made = loose(model.ir)
    assert made.arrays and all(np.shares_memory(array, model.array(name)) for name, array in made.arrays.items())
    told = {tensor.name: tensor for tensor in onnx.ModelProto.FromString(made.message).graph.initializer}
    assert all(not told[name].raw_data and list(told[name].dims) == list(a.shape) for name, a in made.arrays.items())
    assert to_bytes(model.ir) == before


def test_a_session_keeps_its_arrays() -> None:
    """onnxruntime reads them in place, so that they must live as long as it does."""
    proto = ZOO["conv_bn"]()
    feed = feeds(proto, seed=0)
    wanted = open_session(to_bytes(load(proto).ir)).run(feed)
    session = open_session(loose(load(proto).ir))
    held = [np.full(1 << 16, 7, np.float32) for _ in range(64)]  # what would be written over freed memory
    found = session.run(feed)
    assert held and all(np.array_equal(found[key], wanted[key]) for key in wanted)


def test_a_stream_gives_what_a_run_gives() -> None:
    proto = ZOO["unet"]()
    model, feed = load(proto), feeds(proto, seed=0)
    session = open_session(loose(model.ir), early=True)
    wanted = session.run(feed)
    found = {name: array.copy() for name, array in session.stream(feed)}
    assert list(found) == list(wanted) and all(np.array_equal(found[key], wanted[key]) for key in wanted)
