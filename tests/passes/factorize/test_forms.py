"""The laws of forms: at full rank they are the layer, below it they cost what their formulas say and err as little as they can."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model import load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.operators.cost import macs_by_layer
from onnxcompress.operators.layer import RECURRENT, layers
from onnxcompress.passes.factorize import sites as rooms
from onnxcompress.passes.factorize.alternate import alternated
from onnxcompress.passes.factorize.chain import write
from onnxcompress.passes.factorize.forms import FORMS, Shape
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.factorize.sites import sites
from onnxcompress.passes.merge.maps import Window
from onnxcompress.runtime.session import open_session
from tests.laws import distance
from tests.passes.factorize.single import convolutions, lookups, products

FULL_RANK = 1e-4
"""Of each output's largest value."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(rooms, "SMALLEST", 0)


def padded(groups: int, outs: int, ins: int, kernel: tuple[int, ...]) -> Shape:
    """A layer with as many positions as it reads."""
    ones, half = (1,) * len(kernel), tuple(size // 2 for size in kernel)
    return Shape(groups, outs, ins, kernel, room=half, window=Window(kernel, ones, ones, half, half))


def check_full_rank(proto, feed):
    model = load(proto)
    shapes = run_shapes(model, feed)
    wanted = open_session(proto.SerializeToString()).run(feed)
    for site in sites(model, [], shapes)[0]:
        for name, form in FORMS.items():
            if form.unfit(site.shape):
                continue
            ranks = form.full(site.shape)
            weight = site.weight(model.array(site.layer.weight))
            factors = form.start(site.shape, weight, ranks, Metric())
            np.testing.assert_allclose(form.dense(site.shape, factors), weight, atol=1e-9)
            graph = model.ir.clone()
            parts = form.parts(site.shape, ranks)
            write(graph, site.layer, site.shape, name, parts, form.links(site.shape, factors))
            made = model.edited(graph)
            assert not violations(made)
            found = open_session(to_bytes(finished(made))).run(feed)
            assert distance(found, wanted, wanted) <= FULL_RANK, name
            counted = macs_by_layer(made, run_shapes(made, feed))
            state = [each for each in layers(model) if each.op in RECURRENT and each.weight != site.layer.weight]
            rest = sum(model.array(each.weight).size * each.positions(shapes) for each in state)
            assert sum(counted.values()) == site.macs(parts) + rest, name
            assert sum(made.array(n).size for n in made.initializers if f".{name}." in n) == form.size(
                site.shape, ranks
            )


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_convolutions_at_full_rank_are_what_they_were(case):
    check_full_rank(*case)


@settings(max_examples=25, deadline=None)
@given(products())
def test_products_at_full_rank_are_what_they_were(case):
    check_full_rank(*case)


@settings(max_examples=25, deadline=None)
@given(lookups())
def test_embeddings_and_recurrent_inputs_at_full_rank_are_what_they_were(case):
    check_full_rank(*case)


def test_the_example_of_72_weights_that_become_26():
    shape = Shape(1, 4, 2, (3, 3))
    assert shape.size == 72
    depthwise, pointwise = FORMS["separable"].parts(shape, (1,))
    assert (depthwise.size(shape), pointwise.size(shape)) == (18, 8)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "shape", [padded(1, 24, 16, (3, 3)), padded(2, 8, 12, (5, 3)), padded(1, 40, 30, (7, 7)), Shape(1, 40, 30, (1, 1))]
)
def test_formulas_are_what_parts_count(name, shape):
    form = FORMS[name]
    if form.unfit(shape):
        return
    a, b = shape.kernel
    for ranks in form.ladder(shape):
        names = {"g": shape.groups, "o": shape.outs, "i": shape.ins, "k": shape.taps, "a": a, "b": b}
        names |= {"p": 9 if a == b else 3, "q": 9}
        names |= dict(zip(form.letters, ranks, strict=True))
        assert eval(form.formula.split(",")[0].replace("·", "*"), {}, names) == form.size(shape, ranks)


@pytest.mark.parametrize("name", FORMS)
def test_a_gram_matrix_makes_less_error_on_what_is_fed_and_alternating_no_more(name):
    rng = np.random.default_rng(5)
    shape, form = padded(2, 12, 10, (5, 3) if name == "stacked" else (3, 3)), FORMS[name]
    if form.unfit(shape):
        pytest.skip("has no such layer")
    weight = rng.normal(size=(2, 12, 10, shape.taps))
    n = shape.ins * shape.taps
    mixing = rng.normal(size=(2, n, n)) * np.linspace(0.05, 2, n)
    gram = mixing @ mixing.transpose(0, 2, 1)
    known, ranks = Metric(gram), form.ladder(shape)[len(form.ladder(shape)) // 2]
    plain, begun = (form.start(shape, weight, ranks, metric) for metric in (Metric(), known))
    fitted = begun if form.closed else alternated(form, shape, weight, begun, known)
    errors = [known.error(weight - form.dense(shape, each)) for each in (plain, begun, fitted)]
    assert errors[2] <= errors[1] * (1 + 1e-9)
    assert errors[2] < 0.9 * errors[0]


def test_fire_is_fitted_to_rows_that_lie_in_few_directions():
    """Moments in float32 of fewer directions than weights: their smallest are rounding, and may be negative."""
    rng, form, shape = np.random.default_rng(0), FORMS["fire"], padded(1, 48, 48, (3, 3))
    weight = rng.normal(size=(1, 48, 48, 9))
    rows = (rng.normal(size=(1, 300, 60)) @ rng.normal(size=(1, 60, 432))).astype(np.float32)
    gram = Metric((rows.transpose(0, 2, 1) @ rows).astype(np.float64))
    plain = gram.error(weight - form.dense(shape, form.start(shape, weight, (16, 24), Metric())))
    for metric in (Metric(rows=rows), gram):
        fitted = form.dense(shape, form.start(shape, weight, (16, 24), metric))
        assert gram.error(weight - fitted) < 0.7 * plain
