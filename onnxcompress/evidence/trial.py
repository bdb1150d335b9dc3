"""Evidence by trying: a pass shows a graph that it might make, and onnxruntime says how it answers and how long it takes.

What a rewrite costs in time cannot be added up from its parts (kernels fuse, layouts change between them), so the whole
graph is run beside the original. Only calibration samples are used; the held-out ones judge the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import onnx_ir as ir

from onnxcompress.compare import Comparison, compare
from onnxcompress.data import Data
from onnxcompress.difference import Differences
from onnxcompress.evidence.gates import arriving
from onnxcompress.evidence.need import Need
from onnxcompress.model import Model
from onnxcompress.model.save import to_bytes
from onnxcompress.runtime import clock
from onnxcompress.runtime.session import open_session

FEEDS = 4
"""Samples that are run with each of many gates, inputs that are timed in turn."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Runs graphs on calibration samples, beside the original."""

    NEED: ClassVar[Need] = Need("trial", "")

    original: Model
    data: Data
    batch: int = 8
    threads: int = 1

    def compare(self, graph: ir.Model) -> Comparison:
        """How the graph answers beside the original. ModelError where it does not load or run."""
        return compare(
            self.original.source.runnable, to_bytes(graph), self.data, batch=self.batch, threads=self.threads
        )

    def logits_db(self, graphs: Mapping[str, ir.Model], most: int = 32) -> dict[str, float]:
        """Name -> `Comparison.logits_db` on the first `most` samples, the original run once for all; -inf where nothing compares."""
        runnable, name = self.original.source.runnable, self.original.source.name
        original = open_session(runnable, threads=self.threads, name=name)
        sessions = {key: open_session(to_bytes(graph), threads=self.threads, name=key) for key, graph in graphs.items()}
        running = {key: [Differences(port) for port in original.outputs] for key in graphs}
        for feeds in islice(self.data.batches(self.batch), max(1, most // self.batch)):
            wanted = original.run(feeds)
            for key, session in sessions.items():
                found = session.run(feeds)
                for each in running[key]:
                    each.add(wanted[each.port.name], found[each.port.name], feeds)
        told = {
            key: Comparison(tuple(each.finished() for each in parts), 0, "").logits_db for key, parts in running.items()
        }
        return {key: -math.inf if db is None else db for key, db in told.items()}

    def arriving(self, graph: ir.Model, openings: Mapping[str, Iterable[str]]) -> dict[str, float]:
        """Key -> noise share at the worst output when its gates alone are open (gates.py); on a few samples."""
        name = self.original.source.name
        return arriving(graph, openings, self.data, batch=min(self.batch, FEEDS), threads=self.threads, name=name)

    def milliseconds(self, graphs: Mapping[str, ir.Model], seconds: float) -> dict[str, float]:
        """Name -> median time of one sample; interleaved runs, each paired with the first graph's, whose median it is scaled by.

        seconds  for all graphs together
        """
        models = {name: to_bytes(graph) for name, graph in graphs.items()}
        feeds = list(islice(self.data.batches(1), FEEDS))
        timings = clock.measure(models, feeds, threads=self.threads, seconds=seconds, memory=False)
        return {timing.name: timings[0].median_ms / timing.ratio for timing in timings}
