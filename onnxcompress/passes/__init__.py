"""Passes: each is frozen settings and two pure functions. PASSES lists them; what stands here is imported at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcompress.lazy import handed_out

if TYPE_CHECKING:
    from onnxcompress.passes.binarize.binarize import Binarize
    from onnxcompress.passes.cluster.cluster import Cluster
    from onnxcompress.passes.factorize.factorize import Factorize
    from onnxcompress.passes.merge.merge import Merge
    from onnxcompress.passes.prune.prune import Prune
    from onnxcompress.passes.prune.sparsify import Sparsify
    from onnxcompress.passes.quantize.equalize import Equalize
    from onnxcompress.passes.quantize.fold import Fold
    from onnxcompress.passes.quantize.quantize import Quantize
    from onnxcompress.passes.quantize.weights_only import QuantizeWeights
    from onnxcompress.passes.refit.refit import Refit

PASSES = {
    "merge": "Merge",
    "factorize": "Factorize",
    "prune": "Prune",
    "sparsify": "Sparsify",
    "refit": "Refit",
    "cluster": "Cluster",
    "binarize": "Binarize",
    "fold": "Fold",
    "equalize": "Equalize",
    "quantize": "Quantize",
    "quantize-weights": "QuantizeWeights",
}
"""How a Plan names its pass -> the name of the class here."""

__getattr__ = handed_out(
    __name__,
    {
        "binarize.binarize": ["Binarize"],
        "cluster.cluster": ["Cluster"],
        "factorize.factorize": ["Factorize"],
        "merge.merge": ["Merge"],
        "prune.prune": ["Prune"],
        "prune.sparsify": ["Sparsify"],
        "quantize.equalize": ["Equalize"],
        "quantize.fold": ["Fold"],
        "quantize.quantize": ["Quantize"],
        "quantize.weights_only": ["QuantizeWeights"],
        "refit.refit": ["Refit"],
    },
)

__all__ = [
    "PASSES",
    "Binarize",
    "Cluster",
    "Equalize",
    "Factorize",
    "Fold",
    "Merge",
    "Prune",
    "Quantize",
    "QuantizeWeights",
    "Refit",
    "Sparsify",
]
