"""How far an error of one layer arrives at the model's outputs, told by an error such as factors make.

The layer alone gets a weight of lower rank, what lies behind it runs, and the share of noise in the usual sample's answer is divided by
that in what the layer puts out. A pattern of signs on its channels tells little: in ppocr-cls it was off by 1 to 600 times, since factors
err where a layer puts out little, and the layers behind look there more or less than elsewhere. A sum over samples tells little where
answers are nearly certain: few of them decide it (evidence/gates.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from onnxcompress.evidence.gates import usual_share_of_logits
from onnxcompress.evidence.paired import Pair, Paired
from onnxcompress.passes.factorize.candidates import Known
from onnxcompress.passes.factorize.forms import FORMS, Form, Ranks
from onnxcompress.passes.factorize.sites import Site

FIRST = ("lowrank", "spatial", "squeeze")
"""Forms, of which the first that a layer has errs for all."""

LEFT = 0.7
"""Of the layer's weights, about, in the error that is tried."""

SAMPLES, FEWEST = 16, 8
"""That are run behind each layer, where that is little work and where it is much."""

WORK = 5e11
"""Multiply-adds behind all layers together above which samples become fewer: half a minute of one core, or less."""

SMALL = 0.01
"""Share of noise in what the layer puts out to which the error is scaled down."""

SEEN = 1e-6
"""Share of noise in what the layer puts out below which nothing is told by it."""

Answers = list[dict[str, np.ndarray]]


def samples_for(macs: float, layers: int) -> int:
    """How many to run behind each layer of a model with so many multiply-adds a sample, half of which lie behind a layer on average."""
    return int(np.clip(WORK / max(macs * layers / 2, 1.0), FEWEST, SAMPLES))


def first(paired: Paired, samples: int) -> list[int]:
    """Samples of each of the first batches that hold so many, or of all where there are fewer."""
    found: list[int] = []
    for feeds in paired.batches():
        if sum(found) >= samples:
            break
        found.append(max((len(array) for array in feeds.values() if np.ndim(array)), default=1))
    return found


@dataclass(eq=False)
class Arrival:
    """Runs what lies behind a stop of a walk on which nothing is replaced, on its first batches.

    samples  of each of these batches        plain  what the model answers
    """

    samples: list[int]
    plain: Answers = field(default_factory=list)

    def of(self, pair: Pair, site: Site, known: Known) -> float | None:
        """Noise share of the logits for each unit of noise share in what the layer puts out; None where no error can be tried."""
        if not self.plain:
            self.plain = _behind(pair, len(self.samples))
        if not self.plain or not self.plain[0]:
            return None
        held = pair.constant(site.layer.weight)
        found = _erring(site, site.weight(held).astype(np.float32), known)
        if found is None:
            return None
        weight, share = found
        pair.replace(site.layer.weight, site.stored(weight, held))
        after = _behind(pair, len(self.samples))
        pair.replace(site.layer.weight, held)
        plain = [_only(own, each) for own, each in zip(self.plain, after, strict=True)]
        return usual_share_of_logits(plain, after, self.samples) / share if after[0] else None


def _erring(site: Site, weight: np.ndarray, known: Known) -> tuple[np.ndarray, float] | None:
    """The weight with an error, and the share of noise in what the layer then puts out, SMALL at most; None where none is seen."""
    for error in _tried(site, weight, known):
        error -= weight
        share = known.judge.error(error) / max(known.power, 1e-300)
        if share >= SEEN:
            part = min(1.0, float(np.sqrt(SMALL / share)))
            error *= np.float32(part)
            error += weight
            return error, part**2 * share
    return None


def _tried(site: Site, weight: np.ndarray, known: Known) -> Iterator[np.ndarray]:
    """Weights that err, by more and more."""
    for form in (FORMS[name] for name in FIRST):
        ladder = [] if form.unfit(site.shape) else form.ladder(site.shape)
        if ladder:
            yield from _below(form, ladder, site, weight, known)
            return


def _below(form: Form, ladder: list[Ranks], site: Site, weight: np.ndarray, known: Known) -> Iterator[np.ndarray]:
    """With ranks that leave about LEFT of the weights, then with fewer."""
    nearest = min(ladder, key=lambda ranks: abs(form.size(site.shape, ranks) / site.shape.size - LEFT))
    begun = form.start(site.shape, weight, nearest, known.fit)
    for ranks in ladder[ladder.index(nearest) :: -1]:
        yield form.dense(site.shape, form.leading(begun, ranks))


def _behind(pair: Pair, batches: int) -> Answers:
    """The model's outputs that nodes from the stop on make, batch by batch."""
    track = pair.current
    nodes = list(track.proto.graph.node[track.done :])
    made = {name for node in nodes for name in node.output}
    wanted = [port.name for port in track.proto.graph.output if port.name in made]
    if not wanted:
        return []
    return list(islice(track.run(nodes, wanted), batches))


def _only(plain: Mapping[str, np.ndarray], names: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: plain[name] for name in names}
