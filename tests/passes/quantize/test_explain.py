"""What each rounding alone brings: beside graphs in which it really is alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from zoo import ZOO

from onnxcompress.evidence import trial
from onnxcompress.evidence.kinds import histogram
from onnxcompress.model import load
from onnxcompress.model.save import to_bytes
from onnxcompress.passes import Quantize
from onnxcompress.passes.quantize.chosen import connected, needed
from onnxcompress.passes.quantize.explain import Brought, Touched, gated, of_node, of_value
from onnxcompress.passes.quantize.grid import grid_of
from onnxcompress.passes.quantize.pen import Decided
from onnxcompress.passes.quantize.write import write
from onnxcompress.run import How, run
from onnxcompress.runtime.session import open_session

from .calibrated import db, decided, feeds_of, model_of
from .outlier import outlier_model, samples

PLAIN = {"measure": False, "correct": False, "calibration": "minmax"}


def explained() -> list[dict[str, Any]]:
    quantizer = Quantize(explain=True, **PLAIN)  # type: ignore[arg-type]
    return run(outlier_model(), [quantizer], samples(), how=How(batch=64)).plans[0].decisions


def test_each_node_brings_what_it_brings_when_it_alone_is_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "FEEDS", 64)  # samples of 16 numbers: four of them say little
    names = ("first", "second", "third")
    nodes = {each["node"]: each for each in explained() if each.get("node") in names}
    for name in names:
        quantizer = Quantize(keep=tuple(other for other in names if other != name), **PLAIN)  # type: ignore[arg-type]
        alone = run(outlier_model(), [quantizer], samples()).comparison
        assert alone is not None and alone.sqnr_db == pytest.approx(nodes[name]["alone_db"], abs=3.0)
    assert nodes["third"]["mostly"] == "what it reads" and nodes["second"]["mostly"] == "what it writes"
    assert nodes["third"]["alone_db"] < nodes["first"]["alone_db"] - 20


def test_the_bad_value_shows_in_its_bits() -> None:
    values = {each["value"]: each for each in explained() if "bits" in each}
    worst = min(values.values(), key=lambda each: each["alone_db"])
    assert worst["value"] == "k" and worst["bits"] == min(each["bits"] for each in values.values())


@pytest.mark.parametrize("name", ["residual_identity", "squeeze_excite", "dense_concat"])
def test_shut_gates_are_the_float_model_and_open_ones_the_quantized_one(name: str) -> None:
    model = load(ZOO[name]())
    feeds = feeds_of(model)
    nodes, grids, weights = decided(model, feeds)
    nodes = set(connected(model, nodes))
    grids = needed(model, nodes, grids)
    graph, openings, _, _ = gated(model, Decided(nodes, grids, weights))
    session = open_session(to_bytes(graph))
    gates = [gate for names in openings.values() for gate in names]
    float_, written = open_session(to_bytes(model.ir)), open_session(to_bytes(write(model, nodes, grids, weights).ir))
    for output in float_.run(feeds[0]):
        shut, opened = (
            session.run({**feeds[0], **dict.fromkeys(gates, np.asarray(g, np.float32))})[output] for g in (0, 1)
        )
        exact, rounded = float_.run(feeds[0])[output], written.run(feeds[0])[output]
        assert np.allclose(shut, exact, atol=1e-5 * np.abs(exact).max())
        assert db(exact, rounded) < 60
        assert db(rounded, opened) > db(exact, rounded) + 6


def test_constant_operands_have_a_place_of_their_own() -> None:
    text = """agraph (float[1,4,6,6] x) => (float[1,4,4,4] y) {
        [one] a = Conv(x, w)
        [add] c = Add(a, k)
        [two] y = Conv(c, v)
    }"""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1), "k": (1, 1, 4, 4)}
    model = model_of(text, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    graph, openings, touched, _ = gated(model, Decided(*decided(model, feeds_of(model))))
    assert "constants/add" in openings and touched["add"].own == ("constants/add",)
    assert to_bytes(graph)


def test_a_place_counts_once_for_a_node_that_reads_it_twice() -> None:
    found = Brought({"value/a": 0.01}, {"square": Touched((), ("value/a",), (), ("value/a",))}, {"a": "value/a"})
    told = of_node(found, "square")
    assert told["alone_db"] == pytest.approx(20) and told["mostly"] == "what it reads"
    assert of_node(found, "reshape") == {}


def test_bits_and_clipping_of_a_value() -> None:
    found = Brought({}, {}, {})
    entries = np.linspace(-1, 1, 100_001, dtype=np.float32)[:, None]
    seen = histogram(entries, 1.0)
    whole = of_value(found, "x", grid_of(-1.0, 1.0, "uint8", symmetric=False), seen)
    half = of_value(found, "x", grid_of(-0.5, 0.5, "uint8", symmetric=False), seen)
    wide = of_value(found, "x", grid_of(-16.0, 16.0, "uint8", symmetric=False), seen)
    assert whole["bits"] == pytest.approx(8, abs=0.05) and whole["clipped"] < 0.01
    assert half["clipped"] == pytest.approx(0.5, abs=0.01)
    assert wide["bits"] == pytest.approx(4, abs=0.2)
    assert len(whole["histogram"]) == 64 and sum(whole["histogram"]) == pytest.approx(seen.count, rel=1e-3)
    assert whole["seen"] == [-1.0, 1.0]
