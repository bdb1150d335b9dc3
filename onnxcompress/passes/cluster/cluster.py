"""Cluster: weights that share codebooks, each tensor with as many entries and as many sharers of a book as it needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.errors import BudgetError, SettingError
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.evidence.trial import Trial
from onnxcompress.model import Model
from onnxcompress.model.save import finished, size_of
from onnxcompress.passes.cluster.allocation import SIZES, Choice, best_sharing, bits_of
from onnxcompress.passes.cluster.choices import ByBooks, ByCommon, ByRate, Starter, by_trellis, by_vectors
from onnxcompress.passes.cluster.common_book import common_book
from onnxcompress.passes.cluster.decisions import carry_out, decide, left_out
from onnxcompress.passes.cluster.expected import expected, needs_of, of_rows, with_brought, with_picked
from onnxcompress.passes.cluster.fitted import NODES, fitted
from onnxcompress.passes.cluster.one_price import SIZES as PRICED
from onnxcompress.passes.cluster.one_price import at_one_price, together
from onnxcompress.passes.cluster.sharing import SHARINGS
from onnxcompress.passes.cluster.tensors import Clustered, tensors_of
from onnxcompress.passes.cluster.walk import Begun, Found, Start, Walk, begun, walked
from onnxcompress.passes.cluster.written import STAMP, Budget, of_file, rest_of
from onnxcompress.passes.quantize.kept_back import kept_back
from onnxcompress.plan import Plan, Refusal
from onnxcompress.weights.coded import MOST_ENTRIES, Coded
from onnxcompress.weights.forms import chosen_together

BITS = 4
"""A weight, where nobody says."""

RATED = ("file", "container")
"""What `rate` may be where indices have a price."""


MANY = 10**6
"""Weights from which on one price for an entropy code is taken without data, where nothing can be judged. At equal bytes, four bits, dB of
logits by an allocation and by one price: PP-OCRv4's recogniser -11.9, 5.3 (lines .54, .95), EfficientNet-Lite0 7.4, 7.9, open-nsfw 18.7,
23.4, ddddocr 21.2, 24.8, MiniLM 12.0, 11.5; PP-OCR's classifier, of 130,000 weights, 20.7, 16.0."""


