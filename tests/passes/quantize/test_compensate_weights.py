"""Integer weights rounded on data: better than the nearest, never worse layer by layer, in every layout, replayed from a plan."""

from __future__ import annotations

import numpy as np
import pytest
from laws import distance

from onnxcompress import quantize
from onnxcompress.errors import SettingError
from onnxcompress.evidence.trial import Trial
from onnxcompress.model import Model
from onnxcompress.model.edit import walk
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.passes import QuantizeWeights
from onnxcompress.passes.quantize.found import Weight
from onnxcompress.passes.quantize.integers import decoded
from onnxcompress.passes.quantize.portable import fits, pairing
from onnxcompress.passes.quantize.weights_only import read
from onnxcompress.result import Result
from onnxcompress.run import run
from onnxcompress.runtime.session import open_session
from onnxcompress.verbs import apply, save_plans

from .calibrated import model_of

rng = np.random.default_rng(7)
WAYS: dict[str, dict[str, object]] = {
    "four": {"bits": 4},
    "four, rebuilt": {"bits": 4, "decode": "load"},
    "eight": {},
    "eight in blocks": {"block": 32},
    "dynamic": {"dynamic": "all"},
    "descent": {"bits": 4, "rounding": "descent"},
}


def layered() -> tuple[Model, dict[str, np.ndarray]]:
    """A product with a bias, a Gemm of either layout and a convolution; inputs whose channels go together."""

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_t(5, shape) / np.sqrt(shape[0])).astype(np.float32)

    constants = {
        **{"w1": normal(64, 64), "b1": normal(64), "w2": normal(96, 64), "b2": normal(96), "w3": normal(96, 32)},
        **{"b3": normal(32), "w4": normal(8, 2, 3, 3), "shape": np.array([-1, 2, 4, 4])},
    }
    model = model_of(
        """agraph (float[N,64] x) => (float[N,8,4,4] y) {
             m = MatMul(x, w1)
             a = Add(m, b1)
             r = Relu(a)
             g = Gemm <transB = 1> (r, w2, b2)
             s = Relu(g)
             h = Gemm(s, w3, b3)
             i = Reshape(h, shape)
             y = Conv <pads = [1,1,1,1]> (i, w4)
           }""",
        constants,
    )
    x = rng.standard_normal((240, 12)) @ rng.standard_normal((12, 64)) + 0.05 * rng.standard_normal((240, 64)) + 0.5
    return model, {"x": x.astype(np.float32)}


def rounded(model: Model, data: dict[str, np.ndarray], **ways: object) -> Result:
    """Every weight, however small."""
    each = QuantizeWeights(**{"smallest": 0, "least_db": -100.0, "measure": False, **ways})  # type: ignore[arg-type]
    return run(model, [each], data)


@pytest.mark.parametrize("way", WAYS)
def test_compensated_integers_answer_better(way: str) -> None:
    model, data = layered()
    nearest, found = (rounded(model, data, **{**WAYS[way], **extra}) for extra in ({"rounding": "nearest"}, {}))
    db = [result.comparison.sqnr_db for result in (nearest, found)]  # type: ignore[union-attr]
    assert db[1] > db[0] + 1  # type: ignore[operator]
    told = {each["weight"]: each["held_out_db"] for each in found.plans[0].decisions}
    assert set(told) == {"w1", "w2", "w3", "w4"} and all(after >= before for before, after in told.values())
    assert {each["weight"]: each["form"] for each in found.plans[0].decisions} == {
        each["weight"]: each["form"] for each in nearest.plans[0].decisions
    }


@pytest.mark.parametrize("way", ["four", "four, rebuilt", "eight in blocks"])
def test_the_written_model_is_what_its_integers_say(way: str) -> None:
    model, data = layered()
    result = rounded(model, data, **WAYS[way])
    plan, told = result.plans[0], {}
    for each in plan.decisions:
        weight = Weight(each["weight"], each["op"], None, tuple(each["nodes"]), each["form"], 0)
        told[weight.name] = decoded(read(each, plan.arrays), model.array(weight.name).shape, weight, each["form"])
    told |= {key.removeprefix("bias/"): array for key, array in plan.arrays.items() if key.startswith("bias/")}
    assert set(told) > {"w1", "b1", "w2", "w3", "w4"}
    wanted, found = (
        open_session(to_bytes(finished(each))).run(data) for each in (model.with_constants(told), result.model)
    )
    assert distance(found, wanted, wanted) <= 0.05  # MatMulNBits rounds what it reads to int8


def test_dynamic_products_still_cannot_saturate() -> None:
    model, data = layered()
    plan = rounded(model, data, dynamic="all").plans[0]
    for each in plan.decisions:
        if each["form"] == "dynamic":
            levels = plan.arrays[f"levels/{each['weight']}"].astype(np.int32)
            rows = levels if each["weight"] == "w2" else levels.T
            assert fits(rows, pairing(each["op"], rows.shape))


def test_made_up_data_round_nothing() -> None:
    model, _ = layered()
    plan = rounded(model, None, bits=4).plans[0]  # type: ignore[arg-type]
    assert not any(key.startswith("bias/") for key in plan.arrays) and not any(
        "held_out_db" in d for d in plan.decisions
    )


def test_the_nearest_stay_where_the_whole_answers_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = layered()
    monkeypatch.setattr(Trial, "logits_db", lambda self, graphs, feeds: {"nearest": 7.0, "gptq": 5.0})
    result = rounded(model, data, bits=4)
    bare = rounded(model, data, bits=4, rounding="nearest")
    assert result.plans[0].notes == ["weights are nearest: gptq gave 5.0 dB on samples kept back, and these 7.0"]
    assert to_bytes(finished(result.model)) == to_bytes(finished(bare.model))


def test_a_plan_is_replayed_with_its_biases(tmp_path: object) -> None:
    model, data = layered()
    result = quantize(
        model.source.runnable, data=data, mode="weights", bits=4, measure=False, smallest=0, least_db=-100.0
    )
    save_plans(result.plans, f"{tmp_path}/plan.json")
    again = apply(model.source.runnable, f"{tmp_path}/plan.json", data=data)
    assert to_bytes(finished(again.model)) == to_bytes(finished(result.model))
    assert {node.op_type for node in walk(again.model.ir)} >= {"MatMulNBits"}


def test_static_leaves_the_rest_nearest_and_says_what_it_does_not_know() -> None:
    model, data = layered()
    result = quantize(model.source.runnable, data=data, measure=False, rounding="descent")
    assert [plan.settings["rounding"] for plan in result.plans if "rounding" in plan.settings] == ["descent", "nearest"]
    with pytest.raises(SettingError, match="rounding"):
        quantize(model.source.runnable, data=data, mode="weights", rounding="up")
