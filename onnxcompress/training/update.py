"""One update: samples, what is learned from them, gradients, and the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxcompress.data import Data
from onnxcompress.errors import DivergedError
from onnxcompress.model import Model
from onnxcompress.model.edit import set_constant
from onnxcompress.training.augment import Mix
from onnxcompress.training.blame import blamed
from onnxcompress.training.checkpoint import State
from onnxcompress.training.derivatives.normalization import unbiased
from onnxcompress.training.graph import GRADIENT, LOSS, TERM, StepGraph
from onnxcompress.training.lesson import Lesson
from onnxcompress.training.optimizers import OPTIMIZERS, Settings, average_into, clip_to
from onnxcompress.training.parameters import Parameters
from onnxcompress.training.recipe import Recipe
from onnxcompress.training.steps import Steps
from onnxcompress.training.targets import LABELS, TEACHER

RUNNING = 0.1
"""How far running statistics of BatchNormalization move towards each batch's, as frameworks have it."""


def shown(
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
    return feed, _named(taught)


def _named(taught: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under the names of the step graph's inputs, which are never narrower than float32 (halves.py)."""
    wide = {name: value.astype(np.float32) if value.dtype.itemsize == 2 else value for name, value in taught.items()}
    return {f"{TEACHER}{name}": value for name, value in wide.items()}


def with_weights(model: Model, held: Parameters, weights: np.ndarray, running: Mapping[str, np.ndarray]) -> Model:
    """A clone of the model with these parameters and running statistics."""
    graph = model.ir.clone()
    held.write(graph, weights)
    for name, values in running.items():
        set_constant(graph, name, values.copy())
    return model.edited(graph)


def chunks_of(data: Data, size: int) -> Iterator[Data]:
    """Views of `size` samples each; what is left over at the end waits for another epoch's order."""
    size = min(size, data.samples)
    for first in range(0, data.samples - size + 1, size):
        yield replace(data, indices=data.indices[first : first + size])


def stepped(
    lesson: Lesson,
    held: Parameters,
    state: State,
    chunks: Sequence[Data],
    rate: Callable[[int], float],
    place: str | None = None,
) -> Iterator[dict[str, float]]:
    """Train on these chunks in turn; after each its loss and terms, and where it ends an update also `gradient`, the length, and `rate`.

    rate   of the update that ends with chunk 0, 1, ...
    place  what to call these chunks where a loss is not finite, which is a DivergedError; None: a trial, nobody wants to know the layer
    """
    recipe, total, waiting = lesson.recipe, np.zeros(held.layout.size, np.float32), 0
    for number, chunk in enumerate(chunks):
        told = accumulate(lesson, held, state, chunk, total, place and f"{place}, batch {number + 1} of {len(chunks)}")
        waiting += 1
        if waiting == recipe.accumulate or number + 1 == len(chunks):
            if waiting > 1:
                total /= np.float32(waiting)
            told |= {"gradient": clip_to(total, recipe.clip), "rate": rate(number)}
            if lesson.bend is not None:
                lesson.bend(held.layout.views(state.weights), held.layout.views(total))
            update(held, recipe, state, total, told["rate"], lesson.keep)
            total[:], waiting = 0.0, 0
        yield told


def accumulate(
    lesson: Lesson, held: Parameters, state: State, chunk: Data, total: np.ndarray, place: str | None
) -> dict[str, float]:
    """Add the gradient of a chunk's mean loss to `total`; the loss and its terms. Samples of one shape are one run, or several."""
    arrays, steps = held.arrays(state.weights), Steps(lesson, held)
    found: dict[str, float] = {}
    for indices, feed, taught in steps.runs(chunk, lambda indices, feed: shown(lesson, indices, feed, state.epoch)):
        made, session = steps.step(feed, taught)
        given = session.run({**feed, **arrays, **taught})
        gradients = {name: given[f"{GRADIENT}{name}"] for name in arrays}
        share = len(indices) / chunk.samples
        for name in (LOSS, *(f"{TERM}{each}" for each in made.terms if len(made.terms) > 1)):
            found[name] = found.get(name, 0.0) + share * float(given[name])
        if not (math.isfinite(float(given[LOSS])) and all(np.isfinite(each).all() for each in gradients.values())):
            if place is None:
                raise DivergedError("the loss of a trial is not finite")
            raise blamed(
                with_weights(lesson.student, held, state.weights, state.running),
                feed,
                given,
                place,
                lesson.checkpoint,
            )
        held.gather(total, gradients, share, state.weights)
        _track(held.model, made, given, state.running)
    return found


def kept_loss(
    lesson: Lesson, held: Parameters, data: Data, batch: int, weights: np.ndarray, running: Mapping[str, np.ndarray]
) -> float:
    """Mean loss of samples that do not train, BatchNormalization as the file has it; infinite where it is not finite."""
    statistics = _statistics(held.model) if lesson.recipe.norms == "training" else []
    arrays = held.arrays(weights) | {name: running.get(name, held.model.array(name)) for name in statistics}
    total, steps = 0.0, Steps(lesson, held)
    for indices, feed in data.indexed(batch):
        taught = _named({} if lesson.teacher is None else lesson.teacher.values(indices, feed))
        session = steps.loss(feed, taught, statistics)
        total += len(indices) * float(session.run({**feed, **arrays, **taught}, [LOSS])[LOSS])
    return total / data.samples if math.isfinite(total) else math.inf


def _statistics(model: Model) -> list[str]:
    """Running statistics of BatchNormalization."""
    norms = [node for node in model.ir.graph if node.op_type == "BatchNormalization" and not node.domain]
    names = [str(node.inputs[place].name) for node in norms for place in (3, 4)]  # type: ignore[union-attr]
    return list(dict.fromkeys(name for name in names if name in model.initializers))


def update(held: Parameters, recipe: Recipe, state: State, gradient: np.ndarray, rate: float, keep: float) -> None:
    """One step of the optimizer by `gradient` [n], in place; keep: of the average of weights, where there is one."""
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
            before = running.setdefault(name, student.array(name).astype(np.float32))
            before += np.float32(RUNNING) * (value - before)
