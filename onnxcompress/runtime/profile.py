"""Where a model's time goes, node by node, by onnxruntime's own profiler."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcompress.runtime.session import Feeds, open_session

KERNEL = "_kernel_time"  # how the profiler ends the name of the event that spans one node


Key = tuple[str, str]
"""Operator, node."""


@dataclass(frozen=True)
class NodeTime:
    """One row: microseconds of one run spent in this node itself, its share of all nodes (0 to 1), the type that it puts out.

    The nodes are those that onnxruntime executes after its own optimisation (a fused Conv and Relu is one node). The
    time of If, Loop and Scan is without what their bodies take: the nodes of the bodies have rows of their own.
    """

    op_type: str
    node: str
    share: float
    microseconds: float
    type: str = ""


def profile(model: bytes | str | os.PathLike[str], feeds: Feeds, *, threads: int = 1, runs: int = 10) -> list[NodeTime]:
    """Time per node, mean over `runs` after one run that is left out; the slowest first. Errors as for `measure`."""
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
        session = open_session(model, threads=threads, profile=Path(folder) / "profile")
        for _ in range(1 + runs):
            session.run(feeds)
        events = json.loads(session.end_profiling().read_text())
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    first = starts[1] if len(starts) > 1 else 0
    nodes = [event for event in events if _is_node(event) and event["ts"] >= first]
    return rows(own_times(nodes), runs, {_key(event): _type(event) for event in nodes})


def own_times(events: Iterable[Mapping[str, Any]]) -> dict[Key, float]:
    """Microseconds by (op type, node name): of each event, what no event nested inside it takes."""
    total: dict[Key, float] = defaultdict(float)
    around: list[tuple[float, Key]] = []  # (end, key) of the events that are still open
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        key = _key(event)
        while around and around[-1][0] <= event["ts"]:
            around.pop()
        if around:
            total[around[-1][1]] -= event["dur"]
        total[key] += event["dur"]
        around.append((event["ts"] + event["dur"], key))
    return dict(total)


def rows(times: Mapping[Key, float], runs: int, types: Mapping[Key, str] | None = None) -> list[NodeTime]:
    """The table of `own_times` summed over `runs`: slowest first, equal ones by name."""
    whole, known = sum(times.values()) or 1.0, types or {}
    table = [NodeTime(*key, spent / whole, spent / runs, known.get(key, "")) for key, spent in times.items()]
    return sorted(table, key=lambda row: (-row.microseconds, row.node))


def _key(event: Mapping[str, Any]) -> Key:
    return event["args"].get("op_name", ""), event["name"].removesuffix(KERNEL)


def _type(event: Mapping[str, Any]) -> str:
    """Of the first output, in onnxruntime's words: float, uint8, ..."""
    return next((name for output in event["args"].get("output_type_shape", ()) for name in output), "")


def _is_node(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and event["name"].endswith(KERNEL)
