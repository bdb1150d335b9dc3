"""Static int8: activations uint8 on one grid a tensor, weights int8 on one scale a channel, written so that onnxruntime fuses it.

model ──histograms──▶ ranges ──▶ grids of activations ─┐
      ──weights─────▶ levels that no kernel saturates ─┼▶ Plan ──write──▶ QDQ graph
      ──clock───────▶ nodes that int8 makes faster ────┘
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.errors import ModelError
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.evidence.trial import Trial
from onnxcompress.model import Model
from onnxcompress.model.edit import walk
from onnxcompress.operators.layer import Layer, all_layers, by_node, layers
from onnxcompress.operators.stored import KERNELS
from onnxcompress.passes.protect import protected
from onnxcompress.passes.quantize.chosen import candidates, classes, connected, in_bodies, needed, unseen
from onnxcompress.passes.quantize.compensate import Compensation, compensated
from onnxcompress.passes.quantize.explain import Brought, brought, decibel, of_node, of_value
from onnxcompress.passes.quantize.grid import Grid
from onnxcompress.passes.quantize.grids import grids_of
from onnxcompress.passes.quantize.kept_back import kept_back, no_better
from onnxcompress.passes.quantize.levels import Leveled, leveled
from onnxcompress.passes.quantize.pen import Decided, Rounded
from onnxcompress.passes.quantize.qoperator import as_operators
from onnxcompress.passes.quantize.rows import NOT_TAKEN, row_of
from onnxcompress.passes.quantize.shares import shares
from onnxcompress.passes.quantize.speed import FLOAT, INT8, Choice, closer, fastest
from onnxcompress.passes.quantize.write import write
from onnxcompress.plan import Plan, Refusal

SLOWER = "int8 makes it slower on this CPU"
WORSE = "int8 makes it no faster on this CPU, and the answers worse"

INTEGER = {*KERNELS, "ConvInteger"}
"""Operators of files that somebody has quantized."""

Calibration = Literal["auto", "minmax", "average", "percentile", "entropy", "mse", "output"]

TRIED = ("mse", "percentile")
"""Calibrations of which "auto" takes the one with which the whole model answers best on calibration samples."""


@dataclass(frozen=True)
class Quantize:
    """int8 weights and uint8 activations, where that is faster, on grids from calibration data."""

    name: ClassVar[str] = "quantize"

    calibration: Annotated[
        Calibration,
        Field(
            description="how the range of an activation follows from what was seen; auto: as the outputs like it best"
        ),
    ] = "auto"
    percentile: Annotated[
        float, Field(gt=50, le=100, description="for percentile: share of the entries inside the range")
    ] = 99.99
    symmetric: Annotated[
        bool,
        Field(
            description="activations with zero in the middle of their levels: no more accurate here, but some chips ask for it"
        ),
    ] = False
    cpu: Annotated[
        Literal["any", "vnni"],
        Field(
            description="any: the same answer on every CPU; vnni: all 8 bits of every weight, wrong on CPUs without VNNI"
        ),
    ] = "any"
    rounding: Annotated[
        Literal["nearest", "gptq", "descent"],
        Field(
            description="of weights: nearest, the fastest; or layer by layer on data, each making up for what was lost before"
        ),
    ] = "gptq"
    correct: Annotated[bool, Field(description="correct biases for the mean error of rounded weights")] = True
    measure: Annotated[
        bool,
        Field(
            description="leave in float what this CPU runs slower in int8; no: every node that has an integer kernel"
        ),
    ] = True
    seconds: Annotated[float, Field(gt=0, description="of measuring, for each round of candidates")] = 2.0
    io: Annotated[
        Literal["float", "int8"],
        Field(description="int8: the file takes and gives levels where its inputs and outputs are on a grid"),
    ] = "float"
    form: Annotated[
        Literal["qdq", "qoperator"],
        Field(
            description="qdq: float operators between QuantizeLinear and DequantizeLinear; qoperator: onnxruntime's own integer operators"
        ),
    ] = "qdq"
    keep: Annotated[tuple[str, ...], Field(description="nodes, by name or pattern, that stay float")] = ()
    explain: Annotated[
        bool, Field(description="rank the layers by the error that each alone brings to the outputs: a run for each")
    ] = False

    def needs(self, model: Model) -> list[Need]:
        """Histograms (or ranges) of what the nodes read and write, means of what layers read, and the clock."""
        nodes, _ = self._nodes(model)
        kind = "range" if self.calibration == "minmax" and not self.explain else "histogram"
        found = [Need(kind, value, 0) for share in shares(model, nodes) for value in share.ranges]
        if self.correct or self.calibration in ("output", "auto"):
            kind = "moments" if self.calibration == "output" else "mean"
            found += [Need(kind, layer.reads, layer.channel_axis) for layer in _weighted(model, nodes).values()]
        tried = self.measure or self.explain or self.rounding != "nearest" or self.calibration == "auto"
        found += [Trial.NEED] if tried else []
        found += [Paired.NEED] if self.rounding != "nearest" else []
        return list(dict.fromkeys(found))

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Grids and levels for all nodes that can; then the clock says which of them stay."""
        nodes, refused = self._nodes(model)
        untaken = unseen(model, nodes, evidence)
        refused |= {name: NOT_TAKEN for name in _weighted(model, untaken)}
        nodes = connected(model, nodes - untaken)
        plan = Plan(self.name, {**vars(self), "keep": list(self.keep)}, model.fingerprint)
        plan.refusals.extend(Refusal(name, why) for name, why in refused.items())
        plan.notes.extend(in_bodies(refused))
        held = {layer.name for layer in all_layers(model) if layer.bits is not None}
        held |= {node.name or "" for node in walk(model.ir) if node.op_type in INTEGER}
        if held:
            told = (
                f"{len(held)} nodes compute on integers already and stay as they are; the float model would give more"
            )
            plan.notes.append(told)
        if not any(row_of(node).form == "product" for node in walk(model.ir) if node.name in nodes):
            if any(layer.bits for layer in all_layers(model)):
                raise ModelError(
                    f"{model.source.name}: it is already quantized; give the float model that it was made of"
                )
            first = next((f"{name!r}: {why}" for name, why in refused.items()), "it has no weighted layer")
            plan.notes.append(f"activations stay float: no layer can run on grids found beforehand ({first})")
            return plan
        every = {name: self._grids(model, nodes, evidence, name) for name in self._calibrations()}
        grids = next(iter(every.values()))
        weights = self._weights(model, nodes, grids, evidence)
        if self.measure:
            nodes = self._faster(model, nodes, grids, weights, evidence[Trial.NEED], plan)
        grids, weights = self._best(model, nodes, every, weights, evidence, plan)
        self._decide(model, nodes, grids, weights, plan)
        if self.explain:
            self._explain(model, plan, evidence)
        return plan

    def apply(self, model: Model, plan: Plan) -> Model:
        """Write the nodes, grids and levels of the plan."""
        plan.check_fits(model.fingerprint)
        written = _written(model, read(plan))
        return as_operators(written) if self.form == "qoperator" else written

    # -- decisions -----------------------------------------------------------------------------------------------

    def _nodes(self, model: Model) -> tuple[frozenset[str], dict[str, str]]:
        names = [node.name or "" for node in walk(model.ir)]
        found, refused = candidates(model, protected(self.keep, names, "node"))
        return connected(model, found), refused

    def _calibrations(self) -> Sequence[str]:
        return TRIED if self.calibration == "auto" else (self.calibration,)

    def _best(
        self,
        model: Model,
        nodes: frozenset[str],
        every: Mapping[str, dict[str, Grid]],
        nearest: dict[str, Leveled],
        evidence: Evidence,
        plan: Plan,
    ) -> tuple[dict[str, Grid], dict[str, Leveled]]:
        """Grids by the calibration with which the whole model answers best, then weights rounded on these, where that is better yet.

        On made-up data the first grids, and nearest weights. Weights that were rounded for other grids do not serve:
        with ranges by percentile PP-OCR's recogniser came to 13.8 dB on held-out lines, to 6.6 with weights rounded for mse.
        """
        best = next(iter(every))
        if (len(every) == 1 and self.rounding == "nearest") or not nodes or evidence[Trial.NEED].data.synthetic:
            return every[best], nearest

        trial, parts = evidence[Trial.NEED], (_plain(nearest), _biases(model, nearest))
        if len(every) > 1:
            told = trial.logits_db({n: _written(model, Decided(nodes, grids, *parts)).ir for n, grids in every.items()})
            best = max(every, key=told.__getitem__)
            each = ", ".join(f"{db:.1f} dB by {name}" for name, db in told.items())
            plan.notes.append(f"ranges by {best}: with nearest weights {each} on calibration samples")
        if self.rounding == "nearest":
            return every[best], nearest
        how, kept, paired = Compensation(self.rounding, self.cpu == "any"), every[best], evidence[Paired.NEED]
        found = compensated(how, model, paired, nodes, needed(model, nodes, kept), nearest)
        both = {"nearest": parts, self.rounding: (_plain(found), _biases(model, found))}
        told = trial.logits_db(
            {name: _written(model, Decided(nodes, kept, *each)).ir for name, each in both.items()}, kept_back(paired)
        )
        if told[self.rounding] >= told["nearest"]:
            return kept, found
        plan.notes.append(no_better(self.rounding, told))
        return kept, nearest

    def _grids(self, model: Model, nodes: Collection[str], evidence: Evidence, method: str) -> dict[str, Grid]:
        ends, symmetric = self.io == "float", self.symmetric
        return grids_of(model, nodes, evidence, method, percentile=self.percentile, ends=ends, symmetric=symmetric)

    def _weights(
        self, model: Model, nodes: Collection[str], grids: Mapping[str, Grid], evidence: Evidence
    ) -> dict[str, Leveled]:
        found = {}
        for layer in _weighted(model, nodes).values():
            kind = "moments" if self.calibration == "output" else "mean"
            seen = evidence.get(Need(kind, layer.reads, layer.channel_axis)) if self.correct else None
            found[layer.weight] = leveled(model, layer, portable=self.cpu == "any", seen=seen)
        return found

    def _faster(
        self,
        model: Model,
        nodes: frozenset[str],
        grids: Mapping[str, Grid],
        weights: Mapping[str, Leveled],
        trial: Trial,
        plan: Plan,
    ) -> frozenset[str]:
        """Those of the nodes that are worth it on this CPU; none where the float model is faster."""

        timed = classes(model, nodes)
        others = nodes - {name for names in timed.values() for name in names}  # they follow those around them

        def written(some: frozenset[str]) -> ir.Model:
            return _written(model, Decided(connected(model, some | others), grids, _plain(weights))).ir

        def joined(some: frozenset[str]) -> frozenset[str]:
            return connected(model, some | others) if some else frozenset()

        choice = fastest(trial, model.ir, written, timed, self.seconds)
        chosen = joined(choice.nodes)
        _tell(choice, nodes, chosen, plan)
        choice.cheap = {kind: share for kind, share in choice.cheap.items() if joined(choice.nodes - set(timed[kind]))}
        if not chosen or trial.data.synthetic:
            return chosen
        choice = closer(trial, choice, written, timed, self.seconds / 2)
        kept = joined(choice.nodes)
        plan.notes.extend(
            f"{kind} stays float: it takes {choice.cheap[kind]:.1%} more time, and answers come {gain:.1f} dB closer"
            for kind, gain in choice.nearer.items()
        )
        plan.refusals.extend(Refusal(name, WORSE) for name in sorted(chosen - kept))
        return kept

    def _decide(
        self,
        model: Model,
        nodes: Collection[str],
        grids: Mapping[str, Grid],
        weights: Mapping[str, Leveled],
        plan: Plan,
    ) -> None:
        """What was chosen, as data."""
        used = {value for share in shares(model, nodes) for value in share.values}
        read = {layer.weight: layer for layer in _weighted(model, nodes).values()}
        plan.decisions.extend(
            {"node": node.name, "op": node.op_type, "form": row_of(node).form}
            for node in walk(model.ir)
            if node.name in nodes
        )
        plan.decisions.extend({"value": value, **_json(grid)} for value, grid in grids.items() if value in used)
        for name, layer in read.items():
            each = weights[name]
            plan.decisions.append(
                {
                    "weight": name,
                    "layer": layer.name,
                    "sqnr_db": each.sqnr_db,
                    "portable_db": each.cost_db,
                    "held_out_db": each.held_out_db,
                    "axis": each.grid.axis,
                    "low": each.grid.low,
                    "high": each.grid.high,
                }
            )
            plan.arrays.update(
                {f"levels/{name}": each.levels.astype(np.int8, copy=False), f"scale/{name}": each.grid.scale}
            )
            if each.bias is not None and layer.bias is not None:
                plan.arrays[f"bias/{layer.bias}"] = each.bias

    def _explain(self, model: Model, plan: Plan, evidence: Evidence) -> None:
        """What each node, value and weight alone brings, beside its decision."""
        found = brought_by(model, plan, evidence[Trial.NEED])
        grids = read(plan).grids
        for each in plan.decisions:
            if "node" in each:
                each.update(of_node(found, each["node"]))
            elif "value" in each:
                seen = evidence.get(Need("histogram", each["value"], 0))
                each.update(of_value(found, each["value"], grids[each["value"]], seen))
            else:
                each["alone_db"] = decibel(found.noise.get(f"weight/{each['weight']}", 0.0))


