"""Which nodes are worth being int8 on this CPU, by the clock: a model that gets slower is no result.

What a node costs depends on its neighbours (a conversion at each border between int8 and float, layouts that change), so
nothing is added up: whole graphs are timed in the same rounds. First each class of like nodes is left in float by itself;
then those whose absence helped, the best one, the best two, and so on. From the best of these it begins again, since some
classes only cost time once others are gone. The float model is always among the candidates, so that the result is never
slower than it. Then a class whose integers save next to no time leaves as well where the answers come closer by it (`closer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import onnx_ir as ir

GAIN = 0.02
"""A class leaves int8 when the whole gets this share faster: below it two runs of one and the same file differ."""

ROUNDS = 2
"""How often it begins again; a third round found nothing on the real models."""

COST = 0.03
"""Share of the time that may be given, for all of them together, for classes that leave for the sake of the answers."""

WORTH_DB = 0.5
"""What the answers must come closer by for a class to leave. ddddocr's first convolution, which reads the picture itself: 3.6 dB
for less time than two runs differ by. Of what was as cheap on two other text models and MiniLM nothing gained more than 0.6."""

MOST_JUDGED = 3
"""Classes that are judged by their answers, the cheapest ones: each is a session; three take an eighth of a run on two text models."""

FLOAT, INT8, TOGETHER = "float", "int8", "together"


class Stopwatch(Protocol):
    """What is asked of the evidence: see evidence/trial.py."""

    def milliseconds(self, graphs: Mapping[str, ir.Model], seconds: float) -> dict[str, float]:
        """Name -> median time of one sample, all graphs in the same rounds."""
        ...


class Trying(Stopwatch, Protocol):
    """What else is asked of the same evidence."""

    def logits_db(self, graphs: Mapping[str, ir.Model]) -> dict[str, float]:
        """Name -> how near the answers are to the original's."""
        ...


@dataclass
class Choice:
    """nodes  that are int8            milliseconds  of the float model and of the chosen one
    left     class -> how much faster the whole is once it is float too, in the order in which they were taken out
    cheap    class -> share of its time that the whole takes longer once it is float too, up to COST, the cheapest first
    nearer   class that left although it is cheap in int8 -> dB that the answers come closer by it alone"""

    nodes: frozenset[str]
    milliseconds: dict[str, float] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    cheap: dict[str, float] = field(default_factory=dict)
    nearer: dict[str, float] = field(default_factory=dict)


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

    alone: dict[str, float] = {}
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
    chosen.cheap = _cheap(alone, rest)
    if chosen.milliseconds and chosen.milliseconds[INT8] >= chosen.milliseconds[FLOAT]:
        chosen.nodes = frozenset()
    return chosen


def _cheap(alone: Mapping[str, float], rest: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Of the classes that are left: what each costs when it is float, where that is little."""
    costs = {kind: max(alone[kind] / alone[INT8] - 1, 0.0) for kind in rest if kind in alone}
    return {kind: costs[kind] for kind in sorted(costs, key=costs.__getitem__) if costs[kind] <= COST}


def closer(
    trial: Trying,
    choice: Choice,
    written: Callable[[frozenset[str]], ir.Model],
    classes: Mapping[str, Sequence[str]],
    seconds: float,
) -> Choice:
    """What is chosen when classes of `choice.cheap` are float too, where the answers come closer by it.

    Those of the largest gain first, as long as all of them cost no more than COST. They are timed again, alone and together, as
    few graphs in the same rounds tell small differences better. `cheap` of what is returned: class -> that cost; `nearer`: dB
    """
    without = {kind: choice.nodes - set(classes[kind]) for kind in list(choice.cheap)[:MOST_JUDGED]}
    if not without:
        return choice
    told = trial.logits_db({INT8: written(choice.nodes), **{kind: written(nodes) for kind, nodes in without.items()}})
    gains = {kind: db - told[INT8] for kind, db in told.items() if db >= told[INT8] + WORTH_DB}
    taken: list[str] = []
    for kind in sorted(gains, key=lambda each: -gains[each]):
        if sum(choice.cheap[each] for each in (*taken, kind)) <= COST:
            taken.append(kind)
    sets = {kind: [kind] for kind in taken}
    if len(taken) > 1:
        together = choice.nodes.intersection(*(without[kind] for kind in taken))
        told[TOGETHER] = trial.logits_db({TOGETHER: written(together)})[TOGETHER]
        sets, without[TOGETHER] = {**sets, TOGETHER: taken}, together
    if not sets:
        return choice
    times = trial.milliseconds({INT8: written(choice.nodes), **{key: written(without[key]) for key in sets}}, seconds)
    best = max((key for key in sets if times[key] <= (1 + COST) * times[INT8]), key=told.__getitem__, default=None)
    if best is None:
        return choice
    return replace(
        choice,
        nodes=without[best],
        cheap={kind: max(times[kind] / times[INT8] - 1, 0.0) for kind in sets[best]},
        nearer={kind: gains[kind] for kind in sets[best]},
    )
