"""Budgets: gates on one number of the comparison or of the costs. A row each; `check` reads them off."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from onnxcompress.compare import Comparison, json_safe
from onnxcompress.errors import SettingError, nearest

# What the models cost, by name: (original, result). Names: bytes, parameters, macs, latency_ms, memory_bytes.
Costs = Mapping[str, tuple[float, float]]

HOLDS: dict[str, Callable[[float, float], bool]] = {"at least": operator.ge, "at most": operator.le}


@dataclass(frozen=True)
class Budget:
    """One gate.

    sense    whether the number must be at least or at most what is wanted
    limits   of what may be wanted                  unit     of both
    read     the number, or None where this run does not have it; `without` then says why, and what to do
    """

    name: str
    description: str
    unit: str
    sense: Literal["at least", "at most"]
    limits: tuple[float, float]
    read: Callable[[Comparison, Costs], float | None]
    without: str


@dataclass(frozen=True)
class Verdict:
    """A budget beside what was found; met is False where nothing was found. `sentence` says it in words."""

    name: str
    wanted: float
    got: float | None
    met: bool
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return json_safe(vars(self))  # type: ignore[no-any-return]


def _share(cost: str) -> Callable[[Comparison, Costs], float | None]:
    """Reads result / original of one cost."""

    def read(comparison: Comparison, costs: Costs) -> float | None:
        before, after = costs.get(cost, (0.0, 0.0))
        return after / before if before else None

    return read


def _drop(comparison: Comparison, costs: Costs) -> float | None:
    return None if comparison.score is None else comparison.score.drop


ANY = (-math.inf, math.inf)
SHARE = (0.0, 1.0)
RATIO = (0.0, math.inf)
NO_FLOATS = "no output holds floats that were compared"
NO_CLASSES = "no output looks like class scores; use --min-sqnr or --max-drop"
NO_SCORE = "there is no score; give --labels or --metric"
NOT_MEASURED = "it was not measured in this run"

BUDGETS: dict[str, Budget] = {
    row.name: row
    for row in (
        Budget("min_sqnr", "signal to error of the worst output", "dB", "at least", ANY,
               lambda comparison, costs: comparison.sqnr_db, NO_FLOATS),
        Budget("min_cosine", "cosine similarity of the worst output", "", "at least", (-1.0, 1.0),
               lambda comparison, costs: comparison.cosine, NO_FLOATS),
        Budget("max_abs", "largest absolute error of any output", "", "at most", RATIO,
               lambda comparison, costs: comparison.max_abs, NO_FLOATS),
        Budget("min_agreement", "share of equal decisions (top-1) of the worst output", "share", "at least", SHARE,
               lambda comparison, costs: comparison.agreement, NO_CLASSES),
        Budget("max_drop", "loss of the task score", "score", "at most", ANY, _drop, NO_SCORE),
        Budget("max_size", "file size", "share of the original", "at most", RATIO, _share("bytes"), NOT_MEASURED),
        Budget("max_params", "parameters", "share of the original", "at most", RATIO, _share("parameters"),
               NOT_MEASURED),
        Budget("max_macs", "multiply-adds", "share of the original", "at most", RATIO, _share("macs"), NOT_MEASURED),
        Budget("max_latency", "time of one run", "share of the original", "at most", RATIO, _share("latency_ms"),
               NOT_MEASURED),
        Budget("max_memory", "memory of loading and running", "share of the original", "at most", RATIO,
               _share("memory_bytes"), NOT_MEASURED),
    )
}  # fmt: skip

ON_OUTPUTS = ("min_sqnr", "min_cosine", "max_abs", "min_agreement", "max_drop")
"""Those on what the model answers: they can be met by compressing less."""


def validate(budgets: Mapping[str, float]) -> None:
    """SettingError for an unknown budget or a wish outside its limits: called before any work."""
    for name, wanted in budgets.items():
        if name not in BUDGETS:
            raise SettingError(f"no budget is called {name!r}; {nearest(name, BUDGETS)}")
        low, high = BUDGETS[name].limits
        if not low <= wanted <= high:
            raise SettingError(f"{name} is {wanted:g}; give a number from {low:g} to {high:g}")


def check(budgets: Mapping[str, float], comparison: Comparison, costs: Costs | None = None) -> list[Verdict]:
    """Each budget beside what was found, in the order given. A result that is not finite meets no budget on outputs.

    SettingError as for `validate`. What an unmet budget means for the exit code is the command line's.
    """
    validate(budgets)
    return [_verdict(BUDGETS[name], wanted, comparison, costs or {}) for name, wanted in budgets.items()]


def unmet(verdicts: Sequence[Verdict]) -> str:
    """The unmet ones in one line for a BudgetError; empty where all are met."""
    return "; ".join(verdict.sentence for verdict in verdicts if not verdict.met)


def _verdict(budget: Budget, wanted: float, comparison: Comparison, costs: Costs) -> Verdict:
    got = budget.read(comparison, costs)
    asked = f"{budget.name}: {budget.description} must be {budget.sense} {_shown(wanted, budget)}"
    if got is None:
        return Verdict(budget.name, wanted, None, False, f"{asked}, but {budget.without}")
    met = HOLDS[budget.sense](got, wanted) and not math.isnan(got)
    return Verdict(budget.name, wanted, got, met, f"{asked}, {'and' if met else 'but'} is {_shown(got, budget)}")


def _shown(value: float, budget: Budget) -> str:
    return f"{value:.4g}{' dB' if budget.unit == 'dB' else ''}"
