"""Training as a pass: between the rounds of a cut, and before it.

Prune a part, repair, train, prune the next part: Han et al., NIPS 2015, arXiv:1506.02626, for weights; Molchanov et al., ICLR 2017,
arXiv:1611.06440, for channels. Here the original is the teacher throughout, so that no labels are needed, and each round ranks the
units of the model as the round before left it. `Slim` is Network Slimming's training: Liu et al., ICCV 2017, arXiv:1708.06519.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.errors import ModelError
from onnxcompress.evidence.gather import Sources
from onnxcompress.evidence.need import SOURCES, Evidence, Need
from onnxcompress.methods.aims import answering
from onnxcompress.methods.distill import Distill, fields_of
from onnxcompress.model import Model
from onnxcompress.plan import Plan
from onnxcompress.training.judge import Judge, how_many
from onnxcompress.training.lesson import Lesson
from onnxcompress.training.loop import Trained, train
from onnxcompress.training.parameters import parameters_of
from onnxcompress.training.targets import losses_in_words
from onnxcompress.training.teacher import Teacher


@dataclass(frozen=True)
class Teach(Distill):
    """Distillation from the run's original, as a pass; its plan holds the trained weights."""

    name: ClassVar[str] = "train"
    judged: ClassVar[bool] = True

    def needs(self, model: Model) -> list[Need]:
        """The original, and samples."""
        return [SOURCES]

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Train; a row an epoch, and the arrays that are others now."""
        made = self.trained(model, evidence[SOURCES])
        held = {name: made.model.array(name) for name in made.model.initializers}
        arrays = {name: array for name, array in held.items() if not np.array_equal(array, model.array(name))}
        return Plan(self.name, fields_of(self), model.fingerprint, made.curve, arrays, notes=self.told(model, made))

    def apply(self, model: Model, plan: Plan) -> Model:
        """The arrays of the plan in place of the model's."""
        plan.check_fits(model.fingerprint)
        return model.with_constants(plan.arrays)

    def trained(self, model: Model, sources: Sources) -> Trained:
        """The model after its lesson from the original."""
        targets = self.targets(model, sources.original)
        teacher = Teacher.of(sources.original, [target.teacher for target in targets], threads=sources.threads)
        training, judge = sources.data, None
        if self.judged:
            training, kept = sources.data.kept_back(how_many(sources.data.samples))
            judge = Judge.of(
                answering([sources.original], self, sources.threads),
                kept,
                batch=sources.batch,
                threads=sources.threads,
                limit=sources.memory_limit,
            )
        teacher.remember(training, sources.batch, sources.memory_limit, sources.progress)
        lesson = Lesson(
            model, teacher, targets, training, self.recipe, temperature=self.temperature, threads=sources.threads,
            progress=sources.progress, judge=judge, bend=self.bend(model),
        )  # fmt: skip
        return train(lesson)

    def bend(self, model: Model) -> Any:
        """What is done to gradients before each update: nothing."""
        return None

    def told(self, model: Model, made: Trained) -> list[str]:
        """Sentences for the report."""
        more = [each for each in (made.norms, made.rate, made.kept, made.memory) if each is not None]
        return [*losses_in_words(self.targets(model, model)), f"{made.parameters} numbers were trained", *more]


@dataclass(frozen=True)
class Slim(Teach):
    """Training under an L1 penalty on the scales of BatchNormalization, which drives those of channels that matter little to zero."""

    name: ClassVar[str] = "slim"
    judged: ClassVar[bool] = False  # the penalty takes answers for small scales

    slim: Annotated[float, Field(gt=0, description="weight of Σ|γ| in the loss")] = 1e-3

    def bend(self, model: Model) -> Any:
        """Add the subgradient of slim · Σ|γ|. ModelError where no scale is left to train."""
        scales = scales_of(model)
        if not scales:
            raise ModelError(
                f"{model.source.name}: no BatchNormalization has a scale to slim (folded into the weights at export?); export it "
                "without folding, or leave out --slim and choose --criterion taylor"
            )

        def push(weights: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray]) -> None:
            for name in scales:
                gradients[name][...] += np.float32(self.slim) * np.sign(weights[name])

        return push

    def told(self, model: Model, made: Trained) -> list[str]:
        """Also how the scales moved."""
        before, after = (
            [float(np.abs(each.array(name)).mean()) for name in scales_of(model)] for each in (model, made.model)
        )
        moved = (
            f"mean scale of {len(before)} BatchNormalization {np.mean(before):.3g} before, {np.mean(after):.3g} after"
        )
        return [*super().told(model, made), moved]


def scales_of(model: Model) -> list[str]:
    """Scales of BatchNormalization that train."""
    norms = [node for node in model.ir.graph if node.op_type == "BatchNormalization" and not node.domain]
    names = {node.inputs[1].name for node in norms if node.inputs[1] is not None}
    return [name for name in parameters_of(model) if name in names]


__all__ = ["Slim", "Teach", "scales_of"]
