"""Rows of the profile: all nodes, nested time counted once."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from onnxcompress.runtime.profile import own_times, profile, rows


def event(ts: int, dur: int, op: str, name: str) -> dict:
    return {"ts": ts, "dur": dur, "name": f"{name}_kernel_time", "args": {"op_name": op}}


def test_a_body_is_not_counted_twice() -> None:
    events = [event(12, 3, "Relu", "r"), event(10, 20, "If", "i"), event(20, 5, "Relu", "r"), event(40, 2, "Conv", "c")]
    assert own_times(events) == {("If", "i"): 12, ("Relu", "r"): 8, ("Conv", "c"): 2}


def test_rows_are_sorted_and_shares_add_up() -> None:
    table = rows({("Conv", "a"): 30.0, ("Relu", "b"): 60.0, ("Relu", "c"): 10.0}, runs=10)
    assert [(row.node, row.share, row.microseconds) for row in table] == [("b", 0.6, 6), ("a", 0.3, 3), ("c", 0.1, 1)]
    assert rows({}, 1) == []


def test_a_real_profile() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,256] x, float[256,256] w) => (float[N,256] y) {
        a = MatMul(x, w)  b = MatMul(a, w)  y = Softmax(b) }"""
    feeds = {"x": np.ones((64, 256), np.float32), "w": np.eye(256, dtype=np.float32)}
    table = profile(onnx.parser.parse_model(text).SerializeToString(), feeds, runs=3)
    assert sorted(row.op_type for row in table) == ["MatMul", "MatMul", "Softmax"]
    assert {row.type for row in table} == {"float"}
    assert sum(row.share for row in table) == pytest.approx(1)
    assert all(row.microseconds > 0 for row in table)
