"""Integers for every weight that is still float: in the whole model, or in what static int8 left over.

model ──weights──▶ a form for each, integers that lose least ─┐
      ──clock────▶ kernels that are worth it on this CPU ─────┤
      ──outputs──▶ what integer LSTMs cost ───────────────────┼▶ Plan ──▶ graph
      ──walk─────▶ levels that make up for what is lost ──────┘

| form    | which weights                                   | what is done with them at run time                             |
|---------|-------------------------------------------------|----------------------------------------------------------------|
| dynamic | MatMul, Gemm, LSTM, where asked for             | multiplied as integers; the grid of the input is found anew    |
| run     | MatMul, rows of an embedding                    | multiplied, or picked, as integers                             |
| load    | all others, those in bodies, shared ones        | nothing: the floats are rebuilt once, when the file is loaded  |

The last form changes nothing but the file: kernels, speed and memory are those of the float model with rounded weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.evidence.paired import Paired
from onnxcompress.evidence.trial import Trial
from onnxcompress.model import Model
from onnxcompress.model.edit import walk
from onnxcompress.model.wiring import drop_unread
from onnxcompress.operators.layer import layers
from onnxcompress.passes.protect import protected
from onnxcompress.passes.quantize.blocks import Blocks, rebuilt
from onnxcompress.passes.quantize.compensate import Compensation
from onnxcompress.passes.quantize.compensate_weights import Compensated, Forms, compensated_weights
from onnxcompress.passes.quantize.found import Form, Stored, Weight, weights_of
from onnxcompress.passes.quantize.grid import symmetric_grid
from onnxcompress.passes.quantize.integers import BLOCK, FOUR, decibel, integers, size_of
from onnxcompress.passes.quantize.kept_back import kept_back, no_better
from onnxcompress.passes.quantize.pen import Pen, Rounded
from onnxcompress.passes.quantize.speed import FLOAT, INT8, fastest
from onnxcompress.passes.quantize.write_weights import Form as Kernel
from onnxcompress.passes.quantize.write_weights import write_weights
from onnxcompress.plan import Plan, Refusal

KERNELS: dict[Form, Kernel] = {"dynamic": "dynamic", "run": "weights"}
"""What write_weights.py calls the forms that it writes."""

LEAST_DB = {4: 15.0, 8: 30.0}
"""Bits -> dB. Normal weights have 20 with 4 bits in blocks of 32, 42 with 8 bits a channel: below this one entry rules all
others. A table of token types at 28.6 dB, 3 kB of MiniLM's 69 MB, cost 4 dB of the outputs."""

DEAR = 1.0
"""dB of the outputs that integer LSTMs may cost where nobody asked for them."""


