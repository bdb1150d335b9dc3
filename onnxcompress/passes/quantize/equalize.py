"""Equalize: multiply channels by factors that cancel, so that one scale for a whole tensor serves all its channels.

A factor t[c] goes into what writes channel c and out of what reads it (scaling.py says where that may be done): cross-layer
equalization of Nagel et al. 2019, arXiv:1906.04721, and the migration of Xiao et al. 2022 (SmoothQuant), arXiv:2211.10438,
in one form, and for any number of writers and readers:

    t[c] = max|W[c]|^(1-α) / max|X[c]|^α

with X the channel's entries and W the weights that read it. α = 1 gives all channels the range of the widest, α = 1/2 shares
the burden between tensor and weights, and of ALPHAS each place takes the one of least expected error of its readers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.evidence.kinds import Reach
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.model.edit import set_constant
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.passes.quantize.levels import strips
from onnxcompress.passes.quantize.scaling import Edit, Scaling, scaling
from onnxcompress.plan import Plan, Refusal
from onnxcompress.weights.filed import let_go

ALPHAS = np.linspace(0, 1, 11)
COHERENT = 32.0
"""How much more the power of weights' rounding counts: it is the same at every position, so no later sum averages it out, as
it does that of activations. Of 1, 4, 16 and 64, the two largest did best on EfficientNet-Lite0 and on an OCR classifier."""

FARTHEST = 2.0**10
"""No channel is multiplied or divided by more, beside the others of its tensor."""

FOLDED = {"Relu", "Clip", "LeakyRelu", "PRelu", "BatchNormalization"}
"""Operators that run with the one before them: what they alone read has no grid of its own."""


@dataclass(frozen=True)
class Equalize:
    """Scale channels against each other, without a change to any output, so that they share one grid better."""

    name: ClassVar[str] = "equalize"

    activation_levels: Annotated[int, Field(ge=2, description="levels that a tensor will have")] = 256
    weight_levels: Annotated[int, Field(ge=2, description="levels that a row of weights will have")] = 255
    clips: Annotated[
        bool,
        Field(
            description="scale channels through a Clip (Relu6) too where the data kept away from its limit; not exact"
        ),
    ] = False
    margin: Annotated[
        float, Field(ge=1, description="with clips: limit over the largest that was seen of a channel, at least")
    ] = 2.0
    gain: Annotated[float, Field(ge=0, description="dB that a place must gain to be changed")] = 0.1

    def needs(self, model: Model) -> list[Need]:
        """The reach of every value that has a channel to scale."""
        return [Need("reach", value, axis) for value, (axis, _) in scaling(model).values.items()]

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Choose the factors, place by place."""
        found = scaling(model)
        plan = Plan(self.name, dict(vars(self)), model.fingerprint)
        seen = {
            value: evidence[need]
            for value, (axis, _) in found.values.items()
            if (need := Need("reach", value, axis)) in evidence
        }
        factors = np.ones(found.count)
        for place in _places(model, found, seen):
            self._choose(place, found, factors, plan)
        _write_down(plan, found, factors)
        for layer in layers(model):
            if layer.writes in found.held and layer.writes not in found.values:
                plan.refusals.append(Refusal(layer.weight, *found.held[layer.writes]))
        return plan

    def apply(self, model: Model, plan: Plan) -> Model:
        """Multiply constants by their factors, in float64."""
        plan.check_fits(model.fingerprint)
        graph = model.ir.clone()
        changed: dict[str, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for key, each in plan.arrays.items():
            tensor, _, along = key.rpartition("|")
            changed[tensor].append((int(along), each))
        for tensor, parts in changed.items():
            set_constant(graph, tensor, _multiplied(model.array(tensor), parts))
            let_go(model.initializers[tensor].const_value)  # else both stand in memory as long as the run takes
        return model.edited(graph)

    def _choose(self, place: Place, found: Scaling, factors: np.ndarray, plan: Plan) -> None:
        """Try every α on one place; write the best factors into `factors` where they gain enough."""
        limit = self._limits(place, found)
        before = self._error(place, np.ones(len(place.numbers)))
        tried = [_within(place, place.factors(alpha), limit) for alpha in ALPHAS]
        errors = [self._error(place, t) for t in tried]
        best = int(np.argmin(errors))
        if not before > 0 or 10 * np.log10(before / max(errors[best], 1e-300)) < self.gain:
            return
        factors[place.numbers] = tried[best]
        plan.decisions.append(
            {
                "values": sorted(place.seen),
                "written_by": sorted({edit.node for edit in place.edits if edit.power > 0}),
                "read_by": sorted({edit.node for edit in place.edits if edit.power < 0}),
                "channels": len(place.numbers),
                "alpha": round(float(ALPHAS[best]), 3),
                "before_db": -10 * float(np.log10(before)),
                "after_db": -10 * float(np.log10(max(errors[best], 1e-300))),
            }
        )

    def _limits(self, place: Place, found: Scaling) -> np.ndarray:
        """[channels] largest factor: a Clip that did not clip a channel must not; one that did keeps it at one (-1).

        That is true of the data and no more: ten photos as calibration left EfficientNet-Lite0 9 dB on others (margin 1.5).
        """
        limit = np.full(len(place.numbers), np.inf)
        for value, _, most in found.limits:
            if value in place.seen:
                met, where = place.seen[value]
                room = most / (self.margin * np.maximum(met.maximum, 1e-300))
                room = np.where((room >= 1) & self.clips, room, -1.0)
                np.minimum.at(limit, where[where >= 0], room[where >= 0])
        return limit

    def _error(self, place: Place, t: np.ndarray) -> float:
        """Expected squared error of the readers' outputs, as a share of what they put out: of the tensors' grids and of
        the weights'. Both roundings are taken as uniform over a step."""
        total = 0.0
        noise = np.zeros(len(t))
        for value in place.gridded:
            met, where = place.seen[value]
            scale = np.where(where >= 0, t[where], 1.0)
            top, low = (met.maximum * scale).max(initial=0), (met.minimum * scale).min(initial=0)
            noise += ((top - low) / (self.activation_levels - 1)) ** 2 / 12 / t**2
        for reader in place.readers:
            power = float(reader.energy @ reader.square)
            if power <= 0:
                continue
            error = float(reader.energy @ noise)
            if reader.rows is not None:
                step = 2 * _largest(reader.rows, t) / self.weight_levels
                error += COHERENT * reader.kernel * float((step**2).sum() / 12 * (reader.square @ t**2))
            total += error / power
        return total


# ---- places ----


@plain(frozen=True, eq=False)
class Reader:
    """A constant that reads the channels of a place.

    energy  [channels] sum of squares of what reads each              square  [channels] mean square of what is read
    rows    [out, channels] the weights, of a kernel the one of largest magnitude; None where each channel has a row of its own
    kernel  weights to an output and channel
    """

    energy: np.ndarray
    square: np.ndarray
    rows: np.ndarray | None
    kernel: int

    @property
    def widest(self) -> np.ndarray:
        """[channels]"""
        if self.rows is None:
            return np.sqrt(self.energy)
        return np.max([np.abs(self.rows[part]).max(axis=0) for part in strips(self.rows.shape)], axis=0)


@plain(frozen=True, eq=False)
class Place:
    """Factors of channels that the same values hold and the same constants write and read.

    numbers  [channels] of the factors              edits    the constants
    seen     value -> its Reach, and for each position of its axis the channel here, -1 for none
    gridded  those of the values that get a grid    readers  what reads them
    """

    numbers: np.ndarray
    edits: tuple[Edit, ...]
    seen: Mapping[str, tuple[Reach, np.ndarray]]
    gridded: tuple[str, ...]
    readers: tuple[Reader, ...]

    @property
    def reach(self) -> np.ndarray:
        """[channels] largest magnitude, as a share of the tensor's, in the value where that is most."""
        reach = np.zeros(len(self.numbers))
        for value in self.gridded:
            met, where = self.seen[value]
            size = np.maximum(met.maximum, -met.minimum)
            np.maximum.at(reach, where[where >= 0], (size / max(float(size.max()), 1e-300))[where >= 0])
        return reach

    def factors(self, alpha: float) -> np.ndarray:
        """[channels] t; the widest channel keeps its range, and one that was never seen to hold anything its factor."""
        reach, weight = self.reach, np.max([reader.widest for reader in self.readers], axis=0)
        live = (reach > 0) & (weight > 0)
        if not live.any():
            return np.ones(len(reach))
        t = np.ones(len(reach))
        t[live] = (weight[live] / weight[live].max()) ** (1 - alpha) / reach[live] ** alpha
        t[live] *= reach[live].max() / (t[live] * reach[live]).max()
        middle = float(np.median(t[live]))
        return np.where(live, np.clip(t, middle / FARTHEST, middle * FARTHEST), 1.0)


def _largest(rows: np.ndarray, t: np.ndarray) -> np.ndarray:
    """[out] largest magnitude of rows [out, channels] / t; a few rows at a time, since one place may read a hundred million weights."""
    return np.concatenate([np.abs(rows[part] / t).max(axis=1) for part in strips(rows.shape)])


def _multiplied(stored: np.ndarray, parts: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """The weights times vectors along their axes, each product in float64; a strip at a time, not all of it at that width."""
    made = np.empty_like(stored)
    shaped = [
        np.broadcast_to(f.reshape([-1 if n == axis else 1 for n in range(stored.ndim)]), stored.shape)
        for axis, f in parts
    ]
    for strip in strips((len(stored), stored.size // max(len(stored), 1))):
        values = stored[strip].astype(np.float64)
        for factors in shaped:
            values *= factors[strip]
        made[strip] = values
    return made


def _within(place: Place, t: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """No more than the limit; 1 where that is below zero."""
    return np.where(limit < 0, 1.0, np.minimum(t, limit))


def _places(model: Model, found: Scaling, seen: Mapping[str, Reach]) -> Iterator[Place]:
    """Factors that stand at the same values and edits, in graph order; those without evidence or readers are left out."""
    marks: list[tuple[Any, np.ndarray]] = [(edit, edit.factors) for edit in found.edits]
    marks += [(value, numbers) for value, (_, numbers) in found.values.items()]
    weights = np.random.default_rng(0).integers(1, 1 << 40, len(marks))
    print_ = np.zeros(found.count, np.int64)
    for (_, numbers), weight in zip(marks, weights, strict=True):
        print_[np.unique(numbers)] += weight
    _, first, kind = np.unique(print_[1:], return_index=True, return_inverse=True)
    members: dict[int, list[Any]] = defaultdict(list)
    for mark, numbers in marks:
        for group in np.unique(kind[np.unique(numbers[numbers > 0]) - 1]):
            members[int(group)].append(mark)
    by_weight = {(layer.name, layer.weight): layer for layer in layers(model)}
    alone = _run_with_the_next(model)
    for group in np.argsort(first):
        own = np.flatnonzero(kind == group) + 1
        edits = tuple(mark for mark in members[int(group)] if isinstance(mark, Edit))
        values = {
            value: (seen[value], _channel_of(own, found.values[value][1]))
            for value in members[int(group)]
            if isinstance(value, str) and value in seen
        }
        gridded = tuple(value for value in values if value not in alone)
        readers = tuple(_readers(model, own, edits, values, gridded, by_weight))
        if gridded and readers:
            yield Place(own, edits, values, gridded, readers)


def _run_with_the_next(model: Model) -> set[str]:
    """Values that only an activation or norm reads."""
    return {
        value.name or ""
        for node in model.ir.graph
        for value in node.outputs
        if (users := [user.op_type for user, _ in value.uses()]) and len(users) == 1 and users[0] in FOLDED
    }


def _channel_of(own: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """[positions] place of each factor number among `own` (ascending), -1 where it is none of them."""
    place = np.minimum(np.searchsorted(own, numbers), len(own) - 1)
    return np.where(own[place] == numbers, place, -1)


def _readers(
    model: Model,
    own: np.ndarray,
    edits: tuple[Edit, ...],
    values: Mapping[str, tuple[Reach, np.ndarray]],
    gridded: tuple[str, ...],
    by_weight: Mapping[tuple[str, str], Layer],
) -> Iterator[Reader]:
    for edit in edits:
        layer = by_weight.get((edit.node, edit.tensor))
        if edit.power > 0 or (layer is None and model.array(edit.tensor).size == 0) or not gridded:
            continue
        where = _channel_of(own, edit.factors)
        read = layer.reads if layer is not None and layer.reads in values else gridded[-1]
        met, at = values[read]
        square, energy = np.zeros(len(own)), np.zeros(len(own))
        square[at[at >= 0]] = met.mean_square[at >= 0]
        np.add.at(energy, where[where >= 0], _energies(model.array(edit.tensor), edit.axis)[where >= 0])
        rows, kernel = None, 1
        if layer is not None and layer.groups == 1 and layer.ins == 1 and edit.axis == layer.order[layer.outs]:
            matrix = layer.matrix(model.array(edit.tensor))
            kernel = int(np.prod(matrix.shape[2:]))
            rows = _rows(matrix, where, len(own))
        yield Reader(energy, square, rows, kernel)


def _energies(stored: np.ndarray, axis: int) -> np.ndarray:
    """[length of the axis] sums of squares, in float64."""
    moved = np.moveaxis(stored, axis, 0)
    found = np.empty(len(moved))
    for part in strips((len(moved), moved.size // max(len(moved), 1))):
        flat = moved[part].reshape(-1, moved.size // len(moved))
        found[part] = np.einsum("ck,ck->c", flat, flat, dtype=np.float64)
    return found


def _rows(matrix: np.ndarray, where: np.ndarray, channels: int) -> np.ndarray:
    """Reader.rows of a weight [out, in, *kernel]: itself, not a copy, where it has no kernel and reads each channel once."""
    if matrix[0, 0].size == 1 and np.array_equal(where, np.arange(channels)):
        return matrix.reshape(matrix.shape[:2])
    rows = np.zeros((len(matrix), channels), np.float32)
    for part in strips((len(matrix), matrix[0].size)):
        whole = np.abs(matrix[part]).reshape(-1, matrix.shape[1], matrix[0, 0].size)
        _keep_largest(rows[part].T, where, whole.max(axis=2).T)
    return rows


def _keep_largest(into: np.ndarray, where: np.ndarray, values: np.ndarray) -> None:
    """into[where[i]] = max(into[where[i]], values[i]), row by row; nothing where that is -1."""
    found = np.flatnonzero(where >= 0)
    places = where[found]
    if len(np.unique(places)) == len(places):  # ten times as fast, and the rule
        into[places] = np.maximum(into[places], values[found])
    else:
        np.maximum.at(into, places, values[found])


def _write_down(plan: Plan, found: Scaling, factors: np.ndarray) -> None:
    """One vector for each axis of a constant that changes."""
    for edit in found.edits:
        vector = factors[edit.factors] ** edit.power
        if (vector != 1).any():
            key = f"{edit.tensor}|{edit.axis}"
            plan.arrays[key] = plan.arrays.get(key, 1.0) * vector
