"""Methods that train, one a file, over the engine in training/. What stands here is imported at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcompress.lazy import handed_out

if TYPE_CHECKING:
    from onnxcompress.methods.distill import Distill, distilled
    from onnxcompress.methods.rounds import Slim, Teach

OPTIONS = ("minibatch", "optimizer", "rate", "loss", "temperature", "norms")
"""Fields of Teach that `prune` offers beside its epochs."""

PASSES = {"train": "Teach", "slim": "Slim"}
"""How a Plan names its pass -> the name of the class here."""

__getattr__ = handed_out(__name__, {"distill": ["Distill", "distilled"], "rounds": ["Slim", "Teach"]})

__all__ = ["OPTIONS", "PASSES", "Distill", "Slim", "Teach", "distilled"]
