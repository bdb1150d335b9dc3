"""Structured pruning: whole channels, heads and hidden units go, and the model gets narrower (not sparser)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.channels import Channels, Group, analyse, cut
from onnxcompress.channels.footprint import Footprint, footprint
from onnxcompress.errors import ModelError, SettingError, nearest
from onnxcompress.evidence.need import IF_ANY, SHAPES, Evidence, Need
from onnxcompress.model import Model
from onnxcompress.model.edit import set_constant
from onnxcompress.operators import Settings
from onnxcompress.operators.cost import macs_by_layer
from onnxcompress.operators.layer import all_layers
from onnxcompress.passes.protect import protected
from onnxcompress.passes.prune.amounts import Budgeted, amounts_for, within_error
from onnxcompress.passes.prune.auto import AUTO, NEEDS, best_of, known, ways_of
from onnxcompress.passes.prune.criteria import (
    CRITERIA,
    choose_global,
    choose_local,
    keep_largest,
    kept_count,
    normalise,
)
from onnxcompress.passes.prune.free import FreeCuts, folded, free_cuts, merged
from onnxcompress.passes.prune.scores import needs_of, score_groups
from onnxcompress.passes.prune.selection import (
    SELECTIONS,
    Readers,
    curves_of,
    gram_needs,
    keep_by_reconstruction,
    readers_for,
    shared_out,
)
from onnxcompress.plan import Plan, Refusal

Share = Annotated[float | None, Field(gt=0, lt=1)]
TARGETS = ("target_params", "target_macs", "target_size", "target_error")
"""Fields of Prune that stand in the place of an amount; at most one is given."""


@plain(frozen=True, eq=False)
class Outlook:
    """What a plan is made from, whatever the amount or target: computed once for many of them.

    free     group -> units that may go for nothing
    scores   group -> [units], larger = keep; those of free units are the lowest
    readers  group -> what a choice by reconstruction is made on; empty where none is needed
    curves   group -> expected error, see `curves_of`; empty likewise
    """

    groups: Sequence[Group]
    footprint: Footprint
    free: Mapping[str, FreeCuts]
    scores: Mapping[str, np.ndarray]
    readers: Mapping[str, Readers]
    curves: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Prune:
    """Remove whole channels, heads and hidden units.

    A share p of the channels of every group takes about 1 - (1 - p)² of the parameters, since a weight loses rows and columns.
    Li et al., ICLR 2017, arXiv:1608.08710, for the idea; CRITERIA and SELECTIONS name the papers of each way to choose.
    """

    name: ClassVar[str] = "prune"

    amount: Annotated[float, Field(ge=0, lt=1, description="share of the channels that goes")] = 0.5
    criterion: Annotated[
        str,
        Field(
            description=f"how units are ranked: {', '.join([*CRITERIA, *SELECTIONS])}; auto: on data taylor or backward, as samples "
            "kept back prefer after a refit; without data l2"
        ),
    ] = AUTO
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
    floor: Annotated[
        float, Field(ge=0, lt=1, description="share of every group's channels that stays under --ranking global")
    ] = 0.1
    target_params: Annotated[Share, Field(description="share of the parameters that is left; instead of --amount")] = (
        None
    )
    target_macs: Annotated[Share, Field(description="share of the multiply-adds that is left; instead of --amount")] = (
        None
    )
    target_size: Annotated[
        Share, Field(description="share of the weights' bytes that is left; instead of --amount")
    ] = None
    target_error: Annotated[
        float | None,
        Field(
            gt=0,
            description="noise share at the outputs that is expected (0.01: 20 dB), shared out over the groups so that "
            "most goes; instead of --amount",
        ),
    ] = None
    round_to: Annotated[
        int | None,
        Field(
            ge=1,
            le=256,
            description="channel counts become multiples of this, for the runtime's blocked kernels; left out: of 16 in groups "
            "of 64 and more, else of 8, which are whole blocks with AVX-512 and with AVX2",
        ),
    ] = None
    keep: Annotated[tuple[str, ...], Field(description="weights, by name or pattern, whose channels all stay")] = ()
    inexact: Annotated[
        bool, Field(description="also cut along axes where that changes what is left (norms, softmax, means)")
    ] = False
    inner: Annotated[
        bool, Field(description="cut the inner factor of a product: dimensions of all heads instead of heads")
    ] = False
    seed: Annotated[int, Field(ge=0, description="for criteria that draw")] = 0

    def __post_init__(self) -> None:
        names = [AUTO, *CRITERIA, *SELECTIONS]
        if self.criterion not in names:
            raise SettingError(f"no criterion is called {self.criterion!r}; {nearest(self.criterion, names)}")
        if sum(getattr(self, name) is not None for name in TARGETS) > 1:
            raise SettingError(f"give one of {', '.join(TARGETS)}, not several")

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
        """Shapes where multiply-adds count, activations or Gram matrices for the criteria and targets that look at them."""
        groups, channels = self.groups(model), self.channels(model)
        wanted = [SHAPES] if self.target_macs is not None or self._reads_grams else []
        if self.criterion == AUTO:
            asked = needs_of(model, channels, groups, CRITERIA["taylor"])
            wanted += [*NEEDS, *(replace(need, kind=IF_ANY) for need in asked)]
        if self._reads_grams:
            wanted += gram_needs(model, channels, groups)
        if self.criterion in CRITERIA:
            wanted += needs_of(model, channels, groups, CRITERIA[self.criterion])
        return list(dict.fromkeys(wanted))

    @property
    def _reads_grams(self) -> bool:
        return self.criterion in (AUTO, *SELECTIONS) or self.target_error is not None

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Free cuts first; then as many units as the amount or target asks for, the least important of each group."""
        if self.criterion == AUTO:
            return best_of(ways_of(self, evidence), model, evidence)
        return self.decide(model, self.outlook(model, evidence))

    def outlook(self, model: Model, evidence: Evidence) -> Outlook:
        """All that does not depend on the amount or target. ModelError where no channel can go."""
        groups, channels = self.groups(model), self.channels(model)
        if not groups:
            raise ModelError(
                f"{model.source.name}: no channel can be removed: {_why_nothing(model, channels)}; see 'onnxcompress inspect'"
            )
        free = {group.name: free_cuts(model, channels, group, exact=not self.inexact) for group in groups}
        name = known(evidence) if self.criterion == AUTO else self.criterion
        row, aggregate = CRITERIA.get(name, CRITERIA["l2"]), self.aggregate
        scores = score_groups(model, channels, groups, row, evidence, aggregate, self.seed)
        for name, cuts in free.items():
            scores[name] = np.where(cuts.all, scores[name].min() - 1 - np.abs(scores[name].min()), scores[name])
        ranked = self.criterion not in SELECTIONS
        reading = self.criterion in SELECTIONS or self.target_error is not None
        readers = readers_for(model, channels, groups, evidence) if reading else {}
        curved = self.target_error is not None or (not ranked and self.targeted)
        curves = curves_of(readers, scores, ranked=ranked) if curved else {}
        print_ = footprint(model, channels, macs_by_layer(model, evidence.get(SHAPES, {})))
        return Outlook(groups, print_, free, scores, readers, curves)

    @property
    def targeted(self) -> bool:
        """Whether a target is given in place of an amount."""
        return any(getattr(self, name) is not None for name in TARGETS)

    def decide(self, model: Model, outlook: Outlook) -> Plan:
        """The plan for this amount or target."""
        budget = Budgeted(outlook.groups, outlook.footprint, self.target_params, self.target_macs, self.target_size)
        scores = outlook.scores
        if self.target_error is not None:
            counts = within_error(budget, outlook.curves, self.round_to, self.target_error)
        elif self.criterion not in SELECTIONS:
            kept = amounts_for(budget, lambda amount: self._kept_at(scores, amount), self.amount)
            return self._planned(model, outlook, kept)
        elif self.targeted:
            counts = shared_out(budget, outlook.curves, self.round_to)
        else:
            counts = {name: kept_count(len(each), self.amount, 1, self.round_to) for name, each in scores.items()}
        return self.with_counts(model, outlook, counts)

    def with_counts(self, model: Model, outlook: Outlook, counts: Mapping[str, int]) -> Plan:
        """The plan that keeps so many units of each group."""
        if self.criterion in SELECTIONS:
            kept = keep_by_reconstruction(self.criterion, outlook.readers, outlook.scores, counts)
        else:
            kept = {name: keep_largest(outlook.scores[name], count) for name, count in counts.items()}
        return self._planned(model, outlook, kept)

    def _planned(self, model: Model, outlook: Outlook, kept: Mapping[str, np.ndarray]) -> Plan:
        """What stays, and all free units that go beside, as decisions."""
        free = outlook.free
        kept = {name: keep & ~_beyond(free[name].all, keep) for name, keep in kept.items()}
        decisions = [_decision(group, kept[group.name], free[group.name]) for group in outlook.groups]
        return Plan(
            self.name,
            _settings(self),
            model.fingerprint,
            decisions=[decision for decision in decisions if decision["cut"]],
            refusals=[Refusal(frozen.name, frozen.why, frozen.by) for frozen in self.channels(model).frozen],
            notes=_notes(free),
        )

    def _kept_at(self, scores: Mapping[str, np.ndarray], amount: float) -> dict[str, np.ndarray]:
        """What stays where a share of every group goes, or of all units together."""
        if self.ranking == "local":
            return choose_local(scores, amount, round_to=self.round_to)
        scaled = {name: normalise(values, self.normalise) for name, values in scores.items()}
        return choose_global(scaled, dict.fromkeys(scores, 1.0), amount, floor=self.floor, round_to=self.round_to)

    def apply(self, model: Model, plan: Plan) -> Model:
        """Merge duplicates into the units that stay, cut, and put what constants did into the biases."""
        plan.check_fits(model.fingerprint)
        channels = self.channels(model)
        by_name = {group.name: group for group in channels.groups}
        removed, constant = [], []
        merging = any("merge" in decision for decision in plan.decisions)
        graph = model.ir.clone() if merging else model.ir  # which cut() clones anyway
        for decision in plan.decisions:
            group = by_name[decision["group"]]
            into = np.full(group.size, -1)
            for unit, keeper in decision.get("merge", []):
                into[unit] = keeper
            for tensor, values in merged(model.edited(graph), group, into).items():
                set_constant(graph, tensor, values)
            removed.append(group.units[decision["cut"]])
            if "constant" in decision:
                constant.append((group, np.array(decision["constant"])))
        gone = np.concatenate(removed) if removed else np.zeros(0, np.int64)
        narrow = cut(model.edited(graph), channels, gone)
        return folded(model, narrow, channels, gone, constant) if constant else narrow


