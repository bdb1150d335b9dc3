"""Quantize as a whole: laws on the zoo and on generated models, plans that are replayed, refusals, and the clock's part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from generate import feeds, models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import SAME, check_quantized, distance
from zoo import ZOO

from onnxcompress import DataError, ModelError, SettingError, prune, quantize
from onnxcompress.evidence.trial import Trial
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.passes import Fold, Quantize
from onnxcompress.result import Result
from onnxcompress.run import run
from onnxcompress.runtime.session import open_session
from onnxcompress.verbs import apply, save_plans

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")


def quantized(proto: onnx.ModelProto, seed: int = 0, samples: int = 4, rounding: str = "nearest") -> Result | None:
    """Every node that has an integer kernel, calibrated on random samples; None where there is none."""
    data = [feeds(proto, seed + number) for number in range(samples)]
    result = run(proto, [Fold(), Quantize(measure=False, rounding=rounding)], data)
    return result if any("node" in each for each in result.plans[-1].decisions) else None


FAR = {"batched_experts": 0.3, "lstm_last": 0.5}
"""Random weights that nearly cancel: a small output hangs on large numbers."""


REFUSED = {"matmul_weight_left", "no_weights", "float16", "double"}
"""No product of theirs has a kernel that reads grids found beforehand."""

HALFWAY = {"transpose_depthwise": 0.02, "softmax_channels": 0.02, "softmax_spatial": 0.02}
"""Two levels that a float sum lies between; share of the output's largest value."""


@pytest.mark.parametrize("name", ZOO)
def test_the_law_on_the_zoo(name: str) -> None:
    proto = ZOO[name]()
    result = quantized(proto)
    assert (result is None) == (name in REFUSED)
    if result is None:
        return
    inputs = feeds(proto, 0)
    check_quantized(result.model, inputs, HALFWAY.get(name, SAME))
    before, after = (
        open_session(each).run(inputs) for each in (proto.SerializeToString(), to_bytes(finished(result.model)))
    )
    assert distance(after, before, before) <= FAR.get(name, 0.1)


@pytest.mark.parametrize("name", ["conv_bn", "depthwise", "shuffle_grouped", "mlp_matmul", "attention_static", "crnn"])
def test_rounding_layer_by_layer_keeps_the_law(name: str) -> None:
    proto = ZOO[name]()
    result = quantized(proto, rounding="gptq", samples=8)
    assert result is not None
    check_quantized(result.model, feeds(proto, 0), HALFWAY.get(name, SAME))
    again = quantized(proto, rounding="gptq", samples=8)
    assert again is not None
    assert to_bytes(finished(again.model)) == to_bytes(finished(result.model))


def test_layers_make_up_for_what_was_lost_before_them() -> None:
    found = {
        rounding: quantize(DIGITS, data=DATA, measure=False, rounding=rounding).comparison.sqnr_db  # type: ignore[union-attr]
        for rounding in ("nearest", "gptq")
    }
    assert found["gptq"] > found["nearest"]  # type: ignore[operator]


