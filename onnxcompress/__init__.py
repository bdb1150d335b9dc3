"""Compress any exported ONNX model, and see on onnxruntime what it costs.

    import onnxcompress
    result = onnxcompress.prune("model.onnx", data="calibration.npz", amount=0.5)
    print(result.report.headline)
    result.save("small.onnx")

A model is a path, bytes, an onnx.ModelProto, an onnx_ir.Model or a Model. What stands here is imported at first use.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcompress.checkup import Checkup, check
    from onnxcompress.errors import BudgetError, DataError, ModelError, OnnxCompressError, SettingError
    from onnxcompress.inspection import Inspection, inspect
    from onnxcompress.judging import Benchmark, benchmark, compare
    from onnxcompress.model import Model, load, save
    from onnxcompress.packing import Packing, load_packed, pack, unpack
    from onnxcompress.plan import Plan
    from onnxcompress.result import Report, Result
    from onnxcompress.verbs import apply, binarize, cluster, distill, factorize, merge, prune, quantize, sparsify

from onnxcompress.lazy import handed_out

HOMES = {
    "checkup": ("Checkup", "check"),
    "errors": ("BudgetError", "DataError", "ModelError", "OnnxCompressError", "SettingError"),
    "inspection": ("Inspection", "inspect"),
    "judging": ("Benchmark", "benchmark", "compare"),
    "model": ("Model", "load", "save"),
    "packing": ("Packing", "load_packed", "pack", "unpack"),
    "plan": ("Plan",),
    "result": ("Report", "Result"),
    "verbs": ("apply", "binarize", "cluster", "distill", "factorize", "merge", "prune", "quantize", "sparsify"),
}
"""Module -> the public names that live in it."""

HOME_OF = {name: home for home, names in HOMES.items() for name in names}

__all__ = [
    "Benchmark",
    "BudgetError",
    "Checkup",
    "DataError",
    "Inspection",
    "Model",
    "ModelError",
    "OnnxCompressError",
    "Packing",
    "Plan",
    "Report",
    "Result",
    "SettingError",
    "__version__",
    "apply",
    "benchmark",
    "binarize",
    "check",
    "cluster",
    "compare",
    "distill",
    "factorize",
    "inspect",
    "load",
    "load_packed",
    "merge",
    "pack",
    "prune",
    "quantize",
    "save",
    "sparsify",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    return _handed_out(name)


_handed_out = handed_out(__name__, HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("onnxcompress")
    except metadata.PackageNotFoundError:  # run from a folder that is not installed
        return "0.0.0"


class _Package(ModuleType):
    """`compare` is a function here and also a module below: importing the module must not hide the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
