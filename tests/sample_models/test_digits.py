"""The committed sample model: loads, answers as documented, and has what pruning is to be tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from sample_models.digits_network import NETWORK, OPS, backward, forward
from sample_models.train_digits import CALIBRATION, TEST, export

FOLDER = Path(__file__).parents[2] / "sample_models"


def test_committed_model_reaches_its_documented_accuracy():
    image = np.load(FOLDER / "digits.npz")["image"]
    labels = np.load(FOLDER / "digits_labels.npz")["labels"]
    assert image.shape == (CALIBRATION + TEST, 1, 8, 8) and image.dtype == np.float32
    assert labels.shape == (len(image),) and labels.dtype == np.int64
    session = onnxruntime.InferenceSession(FOLDER / "digits.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": image})
    right = logits.argmax(1) == labels
    assert right[CALIBRATION:].mean() == pytest.approx(0.985, abs=0.003)
    assert right[:CALIBRATION].mean() >= 0.97


def test_committed_model_has_the_structures_and_unfolded_batch_norm():
    model = onnx.load(FOLDER / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert model.opset_import[0].version == 17
    assert {"Add", "Mul", "Sigmoid", "Concat", "GlobalAveragePool", "Flatten", "Gemm"} <= set(kinds)
    assert kinds.count("BatchNormalization") == 6
    groups = [a.i for node in model.graph.node if node.op_type == "Conv" for a in node.attribute if a.name == "group"]
    assert groups == [32]
    variances = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith(".var")]
    assert all(v.std() > 0 for v in variances)
    assert (FOLDER / "digits.onnx").stat().st_size < 600_000


def started(seed: int):
    """Parameters with statistics that are not the identity, and an image; float64 so that differences are exact."""
    rng = np.random.default_rng(seed)
    parameters = {row.name: OPS[row.op].start(rng, row.settings) for row in NETWORK}
    for own in parameters.values():
        for key in own:
            own[key] = own[key].astype(np.float64) + 0.1 * np.abs(rng.normal(size=own[key].shape))
    return parameters, rng.random((3, 8, 8, 1)), rng


def test_export_answers_as_the_numpy_network():
    parameters, image, _ = started(1)
    expected, _ = forward(parameters, image, training=False)
    session = onnxruntime.InferenceSession(export(parameters).SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": image.transpose(0, 3, 1, 2).astype(np.float32)})
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("row", [row for row in NETWORK if OPS[row.op].start(np.random.default_rng(0), row.settings)])
def test_gradients_agree_with_differences(row):
    """Along a random direction of each parameter, within the error of a central difference."""
    parameters, image, rng = started(2)
    logits, saved = forward(parameters, image, training=True)
    pull = rng.normal(size=logits.shape)
    grads = backward(parameters, saved, pull)[row.name]
    for key, gradient in grads.items():
        direction, start, ends = rng.normal(size=gradient.shape), parameters[row.name][key], []
        for step in (1e-6, -1e-6):
            parameters[row.name][key] = start + step * direction
            ends.append((forward(parameters, image, training=True)[0] * pull).sum())
        parameters[row.name][key] = start
        measured, told = (ends[0] - ends[1]) / 2e-6, (gradient * direction).sum()
        assert measured == pytest.approx(told, rel=1e-4, abs=1e-4), key
