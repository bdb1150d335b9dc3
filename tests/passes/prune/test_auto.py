"""Which criterion is taken where nobody says, on what grounds, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from zoo import ZOO

import onnxcompress
from onnxcompress.errors import SettingError
from onnxcompress.evidence.need import NO_GRADIENT, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import load
from onnxcompress.passes import Prune
from onnxcompress.passes.prune import auto
from onnxcompress.run import How, evidence_for, opened, run
from onnxcompress.training.derivatives import DERIVATIVES
from sample_models.fetch import fetch
from sample_models.inputs import inputs

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")
FEW = How(limit=32)


def evidence(synthetic: bool = False, gradients: bool = True) -> dict[Need, Any]:
    model = load(ZOO["conv_chain"]())
    data = opened(model, None, FEW)
    found: dict[Need, Any] = {Paired.NEED: Paired(model, model, replace(data.calibration, synthetic=synthetic))}
    return found | ({Need("gradient", "x"): None} if gradients else {NO_GRADIENT: "why"})


@pytest.mark.parametrize(
    ("settings", "given", "tried"),
    [
        ({}, evidence(), ["taylor", "backward"]),
        ({"target_macs": 0.5}, evidence(), ["taylor", "taylor over all groups", "backward"]),
        ({"target_macs": 0.5, "ranking": "global"}, evidence(), ["taylor", "backward"]),
        ({"target_error": 0.1}, evidence(), ["taylor", "backward"]),
        ({}, evidence(gradients=False), ["l2", "backward"]),
        ({"target_macs": 0.5}, evidence(gradients=False), ["l2", "backward"]),
        ({}, evidence(synthetic=True), ["l2"]),
        ({}, {}, ["l2"]),
    ],
)
def test_what_is_tried(settings: dict[str, Any], given: dict[Need, Any], tried: list[str]) -> None:
    ways = auto.ways_of(Prune(**settings), given)
    assert list(ways) == tried
    assert all(each.criterion == name.split()[0] for name, each in ways.items())


def test_what_samples_kept_back_prefer_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way in turn is made the better one; the settings that the plan tells are the winner's."""
    model, cutter = load(DIGITS), Prune(target_macs=0.5)
    found = evidence_for(cutter, model, model, opened(model, DATA, FEW), FEW)
    for best in ("taylor", "taylor over all groups", "backward"):
        monkeypatch.setattr(
            auto, "_tried", lambda ways, *given, best=best: {name: float(name == best) for name in ways}
        )
        plan = cutter.plan(model, found)
        assert plan.notes[0].startswith(f"units are ranked by {best}: 1.0 dB on samples kept back, and 0.0 by")
        assert plan.settings["criterion"] == best.split()[0]
        assert plan.settings["ranking"] == ("global" if "over all" in best else "local")


def test_the_same_twice_and_better_than_norms() -> None:
    """Half of the multiply-adds of the sample model, without a refit of the result: norms leave less than nothing."""
    one, two = (run(DIGITS, [Prune(target_macs=0.5)], DATA, how=FEW) for _ in range(2))
    norms = run(DIGITS, [Prune(criterion="l2", target_macs=0.5)], DATA, how=FEW)
    assert one.plan.to_json() == two.plan.to_json()
    assert one.comparison.sqnr_db > norms.comparison.sqnr_db  # type: ignore[union-attr, operator]


def test_without_a_derivative_the_others_are_tried_and_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DERIVATIVES, "Relu")
    result = onnxcompress.prune(DIGITS, data=DATA, limit=32, refit=False, seed=3)
    notes = [note for note in result.report.notes if "ranked by" in note]
    assert len(notes) == 1 and "(no gradients: Relu " in notes[0] and "\n" not in notes[0]


def test_without_data_norms_and_a_line_says_so() -> None:
    result = onnxcompress.prune(ZOO["conv_chain"](), amount=0.5)
    assert [note for note in result.report.notes if "units are ranked by l2: no data" in note]
    assert result.plan.settings["criterion"] == "l2"


def test_a_target_that_no_way_reaches_is_one_line() -> None:
    with pytest.raises(SettingError, match="cannot be reached"):
        run(DIGITS, [Prune(target_params=0.0001)], DATA, how=FEW)


def test_large_models_have_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcompress.training import importance

    asked = []
    monkeypatch.setattr(importance, "gradients_of_gates", lambda *given: asked.append(given[-1]) or {})
    model, cutter = load(DIGITS), Prune()
    for work in (importance.WORK, 40 * 1_540_000, 1):
        monkeypatch.setattr(importance, "WORK", work)
        found = evidence_for(replace(cutter, keep=()), model, model, opened(model, DATA, FEW), FEW)
        assert NO_GRADIENT in found
    assert asked[0] == importance.DRAWS > asked[1] > asked[2] == importance.LEAST_DRAWS


@pytest.mark.fetch
@pytest.mark.slow
def test_a_text_line_classifier_keeps_its_answers() -> None:
    """PP-OCR's classifier at half of its multiply-adds, refitted, on 4 held-out lines."""
    data = inputs("ppocr-cls", 16, 0)
    told = [
        onnxcompress.prune(fetch("ppocr-cls"), data=data, target_macs=0.5, criterion=name).comparison
        for name in ("auto", "l2")
    ]
    assert told[0].logits_db > told[1].logits_db + 3  # type: ignore[union-attr, operator]
