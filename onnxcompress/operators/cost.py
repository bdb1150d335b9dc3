"""What a model costs: parameters, bytes, multiply-adds. Counted from weights and from the shapes of one run."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onnxcompress.model import Model
from onnxcompress.model.edit import walk
from onnxcompress.model.save import finished, size_of
from onnxcompress.operators.layer import Shapes, all_layers
from onnxcompress.operators.stored import held, is_level, is_scale


@dataclass(frozen=True)
class Cost:
    """bytes of the file; parameters: numbers in floating-point constants; macs: multiply-adds of one sample, None where unknown."""

    bytes: int
    parameters: int
    macs: int | None


def parameters(model: Model) -> int:
    """Numbers held in floating-point constants, and integers that stand for such numbers; scales are none of them."""
    integers = {layer.weight: prod(layer.shape) for layer in all_layers(model) if layer.bits is not None}
    made = (held(value) for node in walk(model.ir) for value in node.outputs)  # some are reshaped for their layers
    integers |= {each.levels.name or "": prod(each.shape) for each in made if each is not None}
    return sum(
        integers.get(name, value.const_value.size)
        for name, value in model.initializers.items()
        if value.const_value is not None and (name in integers or _is_parameter(value))
    )


def _is_parameter(value: ir.Value) -> bool:
    assert value.const_value is not None
    if value.const_value.dtype.is_floating_point():
        return not is_scale(value)
    return value.const_value.dtype.is_integer() and is_level(value)


def macs_by_layer(model: Model, shapes: Shapes) -> dict[tuple[str, str], int]:
    """(node, weight) -> multiply-adds of one run with these shapes; layers whose shapes were not seen are left out."""
    found = {}
    for layer in all_layers(model):
        positions = layer.positions(shapes)
        if positions is not None:
            size = model.initializers[layer.weight].const_value.size  # type: ignore[union-attr]
            found[layer.name, layer.weight] = positions * (size if layer.bits is None else prod(layer.shape))
    return found


PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN"}


def uncounted(model: Model, shapes: Shapes) -> str:
    """A sentence about products with constant weights whose multiply-adds are not known; empty where all are counted.

    They lie in bodies of Loop, Scan and If, where nobody sees sizes, or read what has no known rank (what a Loop hands on).
    """
    counted = {name for name, _ in macs_by_layer(model, shapes)}
    nodes = [
        node.name or ""
        for node in walk(model.ir)
        if node.op_type in PRODUCTS
        and any(value is not None and value.name in model.initializers for value in node.inputs)
    ]
    left = [name for name in nodes if name not in counted]
    if not left:
        return ""
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return f"multiply-adds are without {left[0]}{more}: in bodies of If, Loop or Scan, and behind them, sizes are not known"


def cost(model: Model, shapes: Shapes | None = None, *, on_disk: int | None = None) -> Cost:
    """Cost of a model; `on_disk` where the file's size is known, else the size that it would have."""
    macs = None if shapes is None else sum(macs_by_layer(model, shapes).values())
    return Cost(size_of(finished(model)) if on_disk is None else on_disk, parameters(model), macs)
