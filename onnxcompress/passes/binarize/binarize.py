"""Binarize: weights become signs with a factor a row, three values, or sums of such terms: one bit a weight and term in the file."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.errors import ModelError, SettingError
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.model.edit import coded_of, set_coded, walk
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.passes.binarize.activations import put_signs
from onnxcompress.passes.binarize.terms import DIGITS, approximated
from onnxcompress.passes.cluster.layout import along, arrays_of, coded, read
from onnxcompress.passes.protect import ends, protected
from onnxcompress.plan import Plan, Refusal
from onnxcompress.weights.coded import MOST_ENTRIES
from onnxcompress.weights.forms import bytes_of, chosen

SMALLEST = 256
"""Weights of a tensor below which nothing is won: its nodes and tables take as much."""


@dataclass(frozen=True)
class Binarize:
    """Weights of -1 and 1 with a factor a channel (BinaryConnect, XNOR-Net), of -1, 0, 1 (ternary), or sums of several such terms."""

    name: ClassVar[str] = "binarize"

    kind: Annotated[Literal["binary", "ternary"], Field(description="what one term may be: -1 and 1, or 0 too")] = (
        "binary"
    )
    terms: Annotated[int, Field(ge=1, le=4, description="tensors that are added up, each with a factor a channel")] = 1
    ends: Annotated[
        bool, Field(description="also the first and the last layers, which the papers leave as they are")
    ] = False
    activations: Annotated[
        bool,
        Field(
            description="let the layers read signs of activations too, as XNOR-Net does; onnxruntime has no faster kernel for it"
        ),
    ] = False
    keep: Annotated[tuple[str, ...], Field(description="weights, by name or pattern, that stay as they are")] = ()

    def __post_init__(self) -> None:
        if len(DIGITS[self.kind]) ** self.terms > MOST_ENTRIES:
            raise SettingError(f"{self.terms} {self.kind} terms have more than {MOST_ENTRIES} sums; give fewer terms")

    def layers(self, model: Model) -> tuple[list[Layer], dict[str, str]]:
        """Every weight that becomes binary, once; and why others do not."""
        once = {layer.weight: layer for layer in layers(model)}
        kept = protected(self.keep, once, "weight")
        outer = set() if self.ends else ends(model, list(once.values()))
        found, refused = [], {}
        for name, layer in once.items():
            why = self._refused(model, layer, outer) if name not in kept else "it is kept (--keep)"
            if why:
                refused[name] = why
            else:
                found.append(layer)
        return found, refused

    def _refused(self, model: Model, layer: Layer, outer: set[str]) -> str:
        before = coded_of(model.initializers[layer.weight])
        if before is not None and before.entries <= len(DIGITS[self.kind]) ** self.terms:
            return "it is coded with as few values already"
        if layer.name in outer:
            return "it is a first or last layer; --ends takes these too"
        if layer.op == "Gather":
            return "it is an embedding, whose rows have nothing to average over"
        if model.array(layer.weight).size < SMALLEST:
            return f"it has fewer than {SMALLEST} weights"
        return "" if along(layer) is not None else "its rows lie along several axes"

    def needs(self, model: Model) -> list[Need]:
        """Nothing: signs and factors come from the weights."""
        return []

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Signs and factors of each layer."""
        plan = Plan(self.name, {**vars(self), "keep": list(self.keep)}, model.fingerprint)
        todo, refused = self.layers(model)
        plan.refusals.extend(Refusal(name, why) for name, why in refused.items())
        if not todo:
            first = next((f"{name!r}: {why}" for name, why in refused.items()), "it has no weighted layer")
            raise ModelError(f"{model.source.name}: no weight can be made {self.kind} ({first})")
        for layer in todo:
            like = model.array(layer.weight)
            matrix = layer.matrix(like).astype(np.float64)
            rows = matrix.reshape(len(matrix), -1)
            symbols, books = approximated(rows, self.kind, self.terms)
            each = coded(layer, like, symbols, books.halved())
            left = float(((each.decode().astype(np.float64) - like) ** 2).sum())
            power = float((rows**2).sum())
            plan.decisions.append(
                self._decision(layer, each, 10 * np.log10(power / left) if left > 0 < power else None)
            )
            plan.arrays.update(arrays_of(layer.weight, each))
        return plan

    def _decision(self, layer: Layer, each: Any, sqnr: float | None) -> dict[str, Any]:
        form = chosen(each)
        size = float(each.size * each.dtype.itemsize) if form is None else bytes_of(each, form)
        return {
            "weight": layer.weight,
            "layer": layer.name,
            "op": layer.op,
            "shape": list(each.shape),
            "axis": each.axis,
            "form": each.form,
            "bits": 8 * (size or 0) / each.size,
            "sqnr_db": sqnr,
        }

    def apply(self, model: Model, plan: Plan) -> Model:
        """Write the coded weights, and the signs of activations where they were asked for."""
        plan.check_fits(model.fingerprint)
        graph = model.ir.clone()
        nodes = {node.name or "": node for node in walk(graph)}
        by_name = {layer.name: layer for layer in layers(model)}
        for decision in plan.decisions:
            set_coded(graph, decision["weight"], read(decision, plan.arrays))
            if plan.settings["activations"]:
                put_signs(graph, nodes[decision["layer"]], by_name[decision["layer"]])
        return model.edited(graph)
