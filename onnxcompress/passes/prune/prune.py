"""Structured pruning: whole channels, heads and hidden units go, and the model gets narrower (not sparser)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.channels import Channels, Group, analyse, cut
from onnxcompress.channels.footprint import Footprint, footprint
from onnxcompress.errors import ModelError, SettingError, nearest
from onnxcompress.evidence.need import SHAPES, Evidence, Need
from onnxcompress.model import Model
from onnxcompress.model.edit import set_constant
from onnxcompress.operators import Settings
from onnxcompress.operators.cost import macs_by_layer
from onnxcompress.passes.prune.amounts import Budgeted, amounts_for
from onnxcompress.passes.prune.criteria import CRITERIA, choose_global, choose_local, normalise
from onnxcompress.passes.prune.free import FreeCuts, free_cuts, merged
from onnxcompress.passes.prune.protect import protected
from onnxcompress.passes.prune.scores import needs_of, score_groups
from onnxcompress.passes.prune.selection import SELECTIONS, choose_by_reconstruction, gram_needs
from onnxcompress.plan import Plan, Refusal

Share = Annotated[float | None, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Prune:
    """Remove whole channels, heads and hidden units.

    A share p of the channels of every group takes about 1 - (1 - p)² of the parameters, since a weight loses rows and columns.
    Li et al., ICLR 2017, arXiv:1608.08710, for the idea; CRITERIA and SELECTIONS name the papers of each way to choose.
    """

    name: ClassVar[str] = "prune"

    amount: Annotated[float, Field(ge=0, lt=1, description="share of the channels that goes")] = 0.5
    criterion: Annotated[str, Field(description=f"how units are ranked: {', '.join([*CRITERIA, *SELECTIONS])}")] = "l2"
    ranking: Annotated[
        Literal["local", "global"], Field(description="the share is taken from every group, or from all units together")
    ] = "local"
    aggregate: Annotated[
        Literal["sum", "mean", "max", "product"], Field(description="how the scores of a unit's slices become one")
    ] = "mean"
    normalise: Annotated[
        Literal["none", "sum", "mean", "max", "l2", "range", "standard"],
        Field(description="scale of scores under --ranking global"),
    ] = "mean"
    target_params: Annotated[Share, Field(description="share of the parameters that is left; instead of --amount")] = (
        None
    )
    target_macs: Annotated[Share, Field(description="share of the multiply-adds that is left; instead of --amount")] = (
        None
    )
    target_size: Annotated[
        Share, Field(description="share of the weights' bytes that is left; instead of --amount")
    ] = None
    round_to: Annotated[
        int,
        Field(ge=1, le=256, description="channel counts become multiples of this, for the runtime's blocked kernels"),
    ] = 8
    keep: Annotated[tuple[str, ...], Field(description="weights, by name or pattern, whose channels all stay")] = ()
    inexact: Annotated[
        bool, Field(description="also cut along axes where that changes what is left (norms, softmax, means)")
    ] = False
    inner: Annotated[
        bool, Field(description="cut the inner factor of a product: dimensions of all heads instead of heads")
    ] = False
    seed: Annotated[int, Field(ge=0, description="for criteria that draw")] = 0

    def __post_init__(self) -> None:
        known = [*CRITERIA, *SELECTIONS]
        if self.criterion not in known:
            raise SettingError(f"no criterion is called {self.criterion!r}; {nearest(self.criterion, known)}")
        if sum(target is not None for target in (self.target_params, self.target_macs, self.target_size)) > 1:
            raise SettingError("give one of target_params, target_macs and target_size, not several")

    @property
    def analysis(self) -> Settings:
        """Settings of the channel analysis."""
        return Settings(self.inexact, self.inner)

    def channels(self, model: Model) -> Channels:
        """The analysis of a model under these settings."""
        return analyse(model, self.analysis)

    def groups(self, model: Model) -> list[Group]:
        """Groups that may be cut: more than one unit, and not protected by name."""
        written = {
            group.name: {member.tensor for member in group.members if member.role == "write"}
            for group in self.channels(model).groups
        }
        kept = protected(self.keep, set().union(*written.values()), "weight that could be cut")
        return [group for group in self.channels(model).groups if group.size > 1 and not written[group.name] & kept]

    def needs(self, model: Model) -> list[Need]:
        """Shapes for a MAC target, activations or Gram matrices for the criteria that look at them."""
        groups = self.groups(model)
        wanted = [SHAPES] if self.target_macs is not None or self.criterion in SELECTIONS else []
        if self.criterion in SELECTIONS:
            return wanted + gram_needs(model, self.channels(model), groups)
        return wanted + needs_of(model, self.channels(model), groups, CRITERIA[self.criterion])

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Free cuts first; then as many units as the amount or target asks for, the least important of each group."""
        groups, channels = self.groups(model), self.channels(model)
        if not groups:
            raise ModelError(
                f"{model.source.name}: no channel can be removed: {_why_nothing(channels)}; see 'onnxcompress inspect'"
            )
        free = {group.name: free_cuts(model, channels, group) for group in groups}
        shapes = evidence.get(SHAPES, {})
        print_ = footprint(model, channels, macs_by_layer(model, shapes))
        kept = self._choose(model, groups, evidence, print_, {name: cuts.all for name, cuts in free.items()})
        decisions = [_decision(group, kept[group.name], free[group.name]) for group in groups]
        return Plan(
            self.name,
            _settings(self),
            model.fingerprint,
            decisions=[decision for decision in decisions if decision["cut"]],
            refusals=[Refusal(frozen.name, frozen.why, frozen.by) for frozen in channels.frozen],
            notes=_notes(free),
        )

    def _choose(
        self, model: Model, groups: list[Group], evidence: Evidence, print_: Footprint, free: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Group -> bool [units], True where a unit stays."""
        budget = Budgeted(groups, print_, self.target_params, self.target_macs, self.target_size)
        if self.criterion in SELECTIONS:
            return choose_by_reconstruction(model, groups, evidence, budget, free, self)
        scores = score_groups(
            model, self.channels(model), groups, CRITERIA[self.criterion], evidence, self.aggregate, self.seed
        )
        for name, gone in free.items():
            scores[name] = np.where(gone, scores[name].min() - 1 - np.abs(scores[name].min()), scores[name])

        def at(amount: float) -> dict[str, np.ndarray]:
            if self.ranking == "local":
                return choose_local(scores, amount, round_to=self.round_to)
            scaled = {name: normalise(values, self.normalise) for name, values in scores.items()}
            return choose_global(scaled, dict.fromkeys(scores, 1.0), amount, round_to=self.round_to)

        kept = amounts_for(budget, at, self.amount)
        return {name: keep & ~_beyond(free[name], keep) for name, keep in kept.items()}

    def apply(self, model: Model, plan: Plan) -> Model:
        """Merge duplicates into the units that stay, then cut."""
        plan.check_fits(model.fingerprint)
        channels = self.channels(model)
        by_name = {group.name: group for group in channels.groups}
        removed = []
        graph = model.ir.clone()
        for decision in plan.decisions:
            group = by_name[decision["group"]]
            into = np.full(group.size, -1)
            for unit, keeper in decision.get("merge", []):
                into[unit] = keeper
            for tensor, values in merged(model.edited(graph), group, into).items():
                set_constant(graph, tensor, values)
            removed.append(group.units[decision["cut"]])
        return cut(model.edited(graph), channels, np.concatenate(removed) if removed else np.zeros(0, np.int64))


def _beyond(free: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Free units that would have stayed for the sake of the count: they go too, if anything else is left."""
    return free & keep if (keep & ~free).any() else np.zeros_like(free)


def _decision(group: Group, keep: np.ndarray, free: FreeCuts) -> dict[str, object]:
    gone = np.flatnonzero(~keep)
    decision: dict[str, object] = {"group": group.name, "of": group.size, "cut": gone.tolist()}
    taken = np.flatnonzero(free.all & ~keep)
    if len(taken):
        decision["free"] = taken.tolist()
    merge = [[int(unit), int(free.into[unit])] for unit in gone if free.into[unit] >= 0 and keep[free.into[unit]]]
    if merge:
        decision["merge"] = merge
    return decision


def _settings(settings: Prune) -> dict[str, object]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()}


def _notes(free: Mapping[str, FreeCuts]) -> list[str]:
    counts = {
        kind: sum(int(flags.sum()) for flags in (getattr(cuts, kind) for cuts in free.values()))
        for kind in ("unread", "zero")
    }
    counts["duplicate"] = sum(int((cuts.into >= 0).sum()) for cuts in free.values())
    total = sum(counts.values())
    if not total:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return [f"{total} units could go without any change of the output ({kinds})"]


def _why_nothing(channels: Channels) -> str:
    if not channels.frozen:
        return "it has no weighted layer between its inputs and outputs that this tool knows"
    worst = max(channels.frozen, key=lambda frozen: frozen.channels)
    return f"{worst.name!r} and others are frozen: {worst.why} ({worst.by})"
