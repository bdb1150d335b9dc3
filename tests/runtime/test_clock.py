"""The clock on models of known relation: twice the work, the same file twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as make
import onnx.numpy_helper
import pytest

from onnxcompress.errors import DataError, ModelError
from onnxcompress.runtime.clock import FEWEST_RUNS, measure, paired_ms, size_on_disk


def chain(matmuls: int, width: int = 256) -> onnx.ModelProto:
    """x [N, width] through `matmuls` products with one weight."""
    weight = onnx.numpy_helper.from_array(np.eye(width, dtype=np.float32), "w")
    nodes = [make.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(matmuls)]
    kind = onnx.TensorProto.FLOAT
    graph = make.make_graph(
        nodes,
        "g",
        [make.make_tensor_value_info("x0", kind, ["N", width])],
        [make.make_tensor_value_info(f"x{matmuls}", kind, ["N", width])],
        [weight],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)


FEEDS = {"x0": np.ones((64, 256), np.float32)}


def test_two_models_are_timed_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "long.onnx"
    path.write_bytes(chain(16).SerializeToString())
    shares: list[float] = []
    long, short = measure(
        {"long": path, "short": chain(1).SerializeToString()}, FEEDS, runs=9, memory=False, progress=shares.append
    )
    assert (long.name, short.name) == ("long", "short") and long.runs == short.runs == 9
    assert long.ratio == 1.0 and short.ratio > 0
    for timing in (long, short):
        assert 0 < timing.p10_ms <= timing.median_ms <= timing.p90_ms and timing.load_ms > 0
        assert timing.peak_bytes is None and timing.memory_bytes is None
        json.dumps(timing.to_json(), allow_nan=False)
    assert long.file_bytes == path.stat().st_size
    assert shares[-1] == 1.0 and shares == sorted(shares)


def test_memory_is_that_of_the_model_not_of_the_caller() -> None:
    ballast = np.ones(60_000_000)  # 480 MB here must not be seen there
    small, large = (
        measure({"m": chain(1, width).SerializeToString()}, {"x0": np.ones((1, width), np.float32)}, runs=1)[0]
        for width in (64, 2048)
    )
    assert ballast.nbytes > 400e6
    assert small.peak_bytes is not None and small.peak_bytes < 300e6
    assert small.memory_bytes is not None and large.memory_bytes is not None
    assert large.memory_bytes - small.memory_bytes > 0.8 * 2048 * 2048 * 4


def test_a_time_budget_ends_it() -> None:
    (timing,) = measure({"m": chain(1).SerializeToString()}, [FEEDS, FEEDS], seconds=0.0, memory=False)
    assert timing.runs == 5


def test_paired_times_run_every_model_on_every_feed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only runs move on: how much faster each is follows from the rounds alone."""
    now, ran = [0.0], []
    took = {"one": [4.0, 8.0], "two": [1.0, 2.0]}  # as much slower on the second feed, as on a machine that drifts

    class Timed:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, feeds: dict[str, int]) -> None:
            ran.append((self.name, feeds["x"]))
            now[0] += took[self.name][feeds["x"]]

    monkeypatch.setattr("onnxcompress.runtime.clock.open_session", lambda model, *, threads, name: Timed(name))
    monkeypatch.setattr("onnxcompress.runtime.clock.time.perf_counter", lambda: now[0])
    found = paired_ms({"one": b"", "two": b""}, [{"x": 0}, {"x": 1}], seconds=0.0)
    assert ran[:2] == [("one", 0), ("two", 0)]  # warm, not timed
    rounds = [ran[2:][2 * number : 2 * number + 2] for number in range(FEWEST_RUNS)]
    assert len(ran) == 2 + 2 * FEWEST_RUNS
    assert [sorted(each) for each in rounds] == [[(name, number % 2) for name in took] for number in range(FEWEST_RUNS)]
    assert len({each[0][0] for each in rounds}) == 2  # now one goes first, now the other
    assert found == {"one": 4000.0, "two": 1000.0}  # the first one's median, by the paired ratios


def test_external_data_counts(tmp_path: Path) -> None:
    proto = chain(1)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert size_on_disk(path) == path.stat().st_size + (tmp_path / "w.bin").stat().st_size
    assert (tmp_path / "w.bin").stat().st_size >= 256 * 256 * 4
    (timing,) = measure({"m": path}, FEEDS, runs=1)
    assert timing.file_bytes == size_on_disk(path) and timing.memory_bytes is not None


def test_errors_are_ours() -> None:
    good = chain(1).SerializeToString()
    with pytest.raises(ModelError, match="does not load"):
        measure({"bad": b"no"}, FEEDS, runs=1)
    with pytest.raises(DataError, match="takes x0"):
        measure({"m": good}, {"x0": np.ones((1, 3), np.float32)}, runs=1, memory=False)
