"""What a change inside a graph does at its outputs, one change at a time, with one session for all of them.

A gate is a scalar input of the graph, zero by default: `value + gate · (changed - value)`. Opening one gate shows what its change
alone brings; opening all of them is the whole rewrite, as far as it can be computed in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import onnx_ir as ir

from onnxcompress.data import Data
from onnxcompress.difference import logits
from onnxcompress.runtime.loose import loose
from onnxcompress.runtime.session import open_session

TINY = 1e-30
"""Probabilities of float32 below which logits are not told: a softmax answers smaller ones with few digits, or none."""

Answers = Sequence[Mapping[str, np.ndarray]]
Share = Callable[[Answers, Answers], float]


def add_gate(graph: ir.Model, name: str) -> ir.Value:
    """A new scalar float input of the graph."""
    gate = ir.val(name, dtype=ir.DataType.FLOAT, shape=ir.Shape([]))
    graph.graph.inputs.append(gate)
    return gate


def arriving(
    graph: ir.Model,
    openings: Mapping[str, Iterable[str]],
    data: Data,
    *,
    level: float = 1.0,
    batch: int = 8,
    batches: int = 1,
    threads: int = 1,
    name: str = "model",
    progress: Callable[[int, int], None] | None = None,
    share: Share | None = None,
) -> dict[str, float]:
    """Key -> noise share (error power / signal power) at the worst output when its gates alone are open.

    graph     with scalar gate inputs          openings  key -> names of the gates that open together
    level     what an open gate is fed         batches   how many batches of the data are run
    share     of noise; None: `noise_share`
    """
    session = open_session(loose(graph), threads=threads, name=name)
    gates = sorted({gate for names in openings.values() for gate in names})
    shut = {gate: np.zeros((), np.float32) for gate in gates}
    feeds = list(islice(data.batches(batch), batches))
    plain = [session.run({**feed, **shut}) for feed in feeds]
    found = {}
    for number, (key, names) in enumerate(openings.items()):
        open_ = {**shut, **{gate: np.full((), level, np.float32) for gate in names}}
        after = [session.run({**feed, **open_}) for feed in feeds]
        found[key] = (share or noise_share)(plain, after)
        if progress is not None:
            progress(number + 1, len(openings))
    return found


def noise_share(plain: Sequence[Mapping[str, np.ndarray]], after: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Error power over signal power of the worst float output, batch by batch; outputs that are zero throughout do not count."""
    shares = []
    for name, first in plain[0].items():
        if not isinstance(first, np.ndarray) or first.dtype.kind != "f":
            continue
        noise = power = 0.0
        for one, two in zip(plain, after, strict=True):
            y, z = one[name].astype(np.float64), two[name].astype(np.float64)
            if y.shape == z.shape:
                noise, power = noise + float(((z - y) ** 2).sum()), power + float((y**2).sum())
        if power > 0:
            shares.append(noise / power)
    return max(shares, default=0.0)


def noise_share_of_logits(plain: Answers, after: Answers) -> float:
    """`noise_share` with probabilities as logits (difference.py): what moves none that is nearly 0 or 1 may move its logit."""
    return noise_share(
        *([_unsquashed(own, one) for own, one in zip(plain, each, strict=True)] for each in (plain, after))
    )


def usual_share_of_logits(plain: Answers, after: Answers, samples: Sequence[int]) -> float:
    """Median over samples of the noise share at the worst output, probabilities as logits down to TINY.

    samples  of each batch; an output whose first axis is another one is taken a batch at a time

    What a sum over samples says hangs on few of them where answers are nearly certain: on batches of eight of a classifier of two classes
    it differed by 1,000 times between batches, and the median by two or three.
    """
    medians = []
    for name, first in plain[0].items():
        if not isinstance(first, np.ndarray) or first.dtype.kind != "f":
            continue
        view = logits(first.astype(np.float64), TINY) or np.asarray
        shares = [
            _shares(view(one[name].astype(np.float64)), view(two[name].astype(np.float64)), count)
            for one, two, count in zip(plain, after, samples, strict=True)
            if one[name].shape == two[name].shape
        ]
        if any(len(each) for each in shares):
            medians.append(float(np.median(np.concatenate(shares))))
    return max(medians, default=0.0)


def _shares(plain: np.ndarray, after: np.ndarray, samples: int) -> np.ndarray:
    """Noise share of each sample that has power."""
    rows = (samples, -1) if plain.ndim and len(plain) == samples else (1, -1)
    noise, power = (np.square(each).reshape(rows).sum(1) for each in (after - plain, plain))
    return np.asarray(noise[power > 0] / power[power > 0])


def _unsquashed(plain: Mapping[str, np.ndarray], each: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of one batch, as logits where the plain ones are probabilities."""
    found = dict(each)
    for name, first in plain.items():
        if isinstance(first, np.ndarray) and first.dtype.kind == "f" and each[name].shape == first.shape:
            view = logits(first.astype(np.float64))
            found[name] = each[name] if view is None else view(each[name].astype(np.float64))
    return found