@dataclass(frozen=True)
class QuantizeWeights:
    """Weights in 8 or 4 bits, activations in float or, where asked for, on grids that are found at run time."""

    name: ClassVar[str] = "quantize-weights"

    bits: Annotated[
        Literal[8, 4], Field(description="of a weight; convolutions, and what loses too much with 4 bits, get 8")
    ] = 8
    block: Annotated[
        int | None,
        Field(ge=16, description="neighbouring weights that share a scale (default: 32 for 4 bits, a channel for 8)"),
    ] = None
    dynamic: Annotated[
        Literal["none", "recurrent", "all"],
        Field(
            description="what multiplies in integers, with grids that are found at run time: LSTM, or MatMul and Gemm too"
        ),
    ] = "none"
    decode: Annotated[
        Literal["run", "load"],
        Field(
            description="run: MatMul and embeddings read integers; load: all floats are rebuilt when the file is loaded"
        ),
    ] = "run"
    cpu: Annotated[
        Literal["any", "vnni"],
        Field(description="any: integer products answer the same on every CPU; vnni: wrong on CPUs without VNNI"),
    ] = "any"
    rounding: Annotated[
        Literal["nearest", "gptq", "descent"],
        Field(
            description="of weights: nearest, the fastest; or layer by layer on data, each making up for what was lost before"
        ),
    ] = "gptq"
    least_db: Annotated[
        float | None,
        Field(
            description="SQNR of a weight below which it gets more bits, or stays float (default: 15 for 4 bits, 30 for 8)"
        ),
    ] = None
    smallest: Annotated[
        int, Field(ge=0, description="bytes of a weight below which it stays float: nodes take 0.7 to 2.3 kB too")
    ] = 4096
    measure: Annotated[bool, Field(description="integer kernels only where this CPU runs them faster")] = True
    seconds: Annotated[float, Field(gt=0, description="of measuring, for each round of candidates")] = 2.0
    keep: Annotated[tuple[str, ...], Field(description="nodes, by name or pattern, whose weights stay float")] = ()

    def needs(self, model: Model) -> list[Need]:
        """The clock, where there is a choice of kernels; the walk, where weights are rounded on data."""
        found = self._weights(model)[0]
        compensated = [Trial.NEED, Paired.NEED] if self.rounding != "nearest" and found else []
        return compensated or ([Trial.NEED] if self.measure and any(w.form != "load" for w in found) else [])

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """A form and integers for each weight; then the clock says which kernels are worth it."""
        found, refused = self._weights(model)
        plan = Plan(self.name, {**vars(self), "keep": list(self.keep)}, model.fingerprint)
        plan.refusals.extend(Refusal(name, why) for name, why in refused.items())
        most = {w.name: self._stored(model, w, w.form) for w in found}
        least = {w.name: self._at_load(model, w, most[w.name][0]) for w in found}
        for weight in found:
            if most[weight.name][0] is None:
                plan.refusals.append(Refusal(weight.name, most[weight.name][1]))
        choice = Ways(
            [w for w in found if most[w.name][0] is not None],
            {name: stored for name, (stored, _) in most.items() if stored is not None},
            {name: stored for name, stored in least.items() if stored is not None},
        )
        whole = choice.whole(model)
        if self.measure and Trial.NEED in evidence:
            whole = self._faster(model, choice, whole, evidence[Trial.NEED], plan)
        forms = choice.forms(whole)
        told = self._compensated(model, choice, forms, evidence, plan) if self.rounding != "nearest" else None
        for weight in choice.found:
            if weight.name in forms:
                _decide(model, weight, *(forms if told is None else told.forms)[weight.name], plan)
        if told is not None:
            plan.arrays.update({f"bias/{name}": array for name, array in told.biases.items()})
            for each in plan.decisions:
                each["held_out_db"] = told.held_out_db.get(each["weight"])
        if not plan.decisions:
            plan.notes.append("no float weight is left that is worth integers")
        return plan

    def apply(self, model: Model, plan: Plan) -> Model:
        """Write the forms and integers of the plan."""
        plan.check_fits(model.fingerprint)
        found = {each["weight"]: each for each in plan.decisions}
        forms = {name: (each["form"], read(each, plan.arrays)) for name, each in found.items()}
        biases = {key.removeprefix("bias/"): array for key, array in plan.arrays.items() if key.startswith("bias/")}
        return _written(model, forms, {name: each["nodes"] for name, each in found.items()}, biases)

    # -- decisions -----------------------------------------------------------------------------------------------

    def _weights(self, model: Model) -> tuple[list[Weight], dict[str, str]]:
        names = [node.name or "" for node in walk(model.ir)]
        kept = protected(self.keep, names, "node")
        return weights_of(model, kept, dynamic=self.dynamic, decode=self.decode, smallest=self.smallest)

    def _stored(self, model: Model, weight: Weight, form: Form) -> tuple[Stored | None, str]:
        """The fewest bits, from those asked for on, that are good enough and smaller than the floats; else why not."""
        tried, values = [], model.array(weight.name)
        coarse = [(4, self.block or BLOCK)] if self.bits == 4 and weight.op in FOUR else []
        for bits, block in (*coarse, *([(8, self.block)] if self.block else []), (8, None), (8, BLOCK)):
            stored = integers(values, weight, form, bits=bits, block=block, portable=self.cpu == "any")
            if stored is None:
                continue
            if size_of(stored) >= weight.bytes:
                return None, "integers and their scales would take more room"
            heard = decibel(values, stored, weight, form)
            least = LEAST_DB[bits] if self.least_db is None else self.least_db
            if heard >= least:
                return stored, ""
            tried.append(f"{heard:.1f} dB with {bits} bits, below {least:g}")
        return None, "; ".join(tried)

    def _at_load(self, model: Model, weight: Weight, most: Stored | None) -> Stored | None:
        """Integers to rebuild floats from; those of the kernel where they serve."""
        if weight.form == "load" or weight.op == "Gather" or (weight.form == "run" and isinstance(most, Rounded)):
            return most if isinstance(most, Rounded) or weight.form == "load" else None
        return self._stored(model, weight, "load")[0]

    def _faster(self, model: Model, ways: Ways, nodes: frozenset[str], trial: Trial, plan: Plan) -> frozenset[str]:
        """Those of the nodes whose integer kernel is worth it on this CPU, and whose LSTMs do not cost what nobody asked for."""
        classes = _classes(model, nodes)
        untimed = nodes - {name for names in classes.values() for name in names}

        def written(some: Collection[str]) -> ir.Model:
            return _written(model, ways.forms(untimed | frozenset(some)), ways.readers).ir

        if not classes:
            return nodes
        choice = fastest(trial, written(()), written, classes, self.seconds)
        picked = choice.nodes
        if picked:
            ratio = choice.milliseconds[FLOAT] / choice.milliseconds[INT8]
            plan.notes.append(
                f"integer kernels run {ratio:.2f} times as fast as rebuilt floats on this CPU, one thread"
            )
        for kind in [kind for kind, names in classes.items() if not picked.intersection(names)]:
            plan.notes.append(f"{kind}: floats rebuilt at load, which this CPU runs as fast or faster")
        lstms = picked.intersection(classes.get("LSTM", ()))
        if lstms:
            before, after = (trial.compare(written(some)).sqnr_db for some in (picked - lstms, picked))
            cost = before - after if before is not None and after is not None else 0.0
            if cost > DEAR and self.dynamic == "recurrent":
                plan.notes.append(
                    f"LSTM in integers would cost {cost:.1f} dB of the outputs: floats are rebuilt at load"
                )
                picked = picked - lstms
            else:
                plan.notes.append(f"LSTM in integers costs {cost:.1f} dB of the outputs on calibration samples")
        return untimed | picked

    def _compensated(
        self, model: Model, ways: Ways, forms: Forms, evidence: Evidence, plan: Plan
    ) -> Compensated | None:
        """Levels rounded layer by layer on data; None where there is none, or the whole model answers no better for it."""
        trial, paired = evidence.get(Trial.NEED), evidence.get(Paired.NEED)
        if trial is None or paired is None or trial.data.synthetic or not forms:
            return None
        how = Compensation(self.rounding, self.cpu == "any")
        found = compensated_weights(how, model, paired, {weight.name: weight for weight in ways.found}, forms)
        if not found.held_out_db:
            return None
        reached = trial.logits_db(
            {
                "nearest": _written(model, forms, ways.readers).ir,
                self.rounding: _written(model, found.forms, ways.readers, found.biases).ir,
            },
            kept_back(paired),
        )
        if reached[self.rounding] >= reached["nearest"]:
            return found
        plan.notes.append(no_better(self.rounding, reached))
        return None


