"""Fold: the same function with as little beside products as can be, before numbers are rounded (see folding.py)."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.passes.quantize.folding import folded
from onnxcompress.plan import Plan


@dataclass(frozen=True)
class Fold:
    """Norms, scales and shifts into the products before them; operators without an integer kernel into those that have one."""

    name: ClassVar[str] = "fold"

    def needs(self, model: Model) -> list[Need]:
        """Nothing."""
        return []

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """There is nothing to decide."""
        return Plan(self.name, {}, model.fingerprint)

    def apply(self, model: Model, plan: Plan) -> Model:
        """Fold what can be folded."""
        plan.check_fits(model.fingerprint)
        return folded(model)