# -- reading a plan ----------------------------------------------------------------------------------------------------


def read(plan: Plan) -> Decided:
    """The decisions and arrays of a plan of this pass."""
    grids = {each["value"]: _read(each) for each in plan.decisions if "value" in each}
    weights = {each["weight"]: _rounded(each, plan.arrays) for each in plan.decisions if "weight" in each}
    biases = {key.removeprefix("bias/"): array for key, array in plan.arrays.items() if key.startswith("bias/")}
    return Decided(nodes_of(plan), grids, weights, biases)


def nodes_of(plan: Plan) -> list[str]:
    """The nodes that a plan makes int8."""
    return [each["node"] for each in plan.decisions if "node" in each]


def brought_by(model: Model, plan: Plan, trial: Trial) -> Brought:
    """What each rounding of a plan alone brings to the outputs."""
    decided = read(plan)
    return brought(model, replace(decided, grids=needed(model, decided.nodes, decided.grids)), trial)


# -- writing -----------------------------------------------------------------------------------------------------------


def _written(model: Model, decided: Decided) -> Model:
    grids = needed(model, decided.nodes, decided.grids)
    return write(model, decided.nodes, grids, decided.weights, decided.biases)


def _plain(weights: Mapping[str, Leveled]) -> dict[str, Rounded]:
    return {name: Rounded(each.levels, each.grid) for name, each in weights.items()}


