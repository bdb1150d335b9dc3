"""A Plan is what a pass decided, as data: it can be read, saved, shown, replayed on the same model, and refused by another."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.errors import ModelError
from onnxcompress.files import write_atomic_together


@dataclass(frozen=True)
class Refusal:
    """Something that was not done, and why: a frozen axis, a layer left as it was."""

    where: str
    why: str
    by: str = ""


@dataclass(frozen=True)
class Plan:
    """The decisions of one pass about one model.

    method       key of the pass in PASSES
    settings     the fields of the pass, as JSON values
    fingerprint  of the model that the decisions are about
    decisions    one JSON object each, in the order of the graph
    arrays       what is too large for JSON; saved beside it as .npz
    refusals     what was declined and why
    notes        short sentences for the report
    """

    method: str
    settings: dict[str, Any]
    fingerprint: str
    decisions: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check_fits(self, fingerprint: str) -> None:
        """Raise ModelError unless this plan was made for the model with that fingerprint."""
        if fingerprint != self.fingerprint:
            raise ModelError(
                f"this {self.method} plan was made for another model (plan {self.fingerprint[:12]}, "
                f"model {fingerprint[:12]}); make a new plan with --dry-run --save-plan"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON value of everything but the arrays."""
        return {
            "method": self.method,
            "settings": self.settings,
            "fingerprint": self.fingerprint,
            "decisions": self.decisions,
            "arrays": sorted(self.arrays),
            "refusals": [vars(refusal) for refusal in self.refusals],
            "notes": self.notes,
        }

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; arrays go to `<name>.npz` beside it, both files or neither."""
        target = Path(path)
        files: dict[str | Path, bytes] = {target: json.dumps(self.to_json(), indent=2).encode()}
        if self.arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **self.arrays)  # type: ignore[arg-type]
            files[target.with_suffix(".npz")] = buffer.getvalue()
        write_atomic_together(files)  # type: ignore[arg-type]


def load_plan(path: str | Path) -> Plan:
    """Read a saved plan; ModelError, in one line, for a file that is not one."""
    target = Path(path)
    try:
        data = json.loads(target.read_text())
        names = data["arrays"]
        with np.load(target.with_suffix(".npz"), allow_pickle=False) if names else contextlib.nullcontext({}) as stored:
            arrays = {name: stored[name] for name in names}
        return Plan(
            method=str(data["method"]),
            settings=dict(data["settings"]),
            fingerprint=str(data["fingerprint"]),
            decisions=list(data["decisions"]),
            arrays=arrays,
            refusals=[Refusal(**refusal) for refusal in data["refusals"]],
            notes=list(data["notes"]),
        )
    except OSError as error:
        raise ModelError(f"{path}: the plan cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: not a plan of this tool ({type(error).__name__}: {error}); make one with --save-plan"
        ) from error