def _beyond(free: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Free units that would have stayed for the sake of the count: they go too, if anything else is left."""
    return free & keep if (keep & ~free).any() else np.zeros_like(free)


def _decision(group: Group, keep: np.ndarray, free: FreeCuts) -> dict[str, object]:
    gone = np.flatnonzero(~keep)
    decision: dict[str, object] = {"group": group.name, "of": group.size, "cut": gone.tolist()}
    taken = np.flatnonzero(free.all & ~keep)
    if len(taken):
        decision["free"] = taken.tolist()
    constant = np.flatnonzero(free.constant & ~keep)
    if len(constant):
        decision["constant"] = constant.tolist()
    merge = [[int(unit), int(free.into[unit])] for unit in gone if free.into[unit] >= 0 and keep[free.into[unit]]]
    if merge:
        decision["merge"] = merge
    return decision


def _settings(settings: Prune) -> dict[str, object]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()}


def _notes(free: Mapping[str, FreeCuts]) -> list[str]:
    counts = {
        kind: sum(int(flags.sum()) for flags in (getattr(cuts, kind) for cuts in free.values()))
        for kind in ("unread", "zero", "constant")
    }
    counts["duplicate"] = sum(int((cuts.into >= 0).sum()) for cuts in free.values())
    total = sum(counts.values())
    if not total:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return [f"{total} unit{'' if total == 1 else 's'} could go without any change of the output ({kinds})"]


def _why_nothing(model: Model, channels: Channels) -> str:
    if any(layer.bits is not None for layer in all_layers(model)):
        return "its weights are quantized already; prune the float model first"
    if not channels.frozen:
        return "it has no weighted layer between its inputs and outputs that this tool knows"
    worst = max(channels.frozen, key=lambda frozen: frozen.channels)
    return f"{worst.name!r} and others are frozen: {worst.why} ({worst.by})"
