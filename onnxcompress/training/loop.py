"""The loop: epochs over shuffled batches, updates, a checkpoint after each epoch, and a clear end where a loss is not finite."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from onnxcompress.errors import DivergedError
from onnxcompress.model import Model
from onnxcompress.training.checkpoint import Best, State, load_state, save_state
from onnxcompress.training.footprint import in_words
from onnxcompress.training.lesson import Lesson, held_of
from onnxcompress.training.optimizers import rate_at
from onnxcompress.training.parameters import Parameters
from onnxcompress.training.trials import anew, found_rate, with_norms
from onnxcompress.training.update import chunks_of, kept_loss, stepped, with_weights


@dataclass(frozen=True, eq=False)
class Trained:
    """model: the student with its new weights; curve: a row an epoch; resumed: epochs of it that a checkpoint had already.

    norms  how BatchNormalization trained, and why; None where there is none
    kept   which epoch the weights are of, and why; None without a judge
    rate   how the learning rate was found; None where it was given
    sources  where gradients came from, in words
    memory   what a step takes, and in how many parts it was made
    """

    model: Model
    curve: list[dict[str, Any]]
    parameters: int
    resumed: int
    norms: str | None = None
    sources: tuple[str, ...] = ()
    kept: str | None = None
    rate: str | None = None
    memory: str | None = None


def train(lesson: Lesson) -> Trained:
    """Carry it out. DivergedError where a loss is not finite (the last checkpoint stays), errors of models and data as elsewhere."""
    key, held = lesson.key, held_of(lesson.student, lesson.recipe, lesson.guesses, lesson.limits)
    state = None if lesson.checkpoint is None else load_state(lesson.checkpoint, key)
    start = held.start()
    lesson, norms = with_norms(lesson, held, start)
    if state is None:
        state = State(start.copy(), start.copy() if lesson.keep else None)
        state.rate = found_rate(lesson, held, start) if lesson.recipe.rate is None else None
        _judge(lesson, held, state)
    resumed, again = state.epoch, _trained_on(lesson, held, state, key, start)
    while again is not None:
        state, resumed = again, 0
        again = _trained_on(lesson, held, state, key, start)
    sources = tuple(dict.fromkeys(made.source for made, _ in lesson.graphs.values() if made.source))
    return Trained(
        model=_final(lesson, held, state),
        curve=state.curve,
        parameters=held.layout.size,
        resumed=resumed,
        norms=norms,
        sources=sources,
        kept=_kept(lesson, state),
        rate=None if state.rate is None else state.rate[1],
        memory=in_words(lesson.rooms),
    )


def _trained_on(lesson: Lesson, held: Parameters, state: State, key: str, start: np.ndarray) -> State | None:
    """The epochs that are left, a checkpoint after each; the state to begin anew with, where that is to be."""
    if state.rate is not None:
        lesson = replace(lesson, recipe=replace(lesson.recipe, rate=state.rate[0]))
    for epoch in range(state.epoch, lesson.recipe.epochs):
        begun = time.perf_counter()
        try:
            row = _epoch(lesson, held, state, epoch)
        except DivergedError:
            again = anew(state, start, finite=False)
            if again is None:
                raise
            return again
        state.epoch = epoch + 1
        row |= _judge(lesson, held, state)
        state.curve.append({"epoch": epoch + 1, **row, "seconds": round(time.perf_counter() - begun, 3)})
        if lesson.checkpoint is not None:
            save_state(lesson.checkpoint, state, key)
    return anew(state, start, finite=True)


def _final(lesson: Lesson, held: Parameters, state: State) -> Model:
    """The student with the weights that are kept; itself where none are better."""
    if state.best is None:
        return with_weights(
            lesson.student, held, state.weights if state.average is None else state.average, state.running
        )
    best = state.best
    return with_weights(lesson.student, held, best.weights, best.running) if best.epoch else lesson.student


def _judge(lesson: Lesson, held: Parameters, state: State) -> dict[str, Any]:
    """How the weights stand, and their average beside them; the best state so far is kept. Columns of the curve."""
    if lesson.judge is None:
        return {}
    candidates = (
        {False: state.weights}
        if state.average is None or not state.epoch
        else {False: state.weights, True: state.average}
    )
    told: dict[str, Any] = {}
    for averaged, weights in candidates.items():
        student = with_weights(lesson.student, held, weights, state.running)
        loss = partial(kept_loss, lesson, held, lesson.judge.data, lesson.judge.batch, weights, state.running)
        found = lesson.judge(student, loss)
        told |= {f"{'averaged_' if averaged else ''}{name}": value for name, value in vars(found).items()}
        if state.best is None or found.over(state.best.standing, state.first or state.best.standing):
            running = {name: values.copy() for name, values in state.running.items()}
            state.best = Best(weights.copy(), running, state.epoch, averaged, astuple(found))
            state.first = state.first or astuple(found)
    return told


def _kept(lesson: Lesson, state: State) -> str | None:
    """For the report."""
    if state.best is None or lesson.judge is None:
        return None
    best, samples = state.best, f"{lesson.judge.data.samples} samples kept back"
    before, now = (lesson.judge.standing(*each).words for each in (state.first or best.standing, best.standing))
    if not best.epoch:
        return (
            f"no epoch answers better on {samples} than the student did before ({before}): its weights stay; "
            f"give {'a lower --rate, or ' if state.rate is None else ''}more samples"
        )
    kind = "averaged weights" if best.averaged else "weights"
    return f"the {kind} of epoch {best.epoch} are kept: {now} on {samples}, {before} before"


def _epoch(lesson: Lesson, held: Parameters, state: State, epoch: int) -> dict[str, Any]:
    """One pass over the data; the row of the curve: mean loss and terms, mean length of the gradient, last rate."""
    recipe = lesson.recipe
    chunks = list(chunks_of(lesson.data.shuffled(epoch), recipe.minibatch))
    done, total = epoch * len(chunks), recipe.epochs * len(chunks)

    def now(number: int) -> float:
        rate = recipe.rate or 0.0
        return rate_at(done + number, total, rate=rate, schedule=recipe.schedule, warmup=recipe.warmup)

    rows = []
    for row in stepped(lesson, held, state, chunks, now, f"epoch {epoch + 1}"):
        rows.append(row)
        if lesson.progress is not None:
            lesson.progress(done + len(rows), total, "distill")
    means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in rows[-1]}
    return {**means, "rate": rows[-1]["rate"]}
