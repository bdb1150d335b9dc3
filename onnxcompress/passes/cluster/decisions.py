"""What was found for a tensor as decisions and arrays of a Plan, and these carried out: the same for every pass that codes weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcompress.difference import sqnr_db
from onnxcompress.model import Model
from onnxcompress.model.edit import set_coded, set_constant
from onnxcompress.passes.cluster.layout import arrays_of, read
from onnxcompress.passes.cluster.tensors import Clustered
from onnxcompress.passes.cluster.walk import Found
from onnxcompress.plan import Plan, Refusal
from onnxcompress.weights.forms import bytes_of


def decide(
    plan: Plan, model: Model, each: Clustered, codes: Found, forms: Mapping[str, str], *, bits: float, sharing: str
) -> None:
    """Write a tensor down with the bias that goes along, or why it stays after all.

    forms  of the tensors that a file of all of them has as symbols (`chosen_together`)
    bits  of a weight's symbol      sharing  who has a book together, in words
    """
    name, coded = each.name, codes.coded[each.name]
    form = forms.get(name)
    if form is None:
        plan.refusals.append(Refusal(name, "indices and books would take more room than the weights"))
        return
    values = model.array(name).astype(np.float64)
    decision = {
        "weight": name,
        "tied": list(each.tied),
        "op": each.weight.op,
        "nodes": list(each.weight.nodes),
        "shape": list(coded.shape),
        "axis": coded.axis,
        "form": coded.form,
        "entries": coded.entries,
        "states": coded.states,
        "bits": round(bits, 3),
        "share": sharing,
        "sqnr_db": sqnr_db(float(np.square(values).sum()), float(np.square(coded.decode() - values).sum())),
        "bytes": [each.weight.bytes, round(bytes_of(coded, form) or 0.0)],
    }
    plan.arrays.update(arrays_of(name, coded))
    if name in codes.layer_bias:
        decision["bias"] = bias = codes.layer_bias[name]
        plan.arrays[f"bias/{bias}"] = codes.biases[bias]
    if name in codes.held_out_db:
        decision |= dict(zip(("plain_db", "held_out_db"), codes.held_out_db[name], strict=True))
    plan.decisions.append(decision)


NAMED = 3
"""Tensors that a note names."""


def left_out(codes: Found) -> list[str]:
    """A note on tensors whose codes make up for nothing, since a walk on data could not look at them."""
    why: dict[str, list[str]] = {}
    for name, reason in sorted(codes.left.items()):
        why.setdefault(reason, []).append(name)
    if not why:
        return []
    parts = [
        f"{len(names)} {reason} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
        for reason, names in sorted(why.items(), key=lambda each: -len(each[1]))
    ]
    return [f"codes as without data, nothing made up for: {'; '.join(parts)}"]


def carry_out(graph: ir.Model, plan: Plan) -> None:
    """Give tensors and those tied to them their decoded values and codes, layers their biases."""
    for each in plan.decisions:
        coded = read(each, plan.arrays)
        set_coded(graph, each["weight"], coded)
        for name in each["tied"]:
            set_coded(graph, name, coded.transposed())
        if "bias" in each:
            set_constant(graph, each["bias"], plan.arrays[f"bias/{each['bias']}"])
