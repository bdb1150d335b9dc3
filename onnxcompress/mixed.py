"""A driver: the fewest layers left in float that let a quantized model meet its budgets.

1. Everything that can be is int8. Where that meets the budgets, nothing more is done.
2. What each rounding alone brings to the outputs is measured on calibration samples (passes/quantize/explain.py).
3. Which nodes stay float for a given summed error is one small integer program. A grid belongs to all nodes that read or
   write it: its error goes only when all of them are float (allocate.py, `left_out`).
4. How much summed error the budgets bear is found by halving the interval of its logarithm. What is expected only chooses
   the nodes: each trial is written from the same grids and levels and judged on held-out data.

Per-layer sensitivity and an integer program: Hubara et al., ICML 2021, arXiv:2006.10518; here the places are shared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxcompress.allocate import left_out
from onnxcompress.budgets import ON_OUTPUTS
from onnxcompress.errors import SettingError
from onnxcompress.evidence.gather import first_shapes
from onnxcompress.evidence.trial import Trial
from onnxcompress.model import Loadable, Model, load
from onnxcompress.model.edit import walk
from onnxcompress.operators.cost import macs_by_layer
from onnxcompress.operators.layer import Shapes, layers
from onnxcompress.passes.protocol import Pass
from onnxcompress.passes.quantize.chosen import connected
from onnxcompress.passes.quantize.explain import Brought, decibel
from onnxcompress.passes.quantize.quantize import brought_by, nodes_of
from onnxcompress.passes.quantize.rows import row_of
from onnxcompress.passes.quantize.shares import shares
from onnxcompress.plan import Plan, Refusal
from onnxcompress.result import Result
from onnxcompress.run import How, opened, run

A_NODE = 1e-3
"""What leaving a node float costs beside its work, as a share of all work: of equal ones, the fewest."""

GAP = 0.01
"""Work above the optimum that may be left: the errors are not known better."""

FLOAT_SECONDS = 2.0
"""Of measuring the model that is left beside the float one."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What every trial decides on.

    model  before it is quantized     plan  everything in int8
    found  what each rounding brings  work  node -> share of all work, above 0
    """

    model: Model
    plan: Plan
    found: Brought
    work: Mapping[str, float]

    @property
    def total(self) -> float:
        """Summed error of everything in int8."""
        return sum(self.found.noise.values())


def mixed_precision(
    model: Loadable,
    passes: Sequence[Pass],
    data: Any = None,
    *,
    budgets: Mapping[str, float],
    how: How | None = None,
    trials: int = 8,
) -> Result:
    """Run the passes, of which the last is Quantize, and leave in float what the budgets ask for.

    trials  of different sets of float nodes; the most faithful is one product alone in int8
    Where not even that meets the budgets, it is the result, and a note says how near it came.
    SettingError without a budget on outputs.
    """
    if not any(name in budgets for name in ON_OUTPUTS):
        raise SettingError(f"mixed precision needs a budget to keep; give one of {', '.join(ON_OUTPUTS)}")
    how, loaded = how or How(), load(model)
    whole = run(loaded, passes, data, budgets=budgets, how=how)
    products = [each for each in whole.plans[-1].decisions if each.get("form") == "product"]
    if _faithful(whole) or not products:
        return whole
    problem, trial = _problem(loaded, passes, whole, data, how)
    best, last = None, whole
    for result in _trials(loaded, passes, whole, problem, data, (budgets, how), trials):
        best, last = (result if _faithful(result) else best), result
    found = best or last
    return _told(found, whole, problem, trial, timed=bool(whole.plans[-1].settings["measure"]))


def _faithful(result: Result) -> bool:
    return all(verdict.met for verdict in result.verdicts if verdict.name in ON_OUTPUTS)


def _problem(loaded: Model, passes: Sequence[Pass], whole: Result, data: Any, how: How) -> tuple[Problem, Trial]:
    current = loaded
    for each, plan in zip(passes[:-1], whole.plans[:-1], strict=True):
        current = each.apply(current, plan)
    seen = opened(loaded, data, how).calibration
    trial = Trial(loaded, seen, how.batch, how.threads)
    plan = whole.plans[-1]
    found = brought_by(current, plan, trial)
    return Problem(current, plan, found, _work(current, list(found.nodes), first_shapes(current, seen, loaded))), trial


def _work(model: Model, names: Sequence[str], shapes: Shapes) -> dict[str, float]:
    """Multiply-adds of products, entries written by all others, as shares of all."""
    macs = {node: count for (node, _), count in macs_by_layer(model, shapes).items()}
    nodes = {node.name: node for node in walk(model.ir)}
    amounts = {}
    for name in names:
        shape = shapes.get(nodes[name].outputs[0].name or "", (1,))
        amounts[name] = float(macs.get(name, math.prod(shape)))
    whole = sum(amounts.values()) or 1.0
    return {name: amount / whole for name, amount in amounts.items()}


# -- which nodes stay float ----------------------------------------------------------------------------------------


def left_float(problem: Problem, most: float) -> list[str] | None:
    """The nodes that do least work, and whose absence from int8 leaves a summed error of at most `most`; in graph order.

    None where the solver found nothing in time.
    """
    found = problem.found
    cost = {name: problem.work[name] + A_NODE for name in found.nodes}
    touches = {name: touched.keeps for name, touched in found.nodes.items()}
    return left_out(cost, touches, found.noise, most, maximum_gap=GAP)


def _kept(problem: Problem, left: Collection[str]) -> frozenset[str]:
    """The nodes that are int8 when these are float.

    A node that only moves or clips follows, but only where a grid stays for another's sake: else it would keep the grid.
    """
    found, gone = problem.found, set(left)
    stay = {place for name, touched in found.nodes.items() if name not in gone for place in touched.keeps}
    places = {
        n.name or "": found.places.get(n.inputs[0].name or "")
        for n in walk(problem.model.ir)
        if n.inputs and n.inputs[0]
    }
    names = [name for name in nodes_of(problem.plan) if name not in gone]
    return connected(problem.model, [name for name in names if name in found.nodes or places.get(name) in stay])


def _one_product(problem: Problem) -> frozenset[str]:
    """The product that brings least alone; what is worth nothing without others goes."""
    nodes = {node.name or "": node for node in walk(problem.model.ir)}
    products = [name for name in problem.found.nodes if row_of(nodes[name]).form == "product"]
    return _kept(problem, set(problem.found.nodes) - {min(products, key=problem.found.of)})


def restricted(problem: Problem, nodes: Collection[str]) -> Plan:
    """The plan with these nodes in int8 only: the same grids, levels and biases."""
    plan = problem.plan
    used = {value for share in shares(problem.model, nodes) for value in share.values}
    own = {layer.weight: layer.bias for layer in layers(problem.model) if layer.name in nodes}
    keys = {"node": set(nodes), "value": used, "weight": set(own)}
    decisions = [each for each in plan.decisions if all(each[k] in found for k, found in keys.items() if k in each)]
    arrays = {
        key: array
        for key, array in plan.arrays.items()
        if key.partition("/")[2] in (own.values() if key.startswith("bias/") else own)
    }
    return replace(plan, decisions=decisions, arrays=arrays, refusals=list(plan.refusals), notes=[])


# -- trials --------------------------------------------------------------------------------------------------------


def _trials(
    loaded: Model,
    passes: Sequence[Pass],
    whole: Result,
    problem: Problem,
    data: Any,
    ways: tuple[Mapping[str, float], How],
    count: int,
) -> Iterator[Result]:
    """Results, each nearer to the most int8 that meets the budgets; if none does, the last has one product in int8."""
    budgets, how = ways

    def tried(nodes: frozenset[str]) -> Result:
        plans = [*whole.plans[:-1], restricted(problem, nodes)]
        return run(loaded, passes, data, budgets=budgets, plans=plans, how=how)

    low, high = min(each for each in problem.found.noise.values() if each > 0), problem.total
    known: dict[frozenset[str], bool] = {frozenset(nodes_of(problem.plan)): False}
    for number in range(count):
        level = math.sqrt(low * high)
        left = left_float(problem, level)
        nodes = frozenset() if left is None else _kept(problem, left)
        if nodes and nodes not in known:
            result = tried(nodes)
            known[nodes] = _faithful(result)
            yield result
        if not nodes or known[nodes]:  # without nodes nothing is left in int8: so little error is not asked for
            low = level
        else:
            high = level
        if how.progress is not None:
            how.progress(number + 1, count, "mixed precision")
    if not any(known.values()):
        yield tried(_one_product(problem))


# -- what is said of it --------------------------------------------------------------------------------------------


def _told(found: Result, whole: Result, problem: Problem, trial: Trial, *, timed: bool) -> Result:
    """The result with notes and refusals: which nodes stayed float, and what each of them would bring alone."""
    kept = set(nodes_of(found.plans[-1]))
    left = sorted((name for name in problem.found.nodes if name not in kept), key=problem.found.of, reverse=True)
    plan = found.plans[-1]
    plan.notes.extend(f"with everything in int8: {note}" for note in whole.plans[-1].notes)
    plan.notes.append(_summary(found, whole, left, len(problem.found.nodes)))
    if not _faithful(found):
        plan.notes.append(f"even one product alone in int8 does not meet the budgets: {_numbers(found)}")
    if timed:
        times = trial.milliseconds({"float": problem.model.ir, "mixed": found.model.ir}, FLOAT_SECONDS)
        ratio = times["float"] / times["mixed"]
        plan.notes.append(
            f"what is left runs {ratio:.2f} times as fast as float on this CPU, one thread"
            + ("; the budgets leave nothing to gain, keep the float model" if ratio < 1 else "")
        )
    plan.refusals.extend(
        Refusal(name, f"stays float for the budgets: in int8 it alone brings {decibel(problem.found.of(name)):.1f} dB")
        for name in left
    )
    return found


SHOWN = 5
"""Nodes that the note names; the refusals have all of them."""


def _summary(found: Result, whole: Result, left: Sequence[str], count: int) -> str:
    names = ", ".join(repr(name) for name in left[:SHOWN]) + (" and others" if len(left) > SHOWN else "")
    return (
        f"{len(left)} of {count} nodes stay float for the budgets ({names}): "
        f"{_numbers(found)}; everything in int8: {_numbers(whole)}"
    )


def _numbers(result: Result) -> str:
    """What was found for the budgets on outputs."""
    found = [verdict for verdict in result.verdicts if verdict.name in ON_OUTPUTS]
    return ", ".join(
        f"{v.name.partition('_')[2]} {'unknown' if v.got is None else format(v.got, '.4g')}" for v in found
    )