# -- what goes together ------------------------------------------------------------------------------------------------


class Ways(NamedTuple):
    """Weights with their integers: `most` in the form that is furthest from float, `least` rebuilt at load."""

    found: list[Weight]
    most: dict[str, Stored]
    least: dict[str, Stored]

    @property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """Weight -> nodes."""
        return {weight.name: weight.nodes for weight in self.found}

    def forms(self, nodes: Collection[str]) -> dict[str, tuple[Form, Stored]]:
        """Weight -> form and integers, when these nodes read integers; without those that only a kernel makes worth it."""
        chosen: dict[str, tuple[Form, Stored]] = {}
        for weight in self.found:
            if weight.form != "load" and set(nodes).issuperset(weight.nodes):
                chosen[weight.name] = weight.form, self.most[weight.name]
            elif weight.name in self.least:
                chosen[weight.name] = "load", self.least[weight.name]
        return chosen

    def whole(self, model: Model) -> frozenset[str]:
        """Nodes that can read integers: all weights of a node have that form, and so have all readers of these."""
        asked = Counter(layer.name for layer in layers(model))
        nodes = {name for weight in self.found if weight.form != "load" for name in weight.nodes}
        while True:
            ready = [weight for weight in self.found if weight.form != "load" and nodes.issuperset(weight.nodes)]
            have = Counter(name for weight in ready for name in weight.nodes)
            left = {name for name in nodes if have[name] >= asked[name]}
            if left == nodes:
                return frozenset(nodes)
            nodes = left


def _classes(model: Model, nodes: Collection[str]) -> dict[str, list[str]]:
    """Operator -> nodes that are timed together; picking rows costs microseconds and is never left to the clock."""
    classes: dict[str, list[str]] = {}
    for node in walk(model.ir):
        if node.name in nodes and node.op_type != "Gather":
            classes.setdefault(node.op_type, []).append(node.name or "")
    return classes


# -- plan and graph ----------------------------------------------------------------------------------------------------


def _decide(model: Model, weight: Weight, form: Form, stored: Stored, plan: Plan) -> None:
    if isinstance(stored, Blocks):
        bits, block, axis, scale, levels = stored.bits, stored.block, None, stored.scale, stored.levels
    else:
        bits, block, axis, scale = 8, None, stored.grid.axis, stored.grid.scale
        levels = stored.levels.astype(np.int8)
    plan.decisions.append(
        {
            "weight": weight.name,
            "op": weight.op,
            "nodes": list(weight.nodes),
            "form": form,
            "bits": bits,
            "block": block,
            "axis": axis,
            "sqnr_db": decibel(model.array(weight.name), stored, weight, form),
            "bytes": [weight.bytes, size_of(stored)],
        }
    )
    plan.arrays.update({f"levels/{weight.name}": levels, f"scale/{weight.name}": scale})


def read(decision: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Stored:
    levels, scale = (arrays[f"{part}/{decision['weight']}"] for part in ("levels", "scale"))
    if decision["block"] is not None:
        return Blocks(levels, scale, decision["bits"], decision["block"])
    return Rounded(levels, symmetric_grid(scale, decision["axis"]))


def _written(
    model: Model, forms: Forms, readers: Mapping[str, Sequence[str]], biases: Mapping[str, np.ndarray] | None = None
) -> Model:
    """Nodes that read integers first; then every other float weight is rebuilt from its integers. `biases` have new values."""
    if not forms:
        return model
    model = model.with_constants(biases or {})
    stored = {name: each for name, (_, each) in forms.items()}
    nodes = {node: KERNELS[form] for name, (form, _) in forms.items() if form != "load" for node in readers[name]}
    graph = write_weights(model, nodes, stored).ir
    pen = Pen(graph)
    for name, (form, integers_) in forms.items():
        if form == "load":
            value = graph.graph.initializers[name]
            value.replace_all_uses_with(rebuilt(pen, name, integers_, model.array(name).shape))
    drop_unread(graph)
    return model.edited(graph)
