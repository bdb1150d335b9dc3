"""The interpreter of signatures: carries labels through a node as its row says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from onnxcompress.model.edit import input_of
from onnxcompress.operators.flow import Flow, spread
from onnxcompress.operators.notation import Axis, Signature, parse
from onnxcompress.operators.ties import Keep, Reason, Track
from onnxcompress.operators.view import ZEROS, Case, sizes_of

ROLE_OF_TERM = {"w": "", "r": "", "b": "bias", "bias": "bias", "scale": "scale"}
"""Name of a constant's term -> its role; weights write or read by where their letter stands, all other names are carried."""

TOGETHER = "positions along it go together"


@dataclass(eq=False)
class Member:
    """One letter in one term of one node: which input and axis, and the track of the letter alone."""

    input: int
    axis: int
    place: Axis
    track: Track
    constant: bool
    term: str


def follow(flow: Flow, case: Case) -> None:
    """Carry the labels through a node as its signature says."""
    signature = parse(case.signature)
    found = _axes(flow, signature)
    if found is None:
        flow.refuse("its inputs do not fit its row")
        return
    axes, stars = found
    sizes = _sizes(axes, case)
    terms = {index: signature.inputs[index].name for index in axes}
    letters: dict[str, list[Member]] = {}
    for index, pairs in axes.items():
        for number, (place, track) in enumerate(pairs):
            member = _member(flow, index, number, place, track, sizes, terms[index])
            if member is not None:
                letters.setdefault(place.letter or "", []).append(member)
    outputs = [term.expand(len(term.axes) + (stars if term.star else 0)) or () for term in signature.outputs]
    written = {place.letter for places in outputs for place in places}
    settled = {
        letter: _settle(flow, case, letter, members, letter in written, sizes, len(axes))
        for letter, members in letters.items()
    }
    for letter, members in letters.items():
        _bind(flow, case, settled[letter], members, sizes, letter in written)
    for attribute, letter in case.attributes.items():
        _patch_attribute(flow, attribute, settled.get(letter))
    for index, places in enumerate(outputs[: len(flow.node.outputs)]):
        shape = sizes_of(flow.node.outputs[index])
        flow.emit([_output(flow, place, settled, sizes, shape, axis) for axis, place in enumerate(places)], index)


def _axes(flow: Flow, signature: Signature) -> tuple[dict[int, list[tuple[Axis, Track]]], int] | None:
    """Input index -> its axes with their tracks, and how many axes a star stands for; None where a rank does not fit."""
    axes: dict[int, list[tuple[Axis, Track]]] = {}
    stars = 0
    for index, term in enumerate(signature.inputs):
        if input_of(flow.node, index) is None:
            continue
        tracks = flow.tracks(index) or _tracks_by_weight(flow, signature, index)
        places = None if tracks is None else term.expand(len(tracks))
        if tracks is None or places is None:
            return None
        stars = max(stars, len(tracks) - len(term.axes)) if term.star else stars
        axes[index] = list(zip(places, tracks, strict=True))
    for index in range(len(signature.inputs), len(flow.node.inputs)):
        if any(track.size != 1 for track in flow.tracks(index) or []):
            return None  # an input that the row does not know
    return axes, stars


def _tracks_by_weight(flow: Flow, signature: Signature, index: int) -> list[Track] | None:
    """Closed axes for an input of unknown rank (it comes from an operator without a row): a weight's star tells how many."""
    term = signature.inputs[index]
    weight = next((place for place, each in enumerate(signature.inputs) if each.name == "w" and each.star), None)
    kernel = None if weight is None else flow.tracks(weight)
    if flow.tracks(index) is not None or term.star is None or weight is None or kernel is None:
        return flow.tracks(index)
    count = len(term.axes) + len(kernel) - len(signature.inputs[weight].axes)
    value = input_of(flow.node, index)
    return [Track(None, reason=Reason("its rank or origin is not known", value.name or "" if value else ""))] * count


