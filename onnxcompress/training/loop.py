"""The loop: epochs over shuffled batches, updates, a checkpoint after each epoch, and a clear end where a loss is not finite."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.data import Data
from onnxcompress.model import Model
from onnxcompress.model.edit import set_constant
from onnxcompress.runtime.session import Session
from onnxcompress.training.augment import Changes, Mix, words
from onnxcompress.training.blame import blamed
from onnxcompress.training.checkpoint import FORMAT, Best, State, load_state, save_state
from onnxcompress.training.derivatives.normalization import unbiased
from onnxcompress.training.graph import GRADIENT, LOSS, TERM, StepGraph, settings_in, step_graph, told_apart
from onnxcompress.training.integers import Limit
from onnxcompress.training.judge import Judge, LabelJudge
from onnxcompress.training.labels import Labels
from onnxcompress.training.optimizers import OPTIMIZERS, Settings, average_into, clip_to, rate_at
from onnxcompress.training.parameters import Parameters
from onnxcompress.training.recipe import Norms, Recipe
from onnxcompress.training.targets import LABELS, TEACHER, Target, criterion
from onnxcompress.training.teacher import Teacher

Progress = Callable[[int, int, str], None]
Bend = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]

TRIED = 4
"""Batches on which both forms of BatchNormalization are tried before the first update."""

RIGHT = 0.5
"""Frozen statistics are right where the loss with them is below this share of the loss with the batch's. Fourteen cuts of two models:
0.1 to 0.26 where least squares had repaired them, and 12 of 14 then ended within 0.4 dB of the better form, one 1.5 dB below it, one
0.1 above; 0.97 to 2.9 where nothing had, and the batch's statistics ended up to 6 dB higher."""

GRAPHS = 8
"""Step graphs that are kept, one for each set of input shapes."""

AVERAGE = 0.99
"""How much of the average of weights stays at each update, where a judge may choose it."""

