"""check: what is wrong with a quantized file, whoever wrote it: does it load, do its nodes fuse, does it answer the same on every CPU.

FAULTS is the table: a row finds one kind of fault in the file as it stands, or in the graph that onnxruntime makes of it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from onnxcompress.compare import json_safe
from onnxcompress.difference import sqnr_db
from onnxcompress.errors import ModelError
from onnxcompress.evidence.gates import noise_share
from onnxcompress.model.load import check_external, read
from onnxcompress.operators.stored import ON_LEVELS, held, table_of
from onnxcompress.passes.quantize.examined import INTEGER, Examined
from onnxcompress.passes.quantize.unfused import REASONS, Executed, graphs_of
from onnxcompress.passes.quantize.walked import Simulation, can_saturate, products

PAIR = {"QuantizeLinear", "DequantizeLinear"}

ACTIVATION_ZERO = {
    **dict.fromkeys(("QuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm"), 2),
    "MatMulIntegerToFloat": 4,
}
"""Operator -> the input that is the zero of its activations."""

Grade = Literal["fault", "slow", "small"]

GRADES: dict[Grade, tuple[str, str]] = {
    "fault": ("fault", "faults"),
    "slow": ("thing that costs time", "things that cost time"),
    "small": ("thing that changes answers a little", "things that change answers a little"),
}
"""Of a finding, worst first: it does not load, or answers differently elsewhere; one and several of them for the headline."""


@dataclass(frozen=True)
class Finding:
    """One fault.

    kind    the row of FAULTS             grade   see GRADES
    where   names of nodes or tensors     what, advice  a sentence each
    """

    kind: str
    what: str
    advice: str
    where: tuple[str, ...] = ()
    grade: Grade = "slow"

    @property
    def severe(self) -> bool:
        """Is the file unusable, or does its answer depend on the CPU?"""
        return self.grade == "fault"


@dataclass(frozen=True)
class Checkup:
    """What was looked at, and the findings: severe ones first.

    quantized  nodes that compute or convert integers     stored  weights that are integers in the file and floats once loaded
    """

    name: str
    quantized: int
    stored: int
    operators: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def severe(self) -> bool:
        """Is there a finding that makes the file unusable or its answers depend on the CPU?"""
        return any(finding.severe for finding in self.findings)

    @property
    def headline(self) -> str:
        """The first line."""
        if not self.quantized and not self.stored:
            return f"{self.name}: nothing in it is quantized"
        if not self.findings:
            if self.quantized:
                return f"{self.name}: no fault found in {self.quantized} quantized nodes"
            return f"{self.name}: no fault found in {self.stored} weights stored as integers; it computes in floats"
        counts = Counter(finding.grade for finding in self.findings)
        told = (f"{counts[grade]} {names[counts[grade] > 1]}" for grade, names in GRADES.items() if counts[grade])
        return f"{self.name}: {', '.join(told)}"

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return json_safe({**dataclasses.asdict(self), "headline": self.headline})  # type: ignore[no-any-return]


# -- the table -----------------------------------------------------------------------------------------------------


def does_not_load(seen: Examined) -> Iterator[Finding]:
    """onnxruntime's own words; an operator without a kernel (ConvInteger with int8 inputs, say) comes out here."""
    graph, reason = seen.loaded
    if graph is None:
        yield Finding(
            "load", reason, "write it again at the opset and with the types that onnxruntime has", (), "fault"
        )


def does_not_run(seen: Examined) -> Iterator[Finding]:
    """What only a run shows: scales a channel where a kernel takes one, say."""
    if seen.stuck:
        yield Finding("run", seen.stuck, "give every activation one scale, and a zero of its type", (), "fault")


def axis_before_13(seen: Examined) -> Iterator[Finding]:
    """Per-channel scales need QuantizeLinear-13."""
    where = [
        node.name or node.output[0]
        for node in seen.given
        if node.op_type in PAIR and seen.opset < 13 and _size(seen, node, 1) > 1
    ]
    if where:
        what = f"{len(where)} nodes have a scale a channel, which opset {seen.opset} does not know"
        yield Finding(
            "opset", what, "raise the model to opset 13 or later before it is quantized", tuple(where), "fault"
        )


