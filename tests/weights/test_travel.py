"""Coded weights through the other verbs: what cuts or zeroes them leaves them coded, what changes them makes them dense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxcompress
from onnxcompress.model import Model, load
from onnxcompress.model.edit import coded_of
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.operators.layer import layers
from onnxcompress.passes import Cluster

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"
DATA = DIGITS.with_suffix(".npz")


def clustered(sharing: str) -> Model:
    """The sample model with 16 entries a book, read from its file."""
    model, each = load(DIGITS), Cluster(same=True, bits=4, share=sharing, smallest=0)  # type: ignore[arg-type]
    return load(to_bytes(finished(each.apply(model, each.plan(model, {})))))


def of_file(model: Model) -> list[str]:
    """Weights that are coded in the file of a model."""
    again = load(to_bytes(finished(model)))
    return sorted(name for name, value in again.initializers.items() if coded_of(value) is not None)


@pytest.mark.parametrize("sharing", ["tensor", "scaled"])
def test_pruned_weights_stay_coded_and_the_file_gets_smaller(sharing: str) -> None:
    model = clustered(sharing)
    result = onnxcompress.prune(model, amount=0.3)
    large = [name for name in of_file(model) if result.model.array(name).size >= 2000]  # smaller ones are smaller dense
    assert len(large) >= 3 and set(large) <= set(of_file(result.model))
    assert result.after.bytes < result.before.bytes
    largest = max(layers(result.model), key=lambda layer: result.model.array(layer.weight).size)
    assert len(np.unique(result.model.array(largest.weight))) <= 16 * (1 if sharing == "tensor" else 1000)


@pytest.mark.parametrize("sharing", ["tensor", "scaled", "channel"])
def test_zeros_of_single_weights_are_coded_too(sharing: str) -> None:
    model = clustered(sharing)
    result = onnxcompress.sparsify(model, amount=0.6, per="model")
    assert len(of_file(result.model)) >= len(of_file(model)) - 1
    again = load(to_bytes(finished(result.model)))
    for name in of_file(result.model):
        assert np.array_equal(again.array(name), result.model.array(name))


def test_refitted_weights_are_dense_again_or_as_they_were() -> None:
    model = clustered("tensor")
    result = onnxcompress.prune(model, data=DATA, criterion="l2", amount=0.3)
    again = load(to_bytes(finished(result.model)))
    for layer in layers(result.model):
        assert np.array_equal(again.array(layer.weight), result.model.array(layer.weight))


def test_a_coded_model_is_quantized_as_a_dense_one() -> None:
    model = clustered("tensor")
    result = onnxcompress.quantize(model, data=DATA, measure=False)
    assert result.comparison is not None and result.comparison.sqnr_db > 15
    assert not of_file(result.model)


def test_inspect_tells_how_weights_are_coded_and_their_bits() -> None:
    found = onnxcompress.inspect(clustered("tensor"))
    told = {line.weight: line for line in found.layers if line.encoding}
    assert told and all("16 entries" in line.encoding for line in told.values())
    largest = max(told.values(), key=lambda line: line.parameters)
    assert 3 < largest.bits < 5
    assert "already quantized" not in found.headline


def test_the_same_answer_coded_and_dense() -> None:
    model = clustered("scaled")
    compared = onnxcompress.compare(to_bytes(model.ir), to_bytes(finished(model)), data=DATA)
    assert all(output.max_abs == 0 or output.sqnr_db > 100 for output in compared.outputs)


def test_a_small_weight_is_still_coded_where_the_file_is_read_again() -> None:
    model, each = load(DIGITS), Cluster(clusters=4, share="tensor", smallest=0)
    made = each.apply(model, each.plan(model, {}))
    small = [
        name
        for name, value in made.initializers.items()
        if coded_of(value) is not None and made.array(name).nbytes < 4096
    ]
    pruned = onnxcompress.sparsify(made, amount=0.9).model
    assert any(coded_of(load(to_bytes(finished(pruned))).initializers[name]) is not None for name in small)
