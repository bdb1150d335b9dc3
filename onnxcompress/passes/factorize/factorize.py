"""Factorize: layers become chains of smaller ones, where that pays on the clock, with ranks and forms chosen under one budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.errors import SettingError, UnmetError
from onnxcompress.evidence.need import SHAPES, Evidence, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import Model
from onnxcompress.operators.cost import macs_by_layer, parameters
from onnxcompress.passes.factorize.arriving import samples_for
from onnxcompress.passes.factorize.candidates import Known, tried, unknown
from onnxcompress.passes.factorize.carry import carried_out
from onnxcompress.passes.factorize.choose import FEWEST, Budget, Option, chosen, fewest
from onnxcompress.passes.factorize.forms import FORMS
from onnxcompress.passes.factorize.ranks import rule_of, ruled
from onnxcompress.passes.factorize.sites import Site, sites
from onnxcompress.passes.factorize.timing import Stopwatch
from onnxcompress.passes.factorize.walk import Made, Walk, by_weights, looked, walked
from onnxcompress.plan import Plan, Refusal
from onnxcompress.settings import check_names

SHARE = 0.5
"""Of the multiply-adds that is left where nobody says."""


@dataclass(frozen=True)
class Factorize:
    """Layers become chains of smaller ones (low rank, Tucker, spatial, depthwise separable), where this CPU rewards it."""

    name: ClassVar[str] = "factorize"

    target_macs: Annotated[
        float | None,
        Field(
            gt=0,
            description="multiply-adds left, or up to 1 as a share of the original's (default: 0.5, or half of what can be saved)",
        ),
    ] = None
    target_params: Annotated[
        float | None, Field(gt=0, description="parameters left, or up to 1 as a share; instead of target_macs")
    ] = None
    target_latency: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="share of the time of all layers that may be factorized, each measured on this CPU; instead of target_macs",
        ),
    ] = None
    forms: Annotated[
        tuple[str, ...],
        Field(
            description="that may be used (default: all but cp, cp-whole and fire; without data those that only lower a rank)"
        ),
    ] = ()
    rank: Annotated[
        str | None,
        Field(
            description="a rule that gives ranks, instead of a target: vbmf (what is more than noise), or energy:0.9 "
            "(share of the squared singular values that is kept)"
        ),
    ] = None
    fit: Annotated[
        Literal["weights", "data"] | None,
        Field(description="factors for what layers are fed, or for weights alone (default: data where there is some)"),
    ] = None
    nonlinear: Annotated[
        bool,
        Field(
            description="with data: factors for what comes behind a layer's Relu or Clip, whose errors below zero do not count"
        ),
    ] = False
    pays: Annotated[
        float,
        Field(
            ge=0,
            description="share of the saved multiply-adds that the clock must show, else a form is not made; 0: do not ask it",
        ),
    ] = 0.7
    seconds: Annotated[float, Field(gt=0, description="of the clock for each chain that is measured")] = 0.05
    keep: Annotated[
        tuple[str, ...], Field(description="weights or nodes, by name or pattern, that stay as they are")
    ] = ()
    rows: Annotated[int, Field(ge=16, description="positions of samples that a layer is fitted on, at most")] = 4096
    seed: Annotated[int, Field(ge=0, description="of positions that are drawn")] = 0

    def __post_init__(self) -> None:
        check_names(self.forms, FORMS, "form")
        given = [name for name in ("target_macs", "target_params", "target_latency") if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingError(f"{given[0]} and {given[1]} are both targets; give one")
        if self.rank is not None:
            rule_of(self.rank)
            for name in self.forms:
                if not ruled(FORMS[name]):
                    raise SettingError(f"{name} has no rank that a rule could give; leave it out, or give a target")
            if given:
                raise SettingError(f"rank {self.rank!r} fixes the ranks, and {given[0]} asks for others; give one")

    @property
    def free(self) -> bool:
        """Is no target given?"""
        return not any((self.target_macs, self.target_params, self.target_latency, self.rank))

    def needs(self, model: Model) -> list[Need]:
        """Shapes of a run; with data the paired walk."""
        if self.fit != "data":
            return [SHAPES]
        return [SHAPES, Paired.NEED]

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """What each form would lose, which are chosen, and their factors."""
        plan = Plan(self.name, {**vars(self), "keep": list(self.keep), "forms": list(self.forms)}, model.fingerprint)
        found, refused = sites(model, self.keep, evidence[SHAPES])
        plan.refusals.extend(refused)
        seen = [site for site in found if not self._left_out(site)]
        plan.refusals.extend(
            Refusal(site.layer.weight, why, site.layer.name) for site in found if (why := self._left_out(site))
        )
        options = {
            site.layer.name: self._options(site, known, self._weight(model, site))
            for site, known in self._known(model, seen, evidence)
        }
        if not options:
            plan.notes.append("no layer is left that a form could stand for")
            return plan
        stopwatch = Stopwatch(seconds=self.seconds)
        if self.rank is not None:
            choices, declined = fewest(options, stopwatch, self.pays)
        else:
            budget = self._budget(model, evidence, [each[0].site for each in options.values()])
            choices, declined = self._within(plan, options, budget, stopwatch)
        plan.refusals.extend(declined)
        taken = {name: (each.site, each.choice) for name, each in choices.items() if each.choice.form}
        how = Walk(self.rows, self.seed, self.nonlinear)
        if self.fit == "data":
            made = walked(how, model, evidence[Paired.NEED], taken)
        else:
            made = {name: by_weights(model, site, choice) for name, (site, choice) in taken.items()}
        for name in taken:
            self._decide(plan, choices[name], made[name])
        return plan

    def apply(self, model: Model, plan: Plan) -> Model:
        """Write the chains."""
        plan.check_fits(model.fingerprint)
        return carried_out(model, plan)

    def _left_out(self, site: Site) -> str:
        """Why a layer that has forms stays as it is; empty where it does not."""
        if not site.seen:
            return "it was not seen to run"
        if site.layer.op == "Gather" and self.target_params is None:
            return "it multiplies nothing; with target_params its bytes count"
        return ""

    # -- decisions -----------------------------------------------------------------------------------------------

    def _known(self, model: Model, found: Sequence[Site], evidence: Evidence) -> Iterator[tuple[Site, Known]]:
        """Each site with what is known of it: rows of what it is fed, or nothing."""
        if self.fit != "data":
            for site in found:
                yield site, unknown(site, site.weight(model.array(site.layer.weight)))
            return
        samples = samples_for(sum(macs_by_layer(model, evidence[SHAPES]).values()), len(found))
        by_name = {site.layer.name: site for site in found}
        yield from looked(model, evidence[Paired.NEED], by_name, samples, self.seed)

    def _weight(self, model: Model, site: Site) -> np.ndarray:
        """Of a layer, in the type in which its candidates are worked out: float32 on rows, where no rule asks for its singular values."""
        weight = site.weight(model.array(site.layer.weight))
        return weight.astype(np.float32) if self.fit == "data" and self.rank is None else weight

    def _options(self, site: Site, known: Known, weight: np.ndarray) -> list[Option]:
        """All there is for a layer, as it is first."""
        found: list[Option] = []
        names = self.forms or tuple(
            name for name, form in FORMS.items() if form.offered and (self.fit == "data" or form.blind)
        )
        rule = None if self.rank is None else rule_of(self.rank)
        for choice, error in tried(site, weight, known, names, self.seed, rule):
            form = FORMS.get(choice.form)
            parts = [site.whole] if form is None else form.parts(site.shape, choice.ranks)
            macs = site.macs(parts)
            assert macs is not None
            size = sum(part.size(site.shape) for part in parts)
            if form is None or min(macs / max(found[0].macs, 1), size / found[0].parameters) <= 1 - FEWEST:
                found.append(Option(site, choice, macs, size, error))
        return found

    def _budget(self, model: Model, evidence: Evidence, found: Sequence[Site]) -> Budget:
        """What all layers may cost together."""
        if self.target_latency is not None:
            return Budget("latency", self.target_latency, 1.0, 0.0)
        if self.target_params is not None:
            whole, mine = parameters(model), sum(site.shape.size for site in found)
            target, kind = self.target_params, "params"
        else:
            whole = sum(macs_by_layer(model, evidence[SHAPES]).values())
            mine = sum(site.macs([site.whole]) or 0 for site in found)
            target, kind = self.target_macs or SHARE, "macs"
        return Budget(kind, target * whole if target <= 1 else target, whole, whole - mine)

    def _within(
        self, plan: Plan, options: Mapping[str, Sequence[Option]], budget: Budget, stopwatch: Stopwatch
    ) -> tuple[dict[str, Option], list[Refusal]]:
        """What `chosen` takes; where nobody asked for the target and it is out of reach, half of what can be saved instead."""
        try:
            return chosen(options, budget, stopwatch, self.pays)
        except UnmetError as unmet:
            least = unmet.least
            if not self.free or least + 0.01 >= 1:
                raise
        share = (1 + least) / 2
        plan.notes.append(
            f"half of the multiply-adds, the default, is out of reach: at least {least:.2f} of them are left here; "
            f"taken is {share:.2f}, half of what can be saved"
        )
        return chosen(options, replace(budget, bound=share * budget.whole), stopwatch, self.pays)

    def _decide(self, plan: Plan, option: Option, made: Made) -> None:
        """One chain, as data."""
        site, choice = option.site, option.choice
        links = FORMS[choice.form].links(site.shape, made.factors)
        decision: dict[str, Any] = {
            "layer": site.layer.name,
            "weight": site.layer.weight,
            "op": site.layer.op,
            "form": choice.form,
            "ranks": list(choice.ranks),
            "parameters": [site.shape.size, option.parameters],
            "macs": [site.macs([site.whole]), option.macs],
            "time": option.time,
            "bias": None,
        }
        for number, link in enumerate(links):
            plan.arrays[f"{site.layer.weight}/{number}"] = link.astype(np.float32)
        if made.held_out_db is not None:
            decision |= dict(zip(("plain_db", "held_out_db"), made.held_out_db, strict=True))
        if made.bias is not None:
            decision["bias"], plan.arrays[f"bias/{made.bias[0]}"] = made.bias
        plan.decisions.append(decision)
