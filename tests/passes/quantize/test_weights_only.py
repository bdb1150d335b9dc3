"""QuantizeWeights: the written model is the original with decoded weights; forms, limits, plans that are replayed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from generate import feeds, models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import distance
from onnx import checker
from zoo import ZOO

from onnxcompress.errors import SettingError
from onnxcompress.model import Model, load
from onnxcompress.model.edit import set_constant, walk
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.passes import QuantizeWeights
from onnxcompress.passes.quantize.blocks import SEARCHED, Blocks, blocks_of
from onnxcompress.passes.quantize.found import Weight
from onnxcompress.passes.quantize.integers import decoded
from onnxcompress.passes.quantize.portable import fits, pairing
from onnxcompress.passes.quantize.weights_only import read
from onnxcompress.plan import Plan, load_plan
from onnxcompress.runtime.session import open_session

from .calibrated import executed, model_of

rng = np.random.default_rng(5)
INT8_INPUTS = 0.05
"""Share of an output's largest value: MatMulNBits rounds what it multiplies to int8 in blocks, integer products to uint8."""


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def planned(model: Model, **ways: object) -> tuple[QuantizeWeights, Plan]:
    """Every weight, however small and however much it loses; no clock."""
    each = QuantizeWeights(**{"smallest": 0, "least_db": -100.0, "measure": False, **ways})  # type: ignore[arg-type]
    return each, each.plan(model, {})


def with_decoded(model: Model, plan: Plan) -> Model:
    """The float model with each weight replaced by what its integers stand for."""
    graph = model.ir.clone()
    for each in plan.decisions:
        weight = Weight(each["weight"], each["op"], None, tuple(each["nodes"]), each["form"], 0)
        values = decoded(read(each, plan.arrays), model.array(weight.name).shape, weight, each["form"])
        set_constant(graph, weight.name, values)
    return model.edited(graph)


def check_weights(proto: onnx.ModelProto, seed: int, **ways: object) -> Counter[str]:
    """The law, legality, determinism and the signature; returns how many weights took which form."""
    model = load(proto)
    each, plan = planned(model, **ways)
    written = each.apply(model, plan)
    assert not violations(written)
    data = to_bytes(finished(written))
    checker.check_model(data)
    assert data == to_bytes(finished(each.apply(model, planned(model, **ways)[1])))
    float_, integer = open_session(to_bytes(finished(with_decoded(model, plan)))), open_session(data)
    assert (integer.inputs, integer.outputs) == (float_.inputs, float_.outputs)
    inputs = feeds(proto, seed)
    wanted, found = float_.run(inputs), integer.run(inputs)
    forms = Counter(each["form"] for each in plan.decisions if each["form"] == "load" or each["op"] != "Gather")
    if set(forms) <= {"load"}:  # folded when loaded, or picked: the very same floats
        assert distance(found, wanted, wanted) <= SAME
    else:
        assert distance(found, wanted, wanted) <= INT8_INPUTS
    assert not each.plan(written, {}).decisions
    return forms


SAME = 0.0


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("bits", [8, 4])
def test_rebuilt_at_load_is_the_same_bit_for_bit(name: str, bits: int) -> None:
    check_weights(ZOO[name](), 0, bits=bits, decode="load")


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("ways", [{"bits": 8}, {"bits": 4, "block": 16}, {"dynamic": "all"}], ids=str)
def test_the_law_on_the_zoo(name: str, ways: dict[str, object]) -> None:
    check_weights(ZOO[name](), 0, **ways)