def block_before_21(seen: Examined) -> Iterator[Finding]:
    """Blocks, and types below 8 bits, need opset 21."""
    small = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    where = [
        node.name or node.output[0]
        for node in seen.given
        if node.op_type in PAIR
        and seen.opset < 21
        and (
            any(attribute.name == "block_size" for attribute in node.attribute)
            or any(name in seen.constants and seen.constants[name].data_type in small for name in node.input)
        )
    ]
    if where:
        what = f"{len(where)} nodes use blocks or 4 bits, which opset {seen.opset} does not know"
        yield Finding("opset", what, "raise the model to opset 21", tuple(where), "fault")


def bad_scales(seen: Examined) -> Iterator[Finding]:
    """A scale that is zero, negative, infinite or NaN makes everything behind it so."""
    where: dict[str, None] = {}
    for node in seen.given:
        for name in (node.input[index] for index in ON_LEVELS.get(node.op_type, ()) if index < len(node.input)):
            values = seen.values(name)
            scale = values is not None and values.dtype.kind == "f"  # the others are zeros
            if values is not None and scale and not ((values > 0) & np.isfinite(values)).all():
                where[name] = None
    if where:
        what = f"{len(where)} scales are zero, negative or not finite"
        yield Finding("scale", what, "calibrate again, and look at the data for NaN", tuple(where), "fault")


def left_in_float(seen: Examined) -> Iterator[Finding]:
    """Q/DQ pairs that did not fuse: the node runs in float, and its neighbours convert back and forth."""
    found: dict[str, list[onnx.NodeProto]] = {}
    graphs = graphs_of(seen.loaded[0].graph) if seen.loaded[0] is not None else []
    outer = {tensor.name: tensor for tensor in graphs[0].initializer} if graphs else {}
    for graph in graphs:
        for why, these in Executed(graph, outer).in_float().items():
            found.setdefault(why, []).extend(these)
    nodes = [node for each in found.values() for node in each]
    if nodes:
        counts = Counter(node.op_type for node in nodes)
        which = ", ".join(f"{count} {op}" for op, count in counts.most_common())
        worst_first = sorted(found, key=lambda why: -len(found[why]))
        reasons = ", ".join(f"{len(found[why])} {why}" for why in worst_first)
        what = f"{len(nodes)} nodes ({which}) run in float between DequantizeLinear and QuantizeLinear: {reasons}"
        advice = "; ".join(REASONS[why] for why in worst_first)
        yield Finding("unfused", what, advice, tuple(node.name or node.output[0] for node in nodes))


def norms_between(seen: Examined) -> Iterator[Finding]:
    """A BatchNormalization that was not folded before quantizing is computed in float, with a conversion on each side."""
    made = {name: node for node in seen.executed for name in node.output}
    where = [
        node.name or node.output[0]
        for node in seen.executed
        if node.op_type == "BatchNormalization" and _made_by(made, node.input[0]) == "DequantizeLinear"
    ]
    if where:
        what = f"{len(where)} BatchNormalization nodes run in float between quantized layers"
        yield Finding("norm", what, "fold them into their convolutions before quantizing", tuple(where))


def signed_activations(seen: Examined) -> Iterator[Finding]:
    """onnxruntime's fast x86 kernels multiply uint8 by int8; int8 activations are converted, or run several times slower."""
    where = []
    for node in seen.given:
        index = ACTIVATION_ZERO.get(node.op_type, 0)
        zero = seen.constants.get(node.input[index]) if 0 < index < len(node.input) else None
        if zero is not None and zero.data_type == onnx.TensorProto.INT8 and node.input[0] not in seen.constants:
            where.append(node.name or node.output[0])
    if where:
        what = f"{len(where)} activations are int8"
        yield Finding("signed", what, "use uint8 activations with int8 weights on x86", tuple(where))


