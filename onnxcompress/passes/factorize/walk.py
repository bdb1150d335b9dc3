"""The chosen forms, fitted layer by layer to what the factorized network really feeds each layer.

original ──────── y ────────────────────────────┐
factorized, walked beside it ── x ─▶ Gram matrix ─▶ aim ─▶ factors ─▶ bias ─▶ the next layer is fed by these

The aim is the weight that brings what the layer is now fed nearest to what the original put out (a crossed Gram matrix: AA-SVD,
arXiv:2604.02119); its factors are those with the least error in the metric of the shifted inputs (SVD-LLM, arXiv:2403.07378), with the
Gram matrix drawn towards white noise by as much as does best on rows that are kept back. The factors of the weights alone are always
among what these rows judge, so that data does no harm where there is too little of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcompress.evidence.paired import Pair, Paired
from onnxcompress.model import Model
from onnxcompress.passes.factorize.alternate import WIDEST, alternated
from onnxcompress.passes.factorize.arriving import Arrival, first
from onnxcompress.passes.factorize.candidates import JUDGING, ROW_BYTES, ROWS, Choice, Known, Seen
from onnxcompress.passes.factorize.fed import counted, goal, known_fit, looked_up
from onnxcompress.passes.factorize.forms import FORMS, Factors
from onnxcompress.passes.factorize.metric import Metric, prior
from onnxcompress.passes.factorize.nonlinear import behind
from onnxcompress.passes.factorize.sites import Site
from onnxcompress.passes.quantize.fitting import Fitting, Tried
from onnxcompress.passes.refit.rows import spread
from onnxcompress.passes.refit.solver import in_db

DRAWN = (0.3, 0.03, 0.003)
"""Shares of white noise that are tried in a Gram matrix, of its mean diagonal."""


NOTHING = np.zeros((0, 0))

Judged = tuple[Tried, Factors]
"""Factors, and what rows that are kept back say of them."""


@dataclass(frozen=True, eq=False)
class Made:
    """factors of a layer; its bias where that is fitted too; SQNR of what it puts out on held-out rows: by the weights alone, and now."""

    factors: Factors
    bias: tuple[str, np.ndarray] | None = None
    held_out_db: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Walk:
    """rows  positions of samples at most, a layer      seed  draws them      nonlinear  fit what comes behind a Relu or Clip"""

    rows: int = 4096
    seed: int = 0
    nonlinear: bool = False
    made: dict[str, Made] = field(default_factory=dict)


def looked(
    model: Model, paired: Paired, sites: Mapping[str, Site], samples: int, seed: int
) -> Iterator[tuple[Site, Known]]:
    """Each layer with rows of what the model as it is feeds it, one after another; `samples` tell how far its errors arrive."""
    own, arrival = model.as_original(), Arrival(first(paired, samples))
    for pair in replace(paired, original=own, current=own).walk(list(sites), still=True):
        site = sites[pair.node]
        if site.layer.op == "Gather":
            fit_share, judge_share = counted(site, pair)
            judged = Metric(often=judge_share)
            known = Known(looked_up(fit_share), judged, judged.error(site.weight(model.array(site.layer.weight))))
            yield site, _arriving(arrival, pair, site, known)
            continue
        width = 4 * site.shape.groups * site.shape.ins * site.shape.taps
        share = min(1.0, ROW_BYTES / (width * (ROWS + JUDGING)))
        fit, judge = Seen(), Seen()
        parts = [fit] * (ROWS // JUDGING) + [judge]
        most = max(int(share * (ROWS + JUDGING)), 16)
        spread(parts, site.node, site.layer, pair.read(site.layer.reads), goal(own, site, pair), most, seed)
        if fit.count and judge.count and judge.power > 0:
            unit = fit.unit
            known = Known(fit.metric(unit), judge.metric(unit), judge.power / judge.count / unit**2)
            yield site, _arriving(arrival, pair, site, known)


def _arriving(arrival: Arrival, pair: Pair, site: Site, known: Known) -> Known:
    """With how far errors arrive at the outputs."""
    found = arrival.of(pair, site, known)
    return known if found is None else replace(known, arrives=found)


def walked(how: Walk, model: Model, paired: Paired, chosen: Mapping[str, tuple[Site, Choice]]) -> dict[str, Made]:
    """Node -> its factors, for all layers that are not left as they are."""
    found = {}
    own = model.as_original()
    for pair in replace(paired, original=own, current=own).walk(list(chosen)):
        site, choice = chosen[pair.node]
        made = fitted(how, own, site, choice, pair)
        found[pair.node] = made
        dense = FORMS[choice.form].dense(site.shape, made.factors)
        pair.replace(site.layer.weight, site.stored(dense, model.array(site.layer.weight)))
        if made.bias is not None:
            pair.replace(*made.bias)
    return found


def by_weights(model: Model, site: Site, choice: Choice) -> Made:
    """Without data."""
    weight = site.weight(model.array(site.layer.weight))
    return Made(FORMS[choice.form].start(site.shape, weight, choice.ranks, prior(site.shape.kernel)))


def fitted(how: Walk, model: Model, site: Site, choice: Choice, pair: Pair) -> Made:
    """The factors that do best on held-out rows of those that are tried."""
    plain = by_weights(model, site, choice)
    if site.layer.op == "Gather":
        return _embedded(model, site, choice, pair, plain)
    at = known_fit(model, site, pair, how.rows, how.seed)
    if at is None:
        return plain
    form, shape = FORMS[choice.form], site.shape
    flat = (-1, shape.ins * shape.taps)

    def judged(factors: Factors) -> tuple[Tried, Factors]:
        told = at.tried(form.dense(shape, factors).reshape(flat), Values())
        return replace(told, levels=NOTHING), factors  # the dense weight would be held for each, and is not read again

    before, *begun = judged(plain.factors), *_begun(at, site, choice, judged)
    best, factors = min((before, *begun), key=lambda each: each[0].error)
    made = Made(factors, _bias(model, at, best), (at.decibel(before[0].error), at.decibel(best.error)))
    return _behind(how, model, site, choice, pair, made) if how.nonlinear and made.bias is not None else made


def _behind(how: Walk, model: Model, site: Site, choice: Choice, pair: Pair, made: Made) -> Made:
    """The same factors, or others that do better behind the layer's function."""
    wanted = goal(model, site, pair)
    fit = behind(FORMS[choice.form], site, choice.ranks, pair.read(site.layer.reads), wanted, how.rows, how.seed)
    if fit is None or made.bias is None:
        return made
    name, held = made.bias
    factors, bias = fit.improved(made.factors, held.astype(np.float64).reshape(site.shape.groups, -1))
    return replace(made, factors=factors, bias=(name, bias.reshape(held.shape).astype(held.dtype)))


