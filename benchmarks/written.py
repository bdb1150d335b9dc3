"""Result files: a Markdown page with the command, versions, date and CPU on top, and the same rows as JSON."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onnxcompress.runtime.cpu import cpu

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("onnxruntime", "onnx", "onnx-ir", "onnxsim", "numpy", "scipy")


def conditions() -> dict[str, str]:
    """What the figures depend on: command, date, CPU with its instruction sets, versions."""
    script = Path(sys.argv[0]).stem
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{script}", *map(_without_folder, sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
        "cpu": str(cpu()),
        "versions": ", ".join(
            f"{name} {number}" for name, number in {"python": sys.version.split()[0], **versions}.items()
        ),
    }


def _without_folder(argument: str) -> str:
    """Where a file lies on this machine is nobody's business."""
    return Path(argument).name if argument.startswith("/") else argument


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers are to be formatted already."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def write(name: str, title: str, parts: Sequence[str], facts: Mapping[str, Any]) -> None:
    """results/<name>.md out of title, conditions and parts (paragraphs, tables); <name>.json out of the facts."""
    RESULTS.mkdir(exist_ok=True)
    top = conditions()
    head = f"# {title}\n\n`{top['command']}`, {top['date']}  \nCPU: {top['cpu']}  \nVersions: {top['versions']}"
    (RESULTS / f"{name}.md").write_text("\n\n".join([head, *parts]) + "\n")
    (RESULTS / f"{name}.json").write_text(json.dumps({**top, **facts}, indent=1) + "\n")
