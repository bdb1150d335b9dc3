"""Passes: each is frozen settings and two pure functions. PASSES lists them; a Plan names its pass by this key."""

from __future__ import annotations

from typing import Any

from onnxcompress.passes.protocol import Pass
from onnxcompress.passes.prune.prune import Prune
from onnxcompress.passes.prune.sparsify import Sparsify
from onnxcompress.passes.refit import Refit

PASSES: dict[str, type[Any]] = {each.name: each for each in (Prune, Sparsify, Refit)}

__all__ = ["PASSES", "Pass", "Prune", "Refit", "Sparsify"]
