"""Tools that make int8 files, each run in a fresh process of its own (NNCF in an environment of its own).

    python -m benchmarks.quantize_peers TOOL MODEL.onnx FEEDS.npz OUT.onnx     prints seconds and memory as JSON
    python -m benchmarks.quantize_peers --answers MODEL.onnx FEEDS.npz OUT.npz what the file answers on this CPU

Nothing of this project is imported unless TOOL is ours. FEEDS holds one array an input and sample, named
"<sample>/<input>". The clock covers reading, calibrating, deciding and writing, not imports, and not the preparation
that the row names.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Feeds = list[dict[str, np.ndarray]]
Work = Callable[[str, Feeds, str], str]
"""(model, feeds, out) -> a note; writes the file."""


@dataclass(frozen=True)
class Tool:
    """start      imports, and returns the work that is timed
    package    whose version the page names
    raised     gets the file at opset 17 (onnx.version_converter) where it is older, else the file as given
    nncf       runs in the interpreter of --nncf-python, and gets what onnxruntime's pre-processing makes of the file
               for nothing (it folds no BatchNormalization itself)
    """

    start: Callable[..., Work]
    package: str
    raised: bool = True
    nncf: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def static(method: str, reduce_range: bool = False) -> Work:
    """onnxruntime's quantize_static after its own pre-processing: QDQ, uint8 activations, int8 weights a channel."""
    from onnxruntime import quantization as peer

    import_late("onnxruntime.tools.symbolic_shape_infer")

    class Reader(peer.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: Feeds) -> None:
            self.left: Iterator[dict[str, np.ndarray]] = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    def work(model: str, feeds: Feeds, out: str) -> str:
        prepared, note = pre_processed(model, out + ".prepared.onnx")
        peer.quantize_static(
            prepared,
            out,
            Reader(feeds),
            quant_format=peer.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=peer.QuantType.QUInt8,
            weight_type=peer.QuantType.QInt8,
            calibrate_method=getattr(peer.CalibrationMethod, method),
        )
        return note

    return work


QUANTIZING = ("equalize", "fold", "quantize", "weights_only", "write")


def import_late(*names: str) -> None:
    """What the work would import where it is first used: imports are not on anybody's clock."""
    for name in names:
        import_module(name)


def pre_processed(model: str, out: str, symbolic: bool = True) -> tuple[str, str]:
    """onnxruntime's quant_pre_process; where its symbolic shape inference fails, without that. Path and note."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    note = ""
    try:
        quant_pre_process(model, out, skip_symbolic_shape=not symbolic)
    except Exception as error:  # it raises bare Exception, among others
        if not symbolic:
            raise
        note = f"pre-processed without symbolic shapes ({type(error).__name__} {one_line(error, 60)})".replace(
            " )", ")"
        )
        quant_pre_process(model, out, skip_symbolic_shape=True)
    return out, note


def dynamic() -> Work:
    """onnxruntime's quantize_dynamic, MatMul, Gemm and LSTM: ConvInteger has no kernel for int8 weights."""
    from onnxruntime import quantization as peer

    def work(model: str, _: Feeds, out: str) -> str:
        prepared, note = pre_processed(model, out + ".prepared.onnx")
        peer.quantize_dynamic(
            prepared, out, op_types_to_quantize=["MatMul", "Gemm", "LSTM", "Attention"], per_channel=True
        )
        return note

    return work


def nncf(preset: str) -> Work:
    """nncf.quantize; where a Softmax feeds a MatMul it is told that this is a transformer."""
    peer = import_module("nncf")

    def work(model: str, feeds: Feeds, out: str) -> str:
        proto = onnx.load(model)
        kind = peer.ModelType.TRANSFORMER if attends(proto.graph) else None
        chosen = peer.QuantizationPreset(preset)
        result = peer.quantize(proto, peer.Dataset(feeds), preset=chosen, subset_size=len(feeds), model_type=kind)
        onnx.save(result, out)
        return "as a transformer" if kind else ""

    return work


