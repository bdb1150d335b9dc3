"""Which nodes are worth being int8 on this CPU, by the clock: a model that gets slower is no result.

What a node costs depends on its neighbours (a conversion at each border between int8 and float, layouts that change), so
nothing is added up: classes of like nodes are left in float, one at a time, and the whole graph is timed beside the others
in the same rounds. The class whose absence helps most stays float; then the rest is tried again. At the end the float model
itself is a candidate, so that the result is never slower than it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir

GAIN = 0.02
"""A class leaves int8 when the whole gets this share faster: below it two runs of one and the same file differ."""

FLOAT, INT8 = "float", "int8"


class Stopwatch(Protocol):
    """What is asked of the evidence: see evidence/trial.py."""

    def milliseconds(self, graphs: Mapping[str, ir.Model], seconds: float) -> dict[str, float]:
        """Name -> median time of one sample, all graphs in the same rounds."""
        ...


@dataclass
class Choice:
    """nodes  that are int8            milliseconds  of the float model and of the chosen one
    left     class -> how much faster the whole is without it, in the order in which they were taken out"""

    nodes: frozenset[str]
    milliseconds: dict[str, float] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)


def fastest(
    stopwatch: Stopwatch,
    plain: ir.Model,
    written: Callable[[frozenset[str]], ir.Model],
    classes: Mapping[str, Sequence[str]],
    seconds: float,
) -> Choice:
    """The subset of nodes, by classes, that runs fastest in int8; none where float is faster than all of them.

    plain    the float model                  written  nodes -> the graph in which these are int8
    classes  name -> nodes that are tried together
    seconds  of measuring for each round of candidates
    """
    chosen = Choice(frozenset(name for names in classes.values() for name in names))
    rest = dict(classes)
    while rest:
        without = {kind: chosen.nodes - set(names) for kind, names in rest.items()}
        graphs = {INT8: written(chosen.nodes), FLOAT: plain}
        graphs |= {kind: written(nodes) for kind, nodes in without.items() if nodes}
        times = stopwatch.milliseconds(graphs, seconds)
        chosen.milliseconds = {FLOAT: times[FLOAT], INT8: times[INT8]}
        best = min((kind for kind in without if kind in times), key=lambda kind: times[kind], default=None)
        if best is None or times[best] > (1 - GAIN) * times[INT8]:
            break
        chosen.left[best] = times[INT8] / times[best]
        chosen.milliseconds[INT8] = times[best]
        chosen.nodes = without[best]
        del rest[best]
    if chosen.milliseconds and chosen.milliseconds[INT8] >= chosen.milliseconds[FLOAT]:
        chosen.nodes = frozenset()
    return chosen
