"""Inner values as outputs, and shapes of all values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from generate import feeds
from zoo import ZOO

import onnxcompress.evidence.expose as expose
from onnxcompress.errors import ModelError
from onnxcompress.model import load
from onnxcompress.runtime.session import open_session

SEVERAL = {*sorted(ZOO)[::3], "if_branches", "loop_matmul", "attention_contrib", "split_channels"}


@pytest.mark.parametrize("name", sorted(SEVERAL))
def test_shapes_are_those_of_the_run(name: str) -> None:
    proto = ZOO[name]()
    model, feed = load(proto), feeds(proto, seed=0)
    shapes = expose.run_shapes(model, feed)
    plain = onnx.ModelProto.FromString(model.serialized)
    computed = [output for node in plain.graph.node for output in node.output if output in shapes]
    given = {output.name for output in plain.graph.output}
    plain.graph.output.extend(onnx.ValueInfoProto(name=each) for each in computed if each not in given)
    seen = open_session(plain.SerializeToString()).run(feed)
    assert {each: np.shape(seen[each]) for each in computed} == {each: shapes[each] for each in computed}
    read = {value for node in plain.graph.node for value in node.input if value} | given
    assert read <= shapes.keys()


def test_only_the_shapes_asked_for() -> None:
    proto = ZOO["conv_bn"]()
    model, feed = load(proto), feeds(proto, seed=0)
    name = next(iter(model.ir.graph)).outputs[0].name or ""
    every = expose.run_shapes(model, feed)
    assert expose.run_shapes(model, feed, [name, "x"]) == {name: every[name], "x": every["x"]}


def test_an_exposed_graph_holds_only_what_it_needs() -> None:
    model = load(ZOO["conv_bn"]())
    first = next(iter(model.ir.graph)).outputs[0].name or ""
    shown = expose.exposed(model, [first, "x", first])
    assert shown.outputs == (first,) and shown.left_out == {"x": "it is an input: the feed holds it"}
    proto = onnx.ModelProto.FromString(shown.model.message)
    assert len(proto.graph.node) == 1 and len(list(model.ir.graph)) > 1


def test_a_name_that_is_nowhere_is_an_error() -> None:
    model = load(ZOO["conv_chain"]())
    with pytest.raises(ModelError, match="no value of the graph is called 'w11'; the nearest name is 'w1'"):
        expose.exposed(model, ["w11"])


def test_weights_that_lie_in_a_file_are_read_there(tmp_path: Path) -> None:
    proto = ZOO["conv_bn"]()
    inside, feed = load(proto), feeds(proto, seed=0)
    ir.save(inside.ir.clone(), tmp_path / "m.onnx", external_data="m.onnx.data", size_threshold_bytes=0)
    model = inside.edited(ir.load(tmp_path / "m.onnx"))
    assert all(isinstance(value.const_value, ir.ExternalTensor) for value in model.initializers.values())
    name = [node.outputs[0].name or "" for node in model.ir.graph][-1]
    shown = expose.exposed(model, [name])
    assert (open_session(shown.model).run(feed)[name] == open_session(inside.serialized).run(feed)[name]).all()
    assert all(isinstance(value.const_value, ir.ExternalTensor) for value in model.initializers.values())
