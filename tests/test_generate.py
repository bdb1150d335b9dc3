"""The test models themselves: valid, runnable and finite, or the laws on top of them would prove nothing."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from generate import BLOCKS, BRIDGES, Graph, feeds, models, start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo import NOT_RUNNABLE, REPAIRABLE, ZOO, Sample

LARGEST = 1e3
"""Of any output of a generated model: beyond it float32 noise would drown a law's tolerance."""


QUIET = settings(
    max_examples=50, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def outputs(model: onnx.ModelProto, batch: int = 2) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, feeds(model, 0, batch))
    return results


@pytest.mark.parametrize("sample", ZOO.values(), ids=ZOO)
def test_zoo_is_valid_runs_and_is_finite(sample: Sample) -> None:
    model = sample()
    onnx.checker.check_model(model, full_check=True)
    results = outputs(model)
    assert all(np.isfinite(y).all() and y.any() for y in results)


@pytest.mark.parametrize("sample", [*ZOO.values(), *REPAIRABLE.values(), *NOT_RUNNABLE.values()], ids=lambda s: s.name)
def test_zoo_is_deterministic_and_its_facts_name_weights(sample: Sample) -> None:
    model = sample()
    assert model.SerializeToString(deterministic=True) == sample().SerializeToString(deterministic=True)
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    assert {name for key in [*sample.free, *sample.frozen] for name in key.split()} <= weights


@pytest.mark.parametrize("sample", REPAIRABLE.values(), ids=REPAIRABLE)
def test_repairable_does_not_run_as_it_is(sample: Sample) -> None:
    with pytest.raises(Exception, match=r"(?i)same node name|not output of any previous|sorted|invalid"):
        onnx.checker.check_model(sample(), full_check=True)
        outputs(sample())


def check(model: onnx.ModelProto, batch: int) -> None:
    """Valid, of the declared shapes, finite and of sane size."""
    onnx.checker.check_model(model, full_check=True)
    for y, value in zip(outputs(model, batch), model.graph.output, strict=True):
        declared = [axis.dim_value or batch for axis in value.type.tensor_type.shape.dim]
        assert list(y.shape) == declared
        assert np.isfinite(y).all() and np.abs(y).max() < LARGEST


@QUIET
@given(model=models(), batch=st.integers(1, 3))
def test_generated_models_are_valid_run_and_stay_finite(model: onnx.ModelProto, batch: int) -> None:
    check(model, batch)


@st.composite
def with_one_block(draw: st.DrawFn, kind: str, name: str) -> onnx.ModelProto | None:
    """The kind's input, a layer and this block alone; None where it does not fit."""
    g, chosen = Graph(draw(st.integers(17, 21)), 0), BLOCKS[kind][name]
    source, t = start(g, kind, draw)
    if not chosen.fits(t):
        return None
    after = chosen.build(g, t, draw)
    assert after.size == t.size or not chosen.keeps
    return g.model(source, [after.to(g.op("Identity", after.name))])


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in BLOCKS.items() for name in table])
def test_every_block_fits_somewhere_and_is_valid(kind: str, name: str) -> None:
    """A block whose `fits` never holds, or that random paths seldom reach, would go unnoticed."""
    built = []

    @settings(QUIET, max_examples=20)
    @given(model=with_one_block(kind, name))
    def build(model: onnx.ModelProto | None) -> None:
        if model is not None:
            built.append(name)
            check(model, 2)

    build()
    assert built


@st.composite
def with_one_bridge(draw: st.DrawFn, path: tuple[str, str], way: int) -> onnx.ModelProto:
    g = Graph(draw(st.integers(17, 21)), 0)
    source, t = start(g, path[0], draw)
    after = BRIDGES[path][way](g, t)
    assert after.kind == path[1]
    return g.model(source, [after])


@pytest.mark.parametrize(("path", "way"), [(path, i) for path, ways in BRIDGES.items() for i in range(len(ways))])
def test_every_bridge_is_valid(path: tuple[str, str], way: int) -> None:
    @settings(QUIET, max_examples=5)
    @given(model=with_one_bridge(path, way))
    def build(model: onnx.ModelProto) -> None:
        check(model, 2)

    build()