def attends(graph: onnx.GraphProto) -> bool:
    """Whether a Softmax feeds a MatMul."""
    shares = {node.output[0] for node in graph.node if node.op_type == "Softmax"}
    return any(node.op_type == "MatMul" and shares & set(node.input) for node in graph.node)


def onnxsim(full_graph: bool) -> Work:
    """onnxsim's simplify, then its quantize_static."""
    peer = import_module("onnxsim")

    def work(model: str, feeds: Feeds, out: str) -> str:
        simple, _ = peer.simplify(onnx.load(model))
        onnx.save(peer.quantize_static(simple, calibration_data=feeds, full_graph=full_graph), out)
        return ""

    return work


def ours(**settings: Any) -> Work:
    """onnxcompress.quantize: a quarter of the calibration samples is held out by it, and it compares on them."""
    peer = import_module("onnxcompress.verbs")
    import_late("onnxsim", "onnxcompress.mixed", *(f"onnxcompress.passes.quantize.{name}" for name in QUANTIZING))

    def work(model: str, feeds: Feeds, out: str) -> str:
        peer.quantize(model, data=feeds, **settings).save(out)
        return ""

    return work


def written(calibration: str) -> Work:
    """Read, calibrate on all samples, write: no equalization, no clock, no comparison."""
    run, passes = import_module("onnxcompress.run"), import_module("onnxcompress.passes")
    import_late("onnxsim", *(f"onnxcompress.passes.quantize.{name}" for name in QUANTIZING))
    model_of, memory = import_module("onnxcompress.model"), import_module("onnxcompress.runtime.memory")
    filed = import_module("onnxcompress.weights.filed")

    def work(model: str, feeds: Feeds, out: str) -> str:
        with memory.spared():
            model_of.save(carried_out(model, feeds), out)
        return ""

    def carried_out(model: str, feeds: Feeds) -> Any:
        original = current = run.read(model)
        data, how = run.opened(original, feeds, run.How()), run.How()
        quantizer = passes.Quantize(calibration=calibration, rounding="nearest", measure=False)
        for each in (passes.Fold(), quantizer):
            plan = each.plan(current, run.evidence_for(each, original, current, data, how))
            current = each.apply(current, plan)
            filed.let_go_of_all(original.ir, current.ir)
            gc.collect()
            memory.give_back()
        return current

    return work


def _static(method: str, reduce_range: bool = False, raised: bool = True) -> Tool:
    return Tool(static, "onnxruntime", raised, settings={"method": method, "reduce_range": reduce_range})


TOOLS: dict[str, Tool] = {
    "onnxruntime, as given": _static("MinMax", raised=False),
    "onnxruntime, minmax": _static("MinMax"),
    "onnxruntime, minmax, 7 bits": _static("MinMax", reduce_range=True),
    "onnxruntime, entropy": _static("Entropy"),
    "onnxruntime, entropy, 7 bits": _static("Entropy", reduce_range=True),
    "onnxruntime, percentile": _static("Percentile"),
    "onnxruntime, percentile, 7 bits": _static("Percentile", reduce_range=True),
    "onnxruntime, dynamic": Tool(dynamic, "onnxruntime"),
    "NNCF, performance": Tool(nncf, "nncf", nncf=True, settings={"preset": "performance"}),
    "NNCF, mixed": Tool(nncf, "nncf", nncf=True, settings={"preset": "mixed"}),
    "onnxsim, static": Tool(onnxsim, "onnxsim", settings={"full_graph": False}),
    "onnxsim, whole graph": Tool(onnxsim, "onnxsim", settings={"full_graph": True}),
    "ours": Tool(ours, "onnxcompress", raised=False),
    "ours, quick": Tool(ours, "onnxcompress", raised=False, settings={"rounding": "nearest", "measure": False}),
    "ours, cpu vnni": Tool(ours, "onnxcompress", raised=False, settings={"cpu": "vnni"}),
}


