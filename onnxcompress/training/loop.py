"""The loop: epochs over shuffled batches, updates, a checkpoint after each epoch, and a clear end where a loss is not finite."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.data import Data
from onnxcompress.model import Model
from onnxcompress.model.edit import set_constant
from onnxcompress.runtime.session import Session
from onnxcompress.training.blame import blamed
from onnxcompress.training.checkpoint import State, load_state, save_state
from onnxcompress.training.derivatives.normalization import unbiased
from onnxcompress.training.graph import GRADIENT, LOSS, TERM, StepGraph, step_graph
from onnxcompress.training.optimizers import OPTIMIZERS, Settings, average_into, clip_to, rate_at
from onnxcompress.training.parameters import Layout, parameters_of
from onnxcompress.training.recipe import Recipe
from onnxcompress.training.targets import TEACHER, Target, criterion
from onnxcompress.training.teacher import Teacher

Progress = Callable[[int, int, str], None]

GRAPHS = 8
"""Step graphs that are kept, one for each set of input shapes."""

RUNNING = 0.1
"""How far running statistics of BatchNormalization move towards each batch's, as frameworks have it."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """All that a training is made of.

    student      whose weights are the start            teacher, targets  what is learned from whom
    data         the samples that are trained on        temperature       of the losses; None: each loss's own
    checkpoint   a file that is written after each epoch, and continued from where it is there
    identity     what else makes two trainings different ones, for the checkpoint
    """

    student: Model
    teacher: Teacher
    targets: Sequence[Target]
    data: Data
    recipe: Recipe
    temperature: float | None = None
    threads: int = 1
    checkpoint: Path | None = None
    identity: str = ""
    progress: Progress | None = None
    graphs: dict[Any, tuple[StepGraph, Session]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names models, targets, data, recipe and seed."""
        facts = [self.student.fingerprint, self.identity, [vars(each) for each in self.targets], self.temperature]
        whole = [*facts, vars(self.recipe), self.data.describe(), self.data.seed, self.threads]
        return hashlib.sha256(json.dumps(whole, default=str, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Trained:
    """model: the student with its new weights; curve: a row an epoch; resumed: epochs that a checkpoint had already."""

    model: Model
    curve: list[dict[str, Any]]
    parameters: int
    resumed: int


def train(lesson: Lesson) -> Trained:
    """Carry it out. SettingError where a loss is not finite (the last checkpoint stays), errors of models and data as elsewhere."""
    recipe = lesson.recipe
    layout = Layout.of(lesson.student, parameters_of(lesson.student, recipe.freeze))
    state = None if lesson.checkpoint is None else load_state(lesson.checkpoint, lesson.key)
    if state is None:
        start = layout.gathered({name: lesson.student.array(name) for name in layout.shapes})
        state = State(start, None if recipe.average is None else start.copy())
    resumed = state.epoch
    for epoch in range(state.epoch, recipe.epochs):
        begun = time.perf_counter()
        row = _epoch(lesson, layout, state, epoch)
        state.epoch = epoch + 1
        state.curve.append({"epoch": epoch + 1, **row, "seconds": round(time.perf_counter() - begun, 3)})
        if lesson.checkpoint is not None:
            save_state(lesson.checkpoint, state, lesson.key)
    final = state.weights if state.average is None else state.average
    return Trained(with_weights(lesson.student, layout, final, state.running), state.curve, layout.size, resumed)


def with_weights(model: Model, layout: Layout, weights: np.ndarray, running: Mapping[str, np.ndarray]) -> Model:
    """A clone of the model with these parameters and running statistics."""
    graph = model.ir.clone()
    for name, values in {**layout.views(weights), **running}.items():
        set_constant(graph, name, values.copy())
    return model.edited(graph)


def _epoch(lesson: Lesson, layout: Layout, state: State, epoch: int) -> dict[str, Any]:
    """One pass over the data; the row of the curve: mean loss and terms, mean length of the gradient, last rate."""
    recipe = lesson.recipe
    chunks = list(_chunks(lesson.data.shuffled(epoch), recipe.minibatch))
    total, sums, lengths, rate = np.zeros(layout.size, np.float32), dict[str, float](), [], 0.0
    waiting = 0
    for number, chunk in enumerate(chunks):
        place = f"epoch {epoch + 1}, batch {number + 1} of {len(chunks)}"
        for name, value in _accumulate(lesson, layout, state, chunk, total, place).items():
            sums[name] = sums.get(name, 0.0) + value / len(chunks)
        waiting += 1
        if waiting == recipe.accumulate or number + 1 == len(chunks):
            rate = rate_at(
                epoch * len(chunks) + number, recipe.epochs * len(chunks),
                rate=recipe.rate, schedule=recipe.schedule, warmup=recipe.warmup,
            )  # fmt: skip
            total /= np.float32(waiting)
            lengths.append(clip_to(total, recipe.clip))
            _update(layout, recipe, state, total, rate)
            total[:], waiting = 0.0, 0
        if lesson.progress is not None:
            lesson.progress(epoch * len(chunks) + number + 1, recipe.epochs * len(chunks), "distill")
    return {**sums, "gradient": float(np.mean(lengths)), "rate": rate}


def _chunks(data: Data, size: int) -> Iterator[Data]:
    """Views of `size` samples each; what is left over at the end waits for another epoch's order."""
    size = min(size, data.samples)
    for first in range(0, data.samples - size + 1, size):
        yield replace(data, indices=data.indices[first : first + size])


def _accumulate(
    lesson: Lesson, layout: Layout, state: State, chunk: Data, total: np.ndarray, place: str
) -> dict[str, float]:
    """Add the gradient of a chunk's mean loss to `total`; the loss and its terms. Samples of one shape are one run."""
    views, into = layout.views(state.weights), layout.views(total)
    found: dict[str, float] = {}
    for indices, feed in chunk.indexed(chunk.samples):
        taught = {f"{TEACHER}{name}": value for name, value in lesson.teacher.values(indices, feed).items()}
        made, session = _step(lesson, layout, feed, taught)
        given = session.run({**feed, **views, **taught})
        share = len(indices) / chunk.samples
        for name in (LOSS, *(f"{TERM}{each}" for each in made.terms if len(made.terms) > 1)):
            found[name] = found.get(name, 0.0) + share * float(given[name])
        if not (math.isfinite(float(given[LOSS])) and all(np.isfinite(given[f"{GRADIENT}{n}"]).all() for n in into)):
            raise blamed(
                with_weights(lesson.student, layout, state.weights, state.running),
                feed,
                given,
                place,
                lesson.checkpoint,
            )
        for name, view in into.items():
            view += np.float32(share) * given[f"{GRADIENT}{name}"]
        _track(lesson.student, made, given, state.running)
    return found


def _step(
    lesson: Lesson, layout: Layout, feed: Mapping[str, np.ndarray], taught: Mapping[str, np.ndarray]
) -> tuple[StepGraph, Session]:
    """The step graph for these shapes, made when they first come up; the one that was used longest ago makes room."""
    key = tuple((name, array.shape) for name, array in {**feed, **taught}.items())
    if key not in lesson.graphs:
        if len(lesson.graphs) >= GRAPHS:
            lesson.graphs.pop(next(iter(lesson.graphs)))
        shapes = {name.removeprefix(TEACHER): array.shape for name, array in taught.items()}
        terms = criterion(lesson.targets, shapes, temperature=lesson.temperature)
        sizes = {name: array.shape for name, array in feed.items()}
        made = step_graph(lesson.student, sizes, list(layout.shapes), terms, norms=lesson.recipe.norms)
        lesson.graphs[key] = (made, made.open(threads=lesson.threads))
    else:
        lesson.graphs[key] = lesson.graphs.pop(key)
    return lesson.graphs[key]


def _update(layout: Layout, recipe: Recipe, state: State, gradient: np.ndarray, rate: float) -> None:
    state.step += 1
    settings = Settings(
        momentum=recipe.momentum, nesterov=recipe.nesterov, decay=recipe.decay, decays=layout.matrices,
        bounds=layout.bounds,
    )  # fmt: skip
    OPTIMIZERS[recipe.optimizer](state.weights, gradient, state.moments, rate, state.step, settings)
    if state.average is not None and recipe.average is not None:
        average_into(state.average, state.weights, recipe.average, state.step)


def _track(student: Model, made: StepGraph, given: Mapping[str, np.ndarray], running: dict[str, np.ndarray]) -> None:
    """Running statistics move towards the batch's; the variance as frameworks keep it, over n - 1."""
    for each in made.statistics:
        new = {each.mean: given[each.batch_mean], each.var: unbiased(given[each.batch_var], each.count)}
        for name, value in new.items():
            before = running.setdefault(name, student.array(name).copy())
            before += np.float32(RUNNING) * (value - before)
