"""Every budget is read off, at its edge and where its number is missing."""

from __future__ import annotations

import json
import math

import pytest

from onnxcompress.budgets import BUDGETS, check, unmet, validate
from onnxcompress.compare import Comparison, Score
from onnxcompress.difference import OutputComparison
from onnxcompress.errors import SettingError

OUTPUT = OutputComparison("y", (1, 4), 8, max_abs=0.25, relative=0.1, cosine=0.98, sqnr_db=18.0, agreement=0.95)
FULL = Comparison((OUTPUT,), 8, "8 samples", score=Score("accuracy", 0.9, 0.88))
BARE = Comparison((OutputComparison("y", (1, 4), 8),), 8, "8 samples")
COSTS = {
    "bytes": (1000.0, 250.0),
    "parameters": (100.0, 40.0),
    "macs": (100.0, 50.0),
    "latency_ms": (4.0, 3.0),
    "memory_bytes": (10.0, 9.0),
}
EDGES = {
    "min_sqnr": 18.0,
    "min_cosine": 0.98,
    "max_abs": 0.25,
    "min_agreement": 0.95,
    "max_drop": 0.9 - 0.88,
    "max_size": 0.25,
    "max_params": 0.4,
    "max_macs": 0.5,
    "max_latency": 0.75,
    "max_memory": 0.9,
}


def test_the_edges_cover_the_table() -> None:
    assert EDGES.keys() == BUDGETS.keys()


@pytest.mark.parametrize("name", BUDGETS)
def test_met_at_the_edge_and_not_beyond(name: str) -> None:
    step = 0.01 if BUDGETS[name].sense == "at least" else -0.01
    at, beyond, within = (check({name: EDGES[name] + k * step}, FULL, COSTS)[0] for k in (0, 1, -1))
    assert at.met and within.met and not beyond.met and at.got == pytest.approx(EDGES[name])


@pytest.mark.parametrize("name", BUDGETS)
def test_what_cannot_be_read_is_not_met(name: str) -> None:
    (verdict,) = check({name: EDGES[name]}, BARE)
    assert not verdict.met and verdict.got is None and ", but " in verdict.sentence


def test_sentences() -> None:
    verdicts = check({"min_sqnr": 20, "max_size": 0.5}, FULL, COSTS)
    assert verdicts[0].sentence == (
        "min_sqnr: signal to error of the worst output must be at least 20 dB, but is 18 dB"
    )
    assert verdicts[1].sentence == "max_size: file size must be at most 0.5, and is 0.25"
    assert unmet(verdicts) == verdicts[0].sentence and unmet(verdicts[1:]) == ""


def test_infinite_and_undefined_numbers() -> None:
    exact = Comparison((OutputComparison("y", (1,), 1, sqnr_db=math.inf, cosine=math.nan),), 1, "")
    sqnr, cosine = check({"min_sqnr": 200, "min_cosine": 0.5}, exact)
    assert sqnr.met and not cosine.met
    assert json.loads(json.dumps(sqnr.to_json(), allow_nan=False))["got"] == "inf"


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"min_sqrn": 20}, "no budget is called 'min_sqrn'; the nearest name is 'min_sqnr'"),
        ({"min_agreement": 99}, "min_agreement is 99; give a number from 0 to 1"),
        ({"max_size": -0.1}, "max_size is -0.1"),
        ({"min_sqnr": math.nan}, "min_sqnr is nan"),
    ],
)
def test_wishes_out_of_range(budgets: dict[str, float], message: str) -> None:
    for refuse in (lambda: validate(budgets), lambda: check(budgets, FULL)):
        with pytest.raises(SettingError, match=message):
            refuse()
