"""Which nodes are worth being int8 on this CPU, by the clock: a model that gets slower is no result.

What a node costs depends on its neighbours (a conversion at each border between int8 and float, layouts that change), so
nothing is added up: whole graphs are timed in the same rounds. First each class of like nodes is left in float by itself;
then those whose absence helped, the best one, the best two, and so on. From the best of these it begins again, since some
classes only cost time once others are gone. The float model is always among the candidates, so that the result is never
slower than it. Then a class whose integers save next to no time leaves as well where the answers come closer by it (`closer`).
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

COST = 0.03
"""Share of the time that may be given, for all of them together, for classes that leave for the sake of the answers."""

WORTH_DB = 0.5
"""What the answers must come closer by for a class to leave. ddddocr's first convolution, which reads the picture itself: 3.6 dB
for less time than two runs differ by. Of what was as cheap on two other text models and MiniLM nothing gained more than 0.6."""

MOST_JUDGED = 6
"""Classes that are judged by their answers, the cheapest ones: each is a session, which is what the time goes into."""

FLOAT, INT8 = "float", "int8"


class Stopwatch(Protocol):
    """What is asked of the evidence: see evidence/trial.py."""

    def milliseconds(self, graphs: Mapping[str, ir.Model], seconds: float) -> dict[str, float]:
        """Name -> median time of one sample, all graphs in the same rounds."""
        ...


class Judge(Protocol):
    """What is asked of the same evidence about answers."""

    def logits_db(self, graphs: Mapping[str, ir.Model]) -> dict[str, float]:
        """Name -> how near the answers are to the original's."""
        ...


@dataclass
class Choice:
    """nodes  that are int8            milliseconds  of the float model and of the chosen one
    left     class -> how much faster the whole is once it is float too, in the order in which they were taken out
    cheap    class -> share of its time that the whole takes longer once it is float too, up to COST, the cheapest first"""

    nodes: frozenset[str]
    milliseconds: dict[str, float] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    cheap: dict[str, float] = field(default_factory=dict)


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
    judge: Judge,
    choice: Choice,
    written: Callable[[frozenset[str]], ir.Model],
    classes: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Classes of `choice.cheap` to leave in float too -> dB that the answers come closer by each alone.

    Those of the largest gain first, as long as all of them cost no more than COST; one alone where together they gain no more.
    Only classes whose absence leaves products in int8 are asked about.
    """
    without = {kind: choice.nodes - set(classes[kind]) for kind in list(choice.cheap)[:MOST_JUDGED]}
    without = {kind: nodes for kind, nodes in without.items() if nodes}
    if not choice.nodes or not without:
        return {}
    told = judge.logits_db({INT8: written(choice.nodes), **{kind: written(nodes) for kind, nodes in without.items()}})
    gains = {kind: told[kind] - told[INT8] for kind in without if told[kind] >= told[INT8] + WORTH_DB}
    found: dict[str, float] = {}
    spent = 0.0
    for kind in sorted(gains, key=lambda each: -gains[each]):
        if spent + choice.cheap[kind] <= COST:
            spent += choice.cheap[kind]
            found[kind] = gains[kind]
    if len(found) > 1:
        whole = choice.nodes - {name for kind in found for name in classes[kind]}
        best = next(iter(found))
        if not whole or judge.logits_db({INT8: written(whole)})[INT8] <= told[best]:
            return {best: found[best]}
    return found
