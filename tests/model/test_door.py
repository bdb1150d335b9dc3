"""The door: what comes in is normalised, and what is damaged is refused in one line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from generate import feeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import check_cut, check_door, draw
from zoo import NOT_RUNNABLE, ZOO

from onnxcompress.channels import analyse, cut
from onnxcompress.errors import ModelError
from onnxcompress.model import load, save
from onnxcompress.model.spec import violations
from onnxcompress.runtime.session import open_session

DIGITS = (Path(__file__).parents[2] / "sample_models" / "digits.onnx").read_bytes()
LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))


def external(folder: Path, location: str = "w.bin") -> Path:
    """The conv_chain model with its weights in a file beside it."""
    path = folder / "model.onnx"
    onnx.save_model(
        ZOO["conv_chain"](),
        str(path),
        save_as_external_data=True,
        location=location,
        size_threshold=0,
        convert_attribute=True,
    )
    return path


def test_external_data_is_read_from_anywhere(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = load(path)
    assert not violations(model) and analyse(model).groups
    assert model.source.size == path.stat().st_size + (tmp_path / "w.bin").stat().st_size
    proto = ZOO["conv_chain"]()
    inputs = feeds(proto, 0)
    wanted = open_session(proto.SerializeToString()).run(inputs)
    for runnable in (model.serialized, model.source.runnable):
        for name, y in open_session(runnable).run(inputs).items():
            np.testing.assert_allclose(y, wanted[name], rtol=1e-5, atol=1e-6)


def test_missing_short_and_strange_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = tmp_path / "w.bin"
    whole = data.read_bytes()
    data.write_bytes(whole[:8])
    with pytest.raises(ModelError, match="shorter"):
        load(path)
    data.unlink()
    with pytest.raises(ModelError, match=r"w\.bin"):
        load(path)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../w.bin"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside"):
        load(path)
    with pytest.raises(ModelError, match="path"):
        load(proto.SerializeToString())


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_classic_graphs_of_old_opsets_load(path: Path) -> None:
    if path.stem in ("light_vgg19", "light_zfnet512", "light_bvlc_alexnet"):
        pytest.skip("hundreds of MB of constant weights; the small ones cover the same operators")
    model = load(path)
    channels = analyse(model)
    assert not violations(model) and channels.groups
    narrow = cut(model, channels, draw(model, 0.5, 0))
    assert not violations(narrow)
    assert len(narrow.serialized) < 0.6 * len(model.serialized)
    open_session(narrow.serialized)


@pytest.mark.parametrize("data", [b"", b"no model", DIGITS[:1000], b"\x00" * 100, DIGITS[100:]])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        load(data)


def test_an_operator_that_onnx_does_not_know_is_named() -> None:
    with pytest.raises(ModelError, match="Brelu"):
        load(NOT_RUNNABLE["unknown_operator"]())


def test_a_tied_embedding_is_stored_once(tmp_path: Path) -> None:
    """onnxsim folds the Transpose of the shared matrix; the file holds it once all the same, and is read back alike."""
    sample = ZOO["embedding_tied"]
    sample = replace(
        sample, graph=sample.graph.replace("L,11", "L,300"), weights=dict(emb=(300, 64), w1=(64, 9), w2=(9, 64))
    )
    proto = sample()
    model = load(proto)
    path = save(model, tmp_path / "tied.onnx")
    assert path.stat().st_size < 1.1 * proto.ByteSize()
    inputs = feeds(proto, 0)
    wanted = open_session(proto.SerializeToString()).run(inputs)
    for name, y in open_session(path).run(inputs).items():
        np.testing.assert_allclose(y, wanted[name], rtol=1e-5, atol=1e-5)
    narrow = check_cut(model, inputs, 0.5, 0)
    assert save(narrow, tmp_path / "narrow.onnx").stat().st_size < 0.6 * proto.ByteSize()
    assert [g.size for g in analyse(load(path)).groups] == [g.size for g in analyse(model).groups]


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="folder"):
        load(tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "none.onnx")


def test_weights_over_the_limit_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["onnxcompress.model.save"], "LARGEST_MESSAGE", 100)
    path = save(load(ZOO["conv_chain"]()), tmp_path / "big.onnx")
    assert (tmp_path / "big.onnx.data").exists()
    proto = ZOO["conv_chain"]()
    inputs = feeds(proto, 0)
    for name, y in open_session(path).run(inputs).items():
        np.testing.assert_allclose(y, open_session(proto.SerializeToString()).run(inputs)[name], rtol=1e-5, atol=1e-6)


def test_metadata_is_written(tmp_path: Path) -> None:
    path = save(load(DIGITS), tmp_path / "m.onnx", {"onnxcompress": "[]"})
    assert {p.key: p.value for p in onnx.load(path).metadata_props}["onnxcompress"] == "[]"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_are_read_or_refused(data: st.DataObject) -> None:
    """Bytes flipped and cut anywhere: a Model or a ModelError, never anything else."""
    content = bytearray(DIGITS[: data.draw(st.integers(1, len(DIGITS)))] if data.draw(st.booleans()) else DIGITS)
    for _ in range(data.draw(st.integers(1, 8))):
        # most of the file is weights: half of the flips go to the graph at its start
        top = min(4000, len(content)) if data.draw(st.booleans()) else len(content)
        content[data.draw(st.integers(0, top - 1))] = data.draw(st.integers(0, 255))
    try:
        analyse(load(bytes(content)))
    except ModelError as error:
        assert "\n" not in str(error)


def test_an_output_without_a_shape_is_read_and_stays_without(tmp_path: Path) -> None:
    """ONNX's checker wants a shape; onnxruntime, and exporters that do not know the rank, do without."""
    proto = ZOO["conv_chain"]()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = check_door(proto, feeds(proto, 0))
    written = onnx.load(save(cut(model, analyse(model), draw(model, 0.5, 0)), tmp_path / "small.onnx"))
    assert not written.graph.output[0].type.tensor_type.HasField("shape")
