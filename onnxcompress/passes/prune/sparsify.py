"""Unstructured and N:M pruning: single weights become zero. The file gets smaller only with an encoding that stores zeros well."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.errors import ModelError, SettingError
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.model import Model
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.passes.protect import protected
from onnxcompress.passes.prune.walked import walkable, walked
from onnxcompress.passes.prune.weights import (
    keep_global,
    keep_pattern,
    keep_per_matrix,
    keep_per_row,
    magnitude,
    wanda,
)
from onnxcompress.plan import Plan, Refusal

PATTERN = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Sparsify:
    """Set single weights to zero, by magnitude (arXiv:1506.02626), Wanda (2306.11695) or SparseGPT (2301.00774)."""

    name: ClassVar[str] = "sparsify"

    amount: Annotated[float, Field(ge=0, lt=1, description="share of the weights that becomes zero")] = 0.5
    criterion: Annotated[
        Literal["magnitude", "wanda", "sparsegpt"],
        Field(description="what a weight is worth; the last two look at data"),
    ] = "magnitude"
    per: Annotated[
        Literal["row", "matrix", "model"],
        Field(description="where the share is counted; model: one threshold, magnitude only"),
    ] = "matrix"
    pattern: Annotated[
        str | None, Field(description="N:M, at most N of M neighbours stay; instead of amount", pattern=r"^\d+:\d+$")
    ] = None
    keep: Annotated[tuple[str, ...], Field(description="weights, by name or pattern, that stay as they are")] = ()
    rows: Annotated[int, Field(ge=16, description="positions of samples that a layer is fitted on, at most")] = 4096
    seed: Annotated[int, Field(ge=0, description="of the positions of samples that a layer is fitted on")] = 0

    def __post_init__(self) -> None:
        if self.per == "model" and (self.criterion != "magnitude" or self.pattern):
            raise SettingError(
                "per 'model' ranks magnitudes of all layers together; leave out criterion and pattern, or choose 'matrix'"
            )

    @property
    def share(self) -> float | tuple[int, int]:
        """The amount, or (N, M)."""
        found = PATTERN.fullmatch(self.pattern or "")
        return self.amount if found is None else (int(found[1]), int(found[2]))

    def layers(self, model: Model) -> list[Layer]:
        """Every weight once, embeddings and protected ones left out."""
        once = {layer.weight: layer for layer in layers(model) if layer.op != "Gather"}
        kept = protected(self.keep, once, "weight")
        return [layer for name, layer in once.items() if name not in kept]

    def needs(self, model: Model) -> list[Need]:
        """Moments of what the layers are fed for Wanda, the paired walk for SparseGPT too."""
        if self.criterion == "magnitude":
            return []
        found = [Need("moments", layer.reads, layer.channel_axis) for layer in self.layers(model)]
        return list(dict.fromkeys([*([Paired.NEED] if self.criterion == "sparsegpt" else []), *found]))

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Masks, and for SparseGPT the weights that make up for what went."""
        plan = Plan(self.name, {**vars(self), "keep": list(self.keep)}, model.fingerprint)
        chosen = self.layers(model)
        if not chosen:
            raise ModelError(f"{model.source.name}: it has no weighted layer")
        stored = {layer.weight: layer.matrix(model.array(layer.weight)).astype(np.float64) for layer in chosen}
        flat = {name: matrix.reshape(len(matrix), -1) for name, matrix in stored.items()}
        masks = (
            keep_global({name: magnitude(rows) for name, rows in flat.items()}, self.amount)
            if self.per == "model"
            else {}
        )
        reasons = {}
        for layer in chosen:
            name, original = layer.weight, model.array(layer.weight)
            new, why = (flat[name] * masks[name], "") if masks else self._one(layer, flat[name], stored[name], evidence)
            plan.arrays[name] = layer.stored(new.reshape(stored[name].shape), original).astype(original.dtype)
            reasons[name] = why
        held_out = self._walk(plan, model, chosen, evidence) if self.criterion == "sparsegpt" else {}
        for layer in chosen:
            name, told = layer.weight, held_out.get(layer.weight)
            if reasons[name] and told is None:
                plan.refusals.append(Refusal(name, reasons[name], layer.name))
            zeros = int((plan.arrays[name] == 0).sum())
            judged = {} if told is None else {"held_out_db": told}
            plan.decisions.append({"weight": name, "of": int(plan.arrays[name].size), "zeros": zeros, **judged})
        return plan

    def _walk(self, plan: Plan, model: Model, chosen: list[Layer], evidence: Evidence) -> dict[str, float]:
        """Give the plan what SparseGPT makes of the layers that a walk can fit; weight -> SQNR on held-out rows."""
        mine = walkable(model, chosen)
        others = {name: values for name, values in plan.arrays.items() if name not in {each.weight for each in mine}}
        held_out = {}
        for layer, found in walked(
            model, evidence[Paired.NEED], mine, self.share, others, rows=self.rows, seed=self.seed
        ):
            plan.arrays.update(found.stored)
            held_out[layer.weight] = found.held_out_db
        return held_out

    def _one(self, layer: Layer, rows: np.ndarray, matrix: np.ndarray, evidence: Evidence) -> tuple[np.ndarray, str]:
        """The new weights of one layer from scores alone, and why another criterion than the wished one was used."""
        moments = evidence.get(Need("moments", layer.reads, layer.channel_axis))
        why = ""
        scores = magnitude(rows)
        if self.criterion != "magnitude":
            fits = moments is not None and len(moments.mean_square) == matrix.shape[1] and layer.groups == 1
            if fits and moments is not None:
                scores = wanda(rows, np.repeat(moments.mean_square, rows.shape[1] // matrix.shape[1]))
            used = "wanda" if fits else "magnitude"
            why = (
                ""
                if used == self.criterion
                else f"{self.criterion} needs what this layer is fed, a column a weight; {used} was used"
            )
        if isinstance(self.share, tuple):
            return rows * keep_pattern(scores, *self.share), why
        keep = keep_per_row if self.per == "row" or self.criterion != "magnitude" else keep_per_matrix
        return rows * keep(scores, self.amount), why

    def apply(self, model: Model, plan: Plan) -> Model:
        """Write the weights."""
        plan.check_fits(model.fingerprint)
        return model.with_constants(plan.arrays)
