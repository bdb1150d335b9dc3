"""Which nodes are worth being int8 on this CPU, by the clock: a model that gets slower is no result.

What a node costs depends on its neighbours (a conversion at each border between int8 and float, layouts that change), so
nothing is added up: whole graphs are timed in the same rounds. First each class of like nodes is left in float by itself;
then those whose absence helped, the best one, the best two, and so on. From the best of these it begins again, since some
classes only cost time once others are gone. The float model is always among the candidates, so that the result is never
slower than it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir

GAIN = 0.02
"""A class leaves int8 when the whole gets this share faster: below it two runs of one and the same file differ."""

ROUNDS = 2
"""How often it begins again; a third round found nothing on the real models."""

FLOAT, INT8 = "float", "int8"


class Stopwatch(Protocol):
    """What is asked of the evidence: see evidence/trial.py."""

    def milliseconds(self, graphs: Mapping[str, ir.Model], seconds: float) -> dict[str, float]:
        """Name -> median time of one sample, all graphs in the same rounds."""
        ...


@dataclass
class Choice:
    """nodes  that are int8            milliseconds  of the float model and of the chosen one
    left     class -> how much faster the whole is once it is float too, in the order in which they were taken out"""

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
    seconds  of measuring for each set of candidates
    """
    chosen = Choice(frozenset(name for names in classes.values() for name in names))
    rest = dict(classes)

    def timed(candidates: Mapping[str, frozenset[str]]) -> dict[str, float]:
        graphs = {INT8: written(chosen.nodes), FLOAT: plain}
        graphs |= {name: written(nodes) for name, nodes in candidates.items() if nodes}
        times = stopwatch.milliseconds(graphs, seconds)
        chosen.milliseconds = {name: times[name] for name in (FLOAT, INT8)}
        return times

    for _ in range(ROUNDS):
        alone = timed({kind: chosen.nodes - set(names) for kind, names in rest.items()})
        helps = sorted(
            (kind for kind in rest if alone.get(kind, 1e9) < (1 - GAIN) * alone[INT8]), key=alone.__getitem__
        )
        if not helps:
            break
        together = {
            kind: chosen.nodes - {name for each in helps[: number + 1] for name in rest[each]}
            for number, kind in enumerate(helps)
        }
        times = timed(together)
        best = min((kind for kind in helps if kind in times), key=times.__getitem__)
        if times[best] >= times[INT8]:
            break
        before = times[INT8]
        for kind in helps[: helps.index(best) + 1]:
            chosen.left[kind] = before / times[kind]
            before = times[kind]
            del rest[kind]
        chosen.nodes, chosen.milliseconds[INT8] = together[best], times[best]
    if chosen.milliseconds and chosen.milliseconds[INT8] >= chosen.milliseconds[FLOAT]:
        chosen.nodes = frozenset()
    return chosen
