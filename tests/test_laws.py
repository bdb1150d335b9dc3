"""The laws on the zoo, on generated models, and on every real model."""

from __future__ import annotations

import numpy as np
import pytest
from generate import feeds, models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import check_cut, check_door
from zoo import REPAIRABLE, ZOO

from onnxcompress.channels import analyse
from onnxcompress.errors import DataError
from onnxcompress.model import load
from sample_models.fetch import FetchError, fetch
from sample_models.fetch import models as real_models

HALF_PRECISION = {"float16", "cast_fp16"}


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_keeps_the_laws(name: str) -> None:
    proto = ZOO[name]()
    inputs = feeds(proto, 0)
    loose = 2e-2 if name in HALF_PRECISION else 1e-4
    model = check_door(proto, inputs, tolerance=loose)
    for seed in range(2):
        check_cut(model, inputs, 0.4, seed, tolerance=loose)


@pytest.mark.parametrize("name", REPAIRABLE)
def test_models_that_need_the_door_come_through_it(name: str) -> None:
    model = load(REPAIRABLE[name]())
    assert analyse(model).groups


@pytest.mark.parametrize("name", ZOO)
def test_the_analysis_finds_what_the_zoo_says(name: str) -> None:
    sample = ZOO[name]
    channels = analyse(load(sample()))
    for names, units in sample.free.items():
        found = sum(
            group.size
            for group in channels.groups
            if set(names.split()) <= {m.tensor for m in group.members if m.role in ("write", "bias")}
        )
        assert found == units if units is not None else found > 0, f"{names}: {found} units"
    for weight in sample.frozen:
        assert weight in {frozen.name for frozen in channels.frozen}, f"{weight} is not frozen"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(proto=models(), share=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_cutting_equals_zeroing(proto, share: float, seed: int) -> None:  # type: ignore[no-untyped-def]
    inputs = feeds(proto, seed)
    check_cut(check_door(proto, inputs, tolerance=1e-4), inputs, share, seed)


@pytest.mark.fetch
@pytest.mark.parametrize("name", [str(name) for name in real_models()])
def test_real_models_keep_the_laws(name: str) -> None:
    try:
        path = fetch(name)
        from sample_models.inputs import inputs as natural

        data = natural(name, 2, 0)
    except (FetchError, DataError) as error:
        pytest.skip(str(error))
    from onnxcompress.data import open_data
    from onnxcompress.runtime.session import open_session

    batch = next(iter(open_data(data, open_session(path).inputs).batches(1)))
    model = load(path)
    check_cut(model, batch, 0.5, 0)
    assert all(np.isfinite(values).all() for values in open_session(model.serialized).run(batch).values())
