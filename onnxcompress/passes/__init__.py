"""Passes: each is frozen settings and two pure functions. PASSES lists them; a Plan names its pass by this key."""

from __future__ import annotations

from typing import Any

from onnxcompress.passes.binarize.binarize import Binarize
from onnxcompress.passes.cluster.cluster import Cluster
from onnxcompress.passes.factorize.factorize import Factorize
from onnxcompress.passes.merge.merge import Merge
from onnxcompress.passes.protocol import Pass
from onnxcompress.passes.prune.prune import Prune
from onnxcompress.passes.prune.sparsify import Sparsify
from onnxcompress.passes.quantize.equalize import Equalize
from onnxcompress.passes.quantize.fold import Fold
from onnxcompress.passes.quantize.quantize import Quantize
from onnxcompress.passes.quantize.weights_only import QuantizeWeights
from onnxcompress.passes.refit import Refit

PASSES: dict[str, type[Any]] = {
    each.name: each
    for each in (Merge, Factorize, Prune, Sparsify, Refit, Cluster, Binarize, Fold, Equalize, Quantize, QuantizeWeights)
}

__all__ = [
    "PASSES",
    "Binarize",
    "Cluster",
    "Equalize",
    "Factorize",
    "Fold",
    "Merge",
    "Pass",
    "Prune",
    "Quantize",
    "QuantizeWeights",
    "Refit",
    "Sparsify",
]
