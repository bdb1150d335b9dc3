"""What a run gives back: the model, the plans, and the comparison; and the same as a Report that renderers read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxcompress.budgets import Verdict
from onnxcompress.compare import Comparison, json_safe
from onnxcompress.errors import OnnxCompressError
from onnxcompress.files import check_output, write_atomic
from onnxcompress.model import Model, save
from onnxcompress.operators.cost import Cost
from onnxcompress.plan import Plan


@dataclass(frozen=True)
class Report:
    """One run in data: everything that a renderer shows, nothing computed later.

    headline    the first line: does the result still answer like the original?
    grade       0 like the original, 1 slightly different, 2 no longer; None without a comparison
    model       name of the source
    costs       cost name -> (original, result); None where unknown. Names: bytes, parameters, macs
    comparison  as Comparison.to_json gives it; None for a dry run
    verdicts    budgets beside what was found
    plans       as Plan.to_json gives them
    notes       sentences: what the door, the data and the passes saw
    seconds     step -> seconds
    """

    headline: str
    grade: int | None
    model: str
    costs: Mapping[str, tuple[float | None, float | None]]
    comparison: Mapping[str, Any] | None
    verdicts: tuple[Mapping[str, Any], ...]
    plans: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """JSON value of all of it."""
        return json_safe(dict(vars(self)))  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Result:
    """Model, plans and comparison of one run. `model` is the original where the run was dry."""

    original: Model
    model: Model
    plans: tuple[Plan, ...]
    before: Cost
    after: Cost
    comparison: Comparison | None = None
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The plan of the first pass."""
        if not self.plans:
            raise OnnxCompressError("this run made no plan")
        return self.plans[0]

    @property
    def met(self) -> bool:
        """Were all budgets met?"""
        return all(verdict.met for verdict in self.verdicts)

    @property
    def report(self) -> Report:
        """The run as data for the renderers."""
        comparison = self.comparison
        return Report(
            headline="dry run: nothing was written" if comparison is None else comparison.verdict,
            grade=None if comparison is None else comparison.grade,
            model=self.original.source.name,
            costs={
                name: (getattr(self.before, name), getattr(self.after, name))
                for name in ("bytes", "parameters", "macs")
            },
            comparison=None if comparison is None else comparison.to_json(),
            verdicts=tuple(verdict.to_json() for verdict in self.verdicts),
            plans=tuple(plan.to_json() for plan in self.plans),
            notes=(*self.original.notes, *self.notes, *(note for plan in self.plans for note in plan.notes)),
            seconds=dict(self.seconds),
        )

    def save(self, path: str | Path) -> Result:
        """Write the model, the whole file or nothing; the plans' names go into its metadata."""
        methods = [{"method": plan.method, "settings": plan.settings} for plan in self.plans]
        save(self.model, path, {"onnxcompress": json.dumps(json_safe(methods))})
        return self

    def save_report(self, path: str | Path) -> Result:
        """Write the report as JSON."""
        check_output(path, [self.original.source.path] if self.original.source.path else [])
        write_atomic(path, json.dumps(self.report.to_json(), indent=2).encode())
        return self
