"""The original beside the result, on the same inputs, in numbers and one sentence.

The numbers of an output, the grades and their limits stand in difference.py. Outputs are only kept where a task metric
needs them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.data.store import Data
from onnxcompress.difference import BROKEN, VERDICTS, Differences, OutputComparison, either
from onnxcompress.errors import ModelError, nearest
from onnxcompress.runtime.loose import Loose
from onnxcompress.runtime.session import Session, open_session
from onnxcompress.task import Task


@dataclass(frozen=True)
class Score:
    """A task metric of both models; drop = original - result, so that more is worse where a higher score is better."""

    metric: str
    original: float
    result: float

    @property
    def drop(self) -> float:
        """How much of the score was lost."""
        return self.original - self.result


@dataclass(frozen=True)
class Comparison:
    """Original and result on the same samples. Numbers over all outputs are those of the worst one."""

    outputs: tuple[OutputComparison, ...]
    samples: int
    data: str
    synthetic: bool = False
    score: Score | None = None
    notes: tuple[str, ...] = ()

    @property
    def sqnr_db(self) -> float | None:
        """Lowest of the outputs, dB; inf where all are equal; None without float outputs."""
        return min((out.sqnr_db for out in self.outputs if out.sqnr_db is not None), default=None)

    @property
    def logits_db(self) -> float | None:
        """The same with probabilities as logits: what tells two results apart where outputs are nearly 0 or 1."""
        each = (out.sqnr_db if out.logits_db is None else out.logits_db for out in self.outputs)
        return min((db for db in each if db is not None), default=None)

    @property
    def cosine(self) -> float | None:
        """Lowest of the outputs."""
        return min((out.cosine for out in self.outputs if out.cosine is not None), default=None)

    @property
    def max_abs(self) -> float | None:
        """Largest of the outputs."""
        return max((out.max_abs for out in self.outputs if out.max_abs is not None), default=None)

    @property
    def agreement(self) -> float | None:
        """Lowest share of equal decisions; None where no output holds decisions."""
        return min((out.agreement for out in self.outputs if out.agreement is not None), default=None)

    @property
    def grade(self) -> int:
        """Row of VERDICTS, of the worst output."""
        return max((out.grade for out in self.outputs), default=BROKEN)

    @property
    def same(self) -> bool:
        """Whether the result answers like the original (the first grade; not: bit for bit)."""
        return self.grade == 0

    @property
    def verdict(self) -> str:
        """One sentence in plain words, with the numbers that it rests on."""
        worst = max(self.outputs, key=_badness)
        facts = _facts(worst, many=len(self.outputs) > 1)
        if self.score is not None:
            facts.append(f"{self.score.metric} {self.score.original:.4g} before, {self.score.result:.4g} after")
        where = " on synthetic inputs" if self.synthetic else ""
        return f"{VERDICTS[self.grade][0]}{where} ({', '.join(facts)})"

    def to_json(self) -> dict[str, Any]:
        """JSON value; infinite numbers and NaN as strings ("inf", "-inf", "nan"), which JSON has no numbers for."""
        score = self.score
        return json_safe(  # type: ignore[no-any-return]
            {
                "verdict": self.verdict,
                "same": self.same,
                "samples": self.samples,
                "data": self.data,
                "synthetic": self.synthetic,
                "sqnr_db": self.sqnr_db,
                "cosine": self.cosine,
                "max_abs": self.max_abs,
                "agreement": self.agreement,
                "score": None if score is None else {**vars(score), "drop": score.drop},
                "outputs": [vars(out) for out in self.outputs],
                "notes": list(self.notes),
            }
        )


def compare(
    original: bytes | str | os.PathLike[str] | Loose,
    result: bytes | str | os.PathLike[str] | Loose,
    data: Data,
    *,
    metric: str | Callable[..., float] | None = None,
    labels: Any = None,
    batch: int = 8,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Comparison:
    """Run both models on the samples of `data` (its held-out view, as a rule) and compare what they answer.

    metric    ``module:function`` or a function of (outputs by name, labels) that returns a score, higher is better
    labels    array or file (.npz, .npy, .csv, .txt) with an integer for each row of the data; without a metric the
              score is the accuracy of the first output with decisions. See task.py.
    batch     samples that are run at once
    An original that is given loose is fed its weights where they lie: less memory, and other last bits than a file's.

    ModelError where the two differ in the names or types of inputs and outputs, or one does not load or run;
    DataError where labels or the metric do not fit.
    """
    task = Task.of(metric, labels, data)
    fed = isinstance(original, Loose)
    before = open_session(original, threads=threads, lean=True, as_given=fed, name=_name(original, "the original"))
    after = open_session(result, threads=threads, lean=True, name=_name(result, "the result"))
    check_signatures(before, after)
    running = {port.name: Differences(port) for port in before.outputs}
    for done, feeds in enumerate(data.batches(batch), start=1):
        one, two = before.run(feeds), after.run(feeds)
        for name, each in running.items():
            each.add(one[name], two[name], feeds)
        if task is not None:
            task.keep(one, two, {name: each.axis for name, each in running.items()})
        if progress is not None:
            progress(min(1.0, done * batch / data.samples))
    score = None if task is None else Score(task.name, *task.scores())
    outputs = tuple(each.finished() for each in running.values())
    return Comparison(outputs, data.samples, data.describe(), data.synthetic, score, _notes(outputs))


def check_signatures(before: Session, after: Session) -> None:
    """ModelError unless both take and give the same names and types, and take the same ranks.

    An output's rank is what onnxruntime infers, or what the file claims where it cannot, and the claim may be wrong:
    whether outputs have equal shapes is seen when they run.
    """
    for kind in ("inputs", "outputs"):
        one, two = ({port.name: port for port in getattr(session, kind)} for session in (before, after))
        for name in [*one, *two]:
            have, other = (one, before.name), (two, after.name)
            for (ports, _), (others, missing) in ((have, other), (other, have)):
                if name in ports and name not in others:
                    raise ModelError(
                        f"{missing}: has no {kind[:-1]} {name!r}, the other model has; {nearest(name, others)}"
                    )
            known = kind == "inputs" and one[name].shape and two[name].shape
            if one[name].type != two[name].type or (known and one[name].rank != two[name].rank):
                raise ModelError(
                    f"{after.name}: {kind[:-1]} {two[name]} is {one[name]} in the original; compare like with like"
                )


def json_safe(value: Any) -> Any:
    """The same value with numbers that JSON lacks as strings, tuples as lists, numpy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [json_safe(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _badness(out: OutputComparison) -> tuple[float, ...]:
    return out.grade, -either(out.sqnr_db, math.inf), -either(out.agreement, 1.0)


def _facts(out: OutputComparison, many: bool) -> list[str]:
    """The numbers behind a grade, in words."""
    facts = []
    if out.not_finite:
        facts.append(f"{out.not_finite} values are not finite")
    if out.other_shapes:
        facts.append("the shape is another one")
    if out.sqnr_db is not None:
        facts.append("equal bit for bit" if out.sqnr_db == math.inf else f"SQNR {out.sqnr_db:.1f} dB")
    if out.agreement is not None:
        facts.append(f"{100 * out.agreement:.1f} % of decisions agree")
    facts = facts or ["it holds no finite number to compare" if 0 not in out.shape else "it is empty"]
    return [f"output {out.name!r}: {facts[0]}", *facts[1:]] if many else facts


def _notes(outputs: Sequence[OutputComparison]) -> tuple[str, ...]:
    notes = []
    for out in outputs:
        if out.other_shapes:
            count = out.other_shapes
            notes.append(f"output {out.name!r} has another shape in {count} batches, left out of its numbers")
        if not out.values and not out.other_shapes:
            notes.append(f"output {out.name!r} holds no values to compare")
    return tuple(notes)


def _name(model: bytes | str | os.PathLike[str] | Loose, role: str) -> str:
    return role if isinstance(model, bytes | Loose) else os.fspath(model)
