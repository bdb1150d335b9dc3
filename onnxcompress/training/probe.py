"""A learning rate by short trials: each is a training in small from the student as it is, on the same batches, and the loss where
it ends says which rate goes best.

A range test (Smith, WACV 2017, arXiv:1506.01186) in trials of their own instead of one run of rising rates. Each trial lets its rate
fall to nothing, as the training will: without that, short trials prefer rates that are far too low (Wu et al., ICLR 2018,
arXiv:1803.02021). A cut text classifier (loss 2.7), 14 steps at 3e-5, 1e-4, 3e-4, 1e-3: mean loss of the last steps at a constant rate
1.5, 1.6, 2.4, 5.9; loss after the rate has fallen 2.0, 2.0, 1.5, 5.6, and 3e-4 is the better one of whole trainings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Rates that may be tried."""

FIRST, MOST = 5, 6
"""The place where trials begin, and how many there are at most."""

GAIN = math.sqrt(10)
"""At most so much higher than the trials say is the rate of the training, which is longer. Two cuts of a text classifier, trials of 14
steps, training of 130: best of the trials 3e-4 both times; at 1e-4, 3e-4, 1e-3, 3e-3 the trained ones were right on 81, -, 96, - % and
-, 97, 100, 99 % of other lines."""

LEAST_STEPS, MOST_STEPS, SHARE = 12, 40, 1 / 25
"""Steps of a trial: a share of the training's, within these ends, and never more than the training's."""


def steps_of(total: int) -> int:
    """How many a trial takes, of a training of so many."""
    return min(max(round(SHARE * total), LEAST_STEPS), MOST_STEPS, max(total, 1))


def tried_rates(score: Callable[[float], float]) -> dict[float, float]:
    """Rate -> score: up from the first one or down, as long as it gets better. score: infinite where training breaks."""
    tried = {LADDER[FIRST]: score(LADDER[FIRST])}
    for way in (1, -1) if math.isfinite(tried[LADDER[FIRST]]) else (-1,):
        at = FIRST
        while len(tried) < MOST and 0 <= at + way < len(LADDER):
            before, rate = LADDER[at], LADDER[at + way]
            tried[rate] = score(rate)
            if tried[rate] >= tried[before] and math.isfinite(tried[before]):
                break
            at += way
        if at != FIRST:
            break
    return tried


def rate_of(tried: Mapping[float, float], start: float, longer: float) -> float:
    """Of a training `longer` times as long as the trials, of a student whose loss is `start`.

    The middle, by factors, of the rate with the lowest loss and the highest one that still ends below the start, times the root of
    `longer`, within GAIN. Where losses hardly depend on the rate, the lowest one says little: a cut text reader (0.75) ended at 0.60,
    0.58, 0.58, 0.71 and 2.0 at 1e-5 to 1e-3, and 1e-4 was too low for it.
    """
    best = min(tried, key=lambda rate: (tried[rate], rate))
    if not tried[best] < start:
        return best
    highest = max(rate for rate, loss in tried.items() if loss < start)
    return math.sqrt(best * highest) * min(max(math.sqrt(longer), 1.0), GAIN)
