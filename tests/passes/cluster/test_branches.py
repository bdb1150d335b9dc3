"""Weights in branches of If are made up for on the samples that take them; what nobody takes keeps its codes and is named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxcompress
from onnxcompress.data import open_data
from onnxcompress.evidence.branches import paths
from onnxcompress.model import load
from onnxcompress.model.save import to_bytes
from onnxcompress.operators.layer import layers
from onnxcompress.runtime.session import open_session

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[64,48] x, bool c) => (float[64,24] y) {
    h = MatMul(x, first)
    r = Relu(h)
    y = If (c) <
        then_branch = one () => (float[64,24] p) { a = MatMul(r, mine)  e = Relu(a)  p = MatMul(e, both) },
        else_branch = other () => (float[64,24] q) { b = MatMul(r, yours)  f = Tanh(b)  q = MatMul(f, both) }
    >
}
"""


def branched() -> bytes:
    rng, model = np.random.default_rng(0), parser.parse_model(MODEL)
    for name, shape in {"first": (48, 40), "mine": (40, 32), "yours": (40, 32), "both": (32, 24)}.items():
        values = (rng.standard_normal(shape) * rng.gamma(1, 1, shape)).astype(np.float32) / 6
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def samples(count: int, taken: str) -> list[dict[str, np.ndarray]]:
    """Few directions, so that there is something to make up for."""
    rng = np.random.default_rng(1)
    mix = rng.standard_normal((6, 48)).astype(np.float32)
    rows = rng.standard_normal((count, 64, 6)).astype(np.float32) @ mix
    rows += rng.normal(0, 0.05, rows.shape).astype(np.float32)
    return [{"x": each, "c": np.array(taken[i % len(taken)] == "t")} for i, each in enumerate(rows)]


@pytest.mark.parametrize("taken", ["t", "f", "tff"])
def test_paths_compute_what_the_model_does(taken: str) -> None:
    model, session = load(branched()), open_session(branched())
    data = open_data(samples(9, taken), session.inputs)
    names = {layer.name for layer in layers(model)}
    found = list(paths(model, names, data))
    assert [each.samples for _, each in found] == ([6, 3] if taken == "tff" else [9])
    for made, own in found:
        assert all(node.op_type != "If" for node in made.ir.graph)
        assert len(list(made.initializers["both"].uses())) == 2
        straight = open_session(to_bytes(made.ir))
        for feed in own.batches(1):
            assert np.array_equal(straight.run(feed)["y"], session.run(feed)["y"])


def clustered(taken: str, **settings: object) -> onnxcompress.Result:
    return onnxcompress.cluster(branched(), bits=3, data=samples(24, taken), rate="none", smallest=256, **settings)


def test_both_branches_are_walked() -> None:
    plain, found = clustered("tf", assign="nearest"), clustered("tf")
    walked = {
        each["weight"]: each["held_out_db"] - each["plain_db"] for each in found.plan.decisions if "plain_db" in each
    }
    assert {"first", "mine", "yours"} == set(walked) and min(walked["mine"], walked["yours"]) > 2
    assert found.comparison.outputs[0].sqnr_db > plain.comparison.outputs[0].sqnr_db + 2
    (note,) = [note for note in found.plan.notes if "nothing made up for" in note]
    assert "(both)" in note and "mine" not in note


def test_what_no_sample_takes_is_named() -> None:
    found = clustered("t")
    assert {each["weight"] for each in found.plan.decisions if "held_out_db" in each} == {"first", "mine"}
    (note,) = [note for note in found.plan.notes if "nothing made up for" in note]
    assert "1 in branches that no sample takes (yours)" in note
