"""Nobody waits for what their verb does not need: which modules are there after a command, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LATE = (
    *("jinja2", "matplotlib", "PIL", "onnxsim", "onnx.reference", "scipy.optimize", "onnxcompress.training.graph"),
    *(f"onnxcompress.passes.{name}" for name in ("factorize.factorize", "cluster.cluster", "prune.prune")),
)
NOTHING = ("numpy", "onnx", "onnxruntime", "pydantic", "scipy", "sympy")
QUANTIZE = [
    "quantize",
    "sample_models/digits.onnx",
    "--dry-run",
    "--rounding",
    "nearest",
    "--no-measure",
    "--limit",
    "8",
]


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        ("import onnxcompress; onnxcompress.__version__", (*NOTHING, "typer", *LATE)),
        ("from onnxcompress.cli.app import _run; assert _run(['--help']) == 0", (*NOTHING, *LATE)),
        (f"from onnxcompress.cli.app import _run; assert _run({QUANTIZE}) == 0", LATE),
    ],
    ids=["import", "help", "quantize"],
)
def test_heavy_modules_wait(command: str, absent: tuple[str, ...]) -> None:
    shown = "import sys; print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{command}; {shown}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there = set(done.stderr.split())
    assert not there & set(absent)
    assert "onnxcompress" in there
