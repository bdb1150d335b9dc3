"""prune with training: rounds of cut, repair and lesson; Network Slimming; plans that hold what was learned; bad input in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcompress
from onnxcompress.errors import ModelError, SettingError
from onnxcompress.methods.rounds import Slim, scales_of
from onnxcompress.model import load
from onnxcompress.passes import Prune
from onnxcompress.verbs import save_plans
from tests.cli.conftest import DATA, LABELS, MODEL, Run, cli

__all__ = ["cli"]

CUT = {"data": DATA, "criterion": "l2", "labels": LABELS, "target_macs": 0.15, "limit": 200}


def agreement(**settings: object) -> float:
    found = onnxcompress.prune(MODEL, **{**CUT, **settings}).comparison  # type: ignore[arg-type]
    assert found is not None and found.agreement is not None
    return found.agreement


def test_training_after_each_round_beats_the_cut_alone() -> None:
    """Without repair: 8 of 100 decisions agree after one cut, 82 after two with 6 epochs each."""
    assert agreement(rounds=2, epochs=6, rate=3e-3, refit=False) > agreement(refit=False) + 0.3


def test_each_round_cuts_repairs_and_trains_towards_the_original() -> None:
    result = onnxcompress.prune(MODEL, **{**CUT, "criterion": "taylor"}, rounds=2, epochs=1)  # type: ignore[arg-type]
    assert [plan.method for plan in result.plans] == ["prune", "refit", "train"] * 2
    assert result.after.macs is not None and result.before.macs is not None
    assert result.after.macs <= 0.16 * result.before.macs
    assert any("mse on 'logits'" in note for note in result.report.notes)


def test_a_plan_holds_what_was_learned(tmp_path: Path) -> None:
    result = onnxcompress.prune(MODEL, **CUT, epochs=2)  # type: ignore[arg-type]
    save_plans(result.plans, tmp_path / "plan.json")
    again = onnxcompress.apply(MODEL, tmp_path / "plan.json", data=DATA, limit=400)
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    result.save(one)
    again.save(two)
    for a, b in zip(onnx.load(one).graph.initializer, onnx.load(two).graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))


def test_slimming_drives_scales_apart_and_cuts_by_them() -> None:
    """The penalty lowers scales; those of what is cut are lower than those of what stays."""
    result = onnxcompress.prune(
        MODEL, data=DATA, limit=200, amount=0.4, round_to=1, epochs=2, slim=0.5, rate=0.02, refit=False
    )
    slim, cut, _ = result.plans
    assert (slim.method, cut.settings["criterion"], cut.settings["ranking"]) == ("slim", "bn_scale", "global")
    original = load(MODEL)
    slimmed = Slim().apply(original, slim)
    names = scales_of(original)
    before, after = (np.concatenate([np.abs(each.array(name)) for name in names]) for each in (original, slimmed))
    assert after.mean() < 0.95 * before.mean()
    assert any("mean scale of" in note for note in slim.notes)
    model = Prune().channels(slimmed)
    for decision in cut.decisions:
        group = next(each for each in model.groups if each.name == decision["group"])
        scales = [m for m in group.members if m.role == "scale"]
        for member in scales[:1] if len(scales) == 1 else []:
            score = np.abs(slimmed.array(member.tensor)[member.positions]).mean(1)
            kept = np.setdiff1d(np.arange(group.size), decision["cut"])
            assert score[decision["cut"]].max() <= score[kept].min()


def folded() -> onnx.ModelProto:
    """Without any normalization."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Conv", ["r", "v"], ["y"]),
        ],
        "folded",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        [
            numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name)
            for name, size in (("w", (6, 3, 1, 1)), ("v", (4, 6, 1, 1)))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_nothing_to_slim_is_one_line() -> None:
    x = {"x": np.random.default_rng(1).normal(size=(8, 3, 4, 4)).astype(np.float32)}
    with pytest.raises(ModelError, match="no BatchNormalization has a scale to slim") as caught:
        onnxcompress.prune(folded(), data=x, epochs=1, slim=0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rate": 0.1}, "rate is of training; give epochs too"),
        ({"slim": 0.1}, "slim is of training; give epochs too"),
        ({"epochs": 0}, "epochs is 0; give a whole number that is at least 1"),
        ({"epochs": 1, "slim": -1.0}, "slim is -1; give a number that is more than 0"),
        ({"epochs": 1, "slim": 0.1, "criterion": "taylor"}, "slim cuts by the scales that it trained"),
        ({"epochs": 1, "largest": True, "min_agreement": 0.5}, "leave out --rounds, --epochs, --slim and --dry-run"),
    ],
)
def test_bad_settings(given: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        onnxcompress.prune(MODEL, data=DATA, limit=32, **given)  # type: ignore[arg-type]


def test_training_needs_data() -> None:
    with pytest.raises(SettingError, match="training needs inputs like those of use"):
        onnxcompress.prune(MODEL, epochs=1)


def test_command_line(tmp_path: Path, cli: Run) -> None:
    out = tmp_path / "small.onnx"
    line = ["prune", MODEL, "-o", str(out), "--data", DATA, "--limit", "128"]
    done = cli(*line, "--rounds", "2", "--epochs", "1", "--criterion", "taylor")
    assert done.code == 0 and out.exists() and "distillation: mean loss of each epoch" in done.out
    done = cli(*line, "--epochs", "1", "--slim", "0.01", "--minibatch", "16")
    assert done.code == 0 and "mean scale of" in done.out
    done = cli(*line, "--temperature", "2")
    assert done.code == 2 and done.err == "error: temperature is of training; give epochs too\n"