@pytest.mark.parametrize("ranges", ["mse", "percentile"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_ranges_and_then_weights_are_those_with_the_best_answers(
    ranges: str, rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As logits_db of the whole model says, which here is made to say so; weights on samples that they were not fitted on."""

    def logits_db(self: Trial, graphs: dict[str, object], feeds: Sequence[object] = ()) -> dict[str, float]:
        assert bool(feeds) == ("gptq" in graphs)
        return {name: 20.0 + (name in (ranges, rounding)) for name in graphs}

    monkeypatch.setattr(Trial, "logits_db", logits_db)
    found = quantize(DIGITS, data=DATA, limit=40, measure=False).plans[2]
    grids = {each["value"]: (each["scale"], each["zero"]) for each in found.decisions if "value" in each}
    plain = quantize(DIGITS, data=DATA, limit=40, measure=False, calibration=ranges, rounding="nearest").plans[2]
    assert grids == {each["value"]: (each["scale"], each["zero"]) for each in plain.decisions if "value" in each}
    assert (rounding == "gptq") == any(each.get("held_out_db") for each in found.decisions)
    assert found.notes[0].startswith(f"ranges by {ranges}: ")
    assert (rounding == "nearest") == any(note.startswith("weights are nearest") for note in found.notes)


def test_synthetic_inputs_say_nothing_about_rounding() -> None:
    one, other = (quantize(DIGITS, measure=False, rounding=rounding) for rounding in ("nearest", "gptq"))
    assert to_bytes(finished(one.model)) == to_bytes(finished(other.model))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(proto=models(), seed=st.integers(0, 99))
def test_the_law_on_generated_models(proto: onnx.ModelProto, seed: int) -> None:
    result = quantized(proto, seed)
    if result is not None:
        check_quantized(result.model, feeds(proto, seed), 0.1)


def test_digits_from_python(tmp_path: Path) -> None:
    result = quantize(DIGITS, data=DATA, labels=DIGITS.with_name("digits_labels.npz"), measure=False)
    assert result.comparison is not None
    assert result.comparison.sqnr_db > 30  # type: ignore[operator]
    assert result.comparison.score is not None
    assert abs(result.comparison.score.drop) < 0.01
    assert result.after.bytes < 0.4 * result.before.bytes
    assert result.after.macs == result.before.macs
    again = quantize(DIGITS, data=DATA, measure=False)
    assert to_bytes(finished(again.model)) == to_bytes(finished(result.model))


def test_every_calibration_gives_grids_of_its_own() -> None:
    found = set()
    for calibration in ("minmax", "average", "percentile", "entropy", "mse", "output"):
        result = quantize(DIGITS, data=DATA, limit=64, measure=False, rounding="nearest", calibration=calibration)
        found.add(tuple(each["scale"] for each in result.plans[-2].decisions if "value" in each))
    assert len(found) == 6


def test_a_saved_plan_makes_the_same_file_and_fits_no_other_model(tmp_path: Path) -> None:
    result = quantize(DIGITS, data=DATA, limit=64, measure=False)
    save_plans(result.plans, tmp_path / "plan.json")
    replayed = apply(DIGITS, tmp_path / "plan.json", data=DATA, limit=64)
    assert to_bytes(finished(replayed.model)) == to_bytes(finished(result.model))
    with pytest.raises(ModelError, match="made for another model"):
        apply(to_bytes(finished(result.model)), tmp_path / "plan.json")


def test_a_quantized_model_is_recognised() -> None:
    result = quantize(DIGITS, data=DATA, limit=64, measure=False)
    with pytest.raises(ModelError, match="already quantized"):
        quantize(to_bytes(finished(result.model)), data=DATA, limit=64, measure=False)
    with pytest.raises(ModelError, match="quantized already"):
        prune(to_bytes(finished(result.model)))


def test_kept_nodes_stay_float_and_a_wrong_name_is_told_the_nearest() -> None:
    result = quantize(DIGITS, data=DATA, limit=64, measure=False, keep=("/stem", "/logits"))
    chosen = {each["node"] for each in result.plans[-2].decisions if "node" in each}
    assert "/residual1" in chosen
    assert not chosen & {"/stem", "/logits"}
    with pytest.raises(SettingError, match="/stem"):
        quantize(DIGITS, data=DATA, limit=64, measure=False, keep=("/stam",))


def test_a_file_that_is_integers_in_part_says_so(tmp_path: Path) -> None:
    """The tail of digits in onnxruntime's own integer operators, the head in float: the head becomes integers too."""
    head = quantize(DIGITS, data=DATA, limit=64, measure=False, rounding="nearest", form="qoperator", keep=("/stem",))
    head.save(tmp_path / "partly.onnx")
    result = quantize(tmp_path / "partly.onnx", data=DATA, limit=64, measure=False, rounding="nearest")
    (note,) = [each for each in result.plans[-2].notes if "compute on integers already" in each]
    held = [node for node in onnx.load(tmp_path / "partly.onnx").graph.node if node.op_type in ("QLinearConv", "QGemm")]
    assert int(note.split()[0]) >= len(held) > 0
    assert "/stem" in {each.get("node") for each in result.plans[-2].decisions}
    assert not [each for plan in head.plans for each in plan.notes if "already" in each]


def test_where_no_activation_can_weights_still_are_integers() -> None:
    result = quantize(ZOO["if_whole_net"](), measure=False, smallest=0)
    assert "activations stay float" in result.plans[-2].notes[0]
    assert result.plans[-1].decisions
    with pytest.raises(ModelError, match="nothing in it can be quantized"):
        quantize(ZOO["no_weights"](), measure=False)


def test_ranges_that_are_not_finite_name_the_tensor() -> None:
    model = onnx.load(DIGITS)
    samples = np.load(DATA)["image"][:16].copy()
    samples[3] *= np.float32(3e38)
    with pytest.raises(DataError, match="becomes"):
        quantize(model, data={"image": samples}, measure=False)


def test_integer_inputs_and_outputs() -> None:
    result = quantize(DIGITS, data=DATA, limit=64, measure=False, io="int8")
    types = [str(value.dtype) for value in (*result.model.ir.graph.inputs, *result.model.ir.graph.outputs)]
    assert types == ["UINT8", "UINT8"]


def test_ends_that_only_a_body_reads_and_writes_stay_float_and_say_so() -> None:
    result = quantize(ZOO["if_whole_net"](), measure=False, smallest=0, io="int8")
    graph = result.model.ir.graph
    assert [str(value.dtype) for value in graph.outputs] == ["FLOAT"]
    told = [note for note in result.notes if "stays float" in note]
    assert any(note.startswith(f"{graph.outputs[0].name!r} stays float: If") for note in told)


def test_symmetric_activations_have_zero_in_the_middle() -> None:
    result = quantize(DIGITS, data=DATA, limit=64, measure=False, rounding="nearest", calibration="mse", symmetric=True)
    grids = [each for each in result.plans[-2].decisions if "value" in each]
    assert {each["zero"] for each in grids if each["scale"] != 1 / 256} == {
        128
    }  # Sigmoid's kernel has a grid of its own
    check_quantized(result.model, {"image": np.load(DATA)["image"][:4]})


class Slow:
    """A clock by which int8 convolutions take longer and everything else is free: no test depends on a real one."""

    def __init__(self, float_ms: float) -> None:
        self.float_ms = float_ms

    def milliseconds(self, graphs: dict, seconds: float) -> dict[str, float]:  # type: ignore[type-arg]
        ms = {name: 1.0 + 0.5 * self._convolutions(graph) for name, graph in graphs.items()}
        return {**ms, "float": self.float_ms}

    @staticmethod
    def _convolutions(graph) -> int:  # type: ignore[no-untyped-def]
        fed = [node.inputs[1].producer() for node in graph.graph if node.op_type == "Conv"]
        return sum(made is not None for made in fed)


@pytest.mark.parametrize(("float_ms", "left"), [(100.0, {"Gemm"}), (0.5, set())])
def test_what_the_clock_says_slower_stays_float(monkeypatch, float_ms: float, left: set[str]) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(
        Trial, "milliseconds", lambda self, graphs, seconds: Slow(float_ms).milliseconds(graphs, seconds)
    )
    result = quantize(DIGITS, data=DATA, limit=64)
    products = {each["op"] for each in result.plans[-2].decisions if each.get("form") == "product"}
    assert products == left
    assert any("stays float" in note or "nothing is int8" in note for note in result.plans[-2].notes)
    assert result.comparison is not None
    assert result.comparison.sqnr_db is not None
