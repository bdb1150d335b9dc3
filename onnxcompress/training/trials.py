"""What is tried before the first update: the form of BatchNormalization, the learning rate, what a step takes in memory."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import replace
from itertools import islice

import numpy as np

from onnxcompress.errors import DivergedError
from onnxcompress.training.checkpoint import Best, State
from onnxcompress.training.footprint import in_words
from onnxcompress.training.graph import LOSS
from onnxcompress.training.lesson import Lesson
from onnxcompress.training.optimizers import rate_at
from onnxcompress.training.parameters import Parameters
from onnxcompress.training.probe import MOST, rate_of, steps_of, tried_rates
from onnxcompress.training.recipe import Norms
from onnxcompress.training.steps import Steps
from onnxcompress.training.update import chunks_of, shown, stepped

TRIED = 4
"""Batches whose mean loss is compared."""

WARMUP = 0.1
"""Share of a trial's steps over which its rate rises."""

RIGHT = 0.5
"""Frozen statistics are right where the loss with them is below this share of the loss with the batch's. Fourteen cuts of two models:
0.1 to 0.26 where least squares had repaired them, and 12 of 14 then ended within 0.4 dB of the better form, one 1.5 dB below it, one
0.1 above; 0.97 to 2.9 where nothing had, and the batch's statistics ended up to 6 dB higher."""


def with_norms(lesson: Lesson, held: Parameters, start: np.ndarray) -> tuple[Lesson, str | None]:
    """The lesson with one form of BatchNormalization, and the choice in words.

    Where a cut has left the statistics of inner values right (a repaired one has), keeping them is better; where it has not, they
    are what is most wrong. The loss before the first update tells which: `RIGHT` has its measurement.
    """
    count = sum(node.op_type == "BatchNormalization" for node in lesson.student.ir.graph)
    asked = lesson.recipe.norms
    forms: tuple[Norms, ...] = ("frozen", "training") if asked == "auto" else (asked,)
    made = [replace(lesson, recipe=replace(lesson.recipe, norms=form)) for form in forms]
    if not count:
        return made[0], None
    if len(made) == 1:
        return made[0], f"{count} BatchNormalization {forms[0]}, as chosen"
    losses = [mean_loss(each, held, start) for each in made]
    best = 0 if losses[0] < RIGHT * losses[1] else 1
    told = f"loss before the first update {losses[best]:.4g}, {forms[1 - best]} {losses[1 - best]:.4g}"
    return made[best], f"{count} BatchNormalization {forms[best]}: {told}"


def room_of(lesson: Lesson, held: Parameters) -> str | None:
    """What a step of the first minibatch takes, in words, BatchNormalization by the batch where that is open. SettingError where --memory
    has no room for a sample."""
    norms: Norms = "training" if lesson.recipe.norms == "auto" else lesson.recipe.norms
    trial = replace(lesson, recipe=replace(lesson.recipe, norms=norms))
    chunk = next(chunks_of(lesson.data.shuffled(0), lesson.recipe.minibatch))
    next(Steps(trial, held).runs(chunk, lambda indices, feed: shown(lesson, indices, feed, 0)))
    return in_words(lesson.rooms)


def mean_loss(lesson: Lesson, held: Parameters, weights: np.ndarray) -> float:
    """Mean loss of the first batches; infinite where one is not finite."""
    found, steps = [], Steps(lesson, held)
    arrays = held.arrays(weights)
    for chunk in islice(chunks_of(lesson.data.shuffled(0), lesson.recipe.minibatch), TRIED):
        for _, feed, taught in steps.runs(chunk, lambda indices, feed: shown(lesson, indices, feed, 0)):
            _, session = steps.step(feed, taught)
            found.append(float(session.run({**feed, **arrays, **taught}, [LOSS])[LOSS]))
    mean = float(np.mean(found))
    return mean if math.isfinite(mean) else math.inf


LOWER, AGAIN = math.sqrt(10), 2
"""At a rate how many times lower, and how often at most, a training begins anew whose rate trials have found and of which no epoch is
kept. A trial is short: one of three cuts of a text classifier looked best at a rate that its training did not bear."""


def anew(state: State, start: np.ndarray, *, finite: bool) -> State | None:
    """The state to begin anew from the student with, at a lower rate; None where what was trained stands, as after any given rate.

    finite  whether all epochs are done; else one of them came to a loss that is not finite
    """
    if state.rate is None or state.best is None or state.first is None or state.again == AGAIN:
        return None
    if finite and state.best.epoch:
        return None
    (rate, told), lower = state.rate, state.rate[0] / LOWER
    why = "no epoch was kept" if finite else "the loss did not stay finite"
    return State(
        start.copy(),
        None if state.average is None else start.copy(),
        best=Best(start.copy(), {}, 0, False, state.first),
        first=state.first,
        rate=(lower, f"{told}; at {rate:.2g} {why}: begun anew from the student at {lower:.2g}"),
        again=state.again + 1,
    )


def found_rate(lesson: Lesson, held: Parameters, start: np.ndarray) -> tuple[float, str]:
    """A learning rate for this student and these samples, and in words what the trials gave."""
    recipe, tries = lesson.recipe, itertools.count(1)
    minibatch = min(recipe.minibatch, lesson.data.samples)
    epochs = (chunks_of(lesson.data.shuffled(epoch), recipe.minibatch) for epoch in itertools.count())
    total = recipe.epochs * math.ceil(lesson.data.samples // minibatch / recipe.accumulate)
    steps = steps_of(total)
    chunks = list(islice(itertools.chain.from_iterable(epochs), steps * recipe.accumulate))

    def score(rate: float) -> float:
        """Loss after a training in small: the rate rises, and falls to nothing."""
        if lesson.progress is not None:
            lesson.progress(next(tries), MOST, "rate")
        state = State(start.copy())

        def now(number: int) -> float:
            return rate_at(number, len(chunks), rate=rate, schedule="cosine", warmup=WARMUP)

        try:
            deque(stepped(lesson, held, state, chunks, now), maxlen=0)
        except DivergedError:
            return math.inf
        return mean_loss(lesson, held, state.weights)

    begun, tried = mean_loss(lesson, held, start), tried_rates(score)
    rate = rate_of(tried, begun, total / steps)
    losses = ", ".join(f"{each:g} {loss:.4g}" for each, loss in sorted(tried.items()))
    return rate, f"rate {rate:.2g} by trials of {steps} steps, {total} to come: loss {begun:.4g}, at {losses}"
