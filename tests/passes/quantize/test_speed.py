"""The choice by the clock, with a clock that is a formula: no test depends on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.passes.quantize.speed import FLOAT, Choice, fastest

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