@dataclass(frozen=True)
class Cluster:
    """Store weights as indices into small codebooks (Deep Compression: Han et al., ICLR 2016, arXiv:1510.00149)."""

    name: ClassVar[str] = "cluster"

    bits: Annotated[
        int | None,
        Field(
            ge=1,
            le=8,
            description="a weight on average, books and scales counted (default: 4, or as few as budgets on outputs allow)",
        ),
    ] = None
    same: Annotated[
        bool, Field(description="2^bits entries a book everywhere, instead of as many as a tensor's errors ask for")
    ] = False
    clusters: Annotated[int | None, Field(ge=2, le=256, description="entries of every book, instead of bits")] = None
    share: Annotated[
        Literal["auto", "tensor", "scaled", "4 books", "16 books", "channel", "model"],
        Field(
            description="who shares a book: what loses least at equal bytes, all weights of a tensor, channels that differ by a "
            "scale, 4 or 16 groups of channels, each channel, or all tensors with a scale a channel"
        ),
    ] = "auto"
    start: Annotated[
        Literal["optimal", "linear", "density", "random"],
        Field(description="of k-means; the last three as in Deep Compression"),
    ] = "optimal"
    assign: Annotated[
        Literal["nearest", "compensated"] | None,
        Field(
            description="compensated: layer by layer on data, each error made up for by weights that are still free "
            "(default: where there is data)"
        ),
    ] = None
    vector: Annotated[
        Literal[1, 2, 4], Field(description="weights that share an index: neighbours in memory (product quantization)")
    ] = 1
    trellis: Annotated[
        bool,
        Field(
            description="which half of a book an index looks into follows from the indices before it (trellis-coded quantization): "
            "1 dB or more at the same size, in more time"
        ),
    ] = False
    rate: Annotated[
        Literal["auto", "none", "file", "container"],
        Field(
            description="indices by error and bits, at one price for the whole model, for an entropy code: that of the file, or "
            "that of `pack`; bits and target_size count its bytes. auto: on data that of the file, where samples kept back "
            "are answered better so; without, from a million weights on"
        ),
    ] = "auto"
    target_size: Annotated[
        float | None,
        Field(gt=0, description="of the file, in bytes, or up to 1 as a share of the original; instead of bits"),
    ] = None
    ends: Annotated[Literal["as others", "keep"], Field(description="the first and the last weight")] = "as others"
    smallest: Annotated[
        int, Field(ge=0, description="bytes of a weight below which it stays: nodes take 0.3 kB or more")
    ] = 1024
    keep: Annotated[
        tuple[str, ...], Field(description="weights or nodes, by name or pattern, that stay as they are")
    ] = ()
    rows: Annotated[int, Field(ge=16, description="positions of samples that a layer is fitted on, at most")] = 4096
    seed: Annotated[int, Field(ge=0, description="of starts and positions that are drawn")] = 0

    def __post_init__(self) -> None:
        if self.target_size is not None and not self.allocates:
            other = next(name for name, given in self._fixed.items() if given)
            raise SettingError(f"target_size decides the entries of each tensor; leave out {other}")
        if self.vector > 1 and self.entries > MOST_ENTRIES:
            raise SettingError(
                f"vectors of {self.vector} with {self.bits or BITS} bits a weight; give {8 // self.vector} at most"
            )
        if self.rate in RATED and (not self.allocates or self.share != "auto"):
            raise SettingError("rate decides the entries of each tensor; leave out same, clusters, share and vector")

    @property
    def entries(self) -> int:
        """Of a book, where all have the same."""
        return int(self.clusters or 2 ** ((self.bits or BITS) * self.vector))

    @property
    def allocates(self) -> bool:
        """Does each tensor get its own number of entries?"""
        return not any(self._fixed.values())

    @property
    def free(self) -> bool:
        """Is it for this pass to say whether indices get an entropy code?"""
        plain = self.share == "auto" and self.start == "optimal" and not self.trellis
        return self.rate == "auto" and self.allocates and plain

    @property
    def tries_both(self) -> bool:
        """Are an allocation and one price both tried on data, and judged by samples kept back?"""
        return self.free and self.assign == "compensated"

    @property
    def _fixed(self) -> dict[str, bool]:
        """Which settings decide the entries of a book."""
        return {
            "same": self.same,
            "clusters": self.clusters is not None,
            "share model": self.share == "model",
            "vector": self.vector > 1,
        }

    def tensors(self, model: Model) -> tuple[list[Clustered], dict[str, str]]:
        """What is clustered, and why the rest is not."""
        most = max(SIZES) if self.allocates else self.entries
        return tensors_of(model, self.keep, self.ends, self.smallest, most)

    def needs(self, model: Model) -> list[Need]:
        """The paired walk, and for an allocation what layers are fed and how far their errors arrive."""
        if self.assign != "compensated":
            return []
        found = [Paired.NEED, *([Trial.NEED] if self.allocates else [])]
        if self.allocates:
            for each in self.tensors(model)[0]:
                if each.weight.layer is not None:
                    found += needs_of(each.weight.layer)
        return list(dict.fromkeys(found))

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Entries and sharers of each tensor, then books and symbols."""
        plan = Plan(self.name, {**vars(self), "keep": list(self.keep)}, model.fingerprint)
        found, refused = self.tensors(model)
        plan.refusals.extend(Refusal(name, why) for name, why in refused.items())
        if not found:
            first = next((f"{name!r}: {why}" for name, why in refused.items()), "it has no large float weight")
            plan.notes.append(f"no weight is left that is worth a codebook ({first})")
            return plan
        if self.free and not self.tries_both and sum(each.size for each in found) >= MANY:
            with suppress(BudgetError):  # the allocation says what is missing, where that finds nothing either
                rated = replace(self, rate="file").plan(model, evidence)
                rated.notes.append(
                    "indices have an entropy code, which takes longer to load; --rate none leaves it out"
                )
                return rated
        budget, evidence = self._budget(model, found), with_picked(model, found, evidence)
        evidence = with_brought(model, found, evidence) if self.allocates else evidence
        if not self.tries_both:
            return self._filled(plan, model, found, evidence, budget)
        plans = [replace(self, rate="none")._filled(_copy(plan), model, found, evidence, budget)]
        made = [self.apply(model, plans[0])]
        if self.target_size is None:
            budget = of_file(model, found, size_of(finished(made[0])) + STAMP)
        try:
            plans.append(replace(self, rate="file")._filled(_copy(plan), model, found, evidence, budget))
        except BudgetError:
            return plans[0]
        made.append(self.apply(model, plans[1]))
        graphs = {str(number): each.ir for number, each in enumerate(made)}
        told = evidence[Trial.NEED].logits_db(graphs, kept_back(evidence[Paired.NEED]))
        books, rated = told["0"], told["1"]
        plans[rated > books].notes.append(
            f"samples kept back: {books:.1f} dB with indices of even length, {rated:.1f} dB with an entropy code at one price; "
            "the better one was taken"
        )
        return plans[rated > books]

    def _filled(self, plan: Plan, model: Model, found: list[Clustered], evidence: Evidence, budget: Budget) -> Plan:
        """The plan with what becomes of each tensor."""
        start, codes = self._codes(plan, model, found, evidence, budget)
        forms = chosen_together(codes.coded)
        for each in found:
            choice = start[each.name][1]
            bits = _bits(choice, codes.coded[each.name])
            decide(plan, model, each, codes, forms, bits=bits, sharing=choice.sharing)
        plan.notes.extend(left_out(codes))
        return plan

    def _codes(
        self, plan: Plan, model: Model, found: list[Clustered], evidence: Evidence, budget: Budget
    ) -> tuple[Start, Found]:
        """What each tensor begins with, and what it becomes."""
        how = Walk(self.rows, self.seed)
        if self.rate in RATED:
            return at_one_price(how, model, evidence, found, self.rate, budget)

        memory: dict[tuple[str, Choice], Begun] = {}

        def begins(choices: Mapping[str, Choice]) -> Start:
            for each in found:
                if (key := (each.name, choices[each.name])) not in memory:
                    memory[key] = self._begun(model, each, choices[each.name], evidence)
            return {each.name: memory[each.name, choices[each.name]] for each in found}

        def walks(start: Start) -> Found:
            return (
                walked(how, model, evidence[Paired.NEED], start)
                if self.assign == "compensated"
                else begun(model, start)
            )

        if self.allocates:
            names = list(SHARINGS) if self.share == "auto" else [self.share]
            beside = 0 if self.target_size is None else NODES * len(found)
            try:
                options = expected(model, found, evidence, names)
                return fitted(model, options, budget, beside, begins, walks)
            except BudgetError:
                options = expected(model, found, evidence, names, coarse=np.inf)
                return fitted(model, options, budget, beside, begins, walks)
        start = begins(self._coders(plan, model, found, evidence))
        return start, walks(start)

    def apply(self, model: Model, plan: Plan) -> Model:
        """Give the tensors their decoded values and codes, the layers their biases."""
        plan.check_fits(model.fingerprint)
        graph = model.ir.clone()
        carry_out(graph, plan)
        return model.edited(graph)

    # -- decisions -----------------------------------------------------------------------------------------------

    def _begun(self, model: Model, each: Clustered, choice: Choice, evidence: Evidence) -> Begun:
        """A tensor with its coder, and the codes that this begins with."""
        rows = each.rows(model.array(each.name))
        coder = choice if isinstance(choice, Starter) else None
        if coder is None and self.trellis:
            coder = by_trellis(each.shape, each.axis, rows, choice)
        coder = coder or ByBooks(choice.entries, choice.sharing, self.start)
        return each, coder, *coder.begun(rows, self.seed, of_rows(each, rows, evidence))

    def _coders(self, plan: Plan, model: Model, found: list[Clustered], evidence: Evidence) -> dict[str, Choice]:
        """Of each tensor, where all have as many entries."""
        if self.share == "model":
            book = common_book(model, found, self.entries)
            return {each.name: ByCommon(self.entries, self.share, book) for each in found}
        if self.vector > 1:
            return {each.name: self._by_vectors(plan, model, each) for each in found}
        if self.share != "auto":
            return {each.name: Choice(self.entries, self.share) for each in found}
        rows = {each.name: each.rows(model.array(each.name)) for each in found}
        counts = {each.name: of_rows(each, rows[each.name], evidence) for each in found}
        return {name: Choice(self.entries, best_sharing(own, self.entries, counts[name])) for name, own in rows.items()}

    def _by_vectors(self, plan: Plan, model: Model, each: Clustered) -> Starter:
        """Vectors, or as many bits in scalars where a tensor has none."""
        rows = each.rows(model.array(each.name))
        tied = "it is tied to a matrix that is its transpose"
        choice = tied if each.tied else by_vectors(each.positions, rows, self.entries, self.vector)
        if not isinstance(choice, str):
            return choice
        plan.notes.append(f"{each.name}: scalar books, since {choice}")
        entries = 2 ** (self.bits or BITS)
        return ByBooks(entries, best_sharing(rows, entries), self.start)

    def _budget(self, model: Model, found: list[Clustered]) -> Budget:
        """Of symbols, books and scales, or of the file where its size is given."""
        if self.target_size is None:
            whole = PRICED[self.rate][2] if self.rate in RATED else together
            return Budget(sum(each.size for each in found) * (self.bits or BITS) / 8, whole)
        target = self.target_size * model.source.size if self.target_size <= 1 else self.target_size
        budget = of_file(model, found, target, packed=self.rate == "container")
        if budget.bytes <= 0:
            rest = target - budget.bytes
            raise SettingError(
                f"target_size {target:.0f} bytes is less than the {rest:.0f} of what is not clustered; give more"
            )
        return budget

    def of_average(self, model: Model, bits: float) -> Cluster:
        """The same with a target size that leaves so many bits a weight."""
        found = self.tensors(model)[0]
        beside = rest_of(model, found) + NODES * len(found)
        return replace(self, target_size=max(beside + sum(each.size for each in found) * bits / 8, 2.0))


def _copy(plan: Plan) -> Plan:
    """A plan that can be filled in another way."""
    return replace(plan, decisions=[], arrays={}, refusals=list(plan.refusals), notes=list(plan.notes))


def _bits(choice: Choice, coded: Coded) -> float:
    """Of a weight's symbol: as packed, or its share of a vector's, or by the entropy code that it was chosen for."""
    if isinstance(choice, ByRate):
        return coded.entropy()
    return bits_of(coded.entries) / coded.width
