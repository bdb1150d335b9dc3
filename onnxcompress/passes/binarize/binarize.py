"""Binarize: weights become signs with a factor a row, three values, or sums of such terms: one bit a weight and term in the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.errors import ModelError, SettingError
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import Model
from onnxcompress.model.edit import walk
from onnxcompress.operators.layer import layers
from onnxcompress.passes.binarize.activations import put_signs
from onnxcompress.passes.binarize.terms import DIGITS, approximated
from onnxcompress.passes.cluster.allocation import bits_of
from onnxcompress.passes.cluster.choices import Coding, Starter, Stop
from onnxcompress.passes.cluster.decisions import carry_out, decide
from onnxcompress.passes.cluster.layout import along
from onnxcompress.passes.cluster.tensors import END, Clustered, tensors_of
from onnxcompress.passes.cluster.walk import Start, Walk, begun, walked
from onnxcompress.plan import Plan, Refusal
from onnxcompress.weights.coded import MOST_ENTRIES
from onnxcompress.weights.forms import chosen_together


@plain(frozen=True)
class ByTerms(Starter):
    """Sums of terms, each a factor a row times digits."""

    kind: str = "binary"
    terms: int = 1

    def begun(self, rows: np.ndarray, seed: int, counts: np.ndarray | None = None) -> Coding:
        """From the weights alone."""
        symbols, books = approximated(rows.astype(np.float64), self.kind, self.terms)
        return symbols, books.halved()

    def tried(self, at: Stop) -> Iterator[Coding]:
        """Digits that make up for errors, and the factors that are best for what the layer is really fed."""
        symbols, books = approximated(at.rows, self.kind, self.terms, at.gram)
        yield symbols, books.halved()


@dataclass(frozen=True)
class Binarize:
    """Weights of -1 and 1 with a factor a channel (BinaryConnect, XNOR-Net), of -1, 0, 1 (ternary), or sums of several such terms."""

    name: ClassVar[str] = "binarize"

    kind: Annotated[Literal["binary", "ternary"], Field(description="what one term may be: -1 and 1, or 0 too")] = (
        "binary"
    )
    terms: Annotated[int, Field(ge=1, le=4, description="tensors that are added up, each with a factor a channel")] = 1
    ends: Annotated[
        Literal["keep", "as others"],
        Field(description="the first and the last layers, which the papers leave as they are"),
    ] = "keep"
    activations: Annotated[
        bool,
        Field(
            description="let the layers read signs of activations too, as XNOR-Net does; onnxruntime has no faster kernel for it"
        ),
    ] = False
    assign: Annotated[
        Literal["nearest", "compensated"],
        Field(description="compensated: layer by layer on data, each error made up for by weights that are still free"),
    ] = "nearest"
    smallest: Annotated[int, Field(ge=0, description="bytes of a weight below which it stays")] = 1024
    keep: Annotated[
        tuple[str, ...], Field(description="weights or nodes, by name or pattern, that stay as they are")
    ] = ()
    rows: Annotated[int, Field(ge=16, description="positions of samples that a layer is fitted on, at most")] = 4096
    seed: Annotated[int, Field(ge=0, description="of positions that are drawn")] = 0

    def __post_init__(self) -> None:
        if self.entries > MOST_ENTRIES:
            raise SettingError(f"{self.terms} {self.kind} terms have more than {MOST_ENTRIES} sums; give fewer terms")

    @property
    def entries(self) -> int:
        """Sums that the terms can have."""
        return int(len(DIGITS[self.kind]) ** self.terms)

    def tensors(self, model: Model) -> tuple[list[Clustered], dict[str, str]]:
        """What becomes binary, and why the rest does not."""
        found, refused = tensors_of(model, self.keep, self.ends, self.smallest, self.entries)
        unsuited = {each.name: why for each in found if (why := _unsuited(each))}
        return [each for each in found if each.name not in unsuited], refused | unsuited

    def needs(self, model: Model) -> list[Need]:
        """The paired walk, where errors are made up for."""
        return [Paired.NEED] if self.assign == "compensated" else []

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Digits and factors of each layer."""
        plan = Plan(self.name, {**vars(self), "keep": list(self.keep)}, model.fingerprint)
        found, refused = self.tensors(model)
        plan.refusals.extend(Refusal(name, why) for name, why in refused.items())
        if not found:
            first = next((f"{name!r}: {why}" for name, why in refused.items()), "it has no weighted layer")
            more = "; --ends 'as others' takes first and last ones too" if END in refused.values() else ""
            raise ModelError(f"{model.source.name}: no weight can be made {self.kind} ({first}){more}")
        choice = ByTerms(self.entries, self.kind, self.kind, self.terms)
        start: Start = {
            each.name: (each, choice, *choice.begun(each.rows(model.array(each.name)), self.seed)) for each in found
        }
        codes = (
            walked(Walk(self.rows, seed=self.seed), model, evidence[Paired.NEED], start)
            if self.assign == "compensated"
            else begun(model, start)
        )
        forms = chosen_together(codes.coded)
        for each in found:
            decide(plan, model, each, codes, forms, bits=bits_of(self.entries), sharing="a channel")
        return plan

    def apply(self, model: Model, plan: Plan) -> Model:
        """Write the coded weights, and the signs of activations where they were asked for."""
        plan.check_fits(model.fingerprint)
        graph = model.ir.clone()
        carry_out(graph, plan)
        if plan.settings["activations"]:
            nodes = {node.name or "": node for node in walk(graph)}
            coded = {each["weight"] for each in plan.decisions}
            for layer in layers(model):
                if layer.weight in coded:
                    put_signs(graph, nodes[layer.name], layer)
        return model.edited(graph)


def _unsuited(each: Clustered) -> str:
    """Why a tensor that could have a book has no factors a row; empty where it has."""
    if each.weight.layer is None or each.weight.op == "Gather":
        return "it is an embedding, or no layer reads it as it is"
    if each.tied:
        return "it is tied to a matrix that is its transpose"
    return "" if along(each.weight.layer) is not None else "its rows lie along several axes"
