"""What every pass must keep, as functions that the tests call on zoo, generated and real models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnxcompress.channels import analyse, cut, zero
from onnxcompress.model import Model, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.passes.quantize.walked import Simulation
from onnxcompress.runtime.session import open_session

CUT_EQUALS_ZEROED = 1e-4
"""Of each output's largest value."""

SAME = 1e-5
"""A normalised model beside the original: rounding of fused operators."""

Feeds = Mapping[str, np.ndarray]


def distance(found: Feeds, wanted: Feeds, scale: Feeds) -> float:
    """The largest difference over all outputs, as a share of each one's largest value (in `wanted` or `scale`)."""
    worst = 0.0
    for name, y in wanted.items():
        assert found[name].shape == y.shape, f"{name}: {found[name].shape} beside {y.shape}"
        if y.dtype.kind != "f":
            continue
        top = max(
            float(np.abs(y.astype(np.float64)).max(initial=0)),
            float(np.abs(scale[name].astype(np.float64)).max(initial=0)),
        )
        worst = max(worst, float(np.abs(found[name].astype(np.float64) - y).max(initial=0)) / max(top, 1e-12))
    return worst


def draw(model: Model, share: float, seed: int) -> np.ndarray:
    """Units of every group that go: about `share`, never all."""
    rng = np.random.default_rng(seed)
    groups = [group for group in analyse(model).groups if group.size > 1]
    chosen = [
        rng.permutation(group.units)[: min(max(1, round(group.size * share)), group.size - 1)] for group in groups
    ]
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def check_door(proto: onnx.ModelProto, feeds: Feeds, tolerance: float = SAME) -> Model:
    """Normalising changes nothing, keeps the signature, establishes the invariants and gives the same bytes twice."""
    model = load(proto)
    assert not violations(model)
    original, written = open_session(proto.SerializeToString()), open_session(to_bytes(finished(model)))
    assert (written.inputs, written.outputs) == (original.inputs, original.outputs)
    before = original.run(feeds)
    assert distance(written.run(feeds), before, before) <= tolerance
    assert load(proto).serialized == model.serialized
    return model


def _shapes_agree(data: bytes) -> bool:
    try:
        onnx.shape_inference.infer_shapes(data, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def check_cut(model: Model, feeds: Feeds, share: float, seed: int, tolerance: float = CUT_EQUALS_ZEROED) -> Model:
    """A cut model equals the original with the same units zeroed, keeps its signature, and is made the same twice."""
    channels, gone = analyse(model), draw(model, share, seed)
    narrow, zeroed = cut(model, channels, gone), zero(model, channels, gone)
    assert not violations(narrow)
    data = to_bytes(finished(narrow))
    assert data == to_bytes(finished(cut(model, channels, gone)))
    # recorded shapes agree with inferred ones, but for an exporter's own mistakes, which the file keeps
    onnx.checker.check_model(data, full_check=_shapes_agree(to_bytes(finished(model))))
    signature = [(v.name, str(v.type), str(v.shape)) for v in (*model.ir.graph.inputs, *model.ir.graph.outputs)]
    assert signature == [
        (v.name, str(v.type), str(v.shape)) for v in (*narrow.ir.graph.inputs, *narrow.ir.graph.outputs)
    ]
    whole = open_session(model.serialized).run(feeds)
    assert distance(open_session(data).run(feeds), open_session(to_bytes(zeroed.ir)).run(feeds), whole) <= tolerance
    return narrow


def check_quantized(model: Model, feeds: Feeds, tolerance: float = SAME) -> None:
    """A quantized graph is legal, and onnxruntime answers as numpy does in integers, with 16-bit sums and without.

    Within `tolerance` of an output's largest value: float operators between the integer ones are fused by onnxruntime, not by
    numpy, and what then lies halfway between two levels may take either.
    """
    assert not violations(model)
    data = to_bytes(finished(model))
    onnx.checker.check_model(data)
    answers = open_session(data).run(feeds)
    exact, saturating = (Simulation(model.ir, saturate=way, every=True).run(feeds).outputs for way in (False, True))
    assert all(np.array_equal(exact[name], saturating[name]) for name in exact)
    assert distance(answers, exact, answers) <= tolerance
