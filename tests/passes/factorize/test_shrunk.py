"""Smaller kernels: the written model is the dense weight with zeros around, sizes stay, the rest makes up for what went."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model import load
from onnxcompress.model.edit import set_constant
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.passes.factorize.chain import write
from onnxcompress.passes.factorize.forms import FORMS, Shape
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.factorize.sites import sites
from onnxcompress.runtime.session import open_session
from tests.laws import distance
from tests.passes.factorize.single import made

FORM = FORMS["shrink"]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize(
    ("kernel", "attributes", "taps"),
    [
        ((5, 5), {"pads": [2, 2, 2, 2], "strides": [2, 1]}, [1, 9]),
        ((7, 3), {"pads": [3, 1, 2, 1], "group": 2}, [3, 5]),
        ((5, 3), {"pads": [4, 2, 4, 3], "dilations": [2, 1]}, [1, 3]),
        ((4, 4), {"pads": [1, 1, 1, 2]}, [4]),
    ],
)
def test_the_written_model_is_the_middle_of_the_kernel(op, kernel, attributes, taps) -> None:  # type: ignore[no-untyped-def]
    rng, groups = np.random.default_rng(5), attributes.get("group", 1)
    outer = (12, 8 // groups) if op == "Conv" else (8, 12 // groups)
    constants = {"w": rng.normal(size=(*outer, *kernel)), "b": rng.normal(size=12)}
    proto, feed = made(op, ["x", "w", "b"], constants, attributes, rng.normal(size=(2, 8, 12, 11)))
    model = load(proto)
    (site,), _ = sites(model, [], run_shapes(model, feed))
    stored = model.array(site.layer.weight)
    assert not FORM.unfit(site.shape) and FORM.ladder(site.shape) == [(each,) for each in taps]
    for ranks in FORM.ladder(site.shape):
        factors = FORM.start(site.shape, site.weight(stored), ranks, Metric())
        graph, dense = model.ir.clone(), model.ir.clone()
        write(graph, site.layer, site.shape, "shrink", FORM.parts(site.shape, ranks), FORM.links(site.shape, factors))
        new = model.edited(graph)
        assert not violations(new)
        set_constant(dense, site.layer.weight, site.stored(FORM.dense(site.shape, factors), stored))
        wanted = open_session(to_bytes(finished(model.edited(dense)))).run(feed)
        assert distance(open_session(to_bytes(finished(new))).run(feed), wanted, wanted) <= 1e-5


def test_without_padding_there_is_no_room() -> None:
    assert "no room" in FORM.unfit(Shape(1, 8, 8, (5, 5)))
    assert "no outer ring" in FORM.unfit(Shape(1, 8, 8, (2, 1), room=(1, 1)))
    assert FORM.ladder(Shape(1, 8, 8, (7, 7), room=(2, 2))) == [(9,), (25,)]


def test_inner_kernels_are_what_smaller_ones_are_made_of() -> None:
    shape = Shape(2, 4, 3, (7, 5), room=(3, 2))
    weight = np.random.default_rng(1).normal(size=(2, 4, 3, 35))
    begun = FORM.start(shape, weight, (15,), Metric())
    direct = FORM.start(shape, weight, (3,), Metric())
    np.testing.assert_array_equal(FORM.dense(shape, FORM.leading(begun, (3,))), FORM.dense(shape, direct))


def test_what_is_kept_makes_up_for_what_is_dropped() -> None:
    rng = np.random.default_rng(4)
    shape, weight = Shape(2, 12, 6, (5, 5), room=(2, 2)), rng.normal(size=(2, 12, 6, 25))
    fed = rng.normal(size=(2, 600, 20)) @ rng.normal(size=(2, 20, 150))
    gram = Metric(gram=fed.transpose(0, 2, 1) @ fed)
    errors = [gram.error(weight - FORM.dense(shape, FORM.start(shape, weight, (9,), m))) for m in (Metric(), gram)]
    assert errors[1] < 0.5 * errors[0]
