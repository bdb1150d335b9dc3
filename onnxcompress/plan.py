"""A Plan is what a pass decided, as data: it can be read, saved, shown, replayed on the same model, and refused by another."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.errors import ModelError
from onnxcompress.files import write_atomic

FORMAT = 1


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
