"""Which form with which ranks stands for each layer: the one solver, over candidates that the clock rewards.

Of each layer the clock is asked about candidates that no other one beats in cost and error; those that it does not reward go, which
brings others to the front, until all that is left there is rewarded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxcompress.allocate import Candidate, allocate
from onnxcompress.errors import UnmetError
from onnxcompress.passes.factorize.candidates import Choice
from onnxcompress.passes.factorize.sites import Site
from onnxcompress.passes.factorize.timing import Stopwatch
from onnxcompress.plan import Refusal

FEWEST = 0.02
"""Share of a layer's multiply-adds that a chain saves at least; less is not worth a node."""


@dataclass(frozen=True, eq=False)
class Option:
    """One choice for one layer.

    macs, parameters  of the chain        error  its share of noise at the outputs        time  as a share of the layer's
    """

    site: Site
    choice: Choice
    macs: int
    parameters: int
    error: float
    time: float | None = None


@dataclass(frozen=True)
class Budget:
    """What is bounded: macs, parameters or milliseconds; `rest` of what no chain could stand for, `bound` of all, `whole` before."""

    kind: str
    bound: float
    whole: float
    rest: float

    def cost(self, option: Option, stopwatch: Stopwatch) -> float:
        """Of one option."""
        if self.kind == "latency":
            return (stopwatch.milliseconds(option.site) or 0.0) * (1.0 if option.time is None else option.time)
        return float(option.macs if self.kind == "macs" else option.parameters)


def fewest(
    options: Mapping[str, Sequence[Option]], stopwatch: Stopwatch, pays: float
) -> tuple[dict[str, Option], list[Refusal]]:
    """Node -> the fewest multiply-adds of its options, where ranks follow a rule and no budget says what is too much; see `chosen`."""
    found, refusals = {}, []
    for name, each in options.items():
        left, declined = _rewarded(each, stopwatch, pays) if pays > 0 else (list(each), [])
        found[name] = min(left, key=lambda option: (option.macs, option.parameters, option.error))
        if not found[name].choice.form:
            refusals.append(_refusal(found[name], declined, "the rule's ranks leave no fewer multiply-adds"))
    return found, refusals


def chosen(
    options: Mapping[str, Sequence[Option]], budget: Budget, stopwatch: Stopwatch, pays: float
) -> tuple[dict[str, Option], list[Refusal]]:
    """Node -> its option, and why layers stay as they are.

    options  of each node, the layer as it is among them       pays  see Factorize.pays; 0: the clock is not asked
    raises   UnmetError where the budget cannot be met, with the least share that can
    """
    clocked = pays > 0 or budget.kind == "latency"
    left, declined = {}, {}
    for name, each in options.items():
        left[name], declined[name] = _rewarded(each, stopwatch, pays) if clocked else (list(each), [])
    candidates = [
        Candidate(name, number, budget.cost(option, stopwatch), option.error)
        for name, each in left.items()
        for number, option in enumerate(each)
    ]
    if budget.kind == "latency":
        own = sum(budget.cost(each[0], stopwatch) for each in left.values())
        budget = replace(budget, bound=budget.bound * own, whole=own, rest=0.0)
    least = sum(min(c.cost for c in candidates if c.layer == name) for name in left) + budget.rest
    if least > budget.bound:
        raise UnmetError(_unmet(budget, least, declined, left), least / max(budget.whole, 1e-300))
    best = allocate(candidates, budget.bound - budget.rest)
    found = {name: left[name][candidate.setting] for name, candidate in best.items()}  # type: ignore[call-overload]
    return found, [_refusal(option, declined[name]) for name, option in found.items() if not option.choice.form]


def _rewarded(options: Sequence[Option], stopwatch: Stopwatch, pays: float) -> tuple[list[Option], list[Option]]:
    """Those that are worth their time, the layer as it is first; and those that are not, with their times."""
    whole, *rest = options
    if not whole.macs:  # an embedding: what it saves is bytes
        return list(options), []
    known: list[Option] = []
    declined: list[Option] = []
    while True:
        front = [option for option in _front([*known, *rest]) if option.time is None]
        if not front:
            return [whole, *known], declined
        times = stopwatch.share(whole.site, [option.choice for option in front])
        rest = [option for option in rest if option not in front]
        for option in front:
            timed = replace(option, time=times[option.choice])
            (known if _pays(timed, whole, pays) else declined).append(timed)


def _pays(option: Option, whole: Option, pays: float) -> bool:
    """Does the clock show enough of what is saved?"""
    if option.time is None:
        return False
    return option.time < 1 and 1 - option.time >= pays * (1 - option.macs / max(whole.macs, 1))


def _front(options: Iterable[Option]) -> list[Option]:
    """Those that no other one beats in multiply-adds and error."""
    found: list[Option] = []
    for option in sorted(options, key=lambda each: (each.macs, each.error)):
        if not found or option.error < found[-1].error:
            found.append(option)
    return found


def _refusal(
    whole: Option, declined: Sequence[Option], otherwise: str = "the budget is met with less error elsewhere"
) -> Refusal:
    layer = whole.site.layer
    return Refusal(layer.weight, f"not made: {_told(whole, declined)}" if declined else otherwise, layer.name)


def _told(whole: Option, declined: Sequence[Option]) -> str:
    """The fastest of those that were declined, in figures."""
    best = min(declined, key=lambda each: 9.0 if each.time is None else each.time)
    share = best.macs / max(whole.macs, 1)
    return f"{best.choice.form} would take {best.time:.2f} of the time for {share:.2f} of the multiply-adds"


NAMED = 3
"""Layers that the clock held back, in an error: those with the most multiply-adds."""


def _unmet(
    budget: Budget, least: float, declined: Mapping[str, Sequence[Option]], left: Mapping[str, Sequence[Option]]
) -> str:
    share = least / max(budget.whole, 1e-300)
    held = sorted((name for name, each in declined.items() if each), key=lambda name: -left[name][0].macs)
    why = "with the chains that this CPU rewards " if held else ""
    more = ", or --pays 0" if held else ""
    told = "; ".join(f"{name}: {_told(left[name][0], declined[name])}" for name in held[:NAMED])
    rest = f"; and {len(held) - NAMED} layers more" if len(held) > NAMED else ""
    words = {"macs": "multiply-adds", "params": "parameters", "latency": "the time of these layers"}[budget.kind]
    asked = f"target_{budget.kind} {budget.bound / max(budget.whole, 1e-300):.3g} cannot be met: "
    if share + 0.005 >= 1:
        nothing = "this CPU rewards no chain for any layer; try --pays 0" if held else "no layer has a smaller chain"
        return f"{asked}{nothing}, or leave the model as it is" + (f" ({told}{rest})" if held else "")
    return f"{asked}{why}at least {share:.3f} of {words} are left; give {share + 0.005:.2f} or more{more}" + (
        f" ({told}{rest})" if held else ""
    )
