"""Merge: the graph in its cheapest equal form. What is linear and stands side by side becomes one node, where that costs no more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.errors import ModelError
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.model import Model
from onnxcompress.model.edit import walk
from onnxcompress.model.wiring import drop_unread
from onnxcompress.passes.merge.rules import FIRST, RULES, Rewrite, Rule
from onnxcompress.passes.protect import protected
from onnxcompress.plan import Plan, Refusal


@dataclass(frozen=True)
class Merge:
    """Consecutive and parallel linear layers become one, where that needs no more parameters and no more multiply-adds.

    RepVGG's re-parameterization (Ding et al., CVPR 2021, arXiv:2101.03697) and its kin, found in any graph. The outputs stay.
    """

    name: ClassVar[str] = "merge"

    keep: Annotated[tuple[str, ...], Field(description="nodes, by name or pattern, that stay as they are")] = ()

    def needs(self, model: Model) -> list[Need]:
        """Nothing: weights tell all."""
        return []

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """What is merged, one decision after another, since each may make room for the next."""
        kept = protected(self.keep, [node.name or "" for node in walk(model.ir)], "node")
        decisions, refusals = merge_all(model.ir.clone(), kept)
        notes = (
            []
            if decisions
            else ["nothing can be merged: no two linear layers stand side by side that cost less as one"]
        )
        return Plan(self.name, {"keep": list(self.keep)}, model.fingerprint, decisions, refusals=refusals, notes=notes)

    def apply(self, model: Model, plan: Plan) -> Model:
        """The same rewrites in the same order."""
        plan.check_fits(model.fingerprint)
        graph = model.ir.clone()
        for each in plan.decisions:
            node = next((node for node in walk(graph) if node.name == each["at"]), None)
            found = RULES[each["rule"]](node) if node is not None and each["rule"] in RULES else None
            if not isinstance(found, Rewrite):
                raise ModelError(f"{each['at']!r} cannot be merged as the plan says; make a new one with --save-plan")
            _carry_out(graph, found)
        drop_unread(graph)
        return model.edited(graph)


def merge_all(graph: ir.Model, kept: Collection[str]) -> tuple[list[dict[str, Any]], list[Refusal]]:
    """Merge until nothing is left to merge: what was done, and what was declined in the end. The graph is edited."""
    decisions: list[dict[str, Any]] = []
    early = {name: rule for name, rule in RULES.items() if name in FIRST}
    for node in list(walk(graph)):
        while node.graph is not None and (done := _one(graph, node, kept, {}, early)) is not None:
            decisions.append(done)
    while True:
        refusals: dict[Refusal, None] = {}
        before = len(decisions)
        for node in list(walk(graph)):
            while node.graph is not None and (done := _one(graph, node, kept, refusals, RULES)) is not None:
                decisions.append(done)
        if len(decisions) == before:
            return decisions, list(refusals)


def _one(
    graph: ir.Model, node: ir.Node, kept: Collection[str], refusals: dict[Refusal, None], rules: Mapping[str, Rule]
) -> dict[str, Any] | None:
    """The first rule that has something to do here, done."""
    for name, rule in rules.items():
        found = rule(node)
        if isinstance(found, Refusal):
            refusals[found] = None
        if not isinstance(found, Rewrite):
            continue
        nodes = [each.name or "" for each in found.nodes]
        told = " + ".join(nodes)
        if any(each in kept for each in nodes):
            refusals[Refusal(told, "it is kept", name)] = None
            continue
        if not found.pays:
            refusals[Refusal(told, _costs_more(found), name)] = None
            continue
        done = {"rule": name, "at": node.name, "nodes": nodes, "parameters": list(found.parameters)}
        _carry_out(graph, found)
        return {**done, "macs": list(found.macs)}
    return None


def _costs_more(found: Rewrite) -> str:
    parts = [
        f"{after:,} {what} for {before:,}"
        for what, (before, after) in (("parameters", found.parameters), ("multiply-adds a position", found.macs))
        if after > before
    ]
    return f"one node would need {' and '.join(parts)}"


def _carry_out(graph: ir.Model, found: Rewrite) -> None:
    """The rewrite, and the nodes gone that nothing reads any more."""
    found.act(graph)
    for node in reversed(found.nodes):
        unread = not any(value.uses() or value.is_graph_output() for value in node.outputs)
        if unread and isinstance(node.graph, ir.Graph):
            node.graph.remove(node, safe=True)
