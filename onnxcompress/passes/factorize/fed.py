"""What layers beside convolutions and products are fed: numbers of an embedding's rows, and the inputs of a recurrent operator.

An embedding is a product with rows that are zero but for one, so that their Gram matrix is diagonal: how often each row was looked up.
A recurrent operator multiplies its inputs by W before all else; what that gives is no value of the graph, and is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxcompress.evidence.paired import Pair
from onnxcompress.model import Model
from onnxcompress.operators.layer import RECURRENT
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.factorize.sites import Site
from onnxcompress.passes.quantize.fitting import Fitting, fits, fitting
from onnxcompress.passes.refit.goals import kept
from onnxcompress.passes.refit.rows import FOLDS, spread
from onnxcompress.passes.refit.solver import Sums

SELDOM = 0.03
"""Of the mean count, added to all: rows that samples do not show are kept as well as room is left."""


def goal(model: Model, site: Site, pair: Pair) -> Iterator[np.ndarray]:
    """What the layer should put out, batch by batch; of a recurrent one, what W makes of the original's inputs."""
    if site.layer.op not in RECURRENT:
        yield from kept(model, site.layer.writes, pair)
        return
    matrix = site.layer.matrix(model.array(site.layer.weight))
    for x in kept(model, site.layer.reads, pair):
        yield x @ matrix.T


def counted(site: Site, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """How often each row of an embedding was looked up, as a share: in most batches [1, rows], and in every fifth, which judges."""
    counts = pair.looked_up(site.layer.reads, site.shape.ins)
    judge = np.sum(counts[::FOLDS], axis=0)
    fit = np.sum([each for number, each in enumerate(counts) if number % FOLDS] or counts, axis=0)
    return fit[None] / max(fit.sum(), 1), judge[None] / max(judge.sum(), 1)


def looked_up(share: np.ndarray, seldom: float = SELDOM) -> Metric:
    """How errors of an embedding count where its rows are looked up like this."""
    return Metric(often=share + seldom * share.mean())


def known_fit(model: Model, site: Site, pair: Pair, rows: int, seed: int) -> Fitting | None:
    """Rows to fit on and rows to judge on; None where there are none."""
    if site.layer.op not in RECURRENT:
        return fitting(model, site.layer, site.node, pair, rows, seed) if fits(model, site.layer, site.node) else None
    weight = site.weight(model.array(site.layer.weight)).reshape(1, site.shape.outs, site.shape.ins)
    fit, judge = Sums(), Sums()
    parts = [judge, *[fit] * (FOLDS - 1)]
    spread(parts, site.node, site.layer, pair.read(site.layer.reads), goal(model, site, pair), rows, seed)
    if not fit.count or not judge.count:
        return None
    return Fitting(weight, np.zeros(weight.shape[:2]), None, fit, judge)