RUNNING = 0.1
"""How far running statistics of BatchNormalization move towards each batch's, as frameworks have it."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """All that a training is made of.

    student      whose weights are the start            teacher, targets  what is learned from whom; None: from labels alone
    data         the samples that are trained on        temperature       of the losses; None: each loss's own
    checkpoint   a file that is written after each epoch, and continued from where it is there
    identity     what else makes two trainings different ones, for the checkpoint
    guesses      the weights that coded ones may stand for, where symbols move
    limits       of integers, see integers.py
    judge        on samples that do not train: the best epoch, or the student as it was, is the result; None: the last one
    labels       of the samples, where a target learns them
    bend         what is done before each update to what trains and its gradients, by name, in place: penalties, masks
    """

    student: Model
    teacher: Teacher | None
    targets: Sequence[Target]
    data: Data
    recipe: Recipe
    temperature: float | None = None
    threads: int = 1
    checkpoint: Path | None = None
    identity: str = ""
    progress: Progress | None = None
    guesses: Mapping[str, np.ndarray] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    judge: Judge | LabelJudge | None = None
    labels: Labels | None = None
    bend: Bend | None = None
    graphs: dict[Any, tuple[StepGraph, Session]] = field(default_factory=dict)

    @cached_property
    def changes(self) -> Changes | None:
        """Of inputs, that the recipe asks for."""
        return Changes.of(self.recipe.augment, self.recipe.mixup, self.data)

    @property
    def key(self) -> str:
        """Names models, targets, labels, data, recipe and seed."""
        facts = [
            FORMAT,
            self.student.fingerprint,
            self.identity,
            [vars(each) for each in self.targets],
            self.temperature,
            None if self.labels is None else self.labels.key,
        ]
        recipe = {**vars(self.recipe), "augment": [words(each) for each in self.recipe.augment]}
        whole = [*facts, recipe, self.data.describe(), self.data.seed, self.threads]
        whole += [] if self.judge is None else [self.judge.data.describe()]
        return hashlib.sha256(json.dumps(whole, default=str, sort_keys=True).encode()).hexdigest()

    @property
    def keep(self) -> float:
        """Of the average of weights; 0 where none is kept."""
        asked = self.recipe.average
        return (0.0 if self.judge is None else AVERAGE) if asked is None else asked


@dataclass(frozen=True, eq=False)
class Trained:
    """model: the student with its new weights; curve: a row an epoch; resumed: epochs that a checkpoint had already.

    norms  how BatchNormalization trained, and why; None where there is none
    kept   which epoch the weights are of, and why; None without a judge
    sources  where gradients came from, in words
    """

    model: Model
    curve: list[dict[str, Any]]
    parameters: int
    resumed: int
    norms: str | None = None
    sources: tuple[str, ...] = ()
    kept: str | None = None


def train(lesson: Lesson) -> Trained:
    """Carry it out. SettingError where a loss is not finite (the last checkpoint stays), errors of models and data as elsewhere."""
    key, held = lesson.key, held_of(lesson.student, lesson.recipe, lesson.guesses, lesson.limits)
    state = None if lesson.checkpoint is None else load_state(lesson.checkpoint, key)
    start = held.start()
    lesson, norms = _with_norms(lesson, held, start)
    recipe = lesson.recipe
    if state is None:
        state = State(start, start.copy() if lesson.keep else None)
        _judge(lesson, held, state)
    resumed = state.epoch
    for epoch in range(state.epoch, recipe.epochs):
        begun = time.perf_counter()
        row = _epoch(lesson, held, state, epoch)
        state.epoch = epoch + 1
        row |= _judge(lesson, held, state)
        state.curve.append({"epoch": epoch + 1, **row, "seconds": round(time.perf_counter() - begun, 3)})
        if lesson.checkpoint is not None:
            save_state(lesson.checkpoint, state, key)
    sources = tuple(dict.fromkeys(made.source for made, _ in lesson.graphs.values()))
    return Trained(
        _final(lesson, held, state), state.curve, held.layout.size, resumed, norms, sources, _kept(lesson, state)
    )


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
        found = lesson.judge(with_weights(lesson.student, held, weights, state.running))
        told |= {f"{'averaged_' if averaged else ''}{name}": value for name, value in vars(found).items()}
        if state.best is None or astuple(found) > state.best.standing:
            running = {name: values.copy() for name, values in state.running.items()}
            state.best = Best(weights.copy(), running, state.epoch, averaged, astuple(found))
    return told


def _kept(lesson: Lesson, state: State) -> str | None:
    """For the report."""
    if state.best is None or lesson.judge is None:
        return None
    best, samples = state.best, f"{lesson.judge.data.samples} samples kept back"
    stands = lesson.judge.standing(*best.standing).words
    if not best.epoch:
        return (
            f"no epoch answers better on {samples} than the student did before ({stands}): its weights stay; "
            "give a lower --rate, or more samples"
        )
    what = "averaged weights" if best.averaged else "weights"
    return f"the {what} of epoch {best.epoch} are kept: {stands} on {samples}"


def held_of(
    student: Model,
    recipe: Recipe,
    guesses: Mapping[str, np.ndarray] | None = None,
    limits: Mapping[str, Limit] | None = None,
) -> Parameters:
    """What trains of the student, in the forms that its recipe asks for."""
    keep = recipe.keep_encoding or recipe.move_symbols
    return Parameters.of(student, recipe.freeze, keep=keep, move=recipe.move_symbols, guesses=guesses, limits=limits)


def _with_norms(lesson: Lesson, held: Parameters, start: np.ndarray) -> tuple[Lesson, str | None]:
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
    losses = [_first_loss(each, held, start) for each in made]
    best = 0 if losses[0] < RIGHT * losses[1] else 1
    told = f"loss before the first update {losses[best]:.4g}, {forms[1 - best]} {losses[1 - best]:.4g}"
    return made[best], f"{count} BatchNormalization {forms[best]}: {told}"


def _first_loss(lesson: Lesson, held: Parameters, start: np.ndarray) -> float:
    """Mean loss of the first batches; infinite where one is not finite."""
    found = []
    arrays = held.arrays(start)
    for chunk in islice(_chunks(lesson.data.shuffled(0), lesson.recipe.minibatch), TRIED):
        for indices, feed in chunk.indexed(chunk.samples):
            feed, taught = _shown(lesson, indices, feed, 0)
            _, session = _step(lesson, held, feed, taught)
            found.append(float(session.run({**feed, **arrays, **taught}, [LOSS])[LOSS]))
    mean = float(np.mean(found))
    return mean if math.isfinite(mean) else math.inf


def _shown(
    lesson: Lesson, indices: np.ndarray, feed: dict[str, np.ndarray], epoch: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The feed, changed where the recipe asks for it, and what is learned from it under the names of the step graph's inputs."""
    mix: Mix | None = None
    if lesson.changes is not None:
        feed, mix = lesson.changes(feed, indices, epoch)
    taught = {} if lesson.teacher is None else lesson.teacher.values(indices, feed, fresh=mix is not None)
    if lesson.labels is not None:
        labels = lesson.labels.values(indices)
        taught = {**taught, LABELS: labels if mix is None else mix(labels)}
    return feed, {f"{TEACHER}{name}": value for name, value in taught.items()}


def with_weights(model: Model, held: Parameters, weights: np.ndarray, running: Mapping[str, np.ndarray]) -> Model:
    """A clone of the model with these parameters and running statistics."""
    graph = model.ir.clone()
    held.write(graph, weights)
    for name, values in running.items():
        set_constant(graph, name, values.copy())
    return model.edited(graph)


