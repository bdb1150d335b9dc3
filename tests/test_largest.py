"""The largest cut: budgets are met by measurement, evidence is gathered once, what cannot be met says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcompress import largest
from onnxcompress.errors import SettingError
from onnxcompress.largest import largest_cut
from onnxcompress.passes import Prune, Refit
from onnxcompress.run import How, evidence_for

DIGITS = Path(__file__).parents[1] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")
FEW = How(limit=48)


def test_the_budget_is_met_and_a_looser_one_allows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = []
    monkeypatch.setattr(largest, "evidence_for", lambda *given: gathered.append(given) or evidence_for(*given))
    left = []
    for decibel in (20.0, 10.0):
        result = largest_cut(
            DIGITS, Prune(criterion="l2"), DATA, budgets={"min_sqnr": decibel}, then=[Refit()], how=FEW, trials=3
        )
        assert result.met and result.comparison is not None and result.comparison.sqnr_db >= decibel  # type: ignore[operator]
        left.append(result.after.parameters / result.before.parameters)
    assert 1 > left[0] > left[1]
    assert len(gathered) == 2


def test_amounts_differ_between_groups() -> None:
    result = largest_cut(DIGITS, Prune(round_to=1), DATA, budgets={"min_sqnr": 8.0}, how=FEW, trials=3)
    shares = {len(decision["cut"]) / decision["of"] for decision in result.plan.decisions}
    assert len(shares) > 1


def test_a_budget_out_of_reach_is_not_met() -> None:
    result = largest_cut(
        DIGITS, Prune(criterion="l2", round_to=1), DATA, budgets={"max_params": 0.001}, how=FEW, trials=2
    )
    assert not result.met


def test_a_budget_is_needed_and_no_target_beside_it() -> None:
    with pytest.raises(SettingError, match="needs a budget"):
        largest_cut(DIGITS, Prune(), DATA, budgets={})
    with pytest.raises(SettingError, match="not both"):
        largest_cut(DIGITS, Prune(target_error=0.1), DATA, budgets={"min_sqnr": 20.0})
