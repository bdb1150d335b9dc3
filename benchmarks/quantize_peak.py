"""How near an int8 file comes to what the CPU's integer units can do, and which operators hold it back.

The peak of the instructions is 4 times fp32 with VNNI (four byte products a lane for one of floats) and 2 times without (16-bit
sums of pairs). What onnxruntime makes of it in one large dense product is measured here, on the same thread.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model.load import load
from onnxcompress.operators.cost import macs_by_layer
from onnxcompress.operators.layer import all_layers
from onnxcompress.runtime.clock import measure
from onnxcompress.runtime.cpu import cpu
from onnxcompress.runtime.profile import NodeTime, profile

VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
WITH_VNNI, WITHOUT = 4.0, 2.0

SIDE = 768
"""Of the square matrices of a dense product."""

CHANNELS, PIXELS = 256, 28
"""Of a dense 3x3 convolution."""

RUNS = 20

PRODUCTS = {
    *("QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "QAttention"),
    *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits"),
}
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
INTEGERS = {"uint8", "int8", "int32"}
KINDS = ("products", "integers", "floats", "conversions")
"""Integer products; what else puts out integers; floats and shapes; QuantizeLinear and DequantizeLinear."""

LEAST = 0.03
"""Share of the time from which an operator is named."""


def peak() -> float:
    """How many times faster than fp32 the instructions of this CPU are."""
    return WITH_VNNI if VNNI.intersection(cpu().instructions) else WITHOUT


# ---- dense products


@functools.cache
def dense(seconds: float = 0.7) -> dict[str, float]:
    """Name -> 1e9 operations (a multiplication, an addition) a second, one thread; each pair runs in turn."""
    found = {}
    x = np.random.default_rng(0)
    for kind, (shape, size, operations) in {
        "MatMul": ((SIDE, SIDE), (SIDE, SIDE), 2 * SIDE**3),
        "Conv": ((1, CHANNELS, PIXELS, PIXELS), (CHANNELS, CHANNELS, 3, 3), 2 * (CHANNELS * 3 * PIXELS) ** 2),
    }.items():
        feed = {"x": x.standard_normal(shape).astype(np.float32)}
        made = {name: _product(kind, shape, size, name) for name in ("fp32", "int8")}
        for timing in measure(made, feed, seconds=seconds, memory=False):
            found[f"{timing.name} {kind}"] = operations / timing.median_ms / 1e6
    return found


def _product(kind: str, shape: Sequence[int], size: Sequence[int], form: str) -> bytes:
    """One product; in "int8" rounded before and after it, which takes about a hundredth of its time."""
    weight = np.random.default_rng(1).integers(-60, 61, size)
    pads = {"pads": [1, 1, 1, 1]} if kind == "Conv" else {}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, each) for name, each in (("x", shape), ("y", None))]
    if form == "fp32":
        nodes = [helper.make_node(kind, ["x", "w"], ["y"], **pads)]
        held = {"w": weight.astype(np.float32)}
    else:
        held = {"s": np.float32(0.02), "z": np.uint8(128), "t": np.float32(9), "w": weight.astype(np.int8)}
        held |= {"ws": np.float32(1), "wz": np.int8(0)}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node(f"QLinear{kind}", ["xq", "s", "z", "w", "ws", "wz", "t", "z"], ["yq"], **pads),
            helper.make_node("DequantizeLinear", ["yq", "t", "z"], ["y"]),
        ]
    constants = [numpy_helper.from_array(np.asarray(values), name) for name, values in held.items()]
    graph = helper.make_graph(nodes, "dense", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


# ---- one file


def limits(given: Path, out: Path, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of a Row: multiply-adds of one run and the share of convolutions in them, where the file's time goes, the dense peak."""
    model = load(given)
    macs = macs_by_layer(model, run_shapes(model, feed))
    convolutions = {(layer.name, layer.weight) for layer in all_layers(model) if "Conv" in layer.op}
    whole = sum(macs.values())
    conv = sum(number for place, number in macs.items() if place in convolutions)
    nodes = profile(out, feed, runs=RUNS)
    reached = dense()
    return {
        "macs": whole,
        "conv": conv / whole if whole else 0.0,
        **times(nodes),
        "held": held(nodes),
        "times_peak": peak(),
        "dense": max(reached["int8 MatMul"], reached["int8 Conv"]),
        "dense_fp32": max(reached["fp32 MatMul"], reached["fp32 Conv"]),
    }


