"""The reconstruction family: which units to keep so that their readers can be refitted best, on the Gram matrix of what these are fed.

SELECTIONS are the selectors of reconstruction.py by name. With a target of cost, units are shared out over the groups greedily:
the next few go where the readers' relative error rises least for the cost that they save, counted at every step. With a
target of error, amounts.within_error solves for all groups at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from onnxcompress.channels import Channels, Group
from onnxcompress.errors import SettingError
from onnxcompress.evidence.kinds import Gram
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.passes.prune.amounts import Budgeted
from onnxcompress.passes.prune.criteria import keep_largest, step_of
from onnxcompress.passes.prune.reconstruction import SELECTORS, Elimination, eliminate, error_curve
from onnxcompress.passes.prune.scores import channel_axis, readers_of

SELECTIONS = SELECTORS
WIDEST = 4096
"""Columns of the largest Gram matrix that is collected: 128 MB in float64. Wider readers (a Gemm behind Flatten) are ranked by l2."""

RIDGE = 1e-4
"""Share of the mean diagonal: as if every channel had independent noise of -40 dB, about what refit's own held-out choice takes."""

ROUNDING = 1e-11
"""Share of the mean square: centred sums in float64 are off by about 1e-13 of it (Moments.variance)."""


def gram_needs(model: Model, channels: Channels, groups: Sequence[Group]) -> list[Need]:
    """The Gram matrix of every value through which weights read these groups."""
    wanted = []
    for group in groups:
        for value, _ in readers_of(model, group):
            axis = channel_axis(channels, value, group)
            if axis is not None and len(channels.tracks[value][axis].labels) <= WIDEST:  # type: ignore[arg-type]
                wanted.append(Need("gram", value, axis))
            wanted += [_sensitivity(layer) for layer in layers(model) if layer.reads == value]
    return list(dict.fromkeys(wanted))


def _sensitivity(layer: Layer) -> Need:
    """How far an error of a layer's output goes; its channels lie along axis 1 of a convolution, else along the last."""
    return Need("sensitivity", layer.writes, layer.channel_axis)


class Readers:
    """What one group's choice is made on: a Gram matrix, a target and the units' columns for each value that is read.

    reach  the summed sensitivity of the readers: what their relative error is multiplied with on its way to the outputs
    """

    def __init__(self, model: Model, channels: Channels, group: Group, evidence: Evidence) -> None:
        self.grams: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.reach = 0.0
        by_value: dict[str, list[Layer]] = {}
        for layer in layers(model):
            by_value.setdefault(layer.reads, []).append(layer)
        for value, positions in readers_of(model, group):
            axis = channel_axis(channels, value, group)
            gram = evidence.get(Need("gram", value, -1 if axis is None else axis))
            if gram is None or positions.max() >= len(gram.matrix) or _constant(gram):
                self.reach += sum(max(evidence.get(_sensitivity(layer), 1.0), 1e-9) for layer in by_value[value])
                continue
            centred = gram.centred
            target = np.zeros_like(centred)
            for layer in by_value[value]:
                one = _target(layer, model, len(centred))
                power = float(np.sum(one * centred))
                if power > 0:  # relative errors of layers add up as far as each one reaches the outputs
                    reach = evidence.get(_sensitivity(layer), 1.0)
                    target += one * (max(reach, 1e-9) / power)
                    self.reach += max(reach, 1e-9)
            if target.any():
                self.grams.append(centred)
                self.targets.append(target)
                self.positions.append(positions)
        self.reach = self.reach or 1.0

    def curve(self, count: int) -> Elimination:
        """Units in the order of backward elimination, and the relative error after each."""
        return eliminate(self.grams, self.targets, RIDGE, self.positions, count)

    def keep(self, criterion: str, count: int) -> np.ndarray:
        """Indices of the units that a selector keeps."""
        return SELECTIONS[criterion](self.grams, self.targets, count, RIDGE, self.positions)


def _constant(gram: Gram) -> bool:
    """Whether the value never changed: what is left about its means is rounding, and no choice can be made on that."""
    return bool(np.trace(gram.centred) <= ROUNDING * np.trace(gram.matrix))


