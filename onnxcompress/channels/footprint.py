"""How many parameters and multiply-adds are left when units go, counted without cutting anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxcompress.channels.analyse import Channels
from onnxcompress.model import Model


@dataclass(frozen=True, eq=False)
class Footprint:
    """Sizes of all floating-point constants as a product over axes, some of which shrink with the units.

    fixed    tensor -> product of the axes that never shrink
    cuts     tensor -> for each axis that may shrink, the unit at each position
    rate     tensor -> multiply-adds for each of its numbers in one run
    """

    fixed: Mapping[str, int]
    cuts: Mapping[str, tuple[np.ndarray, ...]]
    rate: Mapping[str, float]

    def sizes(self, gone: np.ndarray) -> dict[str, int]:
        """Tensor -> numbers left; gone [units] bool."""
        return {
            name: self.fixed[name] * prod(int((~gone[units]).sum()) for units in axes)
            for name, axes in self.cuts.items()
        }

    def parameters(self, gone: np.ndarray) -> int:
        """Numbers left in all tensors."""
        return sum(self.sizes(gone).values())

    def macs(self, gone: np.ndarray) -> float:
        """Multiply-adds left, of the layers whose shapes are known."""
        return sum(size * self.rate.get(name, 0.0) for name, size in self.sizes(gone).items())


def footprint(model: Model, channels: Channels, macs: Mapping[tuple[str, str], int]) -> Footprint:
    """The footprint of a model; `macs` as counted by operators/cost.py, by (node, weight)."""
    fixed, cuts = {}, {}
    by_tensor: dict[str, dict[int, np.ndarray]] = {}
    for (owner, axis), site in channels.ties.sites.items():
        by_tensor.setdefault(owner, {})[axis] = channels.unit[site.labels]
    for name, value in model.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        sites = by_tensor.get(name, {})
        shape = [int(str(size)) for size in tensor.shape]
        fixed[name] = prod(size for axis, size in enumerate(shape) if axis not in sites)
        cuts[name] = tuple(sites.values())
    rate: dict[str, float] = {}
    for (_, weight), count in macs.items():
        rate[weight] = rate.get(weight, 0.0) + count / max(model.initializers[weight].const_value.size, 1)  # type: ignore[union-attr]
    return Footprint(fixed, cuts, rate)