def _biases(model: Model, weights: Mapping[str, Leveled]) -> dict[str, np.ndarray]:
    """Bias -> its corrected values."""
    read = {layer.weight: layer.bias for layer in layers(model)}
    return {bias: each.bias for name, each in weights.items() if each.bias is not None and (bias := read[name])}


def _json(grid: Grid) -> dict[str, Any]:
    return {"scale": float(grid.scale), "zero": int(grid.zero), "kind": grid.kind, "low": grid.low, "high": grid.high}


def _read(decision: Mapping[str, Any]) -> Grid:
    scale, zero = np.asarray(decision["scale"], np.float32), np.asarray(decision["zero"], np.int64)
    return Grid(scale, zero, decision["kind"], None, decision["low"], decision["high"])


def _rounded(decision: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Rounded:
    name = decision["weight"]
    scale = arrays[f"scale/{name}"]
    grid = Grid(scale, np.zeros(scale.shape, np.int64), "int8", decision["axis"], decision["low"], decision["high"])
    return Rounded(arrays[f"levels/{name}"], grid)


# -- what belongs together ---------------------------------------------------------------------------------------------


def _weighted(model: Model, nodes: Collection[str]) -> dict[str, Layer]:
    """Node -> its layer, for products with a constant weight."""
    return {name: layer for name, layer in by_node(model).items() if name in nodes}


def _tell(choice: Choice, before: Collection[str], after: Collection[str], plan: Plan) -> None:
    """What the clock said, in words."""
    if choice.milliseconds:
        ratio = choice.milliseconds[FLOAT] / choice.milliseconds[INT8]
        plan.notes.append(
            f"int8 runs {ratio:.2f} times as fast as float on this CPU, one thread, on calibration samples"
        )
    for kind, gain in choice.left.items():
        plan.notes.append(f"{kind} stays float: the whole runs {gain:.2f} times as fast without it in int8")
    if before and not after:
        plan.notes.append("nothing is int8: the float model is faster on this CPU")
    plan.refusals.extend(Refusal(name, SLOWER) for name in sorted(set(before) - set(after)))
