"""How far an error of one layer arrives at the model's outputs, told by an error such as factors make.

The layer alone gets a weight of lower rank, what lies behind it runs, and the share of noise at the outputs is divided by that in what
the layer puts out. A pattern of signs on its channels tells little: in ppocr-cls it was off by 1 to 600 times, since factors err where
a layer puts out little, and the layers behind look there more or less than elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from onnxcompress.evidence.gates import noise_share_of_logits
from onnxcompress.evidence.paired import Pair
from onnxcompress.passes.factorize.candidates import Known
from onnxcompress.passes.factorize.forms import FORMS, Form, Ranks
from onnxcompress.passes.factorize.sites import Site

FIRST = ("lowrank", "spatial", "squeeze")
"""Forms, of which the first that a layer has errs for all."""

LEFT = 0.7
"""Of the layer's weights, about, in the error that is tried."""

SAMPLES = 32
"""That are run behind each layer, at most."""

SMALL = 0.01
"""Share of noise in what the layer puts out to which the error is scaled down."""

SEEN = 1e-6
"""Share of noise in what the layer puts out below which nothing is told by it."""

Answers = list[dict[str, np.ndarray]]


@dataclass(eq=False)
class Arrival:
    """Runs what lies behind a stop of a walk on which nothing is replaced, on the first `batches`; `plain` is what the model answers."""

    batches: int
    plain: Answers = field(default_factory=list)

    def of(self, pair: Pair, site: Site, weight: np.ndarray, known: Known) -> float | None:
        """Noise share of the logits for each unit of noise share in what the layer puts out; None where no error can be tried.

        weight  [groups, out, in, taps] of the layer
        """
        if not self.plain:
            self.plain = _behind(pair, self.batches)
        found = _tried(site)
        if found is None or not self.plain or not self.plain[0]:
            return None
        form, ranks = found
        light = weight.astype(np.float32)
        dense = form.dense(site.shape, form.start(site.shape, light, ranks, known.fit))
        share = known.judge.error(light - dense) / max(known.power, 1e-300)
        if share < SEEN:
            return None
        part = min(1.0, float(np.sqrt(SMALL / share)))
        dense, share = light + part * (dense - light), part**2 * share
        held = pair.constant(site.layer.weight)
        pair.replace(site.layer.weight, site.stored(dense, held))
        after = _behind(pair, self.batches)
        pair.replace(site.layer.weight, held)
        plain = [_only(own, each) for own, each in zip(self.plain, after, strict=True)]
        return noise_share_of_logits(plain, after) / share if after[0] else None


def _tried(site: Site) -> tuple[Form, Ranks] | None:
    """What errs."""
    for form in (FORMS[name] for name in FIRST):
        ladder = [] if form.unfit(site.shape) else form.ladder(site.shape)
        if ladder:
            return form, min(ladder, key=lambda ranks: abs(form.size(site.shape, ranks) / site.shape.size - LEFT))
    return None


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
