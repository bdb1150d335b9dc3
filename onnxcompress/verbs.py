"""The verbs that make a model, the same from Python and the command line (compare and benchmark: judging.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcompress import budgets as gates
from onnxcompress import methods, passes
from onnxcompress.errors import ModelError, SettingError
from onnxcompress.judging import CLOCKED, Runnable, clocked, judging_data, sorted_out
from onnxcompress.largest import fewest, largest_cut, smallest
from onnxcompress.model import Loadable, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.plan import Plan, load_plan
from onnxcompress.result import Result
from onnxcompress.run import Clock, How, run
from onnxcompress.settings import check_names, made, names_of

CLOSER = "--min-sqnr 20 leaves in float what costs most of the accuracy, and --explain shows what does"

BLIND = "units are ranked by l2: no data was given; with --data taylor or backward, whichever answers better"

SEQUENCE = "sequence"
"""Method of a plan that holds the plans of several passes, one a decision."""


def prune(
    model: Loadable,
    *,
    data: Any = None,
    amount: float = 0.5,
    refit: bool | None = None,
    rounds: int = 1,
    largest: bool = False,
    epochs: int | None = None,
    slim: float | None = None,
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
    epochs    after each round's cut and repair, train so many with the original as the teacher
    slim      first train under an L1 penalty of this weight on BatchNormalization's scales (Network Slimming), then cut by them
    dry       decide on the first cut, count what it would leave, and write nothing
    settings  fields of `passes.Prune`, of training (methods.OPTIONS), names of BUDGETS (min_sqnr=20), fields of `run.How`
              (batch, threads, limit, ...)

    ModelError, DataError, SettingError; unmet budgets raise nothing: see `Result.met`.
    """
    before, after, settings = _training(epochs, slim, settings, data)
    cutting, wanted, how = sorted_out(settings, passes.Prune)
    if rounds < 1:
        raise SettingError(f"rounds is {rounds}; give 1 or more")
    if refit and data is None:
        raise SettingError(
            "refit needs data of your own: synthetic inputs say nothing about it; give data, or refit=False"
        )
    cutter = made(passes.Prune, {**cutting, "amount": amount, "seed": how.seed})
    blind = data is None and cutter.criterion == "auto"
    if blind:  # nothing is looked at that would not choose
        cutter = dataclasses.replace(cutter, criterion="l2")
    # weights that a round before has fitted know the rows that judge: the ridge pulls towards the original's instead
    fitting = {"seed": how.seed, "towards": "present" if rounds == 1 else "original"}
    repair = [made(passes.Refit, fitting)] if refit or (refit is None and data is not None) else []
    if largest and (rounds > 1 or dry or before or after):
        raise SettingError(
            "the largest cut is searched by whole runs of one round; leave out --rounds, --epochs, --slim and --dry-run"
        )
    if largest:
        result = largest_cut(model, cutter, data, budgets=wanted, then=repair, how=how)
    else:
        steps = [each for share in _share_of(cutter, rounds) for each in (made(passes.Prune, share), *repair, *after)]
        result = _run(model, steps[:1] if dry else [*before, *steps], data, wanted, how, dry=dry)
    return _with_note(result, BLIND) if blind else result


def _with_note(result: Result, note: str) -> Result:
    return dataclasses.replace(result, notes=(*result.notes, note))


