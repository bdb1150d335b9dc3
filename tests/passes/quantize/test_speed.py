"""The choice by the clock, with a clock that is a formula: no test depends on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.passes.quantize.speed import COST, FLOAT, WORTH_DB, Choice, closer, fastest

CLASSES = {"conv": ["c1", "c2"], "depthwise": ["d"], "mul": ["m"], "sum": ["s"]}
ALL = frozenset(name for names in CLASSES.values() for name in names)


class Formula:
    """Times by a formula of the nodes that are int8; counts how often it was asked."""

    def __init__(self, of: Callable[[frozenset[str]], float], float_ms: float) -> None:
        self.of, self.float_ms, self.asked = of, float_ms, 0

    def milliseconds(self, graphs: Mapping[str, Any], seconds: float) -> dict[str, float]:
        self.asked += 1
        return {name: self.float_ms if name == FLOAT else self.of(graph) for name, graph in graphs.items()}


def choose(clock: Formula) -> Choice:
    return fastest(clock, None, lambda nodes: nodes, CLASSES, 1.0)  # type: ignore[arg-type,return-value]


def summed(costs: Mapping[str, float], base: float = 10.0) -> Callable[[frozenset[str]], float]:
    return lambda nodes: base + sum(costs.get(name, 0.0) for name in nodes)


def test_what_costs_time_leaves_and_what_saves_it_stays() -> None:
    clock = Formula(summed({"c1": -3, "c2": -3, "d": 2, "m": 1}), 10.0)
    choice = choose(clock)
    assert choice.nodes == {"c1", "c2", "s"}
    assert list(choice.left) == ["depthwise", "mul"]
    assert clock.asked <= 4


def test_a_class_that_costs_only_once_another_is_gone() -> None:
    def of(nodes: frozenset[str]) -> float:
        return 10 + 4 * ("d" in nodes) + 2 * ("m" in nodes and "d" not in nodes)

    assert choose(Formula(of, 20.0)).nodes == ALL - {"d", "m"}


def test_a_gain_within_the_noise_is_none() -> None:
    assert choose(Formula(summed({"m": 0.1}), 20.0)).nodes == ALL


@given(st.dictionaries(st.sampled_from(sorted(ALL)), st.floats(-2, 2)), st.floats(1, 20))
def test_never_slower_than_float(costs: dict[str, float], float_ms: float) -> None:
    clock = Formula(summed(costs), float_ms)
    choice = choose(clock)
    assert not choice.nodes or clock.of(choice.nodes) < float_ms
    assert clock.of(choice.nodes or ALL) <= clock.of(ALL) or not choice.nodes


class Answers(Formula):
    """Times, and dB, by formulas of the nodes that are int8."""

    def __init__(self, lost: Mapping[str, float], saved: Mapping[str, float] | None = None) -> None:
        super().__init__(summed({name: -ms for name, ms in (saved or {}).items()}), 99.0)
        self.lost = lost

    def logits_db(self, graphs: Mapping[str, Any]) -> dict[str, float]:
        return {name: 30 - sum(self.lost.get(node, 0.0) for node in nodes) for name, nodes in graphs.items()}


def left(answers: Answers, cheap: Mapping[str, float]) -> dict[str, float]:
    choice = closer(answers, Choice(ALL, cheap=dict(cheap)), lambda nodes: nodes, CLASSES, 1.0)  # type: ignore[arg-type,return-value]
    assert choice.nodes == ALL - {name for kind in choice.nearer for name in CLASSES[kind]}
    return choice.nearer


def test_what_costs_answers_and_saves_no_time_leaves() -> None:
    lost = {"c1": 9, "d": 3, "m": 1, "s": WORTH_DB / 2}
    assert left(Answers(lost), {"mul": 0.0, "sum": 0.0, "depthwise": COST}) == {"depthwise": 3, "mul": 1}
    assert left(Answers(lost), {"mul": 0.01, "depthwise": COST}) == {"depthwise": 3}
    assert not left(Answers(lost), {"sum": 0.0})
    assert not left(Answers(lost), {})


def test_what_is_no_longer_cheap_when_timed_again_stays() -> None:
    lost = {"d": 3, "m": 1}
    assert left(Answers(lost, {"d": 5}), {"mul": 0.0, "depthwise": 0.0}) == {"mul": 1}
    assert not left(Answers(lost, {"d": 5, "m": 5}), {"mul": 0.0, "depthwise": 0.0})


def test_classes_that_gain_less_together_leave_one_by_one() -> None:
    class Apart(Answers):
        def logits_db(self, graphs: Mapping[str, Any]) -> dict[str, float]:
            told = super().logits_db(graphs)
            return {name: db - 5 * (not {"d", "m"} & set(graphs[name])) for name, db in told.items()}

    assert left(Apart({"d": 2, "m": 1}), {"mul": 0.0, "depthwise": 0.0}) == {"depthwise": 2}


def test_what_the_clock_finds_cheap_is_what_is_left() -> None:
    choice = choose(Formula(summed({"c1": -3, "c2": -3, "d": 2, "m": -0.02, "s": 0.02}), 12.0))
    assert "depthwise" in choice.left
    assert list(choice.cheap) == ["sum", "mul"]
    assert choice.cheap["sum"] == 0
