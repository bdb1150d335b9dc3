"""The pass on the small trained model: budgets, data beside weights, the clock's word, plans that are saved, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxcompress
from onnxcompress.errors import SettingError, UnmetError
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model import load
from onnxcompress.passes import Cluster, Factorize, Merge, Prune, Refit
from onnxcompress.passes.factorize import timing
from onnxcompress.passes.factorize.candidates import Choice
from onnxcompress.passes.factorize.forms import FORMS
from onnxcompress.passes.factorize.sites import sites
from onnxcompress.passes.factorize.timing import Stopwatch, repeated, single
from onnxcompress.run import How, run
from onnxcompress.runtime.loose import loose
from onnxcompress.runtime.session import open_session
from onnxcompress.verbs import save_plans

FOLDER = Path(onnxcompress.__file__).parents[1] / "sample_models"
MODEL, DATA = FOLDER / "digits.onnx", FOLDER / "digits.npz"


@pytest.fixture(scope="module")
def on_data():
    return onnxcompress.factorize(MODEL, data=DATA, target_macs=0.6, pays=0, limit=64)


def test_the_budget_is_met_and_the_report_adds_up(on_data):
    assert on_data.after.macs <= 0.6 * on_data.before.macs
    plan = next(each for each in on_data.plans if each.method == "factorize")
    saved = sum(each["macs"][0] - each["macs"][1] for each in plan.decisions)
    assert on_data.before.macs - on_data.after.macs == saved
    both = [each for plan in on_data.plans if plan.method in ("merge", "factorize") for each in plan.decisions]
    assert on_data.before.parameters - on_data.after.parameters == sum(
        each["parameters"][0] - each["parameters"][1] for each in both
    )


def test_data_is_nearer_than_weights_alone(on_data):
    alone = onnxcompress.factorize(MODEL, data=DATA, fit="weights", refit=False, target_macs=0.6, pays=0, limit=64)
    assert on_data.comparison.sqnr_db > alone.comparison.sqnr_db + 5
    plan = next(each for each in on_data.plans if each.method == "factorize")
    assert all(each["held_out_db"] >= each["plain_db"] for each in plan.decisions)


def test_layers_with_a_relu_behind_may_be_fitted_behind_it():
    plain, aware = (
        onnxcompress.factorize(
            MODEL, data=DATA, target_macs=0.6, pays=0, limit=48, forms=["lowrank"], refit=False, nonlinear=nonlinear
        )
        for nonlinear in (False, True)
    )
    ours, theirs = (next(plan for plan in each.plans if plan.method == "factorize") for each in (plain, aware))
    changed = [name for name, values in ours.arrays.items() if not np.array_equal(values, theirs.arrays[name])]
    assert changed and [each["ranks"] for each in ours.decisions] == [each["ranks"] for each in theirs.decisions]
    assert aware.comparison.sqnr_db > plain.comparison.sqnr_db - 1


def test_a_saved_plan_makes_the_same_model(on_data, tmp_path):
    save_plans(on_data.plans, tmp_path / "plan.json")
    again = onnxcompress.apply(MODEL, tmp_path / "plan.json", data=DATA, limit=64)
    assert again.model.serialized == on_data.model.serialized


def test_parameters_are_a_budget_too():
    result = onnxcompress.factorize(MODEL, target_params=0.5, pays=0)
    assert result.after.parameters <= 0.5 * result.before.parameters


def test_a_rule_gives_the_ranks_instead_of_a_budget():
    plans = [
        onnxcompress.factorize(MODEL, rank=f"energy:{share}", forms=["lowrank"], pays=0, dry=True).plans[-1]
        for share in (0.6, 0.8)
    ]
    ranks = [{each["layer"]: each["ranks"][0] for each in plan.decisions} for plan in plans]
    assert ranks[0] and all(ranks[0][layer] < rank for layer, rank in ranks[1].items())
    with pytest.raises(SettingError, match="fixes the ranks, and target_macs asks for others"):
        onnxcompress.factorize(MODEL, rank="vbmf", target_macs=0.5)
    with pytest.raises(SettingError, match="cp has no rank that a rule could give"):
        onnxcompress.factorize(MODEL, rank="vbmf", forms=["cp"])


def test_what_cannot_be_met_says_what_could():
    with pytest.raises(SettingError, match=r"at least 0.* are left"):
        onnxcompress.factorize(MODEL, target_macs=0.01, pays=0)
    with pytest.raises(SettingError, match="both targets"):
        onnxcompress.factorize(MODEL, target_macs=0.5, target_params=0.5)
    with pytest.raises(SettingError, match=r"no form is called 'tuker'.*tucker"):
        onnxcompress.factorize(MODEL, forms=["tuker"])
    with pytest.raises(SettingError, match="needs data"):
        onnxcompress.factorize(MODEL, fit="data")


class Slow:
    """A clock on which nothing pays but one form."""

    def __init__(self, good):
        self.good = good

    def share(self, site, choices):
        return {each: 0.5 if each.form == self.good else 1.1 for each in choices}

    def milliseconds(self, site):
        return 1.0


def test_what_the_clock_does_not_reward_is_not_made():
    plan = _plan(Slow("lowrank"), 0.7)
    assert {each["form"] for each in plan.decisions} == {"lowrank"}
    plan = _plan(Slow("none"), 1.0)
    assert not plan.decisions
    assert any("would take 1.10 of the time" in each.why for each in plan.refusals)
    told = r"try --pays 0, or leave the model as it is \(.*: .* would take 1.10 of the time for 0\.\d+ of the mult.*layers more"
    with pytest.raises(UnmetError, match=told) as caught:
        _plan(Slow("none"), 0.7)
    assert caught.value.least == pytest.approx(1.0)


def test_a_default_out_of_reach_gives_way_to_half_of_what_can_be_saved(monkeypatch):
    """Asked for by name it is an error, which tells the least."""
    monkeypatch.setattr("onnxcompress.passes.factorize.factorize.SHARE", 0.01)
    with pytest.raises(UnmetError) as caught:
        _plan(Slow("lowrank"), 0.01)
    plan = _plan(Slow("lowrank"), None)
    assert plan.decisions
    assert (
        f"at least {caught.value.least:.2f} of" in plan.notes[-1]
        and f"is {(1 + caught.value.least) / 2:.2f}" in plan.notes[-1]
    )


def _plan(clock, target):
    from unittest.mock import patch

    with patch("onnxcompress.passes.factorize.factorize.Stopwatch", lambda **_: clock):
        result = onnxcompress.factorize(MODEL, target_macs=target, dry=True, forms=["lowrank", "spatial"])
    return result.plans[-1]


def test_it_chains_with_pruning_and_codebooks():
    pruned = [Merge(), Prune(criterion="l2", amount=0.2), Refit()]
    passes = [
        *pruned,
        Factorize(fit="data", target_macs=0.4, pays=0, forms=("lowrank", "tucker")),
        Cluster(assign="compensated"),
    ]
    result = run(MODEL, passes, DATA, how=How(limit=64))
    assert result.after.macs <= 0.4 * result.before.macs
    assert result.comparison.sqnr_db > 5


def test_a_bias_goes_along_with_channels_in_another_order():
    result = onnxcompress.factorize(MODEL, data=DATA, target_macs=0.7, pays=0, limit=48, forms=["grouped"], refit=False)
    plan = next(each for each in result.plans if each.method == "factorize")
    assert any(each["bias"] for each in plan.decisions)
    assert result.comparison.sqnr_db > 5


def test_the_clock_runs_every_form_beside_its_layer():
    model = load(MODEL)
    feed = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    site = next(each for each in sites(model, [], run_shapes(model, feed))[0] if each.layer.name == "/residual1")
    choices = [Choice(name, form.ladder(site.shape)[0]) for name, form in FORMS.items() if not form.unfit(site.shape)]
    stopwatch = Stopwatch(seconds=0.001)
    times = stopwatch.share(site, [Choice(), *choices])
    assert times.pop(Choice()) == 1.0
    assert len(times) > 5
    assert all(each is not None and each > 0 for each in times.values())
    assert stopwatch.milliseconds(site) > 0


def test_large_chains_are_timed_in_parts_each_beside_the_layer(monkeypatch):
    """Sessions of all chains of a wide layer would be the peak of the whole pass. Parts that are slower as a whole do not count."""
    model = load(MODEL)
    feed = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    site = next(each for each in sites(model, [], run_shapes(model, feed))[0] if each.layer.name == "/residual1")
    choices = [Choice("lowrank", (rank,)) for rank in (2, 4, 8)]
    asked = []

    def paired(models, feeds, *, threads, seconds):
        asked.append([name for name in models if "again" not in name])
        own = dict(zip(models, (2.0, 1.0), strict=False))
        return {name: len(asked) * (3 if "again" in name else 1) * own[name.removesuffix(" again")] for name in models}

    monkeypatch.setattr(timing, "TOGETHER_BYTES", 0)
    monkeypatch.setattr(timing.clock, "paired_ms", paired)
    assert Stopwatch().share(site, choices) == dict.fromkeys(choices, 0.5)
    assert asked == [["", str(choice)] for choice in choices]


def test_a_layer_repeated_is_so_many_layers():
    model = load(MODEL)
    feed = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    site = next(each for each in sites(model, [], run_shapes(model, feed))[0] if each.layer.name == "/residual1")
    graph, fed = single(site)
    (one,), (many,) = (open_session(loose(each)).run(fed).values() for each in (graph, repeated(graph, 3)))
    np.testing.assert_allclose(many, 6 * one, rtol=1e-4, atol=1e-3)  # weights times 1, 2 and 3