def _sizes(axes: dict[int, list[tuple[Axis, Track]]], case: Case) -> dict[str, int]:
    """The size of every letter that can be known: from plain axes, from the row, and from products with one unknown."""
    sizes = dict(case.sizes)
    for _ in range(2):
        for pairs in axes.values():
            for place, track in pairs:
                unknown = [factor for factor in place.factors if factor not in sizes]
                if len(unknown) == 1 and isinstance(track.size, int) and track.size > 0:
                    rest = prod(sizes[factor] for factor in place.factors if factor in sizes)
                    if len(place.factors) > 1 or track.size != 1 or unknown[0].isupper():
                        sizes[unknown[0]] = track.size // max(rest, 1)
    return sizes


def _member(
    flow: Flow, index: int, number: int, place: Axis, track: Track, sizes: dict[str, int], term: str
) -> Member | None:
    """The letter of one axis, taken out of its product; an axis without a letter is closed here."""
    constant = flow.is_constant(index)
    if place.letter is None:
        flow.freeze(track, TOGETHER)
        value = input_of(flow.node, index)
        if constant and value is not None:
            flow.ties.close(value.name or "", number, Reason(TOGETHER, flow.name))
        return None
    if len(place.factors) > 1 and not constant:
        factors = [sizes.get(factor) for factor in place.factors]
        if track.labels is None:
            track = replace(track, size=sizes.get(place.letter))
        elif all(isinstance(size, int) for size in factors) and prod(factors) == track.size:  # type: ignore[arg-type]
            live = place.factors.index(place.letter)
            labels = flow.project(track.labels, factors, live)  # type: ignore[arg-type]
            track = replace(track, labels=labels, size=factors[live])
        else:
            flow.freeze(track, "its product of sizes is not known")
            track = flow.closed(None, "its product of sizes is not known")
    return Member(index, number, place, track, constant, term)


def _settle(
    flow: Flow, case: Case, letter: str, members: list[Member], written: bool, sizes: dict[str, int], operands: int
) -> Track:
    """The one track of a letter in all terms of a node."""
    data = [member for member in members if not member.constant]
    constants = [member for member in members if member.constant]
    known = [member.track for member in data] + [
        member.track for member in constants if member.track.labels is not None and len(member.place.factors) == 1
    ]
    weights = [member for member in constants if member.term in ("w", "r")]
    if not data and weights and written and (case.origin is None or letter in case.origin):
        return _origin(flow, letter, weights, known, sizes)
    if not data:
        return flow.closed(None, f"a constant meets no channel in {flow.node.op_type}")
    repeated = all(member.track.size == 1 for member in data) and written
    wide = [m for m in constants if len(m.place.factors) == 1 and isinstance(m.track.size, int) and m.track.size > 1]
    if repeated and wide:  # the constants alone give this axis its width
        for member in data:
            flow.freeze(member.track, "it is repeated by broadcasting")
        labels = (
            wide[0].track.labels if wide[0].track.labels is not None else flow.ties.fresh(int(str(wide[0].track.size)))
        )
        return Track(
            len(labels), labels, rests=_rests(case, members, [False] * len(data) + [True] * len(constants), [])
        )
    track = flow.meet(known)
    if track.labels is None:
        return track
    if any(m.track.size not in (1, len(track.labels)) for m in constants if len(m.place.factors) == 1):
        flow.freeze(track, "it is repeated by broadcasting")
        return flow.closed(None, "it is repeated by broadcasting")
    if letter in case.inexact and not flow.settings.inexact:
        flow.freeze(track, case.inexact[letter])
    if not written and not weights:
        _contracted(flow, case, track, data, letter)
        flow.ties.summed.append(track.labels)
    elif not written and not all(member.track.rests for member in data):
        flow.ties.moved.append(track.labels)
    carried = [member.track.rests for member in data] + [True] * len(constants)
    missing = [False] * (operands - len(carried))
    return replace(track, rests=_rests(case, members, carried, missing))


