"""Prune as a pass: counts, targets, protection, free cuts, replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from generate import feeds
from zoo import ZOO

from onnxcompress.errors import ModelError, SettingError
from onnxcompress.model import load
from onnxcompress.model.save import to_bytes
from onnxcompress.operators.cost import parameters
from onnxcompress.passes import Prune, Refit
from onnxcompress.passes.prune.criteria import CRITERIA
from onnxcompress.plan import load_plan
from onnxcompress.run import run
from onnxcompress.runtime.session import open_session

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")

WITHOUT_DATA = [name for name, row in CRITERIA.items() if not row.needs]


@pytest.mark.parametrize("criterion", WITHOUT_DATA)
def test_every_criterion_cuts_the_share_of_every_group(criterion: str) -> None:
    model = load(DIGITS)
    plan = Prune(criterion=criterion, amount=0.5, round_to=1).plan(model, {})
    assert plan.decisions
    for decision in plan.decisions:
        assert len(decision["cut"]) == decision["of"] // 2


@pytest.mark.parametrize(
    "criterion", ["apoz", "activation_mean", "activation_variance", "backward", "osscar", "thinet", "lasso"]
)
def test_criteria_that_look_at_data_run_through_the_loop(criterion: str) -> None:
    result = run(DIGITS, [Prune(criterion=criterion, amount=0.25)], DATA)
    assert result.after.parameters < result.before.parameters
    assert result.comparison is not None and result.comparison.samples > 0


@pytest.mark.parametrize("target", [{"target_params": 0.5}, {"target_macs": 0.5}, {"target_size": 0.6}])
@pytest.mark.parametrize("criterion", ["l2", "backward"])
def test_targets_are_reached_and_counted_on_the_cut_model(target: dict[str, float], criterion: str) -> None:
    result = run(DIGITS, [Prune(criterion=criterion, round_to=1, **target)], DATA)
    ((name, share),) = target.items()
    left = (
        result.after.macs / result.before.macs
        if name == "target_macs"
        else result.after.parameters / result.before.parameters
    )
    assert 0.6 * share < left <= share


def test_a_target_out_of_reach_says_what_is_left() -> None:
    with pytest.raises(SettingError, match="cannot be reached"):
        run(DIGITS, [Prune(criterion="l2", target_params=0.0001)], DATA)


def test_keep_protects_and_an_unknown_name_offers_the_nearest() -> None:
    model = load(DIGITS)
    plan = Prune(keep=("stem*",), round_to=1).plan(model, {})
    assert "stem.weight" not in {decision["group"] for decision in plan.decisions}
    with pytest.raises(SettingError, match=r"stem\.weight"):
        Prune(keep=("stme.weight",)).plan(model, {})


@pytest.mark.parametrize(
    ("name", "kind"), [("duplicate_filters", "duplicate"), ("zero_filters", "zero"), ("unread_units", "unread")]
)
def test_free_cuts_do_not_change_the_output(name: str, kind: str) -> None:
    proto = ZOO[name]()
    model = load(proto)
    settings = Prune(amount=0.0, round_to=1)
    plan = settings.plan(model, {})
    assert any(kind in note for note in plan.notes)
    cut = settings.apply(model, plan)
    assert parameters(cut) < parameters(model)
    inputs = feeds(proto, 0)
    before, after = open_session(proto.SerializeToString()).run(inputs), open_session(to_bytes(cut.ir)).run(inputs)
    for output, y in before.items():
        np.testing.assert_allclose(after[output], y, rtol=1e-4, atol=1e-5 * np.abs(y).max())


def test_a_saved_plan_replays_to_the_same_bytes_and_only_on_its_model(tmp_path: Path) -> None:
    result = run(DIGITS, [Prune(criterion="l2", amount=0.5), Refit(rows=512)], DATA)
    for plan in result.plans:
        plan.save(tmp_path / f"{plan.method}.json")
    plans = [load_plan(tmp_path / f"{plan.method}.json") for plan in result.plans]
    again = run(DIGITS, [Prune(criterion="l2", amount=0.5), Refit(rows=512)], DATA, plans=plans)
    assert again.model.serialized == result.model.serialized
    with pytest.raises(ModelError, match="another model"):
        Prune().apply(load(ZOO["conv_chain"]()), plans[0])


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_is_planned_and_cut(name: str) -> None:
    """Group by group: a weight whose channels are split over several groups is not mistaken for one."""
    model, settings = load(ZOO[name]()), Prune(round_to=1)
    groups = settings.groups(model)
    assert len({group.name for group in settings.channels(model).groups}) == len(settings.channels(model).groups)
    if not groups:
        return
    plan = settings.plan(model, {})
    assert {decision["group"]: decision["of"] for decision in plan.decisions}.items() <= {
        g.name: g.size for g in groups
    }.items()
    assert parameters(settings.apply(model, plan)) < parameters(model)


def test_nothing_to_cut_is_a_clear_error() -> None:
    with pytest.raises(ModelError, match="no channel can be removed"):
        Prune().plan(load(ZOO["nothing_free"]()), {})


def test_one_target_at_a_time() -> None:
    with pytest.raises(SettingError, match="one of"):
        Prune(target_params=0.5, target_macs=0.5)


def test_global_ranking_cuts_about_the_share_of_all_units() -> None:
    plan = Prune(ranking="global", amount=0.5, round_to=1).plan(load(DIGITS), {})
    model_units = sum(group.size for group in Prune().groups(load(DIGITS)))
    assert sum(len(decision["cut"]) for decision in plan.decisions) == pytest.approx(model_units / 2, rel=0.1)


@pytest.mark.parametrize("settings", [{"amount": 0.4}, {"target_error": 0.05}])
def test_a_dry_run_counts_what_the_plan_would_leave(settings: dict[str, float]) -> None:
    dry = run(DIGITS, [Prune(criterion="l2", **settings)], DATA, dry=True)
    wet = run(DIGITS, [Prune(criterion="l2", **settings)], DATA)
    assert dry.comparison is None and dry.model is dry.original
    assert dry.after == wet.after != dry.before


def test_a_larger_error_is_spent_on_a_larger_cut() -> None:
    left = [
        run(DIGITS, [Prune(criterion="l2", target_error=error, round_to=1)], DATA, dry=True).after.parameters
        for error in (0.001, 0.03, 1)
    ]
    assert left[0] > left[1] > left[2]
