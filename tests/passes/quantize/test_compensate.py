"""The walk: rounded layers are fed what they will be fed, held-out rows are never worse, the same twice, portable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from generate import feeds
from laws import check_quantized
from zoo import ZOO

from onnxcompress.errors import ModelError
from onnxcompress.evidence.trial import Trial
from onnxcompress.model import Model, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.operators.layer import layers
from onnxcompress.passes import Fold, Quantize
from onnxcompress.passes.quantize.chosen import needed
from onnxcompress.passes.quantize.compensate import as_rounded
from onnxcompress.passes.quantize.levels import leveled, pairs_of
from onnxcompress.passes.quantize.portable import fits
from onnxcompress.passes.quantize.quantize import read
from onnxcompress.result import Result
from onnxcompress.run import run
from onnxcompress.runtime.session import open_session

from .calibrated import model_of

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")


def blocks(seed: int = 0) -> tuple[Model, dict[str, np.ndarray]]:
    """A dense, a depthwise and a grouped convolution, a residual sum and a product; inputs whose channels go together."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_t(5, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        **{"w1": normal(8, 4, 3, 3), "b1": normal(8), "w2": normal(8, 1, 3, 3), "b2": normal(8)},
        **{"w3": normal(8, 4, 1, 1), "b3": normal(8), "w4": normal(8, 6), "b4": normal(6)},
    }
    model = model_of(
        """agraph (float[N,4,8,8] x) => (float[N,6] y) {
             a = Conv <pads = [1,1,1,1]> (x, w1, b1)
             r = Relu(a)
             d = Conv <group = 8, pads = [1,1,1,1]> (r, w2, b2)
             g = Conv <group = 2> (d, w3, b3)
             s = Add(g, r)
             p = GlobalAveragePool(s)
             f = Flatten(p)
             y = Gemm(f, w4, b4)
           }""",
        constants,
    )
    mixed = rng.standard_normal((80, 2, 8, 8)) @ rng.standard_normal((8, 8))
    x = np.concatenate([mixed, mixed[:, ::-1] + 0.2 * rng.standard_normal(mixed.shape)], axis=1) + 1
    return model, {"x": x.astype(np.float32)}


def rounded(rounding: str, model: Model | Path | onnx.ModelProto, data: object, cpu: str = "any") -> Result:
    """All nodes in int8."""
    return run(model, [Fold(), Quantize(rounding=rounding, measure=False, cpu=cpu)], data)  # type: ignore[arg-type]


def held_out(result: Result) -> dict[str, tuple[float, float]]:
    """Weight -> SQNR of its layer with nearest levels, and with those chosen."""
    return {each["weight"]: each["held_out_db"] for each in result.plans[-1].decisions if each.get("held_out_db")}


@pytest.mark.parametrize("rounding", ["gptq", "descent"])
def test_no_layer_is_worse_on_held_out_rows_and_most_are_better(rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer, whatever the whole makes of it: that has its own judge (test_quantize.py)."""
    monkeypatch.setattr(Trial, "logits_db", lambda self, graphs, feeds=(): dict.fromkeys(graphs, 20.0))
    found = held_out(rounded(rounding, *blocks()))
    assert set(found) == {"w1", "w2", "w3", "w4"}
    assert all(after >= before for before, after in found.values())
    assert sum(after > before + 0.1 for before, after in found.values()) >= 2


@pytest.mark.parametrize("rounding", ["gptq", "descent"])
@pytest.mark.parametrize("cpu", ["any", "vnni"])
def test_levels_fit_16_bits_and_the_written_model_is_what_they_say(rounding: str, cpu: str) -> None:
    model, data = blocks(1)
    result = rounded(rounding, model, data, cpu)
    if cpu == "any":
        check_quantized(result.model, {"x": data["x"][:4]}, 0.02)
    decided = read(result.plans[-1])
    for layer in layers(model):
        matrix = layer.matrix(decided.weights[layer.weight].levels)
        assert fits(matrix.reshape(len(matrix), -1), pairs_of(layer, matrix, cpu == "any"))


def test_the_same_twice() -> None:
    first, second = (to_bytes(finished(rounded("gptq", *blocks()).model)) for _ in range(2))
    assert first == second


def test_digits_gain() -> None:
    nearest, gptq = (rounded(rounding, DIGITS, DATA).comparison for rounding in ("nearest", "gptq"))
    assert gptq.sqnr_db > nearest.sqnr_db  # type: ignore[union-attr,operator]


def test_the_walk_sees_what_the_written_model_computes() -> None:
    """The rounded float graph is what the pairs say, where onnxruntime fuses nothing; biases alone are finer."""
    model, data = blocks()
    result = rounded("nearest", model, data)
    decided = read(result.plans[-1])
    weights = {layer.weight: leveled(model, layer, portable=True, seen=None) for layer in layers(model)}
    grids = needed(model, decided.nodes, decided.grids)
    walked = as_rounded(model, decided.nodes, grids, weights)
    bare = run(model, [Fold(), Quantize(correct=False, rounding="nearest", measure=False)], data).model
    plain, one, two = (
        open_session(to_bytes(finished(each)), optimise=False).run({"x": data["x"]})["y"]
        for each in (model, walked, bare)
    )
    assert ((one - two) ** 2).mean() < 0.1 * ((plain - two) ** 2).mean()


def test_shared_weights_stay_nearest() -> None:
    rng = np.random.default_rng(0)
    model = model_of(
        """agraph (float[N,6] x) => (float[N,6] y) {
             h = Gemm(x, w, b)
             y = Gemm(h, w, b)
           }""",
        {"w": rng.standard_normal((6, 6)).astype(np.float32), "b": rng.standard_normal(6).astype(np.float32)},
    )
    result = rounded("gptq", model, {"x": rng.standard_normal((40, 6)).astype(np.float32)})
    assert held_out(result) == {}
    levels = read(result.plans[-1]).weights["w"].levels
    np.testing.assert_array_equal(levels, leveled(model, layers(model)[0], portable=True, seen=None).levels)
    assert isinstance(load(to_bytes(finished(result.model))), Model)
    onnx.checker.check_model(onnx.load_from_string(to_bytes(finished(result.model))))


@pytest.mark.parametrize("name", list(ZOO)[::12])
def test_any_model_of_the_zoo_can_be_walked(name: str) -> None:
    proto = ZOO[name]()
    try:
        result = rounded("gptq", proto, [feeds(proto, seed) for seed in range(6)])
    except ModelError as error:
        assert "nothing in it can be quantized" in str(error)
        return
    assert all(after >= before for before, after in held_out(result).values())
    assert open_session(to_bytes(finished(result.model))).run(feeds(proto, 0))
