"""Weights go between a file and arrays: the same bytes out, the same model in, the same answers where a run is fed them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from onnxcompress.model import load
from onnxcompress.model.save import finished, pieces
from onnxcompress.runtime.loose import as_inputs, loose
from onnxcompress.runtime.session import open_session
from onnxcompress.weights.beside import read_beside, together

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"


def test_out_and_in_again_gives_the_same_bytes(tmp_path: Path) -> None:
    given = onnx.load(DIGITS).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(given)
    message, arrays, _ = read_beside(path)
    assert arrays and len(message) < len(given) / 4
    assert b"".join(together(message, arrays)) == given


def test_a_path_and_its_bytes_are_one_model(tmp_path: Path) -> None:
    one, other = load(DIGITS), load(DIGITS.read_bytes())
    assert one.fingerprint == other.fingerprint
    graph = finished(one)
    whole = b"".join(pieces(graph))
    assert onnx.load_from_string(whole).SerializeToString(deterministic=True) == whole


def test_a_run_is_fed_large_weights(tmp_path: Path) -> None:
    graph = loose(load(DIGITS).ir)
    assert as_inputs(graph)[1]
    feeds = {"x": np.random.default_rng(0).random((3, 1, 8, 8), np.float32)}
    fed, held = open_session(graph, as_given=True), open_session(graph)
    feeds = {port.name: feeds["x"] for port in held.inputs}
    assert fed.inputs == held.inputs
    for name, answer in held.run(feeds).items():
        np.testing.assert_allclose(fed.run(feeds)[name], answer, atol=1e-5)
        np.testing.assert_allclose(dict(fed.stream(feeds))[name], answer, atol=1e-5)
