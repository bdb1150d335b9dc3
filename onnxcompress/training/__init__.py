"""Training of ONNX graphs on the user's own onnxruntime, without any training framework.

forward + loss ──▶ gradient source ──▶ lowering ──▶ one step graph in standard operators ──▶ session
                   derivatives/: our table, a row an operator

`reverse` writes gradients by the table, `lowering` has the backward operators that every source meets, `graph` makes the step
graph, `losses` and `targets` say what is learned, `optimizers` and `loop` carry it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcompress.lazy import handed_out

if TYPE_CHECKING:
    from onnxcompress.training.importance import GRADIENTS

__getattr__ = handed_out(__name__, {"importance": ["GRADIENTS"]})

__all__ = ["GRADIENTS"]
