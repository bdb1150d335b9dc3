"""Refit: fit every layer by least squares to the original's outputs, from what the compressed network really feeds it.

Rows are gathered at every layer (rows.py), with the original's values as goals (goals.py), on a walk in which each layer is
fitted before the next one is fed; validated.py fits them. Whole batches are kept back in turn, and a layer stays as it is where
their errors do not fall for its fit: the reconstruction step of He, Zhang, Sun, ICCV 2017, arXiv:1707.06168. BatchNormalizations that no
fitted layer feeds get new statistics instead (statistics.py).
"""

from __future__ import annotations

from dataclasses import dataclass as plain
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.evidence.paired import Pair, Paired
from onnxcompress.model import Model
from onnxcompress.model.edit import coded_of, new_constant, set_constant, walk
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.passes.refit.goals import goals, kept, untouched
from onnxcompress.passes.refit.rows import folded, gathered, on_left
from onnxcompress.passes.refit.statistics import Statistics, matched, normalisations
from onnxcompress.passes.refit.validated import shifted, solve
from onnxcompress.plan import Plan, Refusal

FITTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NO_BETTER = "no fit beats the present weights on held-out rows"


@dataclass(frozen=True)
class Refit:
    """Fit weights and biases to the original's outputs, layer by layer, by least squares on calibration data."""

    name: ClassVar[str] = "refit"

    rows: Annotated[
        int, Field(ge=16, description="rows (positions of samples) at most that one layer is fitted on")
    ] = 16384
    seed: Annotated[int, Field(ge=0, description="which positions are drawn")] = 0
    towards: Annotated[
        Literal["present", "original"],
        Field(
            description="weights that the ridge pulls towards; present ones that were fitted before have seen the rows "
            "that judge now"
        ),
    ] = "present"

    def needs(self, model: Model) -> list[Need]:
        """The paired walk."""
        return [Paired.NEED]

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Walk once; each layer is fitted before the next one is fed."""
        paired: Paired = evidence[Paired.NEED]
        plan = Plan(self.name, dict(vars(self)), model.fingerprint)
        nodes = {node.name or "": node for node in walk(model.ir)}
        todo: dict[str, Layer] = {}
        coded: dict[str, Layer] = {}
        for layer in layers(model):
            why = unsuited(layer, nodes[layer.name], model)
            if why:
                plan.refusals.append(Refusal(layer.weight, why, layer.name))
            elif coded_of(model.initializers[layer.weight]) is not None:
                coded[layer.name] = layer
            else:
                todo[layer.name] = layer
        norms = {norm.layer.name: norm for norm in normalisations(model, todo)}
        for pair in paired.walk([*todo, *coded, *norms]):
            if pair.node in todo:
                self._fit(model, todo[pair.node], nodes[pair.node], pair, plan)
            elif pair.node in coded:
                self._shift(model, coded[pair.node], nodes[pair.node], pair, plan)
            else:
                self._correct(model, norms[pair.node], nodes[pair.node], pair, plan)
        return plan

    def _fit(self, model: Model, layer: Layer, node: ir.Node, pair: Pair, plan: Plan) -> None:
        """One layer: gather rows, solve, and let the rest of the walk use the new weights where they are better."""
        weight = pair.constant(layer.weight)
        matrix = layer.matrix(weight).astype(np.float64)
        present = matrix.reshape(layer.groups, len(matrix) // layer.groups, -1)
        bias = bias_of(model, layer, node, len(matrix))
        offset = np.zeros(present.shape[:2])
        if bias.name is not None:
            offset = pair.constant(bias.name).astype(np.float64).reshape(offset.shape)
        goal = goals(model, node, bias.value, pair)
        columns = (layer.groups, present.shape[2])
        rest, judges = folded(node, layer, pair.read(layer.reads), goal, self.rows, self.seed, columns)
        start = untouched(model, layer, pair) if self.towards == "original" else None
        found = None
        if judges and rest.count + sum(judge.count for judge in judges[1:]):
            start = None if start is None else start.reshape(present.shape)
            found = solve(rest, judges, present, offset, fixed_bias=not bias.free, towards=start)
        if found is None:
            plan.refusals.append(Refusal(layer.weight, NO_BETTER, layer.name))
            return
        decision = {"layer": layer.name, "weight": layer.weight, "bias": None, "new_bias": False, "ridge": found.ridge}
        changed = {layer.weight: layer.stored(found.weight.reshape(matrix.shape), weight).astype(weight.dtype)}
        if bias.free and bias.name is not None:
            stored = pair.constant(bias.name)
            changed[bias.name] = found.bias.reshape(stored.shape).astype(stored.dtype)
            decision["bias"] = bias.name
        elif bias.free:
            name = _free_name(f"{layer.weight}.bias", model)
            changed[name] = found.bias.reshape(-1).astype(weight.dtype)
            pair.add_bias(name, changed[name])
            decision |= {"bias": name, "new_bias": True}
        _decide(plan, pair, changed, {**decision, "before_db": found.before_db, "after_db": found.after_db})

    def _shift(self, model: Model, layer: Layer, node: ir.Node, pair: Pair, plan: Plan) -> None:
        """The bias alone of a layer whose weight is in codebooks, which a fitted weight would not be: what is lacking on average."""
        weight = layer.matrix(pair.constant(layer.weight)).astype(np.float64)
        present = weight.reshape(layer.groups, len(weight) // layer.groups, -1)
        bias = bias_of(model, layer, node, len(weight))
        if not bias.free or bias.name is None:
            plan.refusals.append(
                Refusal(layer.weight, "its weight is in codebooks, and it has no bias of its own", layer.name)
            )
            return
        stored = pair.constant(bias.name)
        offset, goal = stored.astype(np.float64).reshape(present.shape[:2]), goals(model, node, bias.value, pair)
        columns = (layer.groups, present.shape[2])
        rest, judges = folded(node, layer, pair.read(layer.reads), goal, self.rows, self.seed, columns)
        found = shifted(rest, judges, present, offset) if judges else None
        if found is None:
            plan.refusals.append(Refusal(layer.weight, NO_BETTER, layer.name))
            return
        changed = {bias.name: found.bias.reshape(stored.shape).astype(stored.dtype)}
        decision = {"layer": layer.name, "weight": None, "bias": bias.name, "new_bias": False, "ridge": None}
        _decide(plan, pair, changed, {**decision, "before_db": found.before_db, "after_db": found.after_db})

    def _correct(self, model: Model, norm: Statistics, node: ir.Node, pair: Pair, plan: Plan) -> None:
        """One BatchNormalization: new mean and variance where they are better on held-out rows."""
        layer = norm.layer
        goal = kept(model, layer.writes, pair)
        fit, judge = gathered(node, layer, pair.read(layer.reads), goal, self.rows, self.seed)
        present = tuple(pair.constant(name).astype(np.float64) for name in norm.names)
        found = matched(fit, judge, present, norm.epsilon) if fit.count and judge.count else None
        if found is None:
            plan.refusals.append(Refusal(layer.weight, "its statistics do no better when re-estimated", layer.name))
            return
        mean, variance = norm.names[2:]
        changed = {
            name: new.astype(pair.constant(name).dtype)
            for name, new in ((mean, found.mean), (variance, found.variance))
        }
        decision = {"layer": layer.name, "weight": variance, "bias": mean, "new_bias": False, "ridge": None}
        _decide(plan, pair, changed, {**decision, "before_db": found.before_db, "after_db": found.after_db})

    def apply(self, model: Model, plan: Plan) -> Model:
        """Write the fitted weights."""
        plan.check_fits(model.fingerprint)
        graph = model.ir.clone()
        nodes = {node.name or "": node for node in walk(graph)}
        for decision in plan.decisions:
            if decision["weight"] is not None:
                set_constant(graph, decision["weight"], plan.arrays[decision["weight"]])
            name = decision["bias"]
            if decision["new_bias"]:
                value = new_constant(graph, name, plan.arrays[name])
                node = nodes[decision["layer"]]
                node.resize_inputs(3)
                node.replace_input_with(2, value)
            elif name is not None:
                set_constant(graph, name, plan.arrays[name])
        return model.edited(graph)


def _decide(plan: Plan, pair: Pair, changed: dict[str, np.ndarray], decision: dict[str, Any]) -> None:
    """Write it down, and let the rest of the walk use it."""
    for name, values in changed.items():
        plan.arrays[name] = values
        pair.replace(name, values)
    plan.decisions.append(decision)


# -- which layers, and their biases --------------------------------------------------------------------------------


def unsuited(layer: Layer, node: ir.Node, model: Model) -> str:
    """Why a layer is not refitted; empty where it is."""
    if layer.op not in FITTED:
        return f"{layer.op} is not refitted"
    if node.graph is not model.ir.graph:
        return "it lies in the body of an If or Loop"
    if _readers(model, layer.weight) > 1:
        return "its weight is shared"
    if "Conv" not in layer.op and model.array(layer.weight).ndim != 2:
        return "its weight has batch axes"
    if layer.op == "Gemm" and on_left(node, layer):
        return "its weight stands on the left"
    return ""


def _readers(model: Model, name: str) -> int:
    return len(list(model.initializers[name].uses()))


@plain(frozen=True)
class Bias:
    """name: the constant, None without one; free: may it be fitted; value: what holds the layer's output with its bias."""

    name: str | None
    free: bool
    value: str


def bias_of(model: Model, layer: Layer, node: ir.Node, outs: int) -> Bias:
    """The layer's own bias or that of the Add behind a product; a product without one gets none, so that no node is added."""
    own = layer.writes
    fits = layer.bias is not None and model.array(layer.bias).size == outs
    if layer.op == "MatMul":
        if not fits or on_left(node, layer) or _readers(model, layer.bias or "") > 1:
            return Bias(None, False, own)
        return Bias(layer.bias, True, next(iter(node.outputs[0].uses()))[0].outputs[0].name or "")
    if layer.bias is None:
        spare = len(node.inputs) < 3 or node.inputs[2] is None
        return Bias(None, spare, own)
    return Bias(layer.bias, fits and _readers(model, layer.bias) == 1, own)


def _free_name(name: str, model: Model) -> str:
    while name in model.initializers:
        name += "_"
    return name
