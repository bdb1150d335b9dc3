"""Evidence by trying: a pass shows a graph that it might make, and onnxruntime says how it answers and how long it takes.

What a rewrite costs in time cannot be added up from its parts (kernels fuse, layouts change between them), so the whole
graph is run beside the original. Only calibration samples are used; the held-out ones judge the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
from onnxcompress.runtime import clock
from onnxcompress.runtime.loose import Loose, loose
from onnxcompress.runtime.memory import give_back
from onnxcompress.runtime.session import Feeds, open_session

SAMPLES = 32
"""With which graphs are told apart by what they answer."""

FEEDS = 4
"""Samples that are run with each of many gates, inputs that are timed in turn."""

LOADED = 256 << 20
"""Bytes of weights that models hold which are timed in the same rounds; onnxruntime takes about as much again."""


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
        return compare(self.original.source.runnable, loose(graph), self.data, batch=self.batch, threads=self.threads)

    def logits_db(self, graphs: Mapping[str, ir.Model], feeds: Sequence[Feeds] = ()) -> dict[str, float]:
        """Name -> `Comparison.logits_db`, the original run once for all; -inf where nothing compares.

        feeds  batches to run; by default those of the first SAMPLES
        """
        # its weights are in memory already: the file would be read, and copied, beside them
        original, name = loose(self.original.ir), self.original.source.name
        session = open_session(original, threads=self.threads, lean=True, as_given=True, name=name)
        ports = session.outputs
        feeds = feeds or list(islice(self.data.batches(self.batch), max(1, SAMPLES // self.batch)))
        wanted = [session.run(feed) for feed in feeds]
        del session
        running = {key: [Differences(port) for port in ports] for key in graphs}
        for key, graph in graphs.items():  # one session at a time: each takes the memory of a model
            give_back()
            session = open_session(loose(graph), threads=self.threads, lean=True, name=key)
            for feed, right in zip(feeds, wanted, strict=True):
                found = session.run(feed)
                for each in running[key]:
                    each.add(right[each.port.name], found[each.port.name], feed)
            del session
        give_back()
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
        models = {name: loose(graph) for name, graph in graphs.items()}
        feeds = list(islice(self.data.batches(1), FEEDS))
        found: dict[str, float] = {}
        for group in _groups(models):
            share = seconds * len(group) / len(models)
            times = clock.paired_ms(group, feeds, threads=self.threads, seconds=share)
            give_back()
            first, before = next(iter(times)), next(iter(found.values()), None)
            scale = 1.0 if before is None else before / times[first]
            found |= {name: scale * time for name, time in times.items()}
        return found


def _groups(models: Mapping[str, Loose]) -> list[dict[str, Loose]]:
    """Models to be loaded at once, the first one in each group: as many as hold LOADED bytes of weights."""
    first, *others = models
    groups: list[dict[str, Loose]] = [{first: models[first]}]
    for name in others:
        held = {
            id(array): array.nbytes for each in (*groups[-1].values(), models[name]) for array in each.arrays.values()
        }
        if len(groups[-1]) > 1 and sum(held.values()) > LOADED:
            groups.append({first: models[first]})
        groups[-1][name] = models[name]
    return groups
