"""Which criterion, where nobody says: ways that the data allow are cut, refitted on few samples, and compared on samples kept back.

After a refit taylor or backward beat l2 on each of seven real models (docs/methods.md); which of them is ahead, and whether gradients
should rank the units of all groups together, differs by up to 6 dB from model to model, and nothing tells beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from onnxcompress.errors import SettingError
from onnxcompress.evidence.need import NO_GRADIENT, SHAPES, Evidence, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.evidence.trial import SAMPLES, Trial
from onnxcompress.model import Model
from onnxcompress.passes.refit.refit import Refit
from onnxcompress.plan import Plan

if TYPE_CHECKING:
    from onnxcompress.passes.prune.prune import Prune

AUTO = "auto"

NEEDS: list[Need] = [SHAPES, Paired.NEED, Trial.NEED]
"""What it is chosen on, beside what each criterion looks at."""

ROWS = 4096
"""Of the refit after which ways are compared: it only ranks them."""

JUDGES = 4
"""Of so many samples one is kept back. A refit's own judges are no use here: layers with few rows are fitted on these too in the end, and
on EfficientNet's classifier (1,280 columns, 32 samples) 21 dB were promised there where 2 came out on others."""

Ways = Mapping[str, "Prune"]
"""In words -> settings; the first of equal ones is taken."""


def known(evidence: Evidence) -> str:
    """The score that a search with many cuts ranks by: trying is for one cut."""
    return "taylor" if any(need.kind == "gradient" for need in evidence) else "l2"


def ways_of(settings: Prune, evidence: Evidence) -> Ways:
    """What is tried: by gradients, as a share of each group or (towards a target) of all units together, and by reconstruction."""
    if Paired.NEED not in evidence or evidence[Paired.NEED].data.synthetic:
        return {"l2": replace(settings, criterion="l2")}
    ways = {known(evidence): replace(settings, criterion=known(evidence))}
    shared = settings.targeted and settings.target_error is None and settings.ranking == "local"
    if shared and "taylor" in ways:
        ways["taylor over all groups"] = replace(ways["taylor"], ranking="global", normalise="none")
    return {**ways, "backward": replace(settings, criterion="backward")}


def best_of(ways: Ways, model: Model, evidence: Evidence) -> Plan:
    """The plan of the way that answers best after a refit, on samples that nothing was fitted on.

    SettingError where no way reaches the target.
    """
    plans, error = {}, None
    for name, each in ways.items():
        try:
            plans[name] = each.plan(model, evidence)
        except SettingError as why:  # a target that this way cannot reach, or no Gram matrix
            error = error or why
    if not plans:
        raise error or SettingError("no criterion is left to try")
    why_not = f" (no gradients: {evidence[NO_GRADIENT]})" if NO_GRADIENT in evidence else ""
    if len(plans) == 1:
        ((best, plan),) = plans.items()
        because = "there is no data of use to look at" if list(ways) == ["l2"] else "no other way can be taken here"
        return _noted(plan, f"units are ranked by {best}: {because}{why_not}")
    told = _tried(ways, plans, model, evidence)
    best = max(plans, key=lambda name: told[name])
    others = ", ".join(f"{told[name]:.1f} by {name}" for name in plans if name != best)
    found = f"units are ranked by {best}: {told[best]:.1f} dB on samples kept back, and {others}{why_not}"
    return _noted(plans[best], found)


def _noted(plan: Plan, note: str) -> Plan:
    return replace(plan, notes=[note, *plan.notes])


def _tried(ways: Ways, plans: Mapping[str, Plan], model: Model, evidence: Evidence) -> dict[str, float]:
    """dB of each way at the outputs, after a refit."""
    paired: Paired = evidence[Paired.NEED]
    step = max(1, paired.data.samples // SAMPLES)
    few = replace(paired.data, indices=paired.data.indices[::step][:SAMPLES])
    fitting, judging = few.kept_back(max(1, few.samples // JUDGES))
    graphs = {}
    for name, plan in plans.items():
        narrow = ways[name].apply(model, plan)
        repair = Refit(rows=ROWS, seed=ways[name].seed)
        fitted = repair.plan(narrow, {Paired.NEED: replace(paired, current=narrow, data=fitting)})
        graphs[name] = repair.apply(narrow, fitted).ir
    return evidence[Trial.NEED].logits_db(graphs, list(judging.batches(paired.batch)))
