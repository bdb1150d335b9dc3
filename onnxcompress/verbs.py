"""The verbs, the same from Python and the command line: prune, apply, compare, benchmark (inspect: inspection.py)."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcompress import budgets as gates
from onnxcompress.budgets import BUDGETS
from onnxcompress.compare import Comparison, json_safe
from onnxcompress.compare import compare as compare_runs
from onnxcompress.data import Data, named_function
from onnxcompress.errors import ModelError, SettingError
from onnxcompress.evidence.gather import first_shapes
from onnxcompress.files import write_atomic
from onnxcompress.largest import largest_cut
from onnxcompress.mixed import ON_OUTPUTS, mixed_precision
from onnxcompress.model import Loadable, Model, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.operators.cost import Cost, cost
from onnxcompress.plan import Plan, load_plan
from onnxcompress.result import Report, Result
from onnxcompress.run import How, opened, run
from onnxcompress.runtime import clock
from onnxcompress.runtime.cpu import cpu
from onnxcompress.runtime.session import open_session
from onnxcompress.settings import check_names, made, names_of
from onnxcompress.task import read_labels

CLOCKED = {"max_latency": "latency_ms", "max_memory": "memory_bytes"}
"""Budgets that need the clock -> the cost that it measures."""

CLOCK_SECONDS = 4.0
CLOSER = "--min-sqnr 20 leaves in float what costs most of the accuracy, and --explain shows what does"

SEQUENCE = "sequence"
"""Method of a plan that holds the plans of several passes, one a decision."""

TURNS = 8
"""Feeds that a benchmark takes in turn: enough that no single input decides, few enough to hold."""


def prune(
    model: Loadable,
    *,
    data: Any = None,
    amount: float = 0.5,
    refit: bool | None = None,
    rounds: int = 1,
    largest: bool = False,
    dry: bool = False,
    **settings: Any,
) -> Result:
    """Remove whole channels, heads and hidden units; repair what is left by least squares; compare with the original.

    model     path, bytes, onnx.ModelProto, onnx_ir.Model or Model
    data      what `open_data` takes: .npz, folder, dict of arrays, ``module:function``, ...; None: synthetic inputs
    amount    share of the channels that goes, 0 to 1
    refit     repair after each round; default: where there is data
    rounds    cut and repair that often, a part of the amount each time
    largest   instead of `amount`: the largest cut that still meets the budgets
    dry       decide on the first cut, count what it would leave, and write nothing
    settings  fields of `passes.Prune`, names of BUDGETS (min_sqnr=20), fields of `run.How` (batch, threads, limit, ...)

    ModelError, DataError, SettingError; unmet budgets raise nothing: see `Result.met`.
    """
    from onnxcompress.passes import Prune, Refit

    cutting, wanted, how = _sorted_out(settings, Prune)
    if rounds < 1:
        raise SettingError(f"rounds is {rounds}; give 1 or more")
    if refit and data is None:
        raise SettingError(
            "refit needs data of your own: synthetic inputs say nothing about it; give data, or refit=False"
        )
    cutter = made(Prune, {**cutting, "amount": amount, "seed": how.seed})
    # weights that a round before has fitted know the rows that judge: the ridge pulls towards the original's instead
    fitting = {"seed": how.seed, "towards": "present" if rounds == 1 else "original"}
    repair = [made(Refit, fitting)] if refit or (refit is None and data is not None) else []
    if largest and (rounds > 1 or dry):
        raise SettingError("the largest cut is searched by whole runs of one round; leave out --rounds and --dry-run")
    if largest:
        return largest_cut(model, cutter, data, budgets=wanted, then=repair, how=how)
    passes = [each for share in _share_of(cutter, rounds) for each in (made(Prune, share), *repair)]
    return _run(model, passes[:1] if dry else passes, data, wanted, how, dry=dry)


def sparsify(model: Loadable, *, data: Any = None, dry: bool = False, **settings: Any) -> Result:
    """Set single weights to zero (magnitude, Wanda, SparseGPT; N:M patterns). The file gets smaller only with an encoding.

    settings  fields of `passes.Sparsify`, names of BUDGETS, fields of `run.How`
    """
    from onnxcompress.passes import Sparsify

    cutting, wanted, how = _sorted_out(settings, Sparsify)
    return _run(model, [made(Sparsify, cutting)], data, wanted, how, dry=dry)


MODES: dict[str, dict[str, Any]] = {
    "static": {"decode": "load", "dynamic": "recurrent"},
    "dynamic": {"dynamic": "all"},
    "weights": {},
}
"""Mode of `quantize` -> what it sets of `passes.QuantizeWeights`."""

SHARED = ("cpu", "keep", "measure", "seconds")
"""Settings that static int8 and integer weights have in common."""


def quantize(
    model: Loadable,
    *,
    data: Any = None,
    mode: str = "static",
    equalize: bool = True,
    dry: bool = False,
    **settings: Any,
) -> Result:
    """int8 weights and activations, where that is faster on this CPU, in a file that answers the same on every other.

    data      calibration and held-out samples; None: synthetic inputs, and the report says so
    mode      "static": activations on grids from data, and integers for the weights of what stays float;
              "dynamic": on grids found at run time; "weights": activations stay float
    equalize  first scale channels against each other, without a change to the outputs
    settings  fields of `passes.Quantize` or `passes.QuantizeWeights`, names of BUDGETS, fields of `run.How`

    Where a budget on outputs is not met, the fewest nodes that it asks for stay float (mixed.py).
    """
    from onnxcompress.passes import Equalize, Fold, Quantize, QuantizeWeights
    from onnxcompress.passes.quantize.write import integer_ends

    if mode not in MODES:
        raise SettingError(f"mode is {mode!r}; give one of {', '.join(MODES)}")
    of_weights = {name: value for name, value in settings.items() if name in names_of(QuantizeWeights)}
    own, wanted, how = _sorted_out({n: v for n, v in settings.items() if n not in of_weights or n in SHARED}, Quantize)
    quantizer = made(Quantize, own)
    weights = made(QuantizeWeights, {**MODES[mode], **of_weights})
    if mode != "static":
        changed = [name for name in own if name not in SHARED and getattr(quantizer, name) != getattr(Quantize(), name)]
        if changed:
            raise SettingError(f"{changed[0]} is for the mode static, not {mode}; leave it out")
        return _run(model, [Fold(), weights], data, wanted, how, dry=dry)
    passes: list[Any] = [Fold(), *([Equalize()] if equalize else []), quantizer]
    plans: Sequence[Plan] = ()
    if not dry and any(name in wanted for name in ON_OUTPUTS):
        plans = mixed_precision(model, passes, data, budgets=_unclocked(wanted), how=how).plans
    result = _run(model, [*passes, weights], data, wanted, how, plans=plans, dry=dry)
    if plans and not result.met:  # what stayed float for the budgets' sake keeps its weights too
        result = _run(model, passes, data, wanted, how, plans=plans)
    if result.comparison is not None and not result.comparison.same and not plans:
        result = dataclasses.replace(result, notes=(*result.notes, CLOSER))
    if quantizer.io == "float" or dry:
        return result
    # judged with float ends: the same numbers, and the original takes and gives floats
    written, told = integer_ends(result.model)
    return dataclasses.replace(result, model=written, notes=(*result.notes, *told))


def _share_of(whole: Any, rounds: int) -> list[dict[str, Any]]:
    """Settings of each round: so that all of them leave what one cut would.

    Only the last round rounds channel counts. Where every round did, the errors added up: of 24 channels a tenth less is
    24 again, and of 16 a fifth less is 8, so that some groups lost everything at once and others nothing.
    """
    targets = {
        name: value / rounds if name == "target_error" else value ** (1 / rounds)  # errors add up, shares multiply
        for name, value in vars(whole).items()
        if name.startswith("target_") and value is not None
    }
    last = {**vars(whole), "amount": 1 - (1 - whole.amount) ** (1 / rounds), **targets}
    return [{**last, "round_to": 1}] * (rounds - 1) + [last if rounds > 1 else dict(vars(whole))]


def apply(model: Loadable, plan: str | Path | Plan | Sequence[Plan], *, data: Any = None, **settings: Any) -> Result:
    """Carry a saved plan out on the model that it was made for.

    plan      a file of --save-plan, a Plan, or one Plan a pass
    settings  names of BUDGETS and fields of `run.How`

    ModelError where the plan was made for another model.
    """
    from onnxcompress.passes import PASSES

    _, wanted, how = _sorted_out(settings, None)
    plans = _plans(plan)
    for each in plans:
        check_names([each.method], PASSES, "pass")
    passes = [made(PASSES[each.method], each.settings) for each in plans]
    original = load(model)
    if plans:
        plans[0].check_fits(original.fingerprint)
    return _run(original, passes, data, wanted, how, plans=plans)


def _plans(plan: str | Path | Plan | Sequence[Plan]) -> list[Plan]:
    """The plans of the passes, one after another."""
    if isinstance(plan, str | Path):
        plan = load_plan(plan)
    if not isinstance(plan, Plan):
        return list(plan)
    if plan.method != SEQUENCE:
        return [plan]
    try:
        return [_part(number, part, plan) for number, part in enumerate(plan.decisions)]
    except (KeyError, TypeError) as error:
        raise ModelError(f"the plan is damaged ({type(error).__name__}: {error}); make one with --save-plan") from error


def _part(number: int, part: Mapping[str, Any], plan: Plan) -> Plan:
    arrays = {name: plan.arrays[f"{number}/{name}"] for name in part["arrays"]}
    return Plan(str(part["method"]), dict(part["settings"]), str(part["fingerprint"]), list(part["decisions"]), arrays)


def save_plans(plans: Sequence[Plan], path: str | Path) -> None:
    """Write the plans of a run as one file that `apply` reads (arrays beside it)."""
    if len(plans) == 1:
        return plans[0].save(path)
    arrays = {f"{number}/{name}": array for number, plan in enumerate(plans) for name, array in plan.arrays.items()}
    Plan(SEQUENCE, {}, plans[0].fingerprint, [plan.to_json() for plan in plans], arrays).save(path)


def compare(
    original: Loadable, result: Loadable, *, data: Any = None, whole: bool = False, **settings: Any
) -> Comparison:
    """Run two models on the same samples and compare what they answer.

    data      what `open_data` takes; None: synthetic inputs
    whole     all samples, not only those that a run with the same data and seed would hold out
    settings  fields of `run.How`
    """
    _, _, how = _sorted_out(settings, None)
    one, two = Runnable.of(original), Runnable.of(result)
    return _compared(one, two, _judging(one, data, whole, how), how)


def compare_report(
    original: Loadable, result: Loadable, *, data: Any = None, whole: bool = False, **settings: Any
) -> Report:
    """`compare` with costs and budgets (names of BUDGETS among the settings), as the Report that renderers read."""
    _, wanted, how = _sorted_out(settings, None)
    start = time.perf_counter()
    one, two = Runnable.of(original), Runnable.of(result)
    judging = _judging(one, data, whole, how)
    comparison = _compared(one, two, judging, how)
    costs = [_cost(each, judging) for each in (one, two)]
    pairs = {name: (getattr(costs[0], name), getattr(costs[1], name)) for name in ("bytes", "parameters", "macs")}
    known = {name: pair for name, pair in pairs.items() if None not in pair}
    known |= _clocked(wanted, one.file, two.file, judging, how)
    verdicts = gates.check(wanted, comparison, known)
    return Report(
        headline=f"{two.model.source.name} {comparison.verdict}",
        grade=comparison.grade,
        model=one.model.source.name,
        costs=pairs,
        comparison=comparison.to_json(),
        verdicts=tuple(verdict.to_json() for verdict in verdicts),
        plans=(),
        notes=judging.notes,
        seconds={"compare": time.perf_counter() - start},
    )


@dataclass(frozen=True)
class Runnable:
    """A model and what a session opens for it: the file as given; of a Model, which may be edited, its own bytes."""

    model: Model
    file: Path | bytes

    @classmethod
    def of(cls, given: Loadable) -> Runnable:
        """ModelError as for `load`."""
        model = load(given)
        return cls(model, to_bytes(finished(model)) if isinstance(given, Model) else model.source.runnable)


def _compared(one: Runnable, two: Runnable, judging: Data, how: How) -> Comparison:
    return compare_runs(
        one.file, two.file, judging,
        metric=how.metric, labels=how.labels, batch=how.batch, threads=how.threads, progress=_shares(how, "compare"),
    )  # fmt: skip


def _judging(one: Runnable, data: Any, whole: bool, how: How) -> Data:
    session = open_session(one.file, threads=how.threads, name=one.model.source.name)
    found = opened(session, data, how)
    return found if whole else found.held_out


def _cost(each: Runnable, data: Data) -> Cost:
    shapes = first_shapes(each.model, data)
    size = len(each.file) if isinstance(each.file, bytes) else clock.size_on_disk(each.file)
    return cost(each.model, shapes, on_disk=size)


@dataclass(frozen=True)
class Benchmark:
    """Timings of models side by side. cpu: name and instruction sets; data: what was fed."""

    cpu: str
    data: str
    notes: tuple[str, ...]
    timings: tuple[clock.Timing, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        timings = [timing.to_json() for timing in self.timings]
        return {"cpu": self.cpu, "data": self.data, "notes": list(self.notes), "timings": timings}


def benchmark(
    *models: Loadable, data: Any = None, threads: Sequence[int] = (1,), seconds: float = 10.0, **settings: Any
) -> Benchmark:
    """Time models on the same inputs, interleaved: latency, load time, peak memory, file size.

    threads   each count is measured by itself       seconds   for all models of one count together
    settings  fields of `run.How`; batch is 1 unless given
    """
    _, _, how = _sorted_out({"batch": 1, **settings}, None)
    if not models:
        raise SettingError("name at least one model")
    if seconds <= 0 or any(count < 1 for count in threads):
        raise SettingError("seconds and threads must be more than 0")
    loaded = [Runnable.of(model) for model in models]
    named = _named(loaded)
    opened = _judging(loaded[0], data, True, how)
    feeds = list(itertools.islice(opened.batches(how.batch), TURNS))
    timings = [
        timing
        for count in threads
        for timing in clock.measure(
            named, feeds, threads=count, seconds=seconds, progress=_shares(how, f"{count} threads")
        )
    ]
    fed = f"{len(feeds)} feeds in turn, from {'synthetic inputs' if opened.synthetic else opened.what}"
    notes = () if opened.synthetic else opened.notes  # that the outputs say little does not matter to a clock
    return Benchmark(str(cpu()), fed, notes, tuple(timings))


def _named(models: Sequence[Runnable]) -> dict[str, Any]:
    """Name -> what runs; a name that comes twice gets a number."""
    named: dict[str, Any] = {}
    for model in models:
        own = model.model.source.name
        names = itertools.chain([own], (f"{own} #{number}" for number in itertools.count(2)))
        named[next(name for name in names if name not in named)] = model.file
    return named


def _run(
    model: Loadable,
    passes: Sequence[Any],
    data: Any,
    wanted: Mapping[str, float],
    how: How,
    *,
    plans: Sequence[Plan] = (),
    dry: bool = False,
) -> Result:
    """`run`, and the clock for budgets that need it."""
    gates.validate(wanted)
    result = run(model, passes, data, budgets=_unclocked(wanted), plans=plans, dry=dry, how=how)
    return result if dry else _with_clock(result, wanted, data, how)


def _unclocked(wanted: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in wanted.items() if name not in CLOCKED}


def _with_clock(result: Result, wanted: Mapping[str, float], data: Any, how: How) -> Result:
    """The result with verdicts on the budgets that need the clock."""
    timed = {name: value for name, value in wanted.items() if name in CLOCKED}
    if not timed or result.comparison is None:
        return result
    one = Runnable(result.original, result.original.source.runnable)
    costs = _clocked(timed, one.file, to_bytes(finished(result.model)), _judging(one, data, False, how), how)
    return dataclasses.replace(result, verdicts=(*result.verdicts, *gates.check(timed, result.comparison, costs)))


def _clocked(wanted: Mapping[str, float], one: Any, two: Any, data: Data, how: How) -> dict[str, tuple[float, float]]:
    """Latency and memory of both, where a budget asks for them."""
    if not CLOCKED.keys() & wanted.keys():
        return {}
    before, after = clock.measure(
        {"original": one, "result": two}, next(iter(data.batches(1))), threads=how.threads, seconds=CLOCK_SECONDS,
        memory="max_memory" in wanted, progress=_shares(how, "clock"),
    )  # fmt: skip
    found = {"latency_ms": (before.median_ms, before.median_ms / after.ratio)}
    if before.memory_bytes and after.memory_bytes:
        found["memory_bytes"] = (float(before.memory_bytes), float(after.memory_bytes))
    return found


def _shares(how: How, what: str) -> Any:
    """A progress callback of shares for one of (done, total, what)."""
    if how.progress is None:
        return None
    report = how.progress
    return lambda share: report(round(1000 * share), 1000, what)


def _sorted_out(settings: Mapping[str, Any], each: type | None) -> tuple[dict[str, Any], dict[str, float], How]:
    """Settings of the pass, budgets, and how to run; SettingError for a name that is none of these."""
    own = [] if each is None else names_of(each)
    ways = names_of(How)
    check_names(settings, [*own, *BUDGETS, *ways], "setting")
    wanted = {name: value for name, value in settings.items() if name in BUDGETS and value is not None}
    gates.validate(wanted)
    how = How(**{name: value for name, value in settings.items() if name in ways})
    for name in ("batch", "threads"):
        if getattr(how, name) < 1:
            raise SettingError(f"{name} is {getattr(how, name)}; give 1 or more")
    if how.seed < 0:
        raise SettingError(f"seed is {how.seed}; give 0 or more")
    if isinstance(how.labels, str | Path):  # a wrong name is found now, not after minutes of work
        read_labels(how.labels)
    if isinstance(how.metric, str):
        named_function(how.metric)
    return {name: value for name, value in settings.items() if name in own and name not in ways}, wanted, how


def write_json(value: Any, path: str | Path) -> None:
    """Write a JSON value, the whole file or nothing."""
    write_atomic(path, json.dumps(json_safe(value), indent=2).encode() + b"\n")
