"""Where onnxruntime-training lies, how it gets there, and how it is asked.

Its package has the name of the stock one, so that both cannot be in one environment: it is put into a folder of its own, and only
the worker process looks there.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from onnxcompress.errors import ModelError, SettingError
from onnxcompress.files import cache_folder

PACKAGE, VERSION = "onnxruntime-training-cpu", "1.19.2"
PYTHONS = ((3, 8), (3, 12))
"""First and last Python that it has wheels for."""

OPSETS, IR_VERSION = (14, 21), 10
"""What it reads."""

PATIENCE = 600
"""Seconds that the worker may take. 0.4 to 0.6 s were measured, with start-up, for models of 50 to 900 nodes."""

WORKER = Path(__file__).with_name("worker.py")
LONGEST = 200


def folder_of(named: str | Path | None = None) -> Path:
    """The folder that is named, or the usual one for this Python, in the cache folder."""
    if named is not None:
        return Path(named).expanduser()
    return cache_folder() / f"{PACKAGE}-{VERSION}-cp{sys.version_info[0]}{sys.version_info[1]}"


def is_set_up(folder: Path) -> bool:
    """Does the package lie there?"""
    return (folder / "onnxruntime" / "capi" / "_pybind_state.py").is_file()


def set_up(folder: Path, wheel: str | Path | None = None) -> Path:
    """Install the pinned version there and try it on a tiny graph; nothing is left behind where that fails.

    wheel  a file to install without any network; None: pip finds it
    SettingError where there is no wheel for this Python, pip fails, or what was installed does not work.
    """
    if wheel is not None and not Path(wheel).is_file():
        raise SettingError(f"{wheel}: there is no such file; give the .whl of {PACKAGE} {VERSION}")
    first, last = PYTHONS
    if not first <= sys.version_info[:2] <= last:
        raise SettingError(
            f"{PACKAGE} {VERSION} has wheels for Python {first[0]}.{first[1]} to {last[0]}.{last[1]} only, and this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}; go on with --gradients own, which needs none"
        )
    if folder.exists() and not (is_set_up(folder) or _empty(folder)):
        raise SettingError(f"{folder}: is there and is something else; name another --dir")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            made = Path(scratch) / "made"
            _install(made, wheel)
            _try(made)
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
    except OSError as error:
        raise SettingError(f"{folder}: cannot be written ({error.strerror or error}); name another --dir") from error
    return folder


def _empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _install(folder: Path, wheel: str | Path | None) -> None:
    what = [f"{PACKAGE}=={VERSION}"] if wheel is None else ["--no-index", str(Path(wheel).resolve())]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--target", str(folder), *what], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SettingError(f"pip does not install {what[-1]}: {_last_line(done.stderr)}; give a file with --wheel")
    found = [each.name for each in folder.glob("onnxruntime_training*-*.dist-info")]
    if not any(VERSION in name for name in found):
        raise SettingError(f"{what[-1]}: is not {PACKAGE} {VERSION}, which this version works with; give that wheel")


def _try(folder: Path) -> None:
    """The gradient of sum(tanh x)."""
    nodes = [helper.make_node("Tanh", ["x"], ["y"]), helper.make_node("ReduceSum", ["y"], ["l"], keepdims=0)]
    x, loss = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [2]), ("l", [])))
    model = helper.make_model(helper.make_graph(nodes, "try", [x], [loss]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = IR_VERSION
    try:
        made = ask(folder, model, "l", ["x"])
    except ModelError as error:
        raise SettingError(f"{PACKAGE} {VERSION} is installed, but does not work: {error}") from error
    if "x_grad" not in {value.name for value in made.graph.output}:
        raise SettingError(f"{PACKAGE} {VERSION} is installed, but gives no gradient; install it again")


def ask(folder: Path, model: onnx.ModelProto, loss: str, by: Sequence[str]) -> onnx.ModelProto:
    """The gradient graph of the loss by these values. ModelError where the builder refuses, or its process dies."""
    request = json.dumps({"loss": loss, "by": list(by)}).encode() + b"\n" + model.SerializeToString()
    command = [sys.executable, "-I", str(WORKER), str(folder)]
    try:
        done = subprocess.run(command, input=request, capture_output=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"onnxruntime-training gave no answer in {PATIENCE} s; choose --gradients own") from error
    if done.returncode < 0:
        raise ModelError(
            f"onnxruntime-training's process was killed (signal {-done.returncode}); choose --gradients own"
        )
    if done.returncode:
        raise ModelError(
            f"onnxruntime-training: {_reason(done.stderr.decode(errors='replace'))}; choose --gradients own"
        )
    return onnx.load_model_from_string(done.stdout)


def _reason(text: str) -> str:
    """What the builder's message says, without C++ signatures."""
    missing = re.search(r"has not been registered: (\S+) for node (\S*)", text)
    if missing is not None:
        return f"its builder has no gradient for {missing[1]} {missing[2]!r}"
    return _last_line(text)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-LONGEST:] if lines else "no reason is given"
