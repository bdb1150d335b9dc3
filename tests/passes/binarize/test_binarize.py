"""Binarize: the law, one bit on disk, the ends that stay, signs of activations, data, and plain errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import onnxcompress
from onnxcompress.errors import ModelError, SettingError
from onnxcompress.model import load
from onnxcompress.model.edit import coded_of, set_constant
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.passes import Binarize
from onnxcompress.passes.cluster.layout import read

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")
WAYS = [{}, {"kind": "ternary"}, {"terms": 2}, {"terms": 3, "ends": "as others"}, {"kind": "ternary", "terms": 2}]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_file_computes_with_the_decoded_weights(way: dict) -> None:
    model, each = load(DIGITS), Binarize(**way)
    plan = each.plan(model, {})
    made = each.apply(model, plan)
    assert not list(violations(made))
    dense = model.ir.clone()
    for decision in plan.decisions:
        set_constant(dense, decision["weight"], read(decision, plan.arrays).decode())
    feed = {"image": np.load(DATA)["image"][:16]}
    found, wanted = (
        onnxruntime.InferenceSession(data).run(None, feed)[0]
        for data in (to_bytes(finished(made)), to_bytes(model.edited(dense).ir))
    )
    assert np.array_equal(found, wanted)
    assert to_bytes(finished(each.apply(model, each.plan(model, {})))) == to_bytes(finished(made))


def test_a_weight_is_its_sign_times_the_mean_of_its_channel() -> None:
    model = load(DIGITS)
    made = Binarize().apply(model, Binarize().plan(model, {}))
    before, after = model.array("residual1.weight"), made.array("residual1.weight")
    size = np.abs(before).mean(axis=(1, 2, 3), keepdims=True)
    assert np.allclose(after, np.where(before < 0, -size, size), rtol=2e-3)


def test_the_first_and_the_last_layer_stay_unless_asked() -> None:
    model = load(DIGITS)
    kept = {refusal.where for refusal in Binarize(smallest=0).plan(model, {}).refusals}
    assert {"stem.weight", "logits.weight"} <= kept
    every = {each["weight"] for each in Binarize(smallest=0, ends="as others").plan(model, {}).decisions}
    assert {"logits.weight", "hidden.weight"} <= every


def test_one_bit_a_weight_in_the_file() -> None:
    found = onnxcompress.inspect(to_bytes(finished(onnxcompress.binarize(DIGITS).model)))
    told = {line.weight: line.bits for line in found.layers if line.encoding}
    assert told["residual1.weight"] < 1.5


def test_data_loses_less() -> None:
    plain = onnxcompress.binarize(DIGITS, data=DATA, assign="nearest", refit=False, terms=2)
    aware = onnxcompress.binarize(DIGITS, data=DATA, terms=2)
    assert plain.comparison is not None and aware.comparison is not None
    assert aware.comparison.sqnr_db > plain.comparison.sqnr_db + 1
    again = load(to_bytes(finished(aware.model)))
    assert sum(coded_of(value) is not None for value in again.initializers.values()) >= 3, "refit leaves codes alone"


def test_signs_of_activations_are_in_the_graph() -> None:
    model = load(DIGITS)
    each = Binarize(activations=True)
    made = each.apply(model, each.plan(model, {}))
    assert not list(violations(made))
    kinds = [node.op_type for node in made.ir.graph]
    assert kinds.count("Sign") >= 3
    session = onnxruntime.InferenceSession(to_bytes(finished(made)))
    image = np.load(DATA)["image"][:4]
    assert np.isfinite(session.run(None, {"image": image})[0]).all()
    signs = [node for node in made.ir.graph if (node.name or "").endswith(".signs")]
    assert len({node.inputs[0].producer().inputs[0].name for node in signs}) == len(signs), (
        "readers of a value share them"
    )


def test_binary_weights_are_left_alone() -> None:
    once = onnxcompress.binarize(DIGITS, ends="as others", smallest=0).model
    with pytest.raises(ModelError, match="no weight can be made binary"):
        onnxcompress.binarize(to_bytes(finished(once)), ends="as others", smallest=4096)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"kind": "ternary", "terms": 4, "smallest": 10**9}, "no weight can be made ternary"),
        ({"assign": "compensated"}, "needs data"),
        ({"keep": ("nothing*",)}, "matches no weight"),
    ],
)
def test_bad_settings_are_one_line(settings: dict, why: str) -> None:
    with pytest.raises((SettingError, ModelError), match=why):
        onnxcompress.binarize(DIGITS, **settings)
