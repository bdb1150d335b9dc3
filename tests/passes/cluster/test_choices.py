"""Vectors and one price, through the pass: the law, sizes that are met, reasons, and what data brings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo import ZOO

import onnxcompress
from onnxcompress.errors import BudgetError, SettingError
from onnxcompress.model import load
from onnxcompress.model.edit import set_constant
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.passes.cluster.choices import ByRate, by_vectors
from onnxcompress.passes.cluster.cluster import Cluster
from onnxcompress.passes.cluster.layout import read
from onnxcompress.passes.cluster.one_price import SIZES, _walked_to, at_one_price
from onnxcompress.passes.cluster.walk import Found, Walk
from onnxcompress.passes.cluster.written import Budget
from onnxcompress.result import Result
from onnxcompress.runtime.session import open_session

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")

WAYS: dict[str, dict[str, object]] = {
    "pairs": {"bits": 3, "vector": 2},
    "fours": {"bits": 2, "vector": 4},
    "file": {"bits": 3, "rate": "file"},
    "container": {"bits": 3, "rate": "container"},
}


def clustered(data: Path | None, **ways: object) -> Result:
    return onnxcompress.cluster(DIGITS, **{"data": data, "smallest": 0, "limit": 64, **ways})  # type: ignore[arg-type]


def sqnr(result: Result) -> float:
    assert result.comparison is not None
    return float(result.comparison.outputs[0].sqnr_db)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", [None, DATA], ids=["alone", "data"])
def test_the_file_computes_with_what_was_decoded(way: str, data: Path | None) -> None:
    result = clustered(data, **WAYS[way])
    plan = result.plans[-1]
    assert plan.decisions
    graph = load(DIGITS).ir.clone()
    for each in plan.decisions:
        coded = read(each, plan.arrays)
        assert coded.width == WAYS[way].get("vector", 1) or any(each["weight"] in note for note in plan.notes)
        set_constant(graph, each["weight"], coded.decode())
        if "bias" in each:
            set_constant(graph, each["bias"], plan.arrays[f"bias/{each['bias']}"])
    x = {"image": np.load(DATA)["image"][:8]}
    wanted = open_session(to_bytes(graph)).run(x)
    found = open_session(to_bytes(finished(result.model))).run(x)
    assert all(np.array_equal(found[name], values) for name, values in wanted.items())


def test_data_brings_a_better_model_and_the_same_twice() -> None:
    alone, with_data = clustered(None, **WAYS["pairs"]), clustered(DATA, **WAYS["pairs"])
    assert sqnr(with_data) > max(sqnr(alone), 10)
    one, two = (to_bytes(finished(each.model)) for each in (with_data, clustered(DATA, **WAYS["pairs"])))
    assert one == two


@pytest.mark.parametrize("where, share", [("file", 0.16), ("container", 0.09), ("none", 0.2)])
def test_a_target_size_is_that_of_what_is_written(tmp_path: Path, where: str, share: float) -> None:
    path = tmp_path / ("small.onnxz" if where == "container" else "small.onnx")
    clustered(None, rate=where, target_size=share).save(path)
    assert 0.9 * share < path.stat().st_size / DIGITS.stat().st_size <= share


@pytest.mark.parametrize("where", SIZES)
@pytest.mark.parametrize("data", [None, DATA], ids=["alone", "data"])
def test_one_price_meets_its_bytes(where: str, data: Path | None) -> None:
    bits = {"file": 3, "container": 2}[where]
    plan = clustered(data, bits=bits, rate=where).plans[-1]
    count = sum(int(np.prod(each["shape"])) for each in plan.decisions)
    size = sum(SIZES[where][1](read(each, plan.arrays)) for each in plan.decisions)
    assert 0.75 * bits * count / 8 < size <= bits * count / 8


def test_fewer_bits_for_the_same_outputs_than_books_of_k_means() -> None:
    plain, rated = (
        clustered(DATA, bits=3, same=True, share="tensor", limit=None),
        clustered(DATA, bits=2, rate="container", limit=None),
    )
    assert sqnr(rated) > sqnr(plain)


def test_what_does_not_go_together_is_said() -> None:
    for ways, what in (
        ({"vector": 2, "bits": 5}, "give 4 at most"),
        ({"vector": 2, "target_size": 0.1}, "leave out vector"),
        ({"rate": "file", "same": True}, "leave out same"),
        ({"rate": "file", "share": "channel"}, "leave out same"),
    ):
        with pytest.raises(SettingError, match=what):
            Cluster(**ways)  # type: ignore[arg-type]


def test_a_size_without_reach_is_refused() -> None:
    model = load(DIGITS)
    tensors, _ = Cluster(smallest=0).tensors(model)
    with pytest.raises(BudgetError, match="smallest that was found"):
        at_one_price(Walk(), model, {}, tensors, "container", Budget(1.0, SIZES["container"][2]))


def test_pruned_tensors_and_odd_rows_have_no_vectors() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 6))
    positions = np.arange(24).reshape(4, 6)
    assert not isinstance(by_vectors(positions, rows, 16, 2), str)
    assert "pruned" in str(by_vectors(positions, np.where(rows > 0, rows, 0.0), 16, 2))
    assert "whole vectors" in str(by_vectors(positions, rows, 16, 4))


def test_bits_are_paid_by_their_entropy() -> None:
    choice = ByRate(4, "tensor", price=2.0, worth=0.5)
    assert choice.paid(np.array([[0, 1, 2, 3]], np.uint8)) == pytest.approx(8 * 2.0 / 0.5)
    assert choice.paid(np.zeros((3, 3), np.uint8)) == 0


@pytest.mark.parametrize("name", ["dense_concat", "depthwise_multiplier", "transpose_depthwise", "vision_transformer"])
@pytest.mark.parametrize("way", ["pairs", "fours"])
def test_layouts_of_other_graphs(name: str, way: str) -> None:
    model = load(ZOO[name]())
    cluster = Cluster(smallest=0, **WAYS[way])  # type: ignore[arg-type]
    plan = cluster.plan(model, {})
    written = cluster.apply(model, plan)
    for each in plan.decisions:
        assert np.array_equal(written.array(each["weight"]), read(each, plan.arrays).decode())


def test_on_data_both_ways_are_tried_and_the_better_one_is_kept() -> None:
    auto = clustered(DATA, bits=3)
    ways = {rate: clustered(DATA, bits=3, rate=rate) for rate in ("none", "file")}
    assert to_bytes(finished(auto.model)) in [to_bytes(finished(each.model)) for each in ways.values()]
    (note,) = [each for each in auto.plans[-1].notes if "samples kept back" in each]
    books, rated = (float(each) for each in re.findall(r"([\d.]+) dB", note))
    better = ways["file" if rated > books else "none"]
    assert to_bytes(finished(auto.model)) == to_bytes(finished(better.model))
    assert sqnr(better) == max(map(sqnr, ways.values()))


def test_a_way_that_was_asked_for_is_not_compared() -> None:
    for settings in ({"same": True}, {"trellis": True}, {"vector": 2}, {"rate": "none"}, {"start": "linear"}):
        assert not Cluster(assign="compensated", **settings).tries_both  # type: ignore[arg-type]
    assert Cluster(assign="compensated").tries_both
    assert not Cluster(assign="nearest").tries_both


def test_without_data_large_models_get_one_price(monkeypatch: pytest.MonkeyPatch) -> None:
    few = clustered(None, bits=4).plans[-1]
    monkeypatch.setattr("onnxcompress.passes.cluster.cluster.MANY", 10_000)
    many = clustered(None, bits=4).plans[-1]
    same = clustered(None, bits=4, rate="file").plans[-1]
    assert [each["form"] for each in many.decisions] == [each["form"] for each in same.decisions]
    assert any("--rate none" in note for note in many.notes) and not any("--rate none" in note for note in few.notes)
    assert clustered(None, bits=4, rate="none").plans[-1].decisions == few.decisions


def test_two_bits_work_without_data_and_one_bit_says_what_it_lacks() -> None:
    result = clustered(None, bits=2)
    sizes = [int(np.prod(each["shape"])) for each in result.plan.decisions]
    assert np.average([each["bits"] for each in result.plan.decisions], weights=sizes) <= 2
    with pytest.raises(BudgetError, match=r"with their books.*give more bits"):
        clustered(None, bits=1)


def test_where_channels_count_alike_they_may_be_divided_by_scales() -> None:
    model = load(DIGITS)
    name = "residual1.weight"
    spread = np.geomspace(0.5, 4, model.array(name).shape[0]).astype(np.float32)[:, None, None, None]
    model = model.with_constants({name: model.array(name) * spread})
    plan = Cluster(rate="container", assign="nearest").plan(model, {})
    (found,) = [each for each in plan.decisions if each["weight"] == name]
    values, coded = model.array(name), read(found, plan.arrays).decode()
    lost = np.square(coded - values).sum(axis=(1, 2, 3)) / np.square(values).sum(axis=(1, 2, 3))
    assert found["share"] == "scaled" and lost.max() < 10 * lost.min()


def test_where_bytes_jump_with_the_price_walks_begin_with_tensors_of_both_sides() -> None:
    tensors = [f"w{number}" for number in range(100)]
    walks = []

    def begins(aim: float) -> tuple[Any, Found]:
        each = 10.0 if aim >= 1000 else 9.2
        return {name: (each,) for name in tensors}, found(dict.fromkeys(tensors, each))

    def found(sizes: dict[str, Any]) -> Found:
        return Found(sizes, {}, {}, {}, {})

    def walked(start: Any) -> Found:
        walks.append(start)
        return found({name: 1.02 * each for name, (each,) in start.items()})  # 1020 and 938, whatever the aim

    budget = Budget(1000, lambda sizes: sum(sizes.values()))  # type: ignore[arg-type, misc]
    start, codes = _walked_to(budget, begins, walked)
    assert 0.99 * budget.bytes <= budget.of(codes.coded) <= budget.bytes and len(walks) == 3
    assert [each for (each,) in start.values()] == sorted((each for (each,) in start.values()), reverse=True)  # type: ignore[misc]
