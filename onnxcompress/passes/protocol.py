"""What a pass is: frozen settings, and pure functions from a model to a plan and from a plan to a model."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.plan import Plan


class Pass(Protocol):
    """A key of PASSES names it; its fields are its settings: they become CLI options, recipe keys, limits and documentation."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def needs(self, model: Model) -> list[Need]:
        """What it wants to know about this model."""
        ...

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Decide; touch nothing."""
        ...

    def apply(self, model: Model, plan: Plan) -> Model:
        """Rewrite as decided; decide nothing."""
        ...
