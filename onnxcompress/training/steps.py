"""Step graphs of a training with their sessions, one for each set of shapes, and how many samples run at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcompress.data import Data
from onnxcompress.errors import SettingError
from onnxcompress.runtime.memory import free_bytes
from onnxcompress.runtime.session import Session
from onnxcompress.training.footprint import GB, Room, samples_that_fit, step_bytes
from onnxcompress.training.graph import StepGraph, settings_in, step_graph, told_apart
from onnxcompress.training.lesson import Lesson
from onnxcompress.training.parameters import Parameters
from onnxcompress.training.targets import TEACHER, criterion

Feed = dict[str, np.ndarray]
Shown = Callable[[np.ndarray, Feed], tuple[Feed, Feed]]
"""(indices, feed) -> what the student is fed, and what it learns from, under the names of the step graph's inputs."""

GRAPHS = 8
"""Step graphs that are kept, one for each set of input shapes."""

FREE = 0.8
"""Share of the free memory that a step may take where nothing is asked."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Of one lesson, which keeps them by shapes and settings."""

    lesson: Lesson
    held: Parameters

    def runs(self, chunk: Data, shown: Shown) -> Iterator[tuple[np.ndarray, Feed, Feed]]:
        """The samples of a minibatch as they are run: those of one shape at once, or as many of them as there is memory for.

        SettingError where --memory has no room for one.
        """
        for indices, raw in chunk.indexed(chunk.samples):
            feed, taught = shown(indices, raw)
            most = self._room(chunk, indices, shown, feed, taught).samples
            if most == len(indices):
                yield indices, feed, taught
            else:
                for part, raw_part in replace(chunk, indices=indices).indexed(most):
                    yield part, *shown(part, raw_part)

    def step(self, feed: Mapping[str, np.ndarray], taught: Mapping[str, np.ndarray]) -> tuple[StepGraph, Session]:
        """The step graph for these shapes and settings, made when they first come up; the one used longest ago makes room."""
        key = self._key(feed, taught)
        self.lesson.graphs[key] = (
            self.lesson.graphs.pop(key) if key in self.lesson.graphs else self._opened(self._made(feed, taught))
        )
        return self.lesson.graphs[key]

    def loss(
        self, feed: Mapping[str, np.ndarray], taught: Mapping[str, np.ndarray], statistics: Sequence[str]
    ) -> Session:
        """The loss alone, BatchNormalization with running statistics, which are inputs where they are named here."""
        key = ("loss", *told_apart({**feed, **taught}))
        if key not in self.lesson.graphs:
            made = self._made(feed, taught, more=statistics, norms="frozen", source=None)
            self.lesson.graphs[key] = self._opened(made)
        return self.lesson.graphs[key][1]

    def _key(self, feed: Mapping[str, np.ndarray], taught: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
        return (self.lesson.recipe.norms, *told_apart({**feed, **taught}))

    def _opened(self, made: StepGraph) -> tuple[StepGraph, Session]:
        if len(self.lesson.graphs) >= GRAPHS:
            self.lesson.graphs.pop(next(iter(self.lesson.graphs)))
        return made, made.open(threads=self.lesson.threads)

    def _made(
        self, feed: Mapping[str, np.ndarray], taught: Mapping[str, np.ndarray], more: Sequence[str] = (), **ways: Any
    ) -> StepGraph:
        """Of this lesson, unless `ways` say otherwise. more: constants that are inputs beside the parameters."""
        shapes = {name.removeprefix(TEACHER): array.shape for name, array in taught.items()}
        return step_graph(
            self.held.model,
            {name: array.shape for name, array in feed.items()},
            [*self.held.forms, *self.held.twins, *more],
            criterion(self.lesson.targets, shapes, temperature=self.lesson.temperature),
            known=settings_in(feed),
            **{"norms": self.lesson.recipe.norms, "source": self.lesson.recipe.source, **ways},
        )

    def _room(self, chunk: Data, indices: np.ndarray, shown: Shown, feed: Feed, taught: Feed) -> Room:
        """Found once for each set of shapes; the step graph that fits is opened."""
        key = self._key(feed, taught)
        if key in self.lesson.rooms:
            return self.lesson.rooms[key]
        limit, asked = self._limit()
        made: dict[int, tuple[StepGraph, int, Any]] = {}

        def need(samples: int) -> int:
            if samples not in made:
                some = replace(chunk, indices=indices[:samples])
                fed = (feed, taught) if samples == len(indices) else shown(*next(some.indexed(samples)))
                graph = self._made(*fed)
                made[samples] = (
                    graph,
                    step_bytes(graph.graph, self.held.layout.size, self.lesson.recipe.optimizer),
                    self._key(*fed),
                )
            return made[samples][1]

        samples, taken = len(indices), need(len(indices))
        if limit is not None:
            samples, taken = samples_that_fit(samples, need, int(limit))
        room = Room(samples, len(indices), taken, need(len(indices)), limit, asked)
        if asked and limit is not None and taken > limit:
            raise SettingError(str(room))
        self.lesson.rooms[key] = room
        self.lesson.graphs[made[samples][2]] = self._opened(made[samples][0])
        return room

    def _limit(self) -> tuple[float | None, bool]:
        """Bytes that a step may take, and whether they were asked for."""
        if self.lesson.recipe.memory is not None:
            return self.lesson.recipe.memory * GB, True
        free = free_bytes()
        return (None if free is None else FREE * free), False
