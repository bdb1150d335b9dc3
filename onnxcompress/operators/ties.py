"""What the rows write down while they are followed: labels, which are the same, which are frozen and why, where constants hold them.

A label is a number; every position of an axis that may be cut carries one. Positions that must go together share a connected
component, which `channels/` reads out when all nodes have been followed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.operators.view import Size


@dataclass(frozen=True)
class Reason:
    """Why something is frozen, and the node (or input or output) that froze it."""

    why: str
    by: str


@dataclass(frozen=True, eq=False)
class Track:
    """What is known of one axis of one value.

    labels  [size] int64; None: closed, nothing is ever cut along it, for `reason`
    rests   are the values of a zeroed unit zero here?
    """

    size: Size
    labels: np.ndarray | None = None
    rests: bool = False
    reason: Reason = Reason("", "")


@dataclass(eq=False)
class Site:
    """One axis of one constant tensor: its label at each position, and what the tensor does there (a key of ROLES)."""

    tensor: str
    axis: int
    labels: np.ndarray
    role: str
    node: str


ROLES = {
    "write": "weights that produce the channel",
    "bias": "added to the channel",
    "scale": "multiplied with the channel",
    "read": "weights that read the channel",
    "carry": "goes along: a mean, a divisor, a state; cut but never zeroed",
}

Keep = Callable[[np.ndarray], np.ndarray]
"""Labels -> which of them are kept, as booleans."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A change that a node needs when labels are cut: `apply(graph, node, keep)` runs on the clone's node of that name."""

    node: str
    apply: Callable[[ir.Model, ir.Node, Keep], None]


@dataclass
class Ties:
    """The whole record of one walk over a graph.

    elements  integer tensor -> for each element, the labelled axis whose size it is
    summed    labels that are contracted without a weight: such a unit acts beside the weights that read it
    moved     labels that a weight reads where a zeroed unit is not zero (behind a Sigmoid)
    choices   node that splits an axis -> the axis's labels, and how many factors could be live
    """

    count: int = 0
    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, Reason]] = field(default_factory=list)
    sites: dict[tuple[str, int], Site] = field(default_factory=dict)
    closed: dict[tuple[str, int], Reason] = field(default_factory=dict)
    patches: list[Patch] = field(default_factory=list)
    elements: dict[ir.Value, list[Track | None]] = field(default_factory=dict)
    choices: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    summed: list[np.ndarray] = field(default_factory=list)
    moved: list[np.ndarray] = field(default_factory=list)

    def fresh(self, size: int) -> np.ndarray:
        """New labels for an axis."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def same(self, left: np.ndarray, right: np.ndarray) -> None:
        """These positions go together, one by one (broadcast where shapes differ)."""
        if left is not right:
            left, right = np.broadcast_arrays(left, right)
            self.pairs.append((left.reshape(-1), right.reshape(-1)))

    def freeze(self, labels: np.ndarray, reason: Reason) -> None:
        """Nothing that is tied to these labels may be cut."""
        self.frozen.append((labels, reason))

    def close(self, tensor: str, axis: int, reason: Reason) -> None:
        """This axis of a constant is never cut."""
        self.closed.setdefault((tensor, axis), reason)
        if (site := self.sites.get((tensor, axis))) is not None:
            self.freeze(site.labels, reason)

    def bind(self, tensor: str, axis: int, labels: np.ndarray, role: str, node: str) -> None:
        """This axis of a constant carries these labels. A second binding of a shared tensor ties both."""
        site = self.sites.setdefault((tensor, axis), Site(tensor, axis, labels, role, node))
        self.same(site.labels, labels)
        if (reason := self.closed.get((tensor, axis))) is not None:
            self.freeze(labels, reason)