def _training(
    epochs: int | None, slim: float | None, settings: Mapping[str, Any], data: Any
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Passes that train before the first cut, those after each, and the settings that are not theirs, with how a slim model is cut."""
    own = {name: value for name, value in settings.items() if name in methods.OPTIONS}
    rest = {name: value for name, value in settings.items() if name not in methods.OPTIONS}
    if epochs is None:
        changed = [name for name, value in own.items() if value != getattr(methods.Teach(), name)]
        if slim is not None or changed:
            raise SettingError(f"{'slim' if slim is not None else changed[0]} is of training; give epochs too")
        return [], [], rest
    if data is None:
        raise SettingError("training needs inputs like those of use: give data; labels are not needed")
    after = [made(methods.Teach, {**own, "epochs": epochs})]
    if slim is None:
        return [], after, rest
    by_scales = {"criterion": "bn_scale", "ranking": "global", "normalise": "none"}
    if rest.get("criterion", "auto") not in ("auto", "l2", "bn_scale"):
        raise SettingError(f"slim cuts by the scales that it trained; leave out criterion {rest['criterion']!r}")
    return [made(methods.Slim, {**own, "epochs": epochs, "slim": slim})], after, {**rest, **by_scales}


def sparsify(model: Loadable, *, data: Any = None, dry: bool = False, **settings: Any) -> Result:
    """Set single weights to zero (magnitude, Wanda, SparseGPT; N:M patterns). The file gets smaller only with an encoding.

    settings  fields of `passes.Sparsify`, names of BUDGETS, fields of `run.How`
    """
    cutting, wanted, how = sorted_out(settings, passes.Sparsify)
    return _run(model, [made(passes.Sparsify, {**cutting, "seed": how.seed})], data, wanted, how, dry=dry)


def cluster(model: Loadable, *, data: Any = None, dry: bool = False, **settings: Any) -> Result:
    """Store weights as indices into small codebooks; on data, so that each layer makes up for what those before it lost.

    data      calibration and held-out samples; None: books alone, without a look at activations
    settings  fields of `passes.Cluster`, names of BUDGETS, fields of `run.How`

    Where a budget on outputs is given and neither bits nor a size, the smallest file that meets it (largest.py).
    """
    own, wanted, how = sorted_out(settings, passes.Cluster)
    _by_data(own, "assign", ("nearest", "compensated"), data)
    each = made(passes.Cluster, {**own, "seed": how.seed})
    free = each.allocates and each.target_size is None and each.bits is None
    if free and not dry and any(name in gates.ON_OUTPUTS for name in wanted):
        if each.rate == "auto":  # one way through the search: a run of both takes three times as long
            each = dataclasses.replace(each, rate="none")
        each = smallest(model, each, data, budgets={n: v for n, v in wanted.items() if n in gates.ON_OUTPUTS}, how=how)
    result = _run(model, [each], data, wanted, how, dry=dry)
    if not result.plan.decisions:
        raise ModelError(f"{result.original.source.name}: {'; '.join(result.plan.notes)}")
    return result


def merge(model: Loadable, *, data: Any = None, dry: bool = False, **settings: Any) -> Result:
    """Consecutive and parallel linear layers become one, where that costs less; norms go into weights. The outputs stay.

    data      held-out samples that the result is compared on; nothing is decided by them
    settings  fields of `passes.Merge`, names of BUDGETS, fields of `run.How`
    """
    own, wanted, how = sorted_out(settings, passes.Merge)
    return _run(model, [made(passes.Merge, own)], data, wanted, how, dry=dry)


def factorize(
    model: Loadable, *, data: Any = None, refit: bool | None = None, dry: bool = False, **settings: Any
) -> Result:
    """Layers become chains of smaller ones, each in the form and with the ranks that lose least for what they save on this CPU.

    data      calibration and held-out samples: factors for what layers are fed, each making up for what those before it lost;
              None: for the weights alone
    refit     then fit all layers, the last one of each chain too (default: where there is data)
    settings  fields of `passes.Factorize`, names of BUDGETS, fields of `run.How`

    Norms are merged into weights first. Where a budget on outputs is given and no target, the fewest multiply-adds that meet it.
    """
    own, wanted, how = sorted_out(settings, passes.Factorize)
    _by_data(own, "fit", ("weights", "data"), data, refit)
    each = made(passes.Factorize, {**own, "seed": how.seed})
    repair = [made(passes.Refit, {"seed": how.seed})] if refit or (refit is None and each.fit == "data") else []
    on_outputs = {name: value for name, value in wanted.items() if name in gates.ON_OUTPUTS}
    if on_outputs and each.free and not dry:
        each = fewest(model, each, data, budgets=on_outputs, before=[passes.Merge()], then=repair, how=how)
    return _run(model, [passes.Merge(), each, *([] if dry else repair)], data, wanted, how, dry=dry)


def binarize(
    model: Loadable, *, data: Any = None, refit: bool | None = None, dry: bool = False, **settings: Any
) -> Result:
    """Weights of one bit, of three values, or sums of such terms. Without training much accuracy is lost, and the report says how much.

    data      calibration and held-out samples: each layer makes up for what those before it lost; None: from the weights alone
    refit     then fit what stays dense, and all biases (default: where there is data)
    settings  fields of `passes.Binarize`, names of BUDGETS, fields of `run.How`
    """
    own, wanted, how = sorted_out(settings, passes.Binarize)
    _by_data(own, "assign", ("nearest", "compensated"), data, refit)
    each = made(passes.Binarize, {**own, "seed": how.seed})
    repair = [made(passes.Refit, {"seed": how.seed})] if refit or (refit is None and data is not None) else []
    return _run(model, [each] if dry else [each, *repair], data, wanted, how, dry=dry)


def _by_data(own: dict[str, Any], name: str, ways: tuple[str, str], data: Any, refit: bool | None = None) -> None:
    """The setting's default, the first way without data and the second with; SettingError where one that needs data has none."""
    if own.get(name) is None:
        own[name] = ways[data is not None]
    wanting = f"{name} {ways[1]}" if own[name] == ways[1] else "refit" if refit else None
    if data is None and wanting is not None:
        raise SettingError(f"{wanting} needs data of your own; give data, or {name} {ways[0]} without refit")


def distill(
    student: Loadable,
    *,
    teacher: Loadable | Sequence[Loadable] | None = None,
    data: Any = None,
    checkpoint: str | Path | None = None,
    dry: bool = False,
    **settings: Any,
) -> Result:
    """Fine-tune a compressed model until it answers like the model that it was made from; labels are not needed, but may help.

    student     path, bytes, onnx.ModelProto, onnx_ir.Model or Model
    teacher     the same: what the student shall answer like, and is compared with; several answer as one, the first is compared with;
                None: labels alone teach, and the result is
                compared with the student as it was
    data        inputs like those of use, what `open_data` takes; three quarters train, the rest judges
    checkpoint  a file written after each epoch; where it is there, training goes on from it
    dry         say what would be learned from what, and train nothing
    settings    fields of `methods.distill.Distill`, names of BUDGETS, fields of `run.How`
    """
    own, wanted, how = sorted_out(settings, methods.Distill)
    result = methods.distilled(
        student,
        teacher,
        data,
        made(methods.Distill, own),
        budgets=_unclocked(wanted),
        checkpoint=checkpoint,
        dry=dry,
        how=how,
    )
    return result if dry else _with_clock(result, wanted, data, how)


MODES: dict[str, dict[str, Any]] = {
    "static": {"decode": "load", "dynamic": "recurrent", "rounding": "nearest"},
    "dynamic": {"dynamic": "all"},
    "weights": {},
}
"""Mode of `quantize` -> what it sets of `passes.QuantizeWeights`."""

SHARED = ("cpu", "keep", "measure", "seconds", "rounding")
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
    from onnxcompress.mixed import mixed_precision
    from onnxcompress.passes.quantize.ends import integer_ends
    from onnxcompress.passes.quantize.quantize import SLOWER

    if mode not in MODES:
        raise SettingError(f"mode is {mode!r}; give one of {', '.join(MODES)}")
    of_weights = {name: value for name, value in settings.items() if name in names_of(passes.QuantizeWeights)}
    own, wanted, how = sorted_out(
        {n: v for n, v in settings.items() if n not in of_weights or n in SHARED}, passes.Quantize
    )
    quantizer = made(passes.Quantize, own)
    if mode == "static":  # what is left over has no more to make up for
        of_weights.pop("rounding", None)
    weights = made(passes.QuantizeWeights, {**MODES[mode], **of_weights})
    if mode != "static":
        changed = [
            name for name in own if name not in SHARED and getattr(quantizer, name) != getattr(passes.Quantize(), name)
        ]
        if changed:
            raise SettingError(f"{changed[0]} is for the mode static, not {mode}; leave it out")
        return _run(model, [passes.Fold(), weights], data, wanted, how, dry=dry)
    steps: list[Any] = [passes.Fold(), *([passes.Equalize()] if equalize else []), quantizer]
    plans: Sequence[Plan] = ()
    clock = Clock()
    if not dry and any(name in wanted for name in gates.ON_OUTPUTS):
        with clock("budget search"):
            plans = mixed_precision(model, steps, data, budgets=_unclocked(wanted), how=how).plans
    result = _run(model, [*steps, weights], data, wanted, how, plans=plans, dry=dry)
    if plans and not result.met:  # what stayed float for the budgets' sake keeps its weights too
        result = _run(model, steps, data, wanted, how, plans=plans)
    result = dataclasses.replace(result, seconds={**clock.seconds, **result.seconds})
    if result.comparison is not None and not result.comparison.same and not plans:
        result = _with_note(result, CLOSER)
    mine = [plan for plan in result.plans if plan.method in (quantizer.name, weights.name)]
    if not any(plan.decisions or any(each.why == SLOWER for each in plan.refusals) for plan in mine):
        why = "; ".join(note for plan in result.plans for note in plan.notes)
        raise ModelError(f"{result.original.source.name}: nothing in it can be quantized: {why}")
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
    homes: dict[str, tuple[Any, str]] = {name: (passes, of) for name, of in passes.PASSES.items()}
    homes |= {name: (methods, of) for name, of in methods.PASSES.items()}
    _, wanted, how = sorted_out(settings, None)
    plans = _plans(plan)
    for each in plans:
        check_names([each.method], homes, "pass")
    steps = [made(getattr(*homes[each.method]), each.settings) for each in plans]
    original = load(model)
    if plans:
        plans[0].check_fits(original.fingerprint)
    return _run(original, steps, data, wanted, how, plans=plans)


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
    costs = clocked(timed, one.file, to_bytes(finished(result.model)), judging_data(one, data, False, how), how)
    return dataclasses.replace(result, verdicts=(*result.verdicts, *gates.check(timed, result.comparison, costs)))
