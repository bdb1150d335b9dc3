"""Derivative of Scan: a Scan from its last step to its first, whose body computes a step again and goes back through it.

The forward node also writes the states that each step began with. Backward, the gradients of states and the sums of those of what the
body reads from outside run from step to step; gradients of slices are written where the slices were read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxcompress.training.counted import listed
from onnxcompress.training.derivatives.branches import Backward
from onnxcompress.training.derivatives.site import Gradients, Site, zeros_like
from onnxcompress.training.pen import Pen, is_float, shape_of


@dataclass(frozen=True)
class _Places:
    """Of a Scan's inputs and outputs, which gradients run and which are written.

    states   how many      running  those of floats      sliced  inputs that are sliced and want a gradient
    outside  what the body reads from outside and wants one      told  sliced outputs that have one
    """

    states: int
    running: list[int]
    sliced: list[int]
    outside: list[ir.Value]
    told: list[int]

    @classmethod
    def of(cls, at: Site, dys: Sequence[ir.Value | None], begins: Sequence[ir.Value]) -> _Places:
        states = len(begins) - at.attribute("num_scan_inputs", 0)
        outside = [v for i, v in enumerate(at.reads) if i >= len(begins) and v is not None and at.wants(i)]
        return cls(
            states,
            [i for i in range(states) if is_float(begins[i])],
            [i for i in range(states, len(begins)) if at.wants(i) and is_float(begins[i])],
            outside,
            [k for k in range(states, len(dys)) if dys[k] is not None],
        )


def scans(op: Pen, at: Site, dys: Sequence[ir.Value | None], backward: Backward) -> Gradients:
    """One gradient for each value of `at.reads`: first states, what is sliced, what the body reads from outside."""
    node, body = at.node, at.node.attributes["body"].as_graph()
    places = _Places.of(at, dys, list(body.inputs))
    slices = _slices(node, places)
    begun = _begun(op, node, places.states)
    begins = list(body.inputs)
    copy = body.clone(allow_outer_scope_values=True)
    shapes = _write(op, copy, places, backward)
    zeros = [zeros_like(op, begins[i]) if dys[i] is None else dys[i] for i in places.running]
    zeros += [zeros_like(op, value) for value in places.outside]
    back = op.holder(
        "Scan", [*zeros, *begun, *node.inputs[places.states :], *(dys[k] for k in places.told)],  # type: ignore[list-item]
        [*shapes, *((begins[i].dtype, shape_of(node.inputs[i])) for i in places.sliced)],  # type: ignore[arg-type]
        body=copy, **slices,
    )  # fmt: skip
    first, last = len(places.running), len(places.running) + len(places.outside)
    own = dict(zip([*places.running, *places.sliced], [*back[:first], *back[last:]], strict=True))
    others = dict(zip(places.outside, back[first:last], strict=True))
    return [
        own.get(i) if i < len(begins) else None if value is None else others.get(value)
        for i, value in enumerate(at.reads)
    ]


def _write(
    op: Pen, body: ir.Graph, places: _Places, backward: Backward
) -> list[tuple[ir.DataType | None, tuple[int, ...]]]:
    """The backward body in place of the forward one; types and shapes of what runs."""
    begins, ends, nodes, inner = list(body.inputs), list(body.outputs), list(body), op.inside(body)
    carried = [_like(op, begins[i]) for i in places.running]
    sums = [_like(op, value) for value in places.outside]
    given = [_like(op, ends[k]) for k in places.told]
    start: dict[ir.Value, ir.Value] = {}
    for place, dy in zip([*places.running, *places.told], [*carried, *given], strict=True):
        start[ends[place]] = inner.Add(start[ends[place]], dy) if ends[place] in start else dy
    by = [*(begins[i] for i in places.running), *places.outside, *(begins[i] for i in places.sliced)]
    found = backward(inner, nodes, start, by)
    made = [zeros_like(op, value) if found[value] is None else found[value] for value in by]
    for number, before in enumerate(sums, len(carried)):
        made[number] = inner.Add(before, made[number])
    body.inputs[:] = [*carried, *sums, *begins, *given]
    body.outputs[:] = [inner.Identity(each) for each in made]
    return [(each.dtype, shape_of(each)) for each in (*carried, *sums)]


def _begun(op: Pen, node: ir.Node, states: int) -> list[ir.Value]:
    """The states before each step, which the node writes too from now on."""
    body, before = node.attributes["body"].as_graph(), len(node.outputs)
    inner, steps = op.inside(body), _steps(node, states)
    axes, ways = (listed(node, f"scan_output_{what}", before - states) for what in ("axes", "directions"))
    body.outputs.extend(inner.Identity(value) for value in body.inputs[:states])
    node.resize_outputs(before + states)
    for made, value in zip(node.outputs[before:], body.inputs[:states], strict=True):
        made.name, made.type = op.fresh(), value.type
        made.shape = ir.Shape([steps, *shape_of(value)])
    for what, values in (("axes", axes), ("directions", ways)):
        node.attributes[f"scan_output_{what}"] = ir.AttrInt64s(f"scan_output_{what}", [*values, *[0] * states])
    return list(node.outputs[before:])


def _steps(node: ir.Node, states: int) -> int:
    axis = listed(node, "scan_input_axes", len(node.inputs) - states)[0]
    return shape_of(node.inputs[states])[axis]  # type: ignore[arg-type]


def _slices(node: ir.Node, places: _Places) -> dict[str, Any]:
    """Attributes of the backward Scan: it reads and writes along the same axes from the other end."""
    reads, writes = len(node.inputs) - places.states, len(node.outputs) - places.states
    axes, ways = (listed(node, f"scan_input_{what}", reads) for what in ("axes", "directions"))
    out_axes, out_ways = (listed(node, f"scan_output_{what}", writes) for what in ("axes", "directions"))
    told, sliced = ([each - places.states for each in some] for some in (places.told, places.sliced))
    made: dict[str, Any] = {
        "num_scan_inputs": places.states + reads + len(told),
        "scan_input_axes": [*[0] * places.states, *axes, *(out_axes[k] for k in told)],
        "scan_input_directions": [*[1] * places.states, *(1 - way for way in ways), *(1 - out_ways[k] for k in told)],
    }
    if sliced:
        made["scan_output_axes"] = [axes[i] for i in sliced]
        made["scan_output_directions"] = [1 - ways[i] for i in sliced]
    return made


def _like(op: Pen, value: ir.Value) -> ir.Value:
    return ir.val(op.fresh(), dtype=value.dtype, shape=ir.Shape(shape_of(value)))