def _target(layer: Layer, model: Model, columns: int) -> np.ndarray:
    """Σ over kernel positions of WᵀW [in, in] of one reader; zeros where it does not read the value along these columns."""
    weight = layer.matrix(model.array(layer.weight)).astype(np.float64)
    if layer.groups != 1 or weight.shape[1] != columns:
        return np.zeros((columns, columns))
    flat = np.moveaxis(weight, 1, -1).reshape(-1, columns)
    return flat.T @ flat


def readers_for(model: Model, channels: Channels, groups: Sequence[Group], evidence: Evidence) -> dict[str, Readers]:
    """Group -> what its choice is made on; SettingError where no group's activations were seen."""
    readers = {group.name: Readers(model, channels, group, evidence) for group in groups}
    if not any(each.grams for each in readers.values()):
        raise SettingError(
            "the reconstruction family and target_error need data to look at activations; give --data, or choose 'l2' "
            "with an amount"
        )
    return readers


def curves_of(
    readers: Mapping[str, Readers], scores: Mapping[str, np.ndarray], *, ranked: bool
) -> dict[str, np.ndarray]:
    """Group -> [units - 1] noise share expected at the worst output after 1, 2, ... units went and the readers were refitted.

    ranked  units go in the order of their scores (lowest first), else as backward elimination takes them
    The readers' least-squares error on their Gram matrices, times how far each one's error reaches. Where no Gram matrix
    is known: the share of the squared scores that went, as far as the readers reach.
    """
    curves = {}
    for name, each in readers.items():
        order = np.argsort(scores[name], kind="stable")[:-1]
        if each.grams and ranked:
            curves[name] = each.reach * error_curve(each.grams, each.targets, order, RIDGE, each.positions)
        elif each.grams:
            curves[name] = each.reach * each.curve(len(order)).errors
        else:
            squares = np.maximum(scores[name][order], 0.0) ** 2
            whole = float(np.sum(np.maximum(scores[name], 0.0) ** 2)) or 1.0
            curves[name] = each.reach * np.cumsum(squares) / whole
    return curves


def keep_by_reconstruction(
    criterion: str, readers: Mapping[str, Readers], scores: Mapping[str, np.ndarray], counts: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Group -> bool [units], True where a unit stays: `counts` of them. Groups without a Gram matrix go by their scores."""
    kept = {}
    for name, count in counts.items():
        each, size = readers[name], len(scores[name])
        if each.grams and count < size:
            kept[name] = np.isin(np.arange(size), each.keep(criterion, count))
        else:
            kept[name] = keep_largest(scores[name], count)
    return kept


def shared_out(budget: Budgeted, curves: Mapping[str, np.ndarray], round_to: int | None) -> dict[str, int]:
    """Units kept in each group when the next `step_of` it always go where they cost the least error for what they save.

    curves  group -> relative error of its readers after 1, 2, ... units went
    """
    counts = {group.name: group.size for group in budget.groups}
    sizes = dict(counts)
    target = budget.target or 1.0

    def left(trial: Mapping[str, int]) -> float:
        return budget.left({name: np.arange(sizes[name]) < count for name, count in trial.items()})

    def rate(name: str) -> tuple[float, float] | None:
        """Error for each share of cost saved by the next step, and the error; None at the end."""
        step = step_of(sizes[name], round_to)
        after = counts[name] - (counts[name] % step or step) if counts[name] > step else counts[name] - 1
        if after < 1 or name not in curves:
            return None
        gone = sizes[name] - counts[name]
        rise = curves[name][sizes[name] - after - 1] - (curves[name][gone - 1] if gone else 0.0)
        saved = now - left({**counts, name: after})
        return (max(float(rise), 0.0) / max(saved, 1e-12), after)

    now = left(counts)
    queue = [(found[0], name) for name in curves if (found := rate(name)) is not None]
    heapq.heapify(queue)
    while now > target and queue:
        _, name = heapq.heappop(queue)
        found = rate(name)
        if found is None:
            continue
        if queue and found[0] > queue[0][0] * (1 + 1e-9):  # costs have changed since it was queued
            heapq.heappush(queue, (found[0], name))
            continue
        counts[name] = int(found[1])
        now = left(counts)
        if (again := rate(name)) is not None:
            heapq.heappush(queue, (again[0], name))
    if now > target:
        raise SettingError(f"the target {target:g} cannot be reached: {now:.3f} is left with one unit a group")
    return counts
