"""Cluster: the result computes exactly with the decoded weights; plans replay; zeros stay; settings; the walk over layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from generate import feeds, models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo import ZOO

import onnxcompress
from onnxcompress.errors import ModelError, SettingError
from onnxcompress.model import Model, load
from onnxcompress.model.edit import coded_of, set_constant
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.passes import Cluster, Prune, Refit, Sparsify
from onnxcompress.passes.cluster.layout import read
from onnxcompress.plan import Plan, load_plan
from onnxcompress.run import How, run
from onnxcompress.runtime.session import open_session
from onnxcompress.verbs import save_plans

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")

FEW: dict[str, object] = {"rate": "none", "limit": 64}
"""One way of coding, on few samples."""


def decoded(model: Model, plan: Plan) -> Model:
    """The model with each weight replaced by what its code stands for."""
    graph = model.ir.clone()
    for each in plan.decisions:
        set_constant(graph, each["weight"], read(each, plan.arrays).decode())
    return model.edited(graph)


def check_cluster(proto: onnx.ModelProto, seed: int, **ways: object) -> None:
    """The law, legality, determinism and idempotence, without data."""
    model = load(proto)
    each = Cluster(**{"smallest": 0, **ways})  # type: ignore[arg-type]
    plan = each.plan(model, {})
    written = each.apply(model, plan)
    assert not violations(written)
    data = to_bytes(finished(written))
    onnx.checker.check_model(data)
    again = each.plan(load(proto), {})
    assert data == to_bytes(finished(each.apply(model, again)))
    inputs = feeds(proto, seed)
    wanted, found = open_session(to_bytes(finished(decoded(model, plan)))).run(inputs), open_session(data).run(inputs)
    for name, values in wanted.items():
        assert np.array_equal(found[name], values, equal_nan=True)
    coded = {decision["weight"] for decision in plan.decisions}
    assert not coded & {decision["weight"] for decision in each.plan(written, {}).decisions}
    for decision in plan.decisions:
        values = written.array(decision["weight"])
        assert len(np.unique(values)) <= decision["entries"] * (values.shape[decision["axis"]] if values.ndim else 1)


WAYS: tuple[dict[str, object], ...] = (
    {"bits": 4},
    {"bits": 2, "same": True},
    {"clusters": 6, "share": "scaled"},
)


@pytest.mark.parametrize("number, name", list(enumerate(ZOO)))
def test_the_law_on_the_zoo(number: int, name: str) -> None:
    """One way a model, in turns: generated models get all."""
    try:
        check_cluster(ZOO[name](), 0, **WAYS[number % len(WAYS)])
    except SettingError as error:
        assert "budget" in str(error)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    proto=models(),
    seed=st.integers(0, 99),
    clusters=st.sampled_from([2, 3, 5, 16]),
    share=st.sampled_from(["auto", "tensor", "scaled", "4 books", "channel", "model"]),
)
def test_the_law_on_generated_models(proto: onnx.ModelProto, seed: int, clusters: int, share: str) -> None:
    check_cluster(proto, seed, clusters=clusters, share=share)


def test_without_data_each_tensor_gets_its_own_entries_within_the_average() -> None:
    result = onnxcompress.cluster(DIGITS, bits=4)
    assert len({each["entries"] for each in result.plan.decisions}) > 1
    size = sum(np.prod(each["shape"]) for each in result.plan.decisions)
    nodes = 1400 * len(result.plan.decisions)
    assert sum(each["bytes"][1] for each in result.plan.decisions) <= size / 2 + nodes
    same = onnxcompress.cluster(DIGITS, bits=4, same=True)
    assert {each["entries"] for each in same.plan.decisions} == {16}
    assert result.comparison.sqnr_db > same.comparison.sqnr_db  # type: ignore[union-attr]


def test_with_data_it_is_better_and_never_worse_layer_by_layer() -> None:
    with_data = onnxcompress.cluster(DIGITS, data=DATA, bits=3, **FEW)
    without = onnxcompress.cluster(DIGITS, data=DATA, bits=3, assign="nearest", **FEW)
    assert with_data.comparison.sqnr_db >= without.comparison.sqnr_db + 3  # type: ignore[union-attr]
    judged = [each for each in with_data.plan.decisions if "held_out_db" in each]
    assert len(judged) > 3
    assert all(each["held_out_db"] >= each["plain_db"] for each in judged)


def test_the_file_holds_symbols_and_answers_as_the_model_in_memory(tmp_path: Path) -> None:
    result = onnxcompress.cluster(DIGITS, data=DATA, **FEW)
    result.save(tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").stat().st_size < DIGITS.stat().st_size / 3
    inputs = _inputs()
    one, two = (open_session(data).run(inputs) for data in (result.model.serialized, tmp_path / "small.onnx"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    again = load(tmp_path / "small.onnx")
    coded = {name for name, value in again.initializers.items() if coded_of(value) is not None}
    assert {each["weight"] for each in result.plan.decisions} <= coded


def _inputs() -> dict[str, np.ndarray]:
    with np.load(DATA) as arrays:
        return {port.name: arrays[port.name][:8] for port in open_session(DIGITS).inputs}


def test_a_plan_replays_and_another_model_is_refused(tmp_path: Path) -> None:
    result = onnxcompress.cluster(DIGITS, data=DATA, **FEW)
    save_plans(result.plans, tmp_path / "plan.json")
    replayed = onnxcompress.apply(DIGITS, tmp_path / "plan.json", data=DATA, limit=FEW["limit"])
    assert to_bytes(finished(replayed.model)) == to_bytes(finished(result.model))
    with pytest.raises(ModelError, match="another model"):
        Cluster().apply(load(ZOO[next(iter(ZOO))]()), load_plan(tmp_path / "plan.json"))


@pytest.mark.parametrize(
    "ways",
    [{}, {"data": DATA}, {"data": DATA, "rate": "file"}, {"share": "model"}, {"share": "model", "data": DATA}],
    ids=str,
)
def test_pruned_weights_stay_zero(ways: dict[str, object]) -> None:
    sparse = run(DIGITS, [Sparsify(amount=0.7)]).model
    result = onnxcompress.cluster(sparse, bits=3, **{**FEW, **ways})  # type: ignore[arg-type]
    assert result.plan.decisions
    for each in result.plan.decisions:
        gone = sparse.array(each["weight"]) == 0
        assert gone.mean() > 0.3
        assert (result.model.array(each["weight"])[gone] == 0).all()


def test_one_book_for_all_layers() -> None:
    result = onnxcompress.cluster(DIGITS, share="model", data=DATA, **FEW)
    books = [result.plan.arrays[f"books/{each['weight']}"] for each in result.plan.decisions]
    assert len(books) > 3
    assert all(np.array_equal(book, books[0]) for book in books)


def test_kept_and_small_weights_stay_and_the_plan_says_why() -> None:
    result = onnxcompress.cluster(DIGITS, keep=("growth*",), ends="keep", smallest=500)
    why = {refusal.where: refusal.why for refusal in result.plan.refusals}
    assert why["growth.weight"] == "it was to be kept"
    assert list(why.values()).count("it is a first or a last one") == 2
    assert not {each["weight"] for each in result.plan.decisions} & set(why)
    with pytest.raises(
        ModelError, match=r"no weight is left that is worth a codebook \(it has no large float weight\)"
    ):
        onnxcompress.cluster(DIGITS, smallest=10**9)


def test_a_budget_on_outputs_finds_the_fewest_bits() -> None:
    result = onnxcompress.cluster(DIGITS, data=DATA, min_sqnr=25, rate="none", limit=32)
    assert result.met
    assert result.plan.settings["target_size"] is not None
    given_bits = onnxcompress.cluster(DIGITS, data=DATA, min_sqnr=25, rate="none", limit=32, bits=6)
    assert sum(e["bytes"][1] for e in result.plan.decisions) < sum(e["bytes"][1] for e in given_bits.plan.decisions)


@pytest.mark.parametrize(
    ("ways", "words"),
    [
        ({"bits": 9}, "bits is 9"),
        ({"clusters": 1}, "clusters is 1"),
        ({"same": True, "target_size": 0.1}, "leave out same"),
        ({"clusters": 3, "target_size": 0.1}, "leave out clusters"),
        ({"target_size": 0.0001}, "is less than"),
        ({"assign": "compensated"}, "needs data"),
        ({"keep": ("haed*",)}, "matches no weight"),
        ({"share": "everyone"}, "share is 'everyone'"),
        ({"bit": 4}, "no setting is called 'bit'"),
    ],
)
def test_bad_settings_are_one_line(ways: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        onnxcompress.cluster(DIGITS, **ways)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_refit_leaves_codebooks_alone() -> None:
    each = Cluster(bits=2, same=True, keep=("hidden*",))
    both, alone = (run(DIGITS, passes, DATA, how=How(limit=FEW["limit"])) for passes in ([each, Refit()], [each]))
    for decision in both.plans[0].decisions:
        name = decision["weight"]
        assert np.array_equal(both.model.array(name), alone.model.array(name))
        assert coded_of(both.model.initializers[name]) is not None
    assert {each["weight"] for each in both.plans[1].decisions} >= {None, "hidden.weight"}
    assert both.comparison.sqnr_db > alone.comparison.sqnr_db  # type: ignore[union-attr]


def test_a_model_that_was_cut_in_the_same_run_is_its_own_goal():
    """The walk took the channels that are left of values that had lost them already."""
    passes = [Prune(criterion="l2", amount=0.4), Cluster(bits=6, assign="compensated")]
    pruned = run(DIGITS, passes[:1], DATA, how=How(limit=48)).comparison.sqnr_db
    both = run(DIGITS, passes, DATA, how=How(limit=48)).comparison.sqnr_db
    assert both > pruned - 3
