"""Every real model: half of the channels cut without data, beside onnxsim; what it costs, and what is frozen.

    python -m benchmarks.coverage [--models NAME ...] [--amount 0.5] [--runs 3]

Both tools get the same file and the same amount, each in a fresh process of its own; ours with round_to=1, so that the
amounts are equal. Time is the median over runs of reading, deciding and cutting: load, plan, apply here; onnx.load,
simplify, apply_structured_pruning there. Neither writes a file within it. Parameters are numbers in floating-point
constants of the files, counted by the same function in both (initializers, Constant nodes, bodies of If and Loop too).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.written import table, write

FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
RESNET = "resnet50 (random weights)"
PATIENCE = 300


def main() -> int:
    """Run all, write results/coverage.md; 1 where a model of ours failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="names of the manifest; all, if left out")
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--worker", nargs=3, metavar=("TOOL", "MODEL", "OUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        tool, model, out = asked.worker
        print(json.dumps(worker(tool, model, out, asked.amount, asked.runs)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(name, path, Path(folder), asked) for name, path in _paths(asked.models, Path(folder))]
    rows.sort(key=lambda one: one["parameters"])
    _report(rows, asked.amount)
    return int(any("error" in one["ours"] for one in rows))


def row(name: str, path: Path, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """One model: parameters of the original, and what each tool did to it."""
    found: dict[str, Any] = {"model": name, "bytes": path.stat().st_size, "parameters": parameters(onnx.load(path))}
    for tool in TOOLS:
        out = folder / f"{tool}.onnx"
        out.unlink(missing_ok=True)
        told = _fresh_process(tool, path, out, asked)
        if "error" not in told:
            told["parameters"] = parameters(onnx.load(out))
            told["answers"] = answers(path, out)
        found[tool] = told
    print(name, {tool: {k: v for k, v in found[tool].items() if k != "frozen"} for tool in TOOLS}, flush=True)
    return found


def _fresh_process(tool: str, path: Path, out: Path, asked: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.coverage", "--amount", str(asked.amount), "--runs", str(asked.runs)]
    try:
        done = subprocess.run(
            [*command, "--worker", tool, str(path), str(out)], capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {PATIENCE} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": f"exit code {done.returncode}: {lines[-1][:160] if lines else 'no message'}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def worker(tool: str, path: str, out: str, amount: float, runs: int) -> dict[str, Any]:
    """In a process of its own: seconds of each run, memory after the first, and the result as a file."""
    start = TOOLS[tool]()
    base = peak_memory()
    times: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        finish = start(path, amount)
        times.append(time.perf_counter() - began)
        if len(times) == 1:
            peak = peak_memory()
    return {"seconds": statistics.median(times), "first": times[0], "peak": peak, "base": base, **finish(out)}


Finish = Callable[[str], dict[str, Any]]


def ours() -> Callable[[str, float], Finish]:
    """Imports first, so that the clock does not see them."""
    from onnxcompress.model import load
    from onnxcompress.model.save import finished, to_bytes
    from onnxcompress.passes import Prune

    def run(path: str, amount: float) -> Finish:
        model = load(path)
        each = Prune(criterion="l2", amount=amount, round_to=1)
        result = each.apply(model, each.plan(model, {}))

        def finish(out: str) -> dict[str, Any]:
            Path(out).write_bytes(to_bytes(finished(result)))
            return freedom(each.channels(model))

        return finish

    return run


def onnxsim() -> Callable[[str, float], Finish]:
    """The peer, as its documentation calls it."""
    import onnxsim as peer

    def run(path: str, amount: float) -> Finish:
        simple = onnx.load(path)
        with contextlib.suppress(
            RuntimeError, onnx.checker.ValidationError
        ):  # two silero files: its pruning alone works
            simple, _ = peer.simplify(simple)
        result = peer.apply_structured_pruning(simple, amount)

        def finish(out: str) -> dict[str, Any]:
            onnx.save(result, out)
            return {"simplified": parameters(simple)}

        return finish

    return run


TOOLS = {"ours": ours, "onnxsim": onnxsim}


def freedom(channels: Any) -> dict[str, Any]:
    """Output channels of all weights: how many may go, how many not, and for those the reasons."""
    free = sum(member.positions.size for group in channels.groups for member in group.members if member.role == "write")
    why: Counter[str] = Counter()
    for frozen in channels.frozen:
        why[frozen.why] += frozen.channels
    return {"free": free, "fixed": sum(why.values()), "groups": len(channels.groups), "frozen": dict(why.most_common())}


def answers(original: Path, result: Path) -> str:
    """'yes' where the result loads in onnxruntime, has the same signature and runs on synthetic input; else why not."""
    from onnxcompress.compare import check_signatures
    from onnxcompress.data import open_data
    from onnxcompress.errors import OnnxCompressError
    from onnxcompress.runtime.session import open_session

    try:
        before, after = open_session(original), open_session(result)
        check_signatures(before, after)
        feeds = next(iter(open_data(None, before.inputs, samples=1, session=before).batches(1)))
        one, two = before.run(feeds), after.run(feeds)
    except OnnxCompressError as error:
        return str(error).replace(str(result.parent) + "/", "")[:160]
    return "yes" if all(np.shape(one[name]) == np.shape(two[name]) for name in one) else "other shapes"


def parameters(model: onnx.ModelProto) -> int:
    """Numbers in floating-point constants of a file."""
    return sum(int(np.prod(tensor.dims)) for tensor in _constants(model.graph) if tensor.data_type in FLOATS)


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            for body in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                yield from _constants(body)


def _paths(names: list[str] | None, folder: Path) -> list[tuple[str, Path]]:
    from sample_models.fetch import fetch, models

    chosen = [(name, fetch(name)) for name in models() if not names or name in names]
    if not names:
        chosen += [("digits", Path(__file__).parents[1] / "sample_models" / "digits.onnx"), (RESNET, resnet(folder))]
    return chosen


def resnet(folder: Path) -> Path:
    """onnx's light_resnet50.onnx with random numbers where it computes constant weights: a full graph of that size."""
    model = onnx.load(Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_resnet50.onnx")
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rng = np.random.default_rng(0)
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape"]:
        values = np.abs(rng.standard_normal(shapes[node.input[0]].tolist())).astype(np.float32) * 0.02
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)
    model.ir_version = 8  # weights need not be inputs any more
    target = folder / "resnet50.onnx"
    onnx.save(model, target)
    return target


def peak_memory() -> int:
    """Largest resident memory so far, bytes. Linux's ru_maxrss starts at the parent's: its own file is asked first."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


CUT = (
    "Structured pruning, amount {amount}, L2, no data; models from smallest to largest. *Smaller*: parameters of the "
    "original / of the result. *Simplify alone*: what onnxsim's simplify takes away before it prunes (it folds "
    "BatchNorms into convolutions; where it fails, the file is pruned as it is). *Answers*: the result loads in "
    "onnxruntime, has the original's signature (names, types, ranks) and runs."
)
CUT_HEADS = ("model", "parameters", "smaller: ours", "onnxsim", "simplify alone", "answers: ours", "onnxsim")


def _report(rows: list[dict[str, Any]], amount: float) -> None:
    parts = [
        CUT.format(amount=amount),
        table(CUT_HEADS, [_cut_row(one) for one in rows]),
        "Seconds (median of the runs); peak resident memory of the process in MB (in brackets: above the imports).",
        table(
            ("model", "MB", "s: ours", "onnxsim", "ours / onnxsim", "MB: ours", "onnxsim", "ratio"),
            [_cost_row(one) for one in rows],
        ),
        "Which output channels of weights are free to go, and why the others are not (share of all channels).",
        table(
            ("model", "channels", "free", "groups", "frozen"), [_free_row(one) for one in rows if "free" in one["ours"]]
        ),
        *_failures(rows),
    ]
    write("coverage", "Real models: what can be cut, and what cutting costs", parts, {"amount": amount, "rows": rows})


def _cut_row(one: dict[str, Any]) -> list[str]:
    smaller = [f"{one['parameters'] / one[t]['parameters']:.2f}" if "parameters" in one[t] else "failed" for t in TOOLS]
    simple = _times(one["parameters"], one["onnxsim"].get("simplified"))
    return [
        one["model"],
        f"{one['parameters']:,}",
        *smaller,
        simple,
        *(one[tool].get("answers", "failed") for tool in TOOLS),
    ]


def _cost_row(one: dict[str, Any]) -> list[str]:
    seconds = [one[tool].get("seconds") for tool in TOOLS]
    peaks = [one[tool].get("peak") for tool in TOOLS]
    memory = [
        f"{p / 1e6:.0f} ({(p - one[t]['base']) / 1e6:.0f})" if p else "failed"
        for p, t in zip(peaks, TOOLS, strict=True)
    ]
    shown = [f"{value:.3f}" if value else "failed" for value in seconds]
    return [one["model"], f"{one['bytes'] / 1e6:.1f}", *shown, _times(*seconds), *memory, _times(*peaks)]


def _times(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}" if a and b else "-"


def _free_row(one: dict[str, Any]) -> list[str]:
    told = one["ours"]
    total = told["free"] + told["fixed"]
    why = "; ".join(f"{count / total:.0%} {reason}" for reason, count in list(told["frozen"].items())[:4])
    return [one["model"], f"{total:,}", f"{told['free'] / total:.0%}", str(told["groups"]), why]


def _failures(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"- {one['model']}, {tool}: {one[tool]['error']}" for one in rows for tool in TOOLS if "error" in one[tool]
    ]
    return ["Failures:", "\n".join(lines)] if lines else []


if __name__ == "__main__":
    sys.exit(main())
