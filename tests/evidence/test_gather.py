"""Shapes: run once, and carried over to what was cut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from generate import feeds
from zoo import ZOO

from onnxcompress.evidence import gather
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.evidence.gather import first_shapes
from onnxcompress.model import load
from onnxcompress.operators.layer import layers
from onnxcompress.passes import Prune
from onnxcompress.verbs import quantize

CUT = [name for name in ZOO if Prune().groups(load(ZOO[name]()))]


class One:
    """Data of one feed."""

    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        self.feed = feed

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        yield self.feed


@pytest.mark.parametrize("name", CUT)
def test_shapes_of_a_cut_model_are_those_of_a_run(name: str) -> None:
    proto = ZOO[name]()
    model, prune, data = load(proto), Prune(round_to=1), One(feeds(proto, 0))
    cut = prune.apply(model, prune.plan(model, {}))
    found, seen = first_shapes(cut, data, model), run_shapes(cut, data.feed)  # type: ignore[arg-type]
    assert found.items() <= seen.items()
    read = {name for layer in layers(cut) for name in (layer.reads, layer.writes)}
    assert read & seen.keys() <= found.keys()


@pytest.mark.parametrize("name", ("conv_bn", "attention_dynamic"))
def test_shapes_of_a_quantized_model_follow_without_a_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = ZOO[name]()
    model, data = load(proto), One(feeds(proto, 0))
    result = quantize(proto, data=[data.feed] * 4, measure=False, rounding="nearest").model
    seen = run_shapes(result, data.feed)
    first_shapes(model, data)  # type: ignore[arg-type]
    monkeypatch.setattr(gather, "run_shapes", None)
    assert first_shapes(result, data, model).items() <= seen.items()  # type: ignore[arg-type]


def test_a_model_is_run_once_for_its_shapes_and_a_cut_one_never(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, runs = ZOO["conv_chain"](), []
    monkeypatch.setattr(gather, "run_shapes", lambda *given: runs.append(given) or run_shapes(*given))
    model, prune, data = load(proto), Prune(round_to=1), One(feeds(proto, 0))
    for _ in range(2):
        first_shapes(model, data)  # type: ignore[arg-type]
    first_shapes(prune.apply(model, prune.plan(model, {})), data, model)  # type: ignore[arg-type]
    assert len(runs) == 1


def test_samples_of_another_shape_are_run_anew() -> None:
    model = load(ZOO["flatten_dynamic"]())
    for size in (1, 2):
        shapes = first_shapes(model, One({"x": np.zeros((size, 3, 8, 8), np.float32)}))  # type: ignore[arg-type]
        assert {shape[0] for value, shape in shapes.items() if value in ("x", model.ir.graph.outputs[0].name)} == {size}
