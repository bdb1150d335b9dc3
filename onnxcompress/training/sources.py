"""Where gradients come from: our derivative table, or onnxruntime-training's builder. Both meet the same lowering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from onnxcompress.errors import ModelError, SettingError
from onnxcompress.training.builder.backward import built
from onnxcompress.training.builder.place import VERSION, folder_of, is_set_up
from onnxcompress.training.pen import Pen
from onnxcompress.training.reverse import differentiate

Kind = Literal["auto", "builder", "own"]


@dataclass(frozen=True)
class Source:
    """kind: "own", "builder", or "auto": own, and what has no row there from the builder where it is set up.

    folder  where the builder lies; None: the usual one
    """

    kind: Kind = "own"
    folder: str | None = None


OWN = Source()


def gradients_by(
    source: Source, op: Pen, loss: ir.Value, by: Sequence[ir.Value]
) -> tuple[dict[ir.Value, ir.Value], str]:
    """Gradients of the loss by each value, and in words where they come from.

    SettingError where the builder is asked for and not set up; ModelError for an operator without a derivative.
    """
    place = folder_of(source.folder)
    if source.kind == "builder":
        if not is_set_up(place):
            raise SettingError(f"{place}: onnxruntime-training is not there; run 'onnxcompress setup-training' first")
        return built(op, loss, by, place), f"gradients by onnxruntime-training {VERSION}'s builder"
    try:
        return differentiate(op, loss, by), "gradients by the derivative table"
    except ModelError:
        if source.kind == "own" or not is_set_up(place):
            raise
    return built(
        op, loss, by, place
    ), f"gradients by onnxruntime-training {VERSION}'s builder: the table lacks an operator"