def _origin(flow: Flow, letter: str, weights: list[Member], known: list[Track], sizes: dict[str, int]) -> Track:
    """A weight's own output channel: new labels, or those that a shared weight already has."""
    if known:
        return replace(flow.meet(known), rests=True)
    plain = [member.track.size for member in weights if len(member.place.factors) == 1]
    size = plain[0] if plain else sizes.get(letter)
    if not isinstance(size, int) or size < 1:
        return flow.closed(None, "its size is not known")
    return Track(size, flow.ties.fresh(size), rests=True)


def _contracted(flow: Flow, case: Case, track: Track, data: list[Member], letter: str) -> None:
    """A letter that no output has, and no weight reads: harmless only where zeros are summed."""
    if letter in case.inexact:
        return
    if not case.adds_up or case.zeros not in ("linear", "keeps", "any"):
        flow.freeze(track, f"{flow.node.op_type} reads all positions along it")
    elif len(data) == 1 and case.zeros == "linear":
        flow.freeze(track, f"{flow.node.op_type} mixes the positions along it")
    elif not any(member.track.rests for member in data):
        flow.freeze(track, "a zeroed unit is not zero here, so leaving it out changes the sum")


def _rests(case: Case, members: list[Member], carried: list[bool], missing: list[bool]) -> bool:
    """Is a zeroed unit zero behind this node?"""
    if case.zeros == "linear":
        if any(member.constant and member.term in ("w", "r", "scale") for member in members):
            return True
        return any(carried) and "b[" not in case.signature
    return ZEROS[case.zeros](carried + missing)


def _bind(flow: Flow, case: Case, track: Track, members: list[Member], sizes: dict[str, int], written: bool) -> None:
    """Write the settled labels to the constants that carry the letter, or close them."""
    for member in members:
        value = input_of(flow.node, member.input)
        if not member.constant or value is None:
            continue
        name, stored = value.name or "", sizes_of(value) or ()
        if track.labels is None:
            flow.ties.close(name, member.axis, track.reason)
            continue
        labels = track.labels
        if len(member.place.factors) > 1:
            factors = [sizes.get(factor, len(labels)) for factor in member.place.factors]
            factors[member.place.factors.index(member.place.letter or "")] = len(labels)
            labels = spread(labels, factors, member.place.factors.index(member.place.letter or ""))
        if stored[member.axis] == 1 != len(labels):
            continue  # one value for all channels
        reads = not written or (member.term == "r" and len(member.place.factors) == 1)
        role = ROLE_OF_TERM.get(member.term, "carry") or ("read" if reads else "write")
        flow.ties.bind(name, member.axis, labels, role, flow.node.name or "")


def _output(
    flow: Flow, place: Axis, settled: dict[str, Track], sizes: dict[str, int], shape: tuple | None, axis: int
) -> Track:
    """The track of one axis of an output."""
    size = shape[axis] if shape is not None and axis < len(shape) else None
    track = settled.get(place.letter or "")
    if track is None or track.labels is None:
        reason = track.reason if track is not None else Reason(f"{flow.node.op_type} makes it anew", flow.name)
        plain = track is not None and len(place.factors) == 1 and track.size is not None
        return Track(track.size if plain and track is not None else size, reason=reason)
    if len(place.factors) == 1:
        return replace(track, size=len(track.labels))
    factors = [sizes.get(factor) for factor in place.factors]
    live = place.factors.index(place.letter or "")
    factors[live] = len(track.labels)
    if any(factor is None for factor in factors):
        flow.freeze(track, "its product of sizes is not known")
        return flow.closed(size, "its product of sizes is not known")
    labels = spread(track.labels, factors, live)  # type: ignore[arg-type]
    return replace(track, labels=labels, size=len(labels))


def _patch_attribute(flow: Flow, attribute: str, track: Track | None) -> None:
    """The attribute counts the units along a letter."""
    if track is None or track.labels is None:
        return
    labels = track.labels

    def apply(graph: ir.Model, node: ir.Node, keep: Keep) -> None:
        node.attributes[attribute] = ir.AttrInt64(attribute, int(keep(labels).sum()))

    flow.patch(apply)
