"""Free cuts: units that go without any change of the output, found in the weights alone.

unread      every weight that reads the unit is zero
zero        everything that writes it is zero, and zero it stays on the way to its readers
duplicate   written exactly like another unit of its group; the readers' weights of both are added into one
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcompress.channels import Channels, Group, Member
from onnxcompress.model import Model


@dataclass(frozen=True, eq=False)
class FreeCuts:
    """[units of the group] bool each; `into` [units]: for a duplicate, the unit that takes its readers over, else -1."""

    unread: np.ndarray
    zero: np.ndarray
    into: np.ndarray

    @property
    def all(self) -> np.ndarray:
        """[units] bool."""
        return self.unread | self.zero | (self.into >= 0)


def slices_of(model: Model, member: Member) -> np.ndarray:
    """[units, elements]: what each unit occupies in one tensor."""
    values = np.moveaxis(model.array(member.tensor), member.axis, 0)
    return values[member.positions].reshape(len(member.positions), -1)


def free_cuts(model: Model, channels: Channels, group: Group) -> FreeCuts:
    """What may go for nothing; at least one unit is left."""
    none = np.zeros(group.size, bool)
    readers = [member for member in group.members if member.role == "read"]
    writers = [member for member in group.members if member.role in ("write", "bias", "scale")]
    blank = [~slices_of(model, member).any(axis=1) for member in readers]
    summed, moved = _units(channels.ties.summed, channels, group), _units(channels.ties.moved, channels, group)
    unread = np.logical_and.reduce(blank) & ~summed if blank else none
    silent = [~slices_of(model, member).any(axis=1) for member in writers]
    zero = np.logical_and.reduce(silent) & ~moved if silent and readers else none
    into = np.full(group.size, -1)
    if readers and not summed.any():
        into = _duplicates(model, group, unread | zero)
    found = FreeCuts(unread, zero & ~unread, into)
    return found if not found.all.all() else FreeCuts(_spared(unread), _spared(found.zero), into)


def _spared(flags: np.ndarray) -> np.ndarray:
    """The same without the first unit: something must be left."""
    return np.concatenate([[False], flags[1:]])


def _units(labels: list[np.ndarray], channels: Channels, group: Group) -> np.ndarray:
    """Which units of the group carry any of these labels."""
    if not labels:
        return np.zeros(group.size, bool)
    return np.isin(group.units, np.unique(channels.unit[np.concatenate(labels)]))


def _duplicates(model: Model, group: Group, gone: np.ndarray) -> np.ndarray:
    """For each unit, an earlier one that is written by the very same numbers, else -1."""
    written = [slices_of(model, member) for member in group.members if member.role != "read"]
    into = np.full(group.size, -1)
    if not written:
        return into
    rows = np.ascontiguousarray(np.hstack([part.astype(np.float64) for part in written])) + 0.0
    first: dict[bytes, int] = {}
    for unit in np.flatnonzero(~gone):
        keeper = first.setdefault(rows[unit].tobytes(), int(unit))
        into[unit] = keeper if keeper != unit else -1
    return into


def merged(model: Model, group: Group, into: np.ndarray) -> dict[str, np.ndarray]:
    """Reader tensors with the duplicates' weights added to those of the units that stay."""
    changed: dict[str, np.ndarray] = {}
    pairs = np.flatnonzero(into >= 0)
    for member in group.members:
        if member.role != "read" or not len(pairs):
            continue
        values = changed.get(member.tensor, model.array(member.tensor).copy())
        moved = np.moveaxis(values, member.axis, 0)
        for unit in pairs:
            moved[member.positions[into[unit]]] += moved[member.positions[unit]]
        changed[member.tensor] = values
    return changed
