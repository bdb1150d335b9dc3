"""Trials of rates: the search on made scores, and on a student for which the usual rates are far too low."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxcompress
from onnxcompress.training.probe import GAIN, LADDER, LEAST_STEPS, MOST, MOST_STEPS, rate_of, steps_of, tried_rates

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"


def valley(lowest: float, breaks: float) -> Callable[[float], float]:
    """A loss that is least at one rate, steep enough that no neighbour is nearly as good; infinite from another one on."""
    return lambda rate: math.inf if rate >= breaks else 1 + abs(math.log10(rate / lowest))


@given(place=st.integers(1, 9), breaks=st.integers(1, 4), longer=st.floats(0.1, 100))
def test_the_lowest_of_a_valley_is_found_in_few_trials(place: int, breaks: int, longer: float) -> None:
    tried = tried_rates(valley(LADDER[place], LADDER[place + breaks] if place + breaks < len(LADDER) else 2.0))
    assert len(tried) <= MOST and min(tried, key=lambda rate: tried[rate]) == LADDER[place]
    rate, factor = rate_of(tried, 1.2, longer), min(max(longer**0.5, 1), GAIN)
    assert rate == pytest.approx(LADDER[place] * factor)
    assert (
        LADDER[place] * factor
        <= rate_of(tried, 1.6, longer)
        <= math.sqrt(LADDER[place] * LADDER[place + 1]) * factor * 1.01
    )
    assert rate_of(tried, 0.5, longer) == LADDER[place], "no trial got better: a longer training gets no more"


@pytest.mark.parametrize(("total", "steps"), [(1, 1), (9, 9), (100, LEAST_STEPS), (500, 20), (10**6, MOST_STEPS)])
def test_trials_are_short_beside_the_training(total: int, steps: int) -> None:
    assert steps_of(total) == steps


def test_a_student_that_nothing_repaired_gets_a_high_rate_and_a_good_one_a_low_rate() -> None:
    cut = onnxcompress.prune(DIGITS, target_macs=0.2, refit=False).model
    near = onnxcompress.cluster(DIGITS, bits=6, same=True, assign="nearest").model
    rates = {}
    for name, student in {"cut": cut, "near": near}.items():
        made = onnxcompress.distill(student, teacher=DIGITS, data=DIGITS.with_suffix(".npz"), limit=320, epochs=2)
        (told,) = [note for note in made.report.notes if note.startswith("rate ")]
        rates[name] = float(told.split()[1])
        assert f"by trials of {LEAST_STEPS} steps, " in told
    assert rates["cut"] > 10 * rates["near"]
