"""The law of forms on real models: every layer as a chain of full rank, forms in turn, answers as before on natural inputs."""

from __future__ import annotations

import pytest

from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model import load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.passes import Merge
from onnxcompress.passes.factorize.chain import write
from onnxcompress.passes.factorize.forms import FORMS
from onnxcompress.passes.factorize.metric import prior
from onnxcompress.passes.factorize.sites import sites
from onnxcompress.runtime.session import open_session
from sample_models.fetch import fetch
from sample_models.inputs import inputs
from tests.laws import distance

WIDEST = 500
"""Rank of a form above which another one is taken: CP of full rank has thousands of terms."""


@pytest.mark.fetch
@pytest.mark.parametrize("name", ["ppocr-cls", pytest.param("open-nsfw", marks=pytest.mark.slow)])
def test_real_models_at_full_rank_are_what_they_were(name):
    given = load(fetch(name))
    model = Merge().apply(given, Merge().plan(given, {}))
    feed = inputs(name, 1)
    graph, made = model.ir.clone(), set()
    for number, site in enumerate(sites(model, [], run_shapes(model, feed))[0]):
        fit = [form for form in FORMS.values() if not form.unfit(site.shape) and max(form.full(site.shape)) <= WIDEST]
        if not fit:
            continue
        form = fit[number % len(fit)]
        ranks, metric = form.full(site.shape), prior(site.shape.kernel)
        factors = form.start(site.shape, site.weight(model.array(site.layer.weight)), ranks, metric)
        links = form.links(site.shape, factors)
        write(graph, site.layer, site.shape, form.name, form.parts(site.shape, ranks), links)
        made.add(form.name)
    assert len(made) >= 5
    wanted, found = (open_session(to_bytes(finished(each))).run(feed) for each in (model, model.edited(graph)))
    assert distance(found, wanted, wanted) <= 1e-4