def _epoch(lesson: Lesson, held: Parameters, state: State, epoch: int) -> dict[str, Any]:
    """One pass over the data; the row of the curve: mean loss and terms, mean length of the gradient, last rate."""
    recipe = lesson.recipe
    chunks = list(_chunks(lesson.data.shuffled(epoch), recipe.minibatch))
    total, sums, lengths, rate = np.zeros(held.layout.size, np.float32), dict[str, float](), [], 0.0
    waiting = 0
    for number, chunk in enumerate(chunks):
        place = f"epoch {epoch + 1}, batch {number + 1} of {len(chunks)}"
        for name, value in _accumulate(lesson, held, state, chunk, total, place).items():
            sums[name] = sums.get(name, 0.0) + value / len(chunks)
        waiting += 1
        if waiting == recipe.accumulate or number + 1 == len(chunks):
            rate = rate_at(
                epoch * len(chunks) + number, recipe.epochs * len(chunks),
                rate=recipe.rate, schedule=recipe.schedule, warmup=recipe.warmup,
            )  # fmt: skip
            total /= np.float32(waiting)
            lengths.append(clip_to(total, recipe.clip))
            if lesson.bend is not None:
                lesson.bend(held.layout.views(state.weights), held.layout.views(total))
            _update(held, recipe, state, total, rate, lesson.keep)
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
    lesson: Lesson, held: Parameters, state: State, chunk: Data, total: np.ndarray, place: str
) -> dict[str, float]:
    """Add the gradient of a chunk's mean loss to `total`; the loss and its terms. Samples of one shape are one run."""
    arrays = held.arrays(state.weights)
    found: dict[str, float] = {}
    for indices, feed in chunk.indexed(chunk.samples):
        feed, taught = _shown(lesson, indices, feed, state.epoch)
        made, session = _step(lesson, held, feed, taught)
        given = session.run({**feed, **arrays, **taught})
        gradients = {name: given[f"{GRADIENT}{name}"] for name in arrays}
        share = len(indices) / chunk.samples
        for name in (LOSS, *(f"{TERM}{each}" for each in made.terms if len(made.terms) > 1)):
            found[name] = found.get(name, 0.0) + share * float(given[name])
        if not (math.isfinite(float(given[LOSS])) and all(np.isfinite(each).all() for each in gradients.values())):
            raise blamed(
                with_weights(lesson.student, held, state.weights, state.running),
                feed,
                given,
                place,
                lesson.checkpoint,
            )
        held.gather(total, gradients, share, state.weights)
        _track(lesson.student, made, given, state.running)
    return found


def _step(
    lesson: Lesson, held: Parameters, feed: Mapping[str, np.ndarray], taught: Mapping[str, np.ndarray]
) -> tuple[StepGraph, Session]:
    """The step graph for these shapes and settings, made when they first come up; the one used longest ago makes room."""
    key = (lesson.recipe.norms, *told_apart({**feed, **taught}))
    if key not in lesson.graphs:
        if len(lesson.graphs) >= GRAPHS:
            lesson.graphs.pop(next(iter(lesson.graphs)))
        shapes = {name.removeprefix(TEACHER): array.shape for name, array in taught.items()}
        terms = criterion(lesson.targets, shapes, temperature=lesson.temperature)
        sizes = {name: array.shape for name, array in feed.items()}
        made = step_graph(
            held.model,
            sizes,
            [*held.forms, *held.twins],
            terms,
            norms=lesson.recipe.norms,
            known=settings_in(feed),
            source=lesson.recipe.source,
        )
        lesson.graphs[key] = (made, made.open(threads=lesson.threads))
    else:
        lesson.graphs[key] = lesson.graphs.pop(key)
    return lesson.graphs[key]


def _update(held: Parameters, recipe: Recipe, state: State, gradient: np.ndarray, rate: float, keep: float) -> None:
    state.step += 1
    settings = Settings(
        momentum=recipe.momentum, nesterov=recipe.nesterov, decay=recipe.decay, decays=held.decays,
        bounds=held.layout.bounds,
    )  # fmt: skip
    OPTIMIZERS[recipe.optimizer](state.weights, gradient, state.moments, rate, state.step, settings)
    held.settle(state.weights)
    if state.average is not None:
        average_into(state.average, state.weights, keep, state.step)


def _track(student: Model, made: StepGraph, given: Mapping[str, np.ndarray], running: dict[str, np.ndarray]) -> None:
    """Running statistics move towards the batch's; the variance as frameworks keep it, over n - 1."""
    for each in made.statistics:
        new = {each.mean: given[each.batch_mean], each.var: unbiased(given[each.batch_var], each.count)}
        for name, value in new.items():
            before = running.setdefault(name, student.array(name).copy())
            before += np.float32(RUNNING) * (value - before)
