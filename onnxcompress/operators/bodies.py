"""Operators that hold graphs: If, Loop and Scan. What the bodies compute has been followed before."""

from __future__ import annotations

import onnx_ir as ir

from onnxcompress.model.edit import bodies_of, constant_of
from onnxcompress.operators.flow import Flow
from onnxcompress.operators.ties import Reason, Track
from onnxcompress.operators.view import sizes_of


def if_(flow: Flow) -> None:
    """Both branches give the same axes as the node."""
    branches = [body for attribute in flow.node.attributes.values() for body in bodies_of(attribute)]
    for index in range(len(flow.node.outputs)):
        values = [body.outputs[index] for body in branches]
        found = [_tracks_of(flow, value) for value in values]
        ranks = {len(tracks) for tracks in found if tracks is not None}
        if any(tracks is None for tracks in found) or len(ranks) != 1:
            for track in (track for tracks in found for track in tracks or []):
                flow.freeze(track, "the branches differ in rank")
            sizes = sizes_of(flow.node.outputs[index])
            if sizes is not None:
                flow.emit([flow.closed(size, "the branches differ in rank") for size in sizes], index)
            continue
        flow.emit([flow.meet(list(axis)) for axis in zip(*found, strict=True)], index)  # type: ignore[arg-type]


def loop(flow: Flow) -> None:
    """Loop and Scan: what is carried is frozen, what the body computes inside stays free."""
    for body in (body for attribute in flow.node.attributes.values() for body in bodies_of(attribute)):
        for value in body.outputs:
            for track in _tracks_of(flow, value) or []:
                flow.freeze(track, "it is carried from one turn of a loop to the next")
    flow.refuse("it enters a loop")


def _tracks_of(flow: Flow, value: ir.Value) -> list[Track] | None:
    if value in flow.known:
        return flow.known[value]
    sizes = sizes_of(value)
    if sizes is None:
        return None
    reason = (
        Reason("it is a constant", flow.name)
        if constant_of(value) is not None
        else Reason("its origin is not known", flow.name)
    )
    return [Track(size, reason=reason) for size in sizes]
