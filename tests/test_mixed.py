"""Mixed precision: the budget is met by measurement, the bad layer is the one that stays float."""

from __future__ import annotations

import pytest
from passes.quantize.outlier import outlier_model, samples

from onnxcompress import mixed
from onnxcompress.errors import SettingError
from onnxcompress.mixed import mixed_precision
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.passes import Quantize
from onnxcompress.result import Result

PASSES = [Quantize(measure=False, calibration="minmax")]


def made(**budgets: float) -> Result:
    return mixed_precision(outlier_model(), PASSES, samples(), budgets=budgets)


def products(result: Result) -> set[str]:
    return {each["node"] for each in result.plans[-1].decisions if each.get("form") == "product"}


def left(result: Result) -> set[str]:
    return {refusal.where for refusal in result.plans[-1].refusals if "budgets" in refusal.why}


def test_the_layer_that_reads_the_outlier_stays_float_and_the_others_do_not() -> None:
    result = made(min_sqnr=25.0)
    assert result.met and result.comparison is not None and result.comparison.sqnr_db >= 25  # type: ignore[operator]
    assert products(result) == {"first", "second"} and left(result) == {"third"}
    assert any("1 of 3 nodes stay float" in note and "'third'" in note for note in result.plans[-1].notes)
    assert {"levels/w1", "levels/w2"} <= set(result.plans[-1].arrays)
    assert not any("w3" in name for name in result.plans[-1].arrays)


def test_nothing_is_tried_where_everything_in_int8_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "_problem", lambda *_: pytest.fail("it was measured"))
    result = made(min_sqnr=0.1)
    assert result.met and products(result) == {"first", "second", "third"} and not left(result)


def test_the_same_file_twice() -> None:
    one, two = made(min_sqnr=25.0), made(min_sqnr=25.0)
    assert to_bytes(finished(one.model)) == to_bytes(finished(two.model))
    assert one.plans[-1].decisions == two.plans[-1].decisions


def test_a_budget_out_of_reach_says_how_near_it_came() -> None:
    result = made(min_sqnr=150.0)
    assert not result.met and len(products(result)) == 1
    assert any("even one product alone" in note and "sqnr" in note for note in result.plans[-1].notes)


def test_a_looser_budget_leaves_no_more_in_float() -> None:
    assert left(made(min_sqnr=20.0)) <= left(made(min_sqnr=45.0))


def test_a_budget_on_outputs_is_needed() -> None:
    with pytest.raises(SettingError, match="min_sqnr"):
        made(max_size=0.5)
