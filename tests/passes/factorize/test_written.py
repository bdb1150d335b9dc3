"""What is written computes with the dense weight that its factors make, at any ranks: all forms on all kinds of layers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model import load
from onnxcompress.model.edit import set_constant
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.operators.cost import macs_by_layer
from onnxcompress.passes.factorize.chain import write
from onnxcompress.passes.factorize.forms import FORMS
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.factorize.sites import sites
from onnxcompress.runtime.session import open_session
from tests.laws import distance
from tests.passes.factorize.single import made

CASES = {
    "plain": ("Conv", (16, 12, 3, 3), (9, 8), {"pads": [1, 1, 1, 1]}),
    "stride": ("Conv", (16, 12, 3, 3), (9, 8), {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    "wide": ("Conv", (16, 12, 7, 5), (14, 13), {"pads": [3, 2, 3, 2], "strides": [2, 2]}),
    "dilated": ("Conv", (16, 12, 5, 3), (15, 11), {"pads": [4, 2, 4, 2], "dilations": [2, 2], "strides": [1, 2]}),
    "same": ("Conv", (16, 12, 5, 5), (9, 8), {"auto_pad": "SAME_LOWER"}),
    "groups": ("Conv", (16, 6, 5, 3), (9, 8), {"pads": [2, 1, 2, 1], "group": 2}),
    "line": ("Conv", (16, 12, 7), (19,), {"pads": [3, 3], "strides": [2]}),
    "volume": ("Conv", (16, 12, 3, 5, 1), (6, 7, 3), {"pads": [1, 2, 0, 1, 2, 0], "strides": [1, 2, 1]}),
    "transposed": ("ConvTranspose", (12, 16, 5, 3), (5, 6), {"strides": [2, 1], "pads": [2, 1, 2, 1]}),
    "transposed groups": ("ConvTranspose", (12, 8, 3, 3), (5, 6), {"strides": [2, 2], "group": 2}),
}

NONE = {
    "stacked": {"plain", "stride", "transposed", "transposed groups"},
    "fire": {"transposed", "transposed groups"},
    "grouped": {"groups", "transposed groups"},
    "shrink": {"same", "transposed groups"},
    "spatial": {"line"},
    "spatial-across": {"line"},
    "cp": {"line"},
}
"""Form -> what it does not claim."""


@pytest.mark.parametrize("case", CASES)
def test_the_written_chain_is_the_dense_weight(case):
    op, size, spatial, attributes = CASES[case]
    rng = np.random.default_rng(5)
    constants = {"w": rng.normal(size=size), "b": rng.normal(size=16)}
    proto, feed = made(op, ["x", "w", "b"], constants, attributes, rng.normal(size=(2, 12, *spatial)), relu=True)
    model = load(proto)
    (site,), _ = sites(model, [], run_shapes(model, feed))
    stored = model.array(site.layer.weight)
    for name, form in FORMS.items():
        assert bool(form.unfit(site.shape)) == (case in NONE.get(name, ())), (name, form.unfit(site.shape))
        ladder = [] if form.unfit(site.shape) else form.ladder(site.shape)
        for ranks in dict.fromkeys(ladder[:: max(len(ladder) - 1, 1)]):
            factors = form.start(site.shape, site.weight(stored), ranks, Metric())
            graph, dense = model.ir.clone(), model.ir.clone()
            parts = form.parts(site.shape, ranks)
            write(graph, site.layer, site.shape, name, parts, form.links(site.shape, factors))
            new = model.edited(graph)
            assert not violations(new)
            set_constant(dense, site.layer.weight, site.stored(form.dense(site.shape, factors), stored))
            wanted = open_session(to_bytes(finished(model.edited(dense)))).run(feed)
            assert distance(open_session(to_bytes(finished(new))).run(feed), wanted, wanted) <= 2e-5, (name, ranks)
            assert sum(macs_by_layer(new, run_shapes(new, feed)).values()) == site.macs(parts), (name, ranks)
