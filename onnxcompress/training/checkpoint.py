"""The state of a training after an epoch, in one .npz that appears whole or not at all."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.errors import SettingError
from onnxcompress.files import write_atomic

FORMAT = 3
"""Of the file; part of the key, so that a file of another one is refused."""


@dataclass
class Best:
    """Weights and running statistics of an epoch (0: before the first), whether they are an average, and how they stand."""

    weights: np.ndarray
    running: dict[str, np.ndarray]
    epoch: int
    averaged: bool
    standing: tuple[float, float]


@dataclass
class State:
    """All that the next epoch depends on, beside the data and the settings.

    weights   [n] float32          average    of weights, where one is kept
    moments   of the optimizer     running    statistics of BatchNormalization, by initializer
    epoch     how many are done    step       updates done        curve  a row an epoch, for the report
    best      of all states the one that a judge prefers, None without a judge
    first     how the student stood before
    rate      that trials have found, and what they told; None where it was given
    again     how often it was lowered, and the training begun anew
    """

    weights: np.ndarray
    average: np.ndarray | None = None
    moments: dict[str, np.ndarray] = field(default_factory=dict)
    running: dict[str, np.ndarray] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: Best | None = None
    first: tuple[float, float] | None = None
    rate: tuple[float, str] | None = None
    again: int = 0


def save_state(path: str | Path, state: State, key: str) -> None:
    """Write it; `key` names models, data and settings."""
    arrays = {"weights": state.weights, **_prefixed("moments", state.moments), **_prefixed("running", state.running)}
    if state.average is not None:
        arrays["average"] = state.average
    facts: dict[str, Any] = {"key": key, "epoch": state.epoch, "step": state.step, "curve": state.curve}
    facts |= {"rate": state.rate, "again": state.again}
    if state.best is not None:
        arrays |= {"best": state.best.weights, **_prefixed("best-running", state.best.running)}
        facts["best"] = [state.best.epoch, state.best.averaged, state.best.standing, state.first]
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def load_state(path: str | Path, key: str) -> State | None:
    """The state in a file; None where there is none yet. SettingError where it is damaged, or of another training."""
    if not Path(path).exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        weights = arrays.pop("weights")
        found, epoch, step, curve = (facts[name] for name in ("key", "epoch", "step", "curve"))
        (best, first), rate, again = _best_of(facts, arrays), facts["rate"], int(facts["again"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SettingError(f"{path}: not a checkpoint of this tool ({error}); delete it to begin anew") from error
    if found != key:
        raise SettingError(f"{path}: the checkpoint is of other models, data or settings; delete it to begin anew")
    average = arrays.pop("average", None)
    return State(
        weights, average, _own("moments", arrays), _own("running", arrays), epoch, step, curve, best, first,
        None if rate is None else tuple(rate), again,
    )  # fmt: skip


def _best_of(facts: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> tuple[Best | None, tuple[float, float] | None]:
    """The best state, and how the student stood before."""
    if "best" not in facts:
        return None, None
    epoch, averaged, standing, first = facts["best"]
    best = Best(arrays.pop("best"), _own("best-running", arrays), epoch, averaged, tuple(standing))
    return best, tuple(first)


def _prefixed(what: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{what}/{name}": array for name, array in arrays.items()}


def _own(what: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{what}/"): array for name, array in arrays.items() if name.startswith(f"{what}/")}
