"""A plan's decisions as chains in the graph; those that want their channels in an order come last, when all other weights stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcompress.errors import ModelError
from onnxcompress.model import Model
from onnxcompress.model.edit import set_constant
from onnxcompress.operators.layer import Layer
from onnxcompress.passes.factorize.chain import write
from onnxcompress.passes.factorize.forms import FORMS, Part, Shape
from onnxcompress.passes.factorize.orders import Ordered, settled
from onnxcompress.passes.factorize.sites import layer_at, shape_of
from onnxcompress.plan import Plan


@dataclass(frozen=True, eq=False)
class Ready:
    """One chain with the weights of its parts."""

    layer: Layer
    shape: Shape
    name: str
    parts: Sequence[Part]
    weights: Sequence[np.ndarray]

    @property
    def orders(self) -> Ordered | None:
        """Of its channels at both ends; None where it leaves them."""
        first, last = ((part.order, weight.astype(int)) for part, weight in (self._pieces[0], self._pieces[-1]))
        if not first[0] and not last[0]:
            return None
        return Ordered(self.layer, first[1] if first[0] else None, last[1] if last[0] else None)

    @property
    def _pieces(self) -> list[tuple[Part, np.ndarray]]:
        return list(zip(self.parts, self.weights, strict=True))

    def with_orders(self, left: Ordered) -> Ready:
        """The same where its ends have these orders to make; none where they have none any more."""
        middle = [(part, weight) for part, weight in self._pieces if not part.order]
        outs, ins = self.shape.groups * self.shape.outs, self.shape.groups * self.shape.ins
        before = [] if left.reads is None else [(Part(ins, ins, order=True), left.reads)]
        behind = [] if left.writes is None else [(Part(outs, outs, order=True), left.writes)]
        parts, weights = zip(*before, *middle, *behind, strict=True)
        return replace(self, parts=parts, weights=weights)


def carried_out(model: Model, plan: Plan) -> Model:
    """All chains written. ModelError where a damaged plan does not fit."""
    chains = [_ready(model, each, plan.arrays) for each in plan.decisions]
    graph = model.ir.clone()
    for each in plan.decisions:
        if each["bias"] is not None:
            set_constant(graph, each["bias"], plan.arrays[f"bias/{each['bias']}"])
    wanted = [(chain, orders) for chain in chains if (orders := chain.orders) is not None]
    for chain in chains:
        if chain.orders is None:
            write(graph, chain.layer, chain.shape, chain.name, chain.parts, chain.weights)
    model = model.edited(graph)
    if not wanted:
        return model
    model, left = settled(model, [orders for _, orders in wanted])
    graph = model.ir.clone()
    for (before, _), orders in zip(wanted, left, strict=True):
        chain = before.with_orders(orders)
        write(graph, chain.layer, chain.shape, chain.name, chain.parts, chain.weights)
    return model.edited(graph)


def _ready(model: Model, each: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Ready:
    layer, form = layer_at(model, each["layer"], each["weight"]), FORMS.get(each["form"])
    if layer is None or form is None:
        raise ModelError(
            f"{each['layer']!r} cannot be {each['form']!r} as the plan says; make a new one with --save-plan"
        )
    node = next(node for node in model.ir.graph if node.name == layer.name)
    shape = shape_of(layer, node, model.array(layer.weight))
    parts = form.parts(shape, tuple(each["ranks"]))
    return Ready(layer, shape, form.name, parts, [arrays[f"{each['weight']}/{n}"] for n in range(len(parts))])