def times(nodes: Sequence[NodeTime]) -> dict[str, float]:
    """Kind -> its share of the time of all nodes."""
    found = dict.fromkeys(KINDS, 0.0)
    for node in nodes:
        found[kind(node)] += node.share
    return found


def kind(node: NodeTime) -> str:
    """One of KINDS."""
    if node.op_type in PRODUCTS:
        return "products"
    if node.op_type in CONVERSIONS:
        return "conversions"
    return "integers" if node.type in INTEGERS else "floats"


def held(nodes: Sequence[NodeTime]) -> str:
    """The operators that are no integer products and take most time, with their shares."""
    shares: Counter[str] = Counter()
    for node in nodes:
        if kind(node) != "products":
            shares[node.op_type] += node.share  # type: ignore[assignment]
    return ", ".join(f"{op} {100 * share:.0f} %" for op, share in shares.most_common(3) if share >= LEAST)


# ---- the table

HEADS = (
    "model", "speed", "of the peak", "of the dense ratio", "GOPS", "of the dense peak", "products alone",
    "integer products", "other integer", "float", "Q/DQ", "what holds it back",
)  # fmt: skip

ABOUT = (
    "Models with four fifths of their multiply-adds in convolutions, files of ours. *Of the peak*: speed over what the "
    "instructions can, {peak:g} times fp32 on this CPU; *of the dense ratio*: over what onnxruntime makes of them in one "
    "large product ({dense:.0f} GOPS in int8, {fp32:.0f} in fp32: {ratio:.1f} times). *GOPS*: 1e9 multiplications and "
    "additions a second in the whole run; *of the dense peak*: over those of the large product in int8; *products "
    "alone*: the same over the time of the integer products, so that depthwise and narrow ones show. Then shares of the "
    "int8 file's time by node, as onnxruntime's profiler sees them; *other integer*: nodes that put out levels."
)

CONVOLUTIONAL = 0.8


def lines(rows: Sequence[Any], tool: str) -> list[list[str]]:
    """One line a convolutional model, fastest first."""
    mine = [row for row in rows if row.tool == tool and row.macs and row.ms and (row.conv or 0) >= CONVOLUTIONAL]
    return [
        [
            row.model, f"{row.speed:.2f}", f"{row.speed / row.times_peak:.0%}",
            f"{row.speed * row.dense_fp32 / row.dense:.0%}", f"{gops(row):.0f}",
            f"{gops(row) / row.dense:.0%}",
            f"{gops(row) / row.products / row.dense:.0%}" if row.products else "-",
            *(f"{getattr(row, kind):.0%}" for kind in KINDS), row.held or "-",
        ]
        for row in sorted(mine, key=lambda row: -row.speed)
    ]  # fmt: skip


def gops(row: Any) -> float:
    """1e9 operations a second in the whole int8 file."""
    return 2 * row.macs / row.ms / 1e6


def section(rows: Sequence[Any], tool: str) -> tuple[str, list[list[str]]] | None:
    """What is said above the table, and its lines; None where nothing was measured."""
    known = [row for row in rows if row.tool == tool and row.macs and row.dense]
    if not known:
        return None
    last = known[-1]
    about = ABOUT.format(
        peak=last.times_peak, dense=last.dense, fp32=last.dense_fp32, ratio=last.dense / last.dense_fp32
    )
    return about, lines(rows, tool)