def convolutions_at_run_time(seen: Examined) -> Iterator[Finding]:
    """ConvInteger finds the grid of its input anew each time, and nothing fuses with it.

    Its time over fp32's, one thread with VNNI, in one process, medians of CPU time: 3x3 on 64 channels and 1x1 on 256, 2.9 to 3.8 with
    int8 weights and .8 to .9 with uint8 ones; depthwise 19 to 21 and 4 to 9. The same convolutions on static grids: .32 to .36 and
    1.1 to 1.6. Before onnxruntime 1.32 the one for int8 weights did not load at all.
    """
    where = [node.name or node.output[0] for node in seen.executed if node.op_type == "ConvInteger"]
    if where:
        told = "no faster than float, with int8 weights 3 times as slow, depthwise 4 to 20 times"
        what = f"{len(where)} convolutions find their grids at run time (ConvInteger): {told}"
        advice = "quantize on calibration data ('onnxcompress quantize --data'), or the weights alone"
        yield Finding("dynamic", what, advice, tuple(where))


PORTABLE_DB = 40.0
"""Signal to what saturation changes, above which two CPUs are said to answer the same."""


def saturating(seen: Examined) -> Iterator[Finding]:
    """Neighbouring products of uint8 and int8 are added in 16 bits on CPUs without VNNI: the same file, another answer.

    Both arithmetics are computed on the data and compared (passes/quantize/walked.py), whatever CPU this is.
    """
    if seen.loaded[0] is None or seen.stuck:
        return
    nodes = [each.node.name or "" for each in products(seen.graph) if can_saturate(each)]
    if not nodes:
        return
    saturated, exact = Simulation(seen.graph), Simulation(seen.graph, saturate=False)
    feeds = list(seen.feeds.batches(1))
    runs = [saturated.run(feed) for feed in feeds]
    share = noise_share([exact.run(feed).outputs for feed in feeds], [each.outputs for each in runs])
    db = sqnr_db(1.0, share)
    hit = {each.node: each.share for run in runs for each in run.saturation if each.share > 0}
    told = f"{len(nodes)} nodes have weights whose products can leave 16 bits without VNNI, {len(hit)} do on this data"
    answer = f"{told}: its answer is {db:.1f} dB from what a CPU with VNNI says" if hit else told
    advice = "write it with weights that cannot saturate ('onnxcompress quantize'), or with 7 bits"
    where = tuple(sorted(hit, key=hit.__getitem__, reverse=True) or nodes)
    yield Finding("portable", answer, advice, where, "fault" if db < PORTABLE_DB else "small")


FAULTS: tuple[Callable[[Examined], Iterator[Finding]], ...] = (
    does_not_load,
    does_not_run,
    axis_before_13,
    block_before_21,
    bad_scales,
    left_in_float,
    norms_between,
    signed_activations,
    convolutions_at_run_time,
    saturating,
)


def check(model: str | Path | bytes | onnx.ModelProto, *, data: Any = None, seed: int = 0) -> Checkup:
    """Look for the faults of FAULTS in a quantized file as it stands. ModelError where it cannot be read.

    data  a few samples on which two CPUs are compared; None: synthetic ones
    """
    proto, source = read(model)
    check_external(proto, source)
    named = (
        text
        for each in graphs_of(proto.graph)
        for node in each.node
        for text in (node.name, node.op_type, *node.input, *node.output)
    )
    if not all(isinstance(text, str) for text in named):
        raise ModelError(f"{source.name}: a name in it is not UTF-8 text: the file is damaged; write it again")
    seen = Examined(proto, source.runnable, source.name, data, seed)
    findings = [finding for row in FAULTS for finding in row(seen)]
    counted = Counter(node.op_type for node in seen.executed)
    quantized = sum(_is_integer(node) for node in [*seen.given, *seen.executed])
    nodes = list(seen.graph.graph.all_nodes())
    stored = sum(held(value) is not None for node in nodes for value in node.outputs)
    stored += sum(table_of(node) is not None for node in nodes if node.op_type.startswith("Gather"))
    worst_first = tuple(sorted(findings, key=lambda each: list(GRADES).index(each.grade)))
    return Checkup(source.name, quantized, stored, dict(counted), worst_first)


def _made_by(made: dict[str, onnx.NodeProto], name: str) -> str:
    return made[name].op_type if name in made else ""


def _size(seen: Examined, node: onnx.NodeProto, index: int) -> int:
    values = seen.values(node.input[index]) if len(node.input) > index else None
    return 1 if values is None else values.size


def _is_integer(node: onnx.NodeProto) -> bool:
    return INTEGER.match(str(node.op_type)) is not None