def _embedded(model: Model, site: Site, choice: Choice, pair: Pair, plain: Made) -> Made:
    """The factors that do best on rows that other batches look up."""
    weight, form = site.weight(model.array(site.layer.weight)), FORMS[choice.form]
    fit, judge = counted(site, pair)
    metric = Metric(often=judge)
    errors = [metric.error(weight - form.dense(site.shape, plain.factors))]
    factors = plain.factors
    for share in DRAWN:
        tried = form.start(site.shape, weight, choice.ranks, looked_up(fit, share))
        now = metric.error(weight - form.dense(site.shape, tried))
        if now < min(errors):
            factors = tried
        errors.append(now)
    power = metric.error(weight)
    return Made(factors, None, (in_db(power, errors[0]), in_db(power, min(errors))))


def _begun(at: Fitting, site: Site, choice: Choice, judged: Callable[[Factors], Judged]) -> Iterator[Judged]:
    """Starts from much to little white noise in the Gram matrix, while they get better, and what the sweeps make of the best of them."""
    form, shape = FORMS[choice.form], site.shape
    fed = at.rows()
    weight = at.weight if fed is None and at.weight.shape[2] > WIDEST else at.aim()
    weight = weight.reshape(shape.groups, shape.outs, shape.ins, shape.taps)
    known = (Metric(at.gram()) if fed is None else Metric(rows=fed)).balanced()
    diagonal = known.diagonal()
    best: tuple[Judged, Metric] | None = None
    for share in DRAWN:
        metric = replace(known, noise=share * diagonal.mean(1))
        now = judged(form.start(shape, weight, choice.ranks, metric))
        if best is not None and now[0].error >= best[0][0].error:
            break
        best = now, metric
    assert best is not None
    yield best[0]
    if not form.closed:
        yield judged(alternated(form, shape, weight, best[0][1], best[1]))


def _bias(model: Model, at: Fitting, best: Tried) -> tuple[str, np.ndarray] | None:
    values = at.bias_like(model, best)
    return None if at.bias is None or values is None else (at.bias, values)


class Values:
    """Weights that stand for themselves."""

    def values(self, levels: np.ndarray, /) -> np.ndarray:
        """The same."""
        return levels
