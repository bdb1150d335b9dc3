"""Weights that stay as they are: those that a user protects, by name or pattern, and those at the ends of the model."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

import onnx_ir as ir

from onnxcompress.errors import SettingError, nearest
from onnxcompress.model import Model
from onnxcompress.model.edit import walk
from onnxcompress.operators.layer import Layer


def protected(patterns: Sequence[str], names: Collection[str], what: str) -> set[str]:
    """Those of `names` that a pattern matches; SettingError for a pattern that matches none, with the nearest name.

    what  the names in words, for the message
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            raise SettingError(f"--keep {pattern!r} matches no {what}; {nearest(pattern, names)}")
        found |= matched
    return found


def ends(model: Model, weighted: Sequence[Layer]) -> set[str]:
    """Names of the layers among `weighted` that no other one feeds, and of those that feed no other: the first and the last."""
    names = {layer.name for layer in weighted}
    nodes = list(walk(model.ir))
    fed = _reached(nodes, names, forward=True)
    feeding = _reached(nodes[::-1], names, forward=False)
    return {name for name in names if name not in fed or name not in feeding}


def _reached(nodes: Sequence[ir.Node], names: Collection[str], *, forward: bool) -> set[str]:
    """Those of `names` before which (behind which, going backward) another one stands."""
    behind: set[ir.Value] = set()
    found: set[str] = set()
    for node in nodes:
        reads = {value for value in (node.inputs if forward else node.outputs) if value is not None}
        if reads & behind:
            found.add(node.name or "")
        if node.name in names or reads & behind:
            behind.update(value for value in (node.outputs if forward else node.inputs) if value is not None)
    return found & set(names)
