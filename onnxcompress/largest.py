"""A driver: the largest cut that still meets the budgets, by the sensitivity of each group and one solver.

1. Evidence is gathered once; it gives each group's expected error after 1, 2, ... units went (`Prune.outlook`).
2. Each group by itself loses half of its units, is repaired and measured on a few samples; its expected errors are scaled to
   that. (Sensitivity of single layers: Li et al., ICLR 2017, arXiv:1608.08710; here with the repair, which makes up for ten
   times and more of what an early layer lost and for nothing of what the last one did.)
3. Prune with a `target_error` solves for the cut that takes most within a summed error. How much error the budgets bear is
   found by halving the interval of its logarithm. What is expected only ranks the cuts: each trial is cut, repaired and judged
   on held-out data, and what it reports is measured.

Beside one amount for all groups, halved likewise (mean share of parameters and multiply-adds left at 20 dB, 15 dB, agreement
0.98; l2 and refit): digits .62 .52 .26 -> .63 .45 .25; PP-OCR's classifier .97 .90 .72 -> .88 .79 .70. Without step 2 digits
came to .70 .64 .66, the classifier to .85 .80 .60.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from onnxcompress.errors import SettingError
from onnxcompress.model import Loadable, Model, load
from onnxcompress.passes.protocol import Pass
from onnxcompress.result import Result
from onnxcompress.run import How, Progress, evidence_for, opened, run

if TYPE_CHECKING:
    from onnxcompress.passes import Cluster, Factorize, Prune
    from onnxcompress.passes.prune.prune import Outlook

Found = TypeVar("Found")

LEVELS = (1e-5, 1e1)
"""Expected noise shares between which the search runs: 50 dB, and beyond all signal."""

PROBES = 12
"""Groups at most that are measured, evenly from first to last: how much repair makes up for changes slowly with depth."""

PROBE_SAMPLES = 32
"""Of which a quarter judges: a probe only ranks groups, whose sensitivities differ by factors of a hundred."""

LEAST = 1e-9
"""Noise share below which errors are not told apart: 90 dB, about what float32 leaves of a deep network."""


def largest_cut(
    model: Loadable,
    prune: Prune,
    data: Any = None,
    *,
    budgets: Mapping[str, float],
    then: Sequence[Pass] = (),
    how: How | None = None,
    trials: int = 7,
) -> Result:
    """The run with the largest cut whose budgets are met; the smallest cut tried where none is.

    trials  runs; the error is found to within a factor of 10^(6 / 2^trials): 0.5 dB at 7
    Largest: the mean share of parameters and multiply-adds that goes. Whether a larger error does worse is assumed, as it
    nearly always holds; the result's own numbers are measured.
    SettingError without a budget on outputs, or with a target beside it.
    """
    if not budgets:
        raise SettingError("the largest cut needs a budget to keep; give --min-sqnr, --min-agreement or --max-drop")
    if prune.targeted:
        raise SettingError("give either a target or the largest cut that keeps the budgets, not both")
    how, loaded, (low, high) = how or How(), load(model), LEVELS
    cutter = replace(prune, target_error=high)
    outlook = _measured(loaded, cutter, data, then, how, _outlook(loaded, cutter, data, how))
    best = last = None
    for _ in range(trials):
        level = math.sqrt(low * high)
        cutter = replace(prune, target_error=level)
        plan = cutter.decide(loaded, outlook)
        last = run(loaded, [cutter, *then], data, budgets=budgets, plans=[plan], how=how)
        low, high, best = (level, high, last) if last.met else (low, level, best)
    return best or last  # type: ignore[return-value]


def _outlook(model: Model, prune: Prune, data: Any, how: How) -> Outlook:
    """What all trials decide on."""
    feed = opened(model, data, how)
    return prune.outlook(model, evidence_for(prune, model, model, feed, how))


def _measured(model: Model, prune: Prune, data: Any, then: Sequence[Pass], how: How, outlook: Outlook) -> Outlook:
    """The outlook with each group's expected errors scaled so that they are right where half of its units went.

    PROBES groups are measured; the factor of those between them follows by interpolation of its logarithm.
    """
    names = list(outlook.curves)
    probed = np.unique(np.linspace(0, len(names) - 1, PROBES).round().astype(int))
    factors: dict[int, float] = {}
    for done, place in enumerate(probed.tolist()):
        factor = _factor(model, prune, data, then, how, outlook, names[place])
        if factor is not None:
            factors[place] = math.log(factor)
        if how.progress is not None:
            how.progress(done + 1, len(probed), "sensitivity")
    if not factors:
        return outlook
    scales = np.exp(np.interp(np.arange(len(names)), list(factors), list(factors.values())))
    return replace(outlook, curves={n: _rising(outlook.curves[n]) * s for n, s in zip(names, scales, strict=True)})


def _factor(
    model: Model, prune: Prune, data: Any, then: Sequence[Pass], how: How, outlook: Outlook, name: str
) -> float | None:
    """Measured over expected error where half of one group went; None where no output holds floats that compare."""
    limit = PROBE_SAMPLES if how.limit is None else min(PROBE_SAMPLES, how.limit)
    few = replace(how, limit=limit, metric=None, labels=None, progress=None)
    sizes = {group.name: group.size for group in outlook.groups}
    gone = sizes[name] // 2
    plan = prune.with_counts(model, outlook, {**sizes, name: sizes[name] - gone})
    found = run(model, [prune, *then], data, plans=[plan], how=few).comparison
    decibel = None if found is None else found.sqnr_db
    if decibel is None or math.isnan(decibel):
        return None
    return float(max(10 ** (-decibel / 10), LEAST) / _rising(outlook.curves[name])[gone - 1])


def _rising(curve: np.ndarray) -> np.ndarray:
    return np.maximum(np.maximum.accumulate(curve), LEAST)


# -- factors -----------------------------------------------------------------------------------------------------------

LEFT = (0.2, 0.9)
"""Shares of the multiply-adds between which the search runs."""


def fewest(
    model: Loadable,
    factorize: Factorize,
    data: Any = None,
    *,
    budgets: Mapping[str, float],
    before: Sequence[Pass] = (),
    then: Sequence[Pass] = (),
    how: How,
    trials: int = 4,
) -> Factorize:
    """The settings that leave the fewest multiply-adds of those tried that meet the budgets; the most of LEFT where none does.

    before, then  passes that run ahead of it and behind it
    trials        runs; the share is found to within a factor of 4.5^(1 / 2^trials): 10 % at 4
    Whether more multiply-adds do better is assumed. A share that no choice reaches counts as one that does not meet them.
    """
    loaded = load(model)

    def meets(share: float) -> Factorize | None:
        each = replace(factorize, target_macs=share)
        try:
            met = run(loaded, [*before, each, *then], data, budgets=budgets, how=replace(how, progress=None)).met
        except SettingError:
            met = False
        return each if met else None

    found = _least(meets, LEFT, trials, how.progress, "fewest multiply-adds")
    return found or replace(factorize, target_macs=LEFT[1])


# -- codebooks ---------------------------------------------------------------------------------------------------------

AVERAGES = (1.2, 8.0)
"""Bits a weight between which the search runs; below, even two entries everywhere do not fit with their books."""


def smallest(
    model: Loadable,
    cluster: Cluster,
    data: Any = None,
    *,
    budgets: Mapping[str, float],
    how: How,
    trials: int = 5,
) -> Cluster:
    """The settings of the smallest file that meets the budgets, of those tried; with 8 bits a weight where none does.

    trials  runs; bits a weight are found to within a factor of 6.7^(1 / 2^trials): 6 % at 5
    Whether more bits do better is assumed.
    """
    loaded = load(model)

    def meets(bits: float) -> Cluster | None:
        each = cluster.of_average(loaded, bits)
        return each if run(loaded, [each], data, budgets=budgets, how=replace(how, progress=None)).met else None

    return _least(meets, AVERAGES, trials, how.progress, "smallest file") or cluster.of_average(loaded, AVERAGES[1])


def _least(
    meets: Callable[[float], Found | None],
    between: tuple[float, float],
    trials: int,
    progress: Progress | None,
    what: str,
) -> Found | None:
    """What `meets` made of the least amount tried that it took; the interval of the amount's logarithm is halved."""
    (low, high), best = between, None
    for number in range(trials):
        amount = math.sqrt(low * high)
        found = meets(amount)
        low, high, best = (amount, high, best) if found is None else (low, amount, found)
        if progress is not None:
            progress(number + 1, trials, what)
    return best