COSTED: dict[str, Tool] = {}
"""What quantize_cost.py weighs: the same methods on both sides, with nothing else and as the verb does it."""
for _theirs, _own in (("MinMax", "minmax"), ("Percentile", "percentile"), ("Entropy", "entropy")):
    _plain = {"calibration": _own, "rounding": "nearest", "measure": False}
    COSTED[f"quantize_static, {_theirs}"] = _static(_theirs)
    COSTED[f"ours, {_theirs}"] = Tool(written, "onnxcompress", raised=False, settings={"calibration": _own})
    COSTED[f"ours, all, {_theirs}"] = Tool(ours, "onnxcompress", raised=False, settings=_plain)


def main(tool: str, model: str, feeds: str, out: str) -> int:
    """One tool on one model, or what one file answers."""
    samples = read_feeds(feeds)
    if tool == "--answers":
        return answers(model, samples, out)
    chosen = {**TOOLS, **COSTED}[tool]
    work = chosen.start(**chosen.settings)
    if chosen.nncf:
        with contextlib.suppress(Exception):  # where it fails, the file as it is
            model, _ = pre_processed(model, out + ".prepared.onnx", symbolic=False)
    base = peak()
    began, used = time.perf_counter(), cpu_seconds()
    try:
        note = work(model, samples, out)
    except Exception as error:  # whatever a tool raises is its row
        print(f"{type(error).__name__}: {one_line(error)}", file=sys.stderr)
        return 1
    told = {
        "seconds": time.perf_counter() - began,
        "cpu": cpu_seconds() - used,
        "peak": peak(),
        "base": base,
        "note": note,
    }
    print(json.dumps({**told, "version": _version(chosen.package)}))
    return 0


def answers(model: str, samples: Feeds, out: str) -> int:
    """All outputs of all samples, in stock onnxruntime with one thread, as "<sample>/<output>"."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    found = {
        f"{i}/{name}": y
        for i, fed in enumerate(samples)
        for name, y in zip(names, session.run(names, fed), strict=True)
    }
    np.savez(out, allow_pickle=False, **found)
    return 0


def write_feeds(path: Path, feeds: Feeds) -> None:
    """As `read_feeds` takes them."""
    np.savez(path, allow_pickle=False, **{f"{i}/{name}": x for i, feed in enumerate(feeds) for name, x in feed.items()})


def read_feeds(path: str | Path) -> Feeds:
    """One dict a sample."""
    feeds: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            sample, _, name = key.partition("/")
            feeds.setdefault(int(sample), {})[name] = arrays[key]
    return [feeds[sample] for sample in sorted(feeds)]


def one_line(error: BaseException, longest: int = 240) -> str:
    """An error's text without line breaks, cut."""
    text = " ".join(str(error).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def children() -> list[int]:
    """Processes that this one started and has not waited for, those that ended among them. Only Linux tells."""
    return [int(pid) for listed in Path("/proc/self/task").glob("*/children") for pid in listed.read_text().split()]


def cpu_seconds() -> float:
    """Of this process and of those that it started: waited for or not, running or ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used) + sum(map(_ticks, children())) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    """User and system time of a process and of those that it waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
    return sum(map(int, fields[11:15]))


def peak() -> int:
    """Largest resident memory so far, bytes, and what running children hold beside it: see `private`.

    The two largest may not have been at one time: with children this is a bound from above. Children that have ended are
    not in it.
    """
    return _own_peak() + sum(map(private, children()))


def private(pid: int) -> int:
    """Bytes that a process shares with no other, and what it has given back since its largest; 0 of one that has ended."""
    try:
        now = _kilobytes(f"/proc/{pid}/smaps_rollup")
        largest = _kilobytes(f"/proc/{pid}/status")["VmHWM"]
    except (OSError, KeyError):
        return 0
    alone = sum(size for name, size in now.items() if name.startswith("Private_"))
    return (alone + max(0, largest - now["Rss"])) * 1024


def _own_peak() -> int:
    """Linux's ru_maxrss starts at the parent's: its own file is asked first."""
    if Path("/proc/self/status").exists():
        return _kilobytes("/proc/self/status")["VmHWM"] * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _kilobytes(path: str) -> dict[str, int]:
    """The lines "name: number kB" of a file of /proc."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:  # run from a folder that is not installed
        return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
