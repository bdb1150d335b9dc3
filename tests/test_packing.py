"""pack, unpack, load_packed, and packed files where other verbs read and write models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import onnxcompress
from onnxcompress.errors import ModelError, SettingError
from onnxcompress.files import write_atomic
from onnxcompress.model.load import read
from onnxcompress.weights.container import Container, Member, Writer

DIGITS = Path(__file__).parents[1] / "sample_models" / "digits.onnx"
FEED = np.random.default_rng(0).random((2, 1, 28, 28)).astype(np.float32)


def answers(session: onnxruntime.InferenceSession) -> list[np.ndarray]:
    port = session.get_inputs()[0]
    shape = [2 if not isinstance(size, int) else size for size in port.shape]
    return list(session.run(None, {port.name: np.resize(FEED, shape)}))


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights lie in a file beside it, two of them in the same bytes."""
    folder = tmp_path / "external"
    folder.mkdir()
    model = onnx.load(DIGITS)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    return folder / "m.onnx"


def test_the_same_file_comes_back(tmp_path: Path) -> None:
    done = onnxcompress.pack(DIGITS, tmp_path / "d.onnxz")
    assert done.after == (tmp_path / "d.onnxz").stat().st_size < done.before == DIGITS.stat().st_size
    assert onnxcompress.unpack(tmp_path / "d.onnxz", tmp_path / "d.onnx") == [tmp_path / "d.onnx"]
    assert (tmp_path / "d.onnx").read_bytes() == DIGITS.read_bytes()


@pytest.mark.parametrize("given", [DIGITS.read_bytes(), onnx.load(DIGITS), onnxcompress.load(DIGITS)], ids=type)
def test_models_in_memory_are_packed(tmp_path: Path, given: object) -> None:
    onnxcompress.pack(given, tmp_path / "d.onnxz")  # type: ignore[arg-type]
    for one, two in zip(answers(onnxcompress.load_packed(tmp_path / "d.onnxz")), session_of(DIGITS), strict=True):
        assert np.allclose(one, two, atol=1e-4)


def session_of(path: Path) -> list[np.ndarray]:
    return answers(onnxruntime.InferenceSession(str(path)))


@pytest.mark.parametrize("entropy", ["ans", "huffman"])
def test_load_packed_answers_as_the_file_does(tmp_path: Path, entropy: str) -> None:
    onnxcompress.pack(DIGITS, tmp_path / "d.onnxz", entropy=entropy)
    session = onnxcompress.load_packed(tmp_path / "d.onnxz")
    assert isinstance(session, onnxruntime.InferenceSession)
    for one, two in zip(answers(session), session_of(DIGITS), strict=True):
        assert np.array_equal(one, two)
    assert isinstance(onnxcompress.load_packed((tmp_path / "d.onnxz").read_bytes()), onnxruntime.InferenceSession)


def test_load_packed_takes_options(tmp_path: Path) -> None:
    onnxcompress.pack(DIGITS, tmp_path / "d.onnxz")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxcompress.load_packed(tmp_path / "d.onnxz", options, ["CPUExecutionProvider"])
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_weight_that_only_bodies_read(tmp_path: Path) -> None:
    """onnxruntime does not look beside the message for it."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 64])
    branches = [
        helper.make_graph([helper.make_node(op, ["h", "w"] if op == "MatMul" else ["h"], ["y"])], op, [], [value])
        for op in ("MatMul", "Relu")
    ]
    nodes = [
        helper.make_node("Identity", ["x"], ["h"]),
        helper.make_node("If", ["c"], ["z"], then_branch=branches[0], else_branch=branches[1]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 64]),
        helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2, 64])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnxcompress.pack(model, tmp_path / "m.onnxz")
    x = np.ones((2, 64), np.float32)
    found = onnxcompress.load_packed(tmp_path / "m.onnxz").run(None, {"x": x, "c": np.array(True)})
    assert np.allclose(found[0], x @ weight, atol=1e-3)


def test_external_data_goes_along(tmp_path: Path, external: Path) -> None:
    done = onnxcompress.pack(external, tmp_path / "m.onnxz")
    weights = (external.parent / "w.bin").read_bytes()
    assert done.before == len(weights) + external.stat().st_size
    target = tmp_path / "out"
    target.mkdir()
    onnxcompress.unpack(tmp_path / "m.onnxz", target / "back.onnx")
    assert (target / "back.onnx").read_bytes() == external.read_bytes() and (target / "w.bin").read_bytes() == weights
    for one, two in zip(answers(onnxcompress.load_packed(tmp_path / "m.onnxz")), session_of(external), strict=True):
        assert np.array_equal(one, two)
    proto, _ = read(tmp_path / "m.onnxz")
    whole = onnx.load(external)
    assert [t.raw_data for t in proto.graph.initializer] == [t.raw_data for t in whole.graph.initializer]


def test_external_data_is_written_over_nothing(tmp_path: Path, external: Path) -> None:
    onnxcompress.pack(external, tmp_path / "m.onnxz")
    with pytest.raises(SettingError, match=r"w\.bin.*empty folder"):
        onnxcompress.unpack(tmp_path / "m.onnxz", external.parent / "back.onnx")
    assert not (external.parent / "back.onnx").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "sub/../../evil", "", "back.onnx", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    writer, empty = Writer(), np.zeros(0, np.uint32)
    pieces = [
        writer.begin(),
        writer.end([Member("", 0, empty, empty), Member(name, 0, empty, empty.astype(np.uint64))]),
    ]
    (tmp_path / "in").mkdir()
    write_atomic(tmp_path / "in" / "m.onnxz", iter(pieces))
    with pytest.raises((ModelError, SettingError)):
        onnxcompress.unpack(tmp_path / "in" / "m.onnxz", tmp_path / "in" / "back.onnx")
    assert sorted(os.listdir(tmp_path)) == ["in"] and os.listdir(tmp_path / "in") == ["m.onnxz"]


def test_what_fits_on_no_disk_is_not_begun(tmp_path: Path) -> None:
    """Runs of one megabyte of zeros, over and over: an exabyte in a few kilobytes."""
    from onnxcompress.weights.codecs import Fitted, Spec

    writer, size = Writer(), 1 << 20
    body = list(writer.add(Fitted(Spec(0, 1, 0, size), np.zeros(size, np.uint8)), 0))
    runs = 1 << 20
    member = Member("", runs << 20, np.zeros(runs, np.uint32), np.full(runs, size, np.uint64))
    members = [member] + [Member(f"{n}.bin", member.size, member.segments, member.lengths) for n in range(4)]
    write_atomic(tmp_path / "m.onnxz", iter([Writer().begin(), *body, writer.end(members)]))
    with pytest.raises((ModelError, SettingError)):
        onnxcompress.unpack(tmp_path / "m.onnxz", tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == ["m.onnxz"]


def test_a_damaged_file_leaves_nothing(tmp_path: Path) -> None:
    onnxcompress.pack(DIGITS, tmp_path / "d.onnxz")
    data = bytearray((tmp_path / "d.onnxz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "d.onnxz").write_bytes(data)
    (tmp_path / "d.onnx").write_bytes(b"old")
    for act in (
        lambda: onnxcompress.unpack(tmp_path / "d.onnxz", tmp_path / "d.onnx"),
        lambda: onnxcompress.load_packed(tmp_path / "d.onnxz"),
    ):
        with pytest.raises(ModelError, match=r"d\.onnxz: damaged or truncated"):
            act()
    assert sorted(os.listdir(tmp_path)) == ["d.onnx", "d.onnxz"] and (tmp_path / "d.onnx").read_bytes() == b"old"


def test_outputs_that_are_inputs_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "d.onnx"
    copy.write_bytes(DIGITS.read_bytes())
    with pytest.raises(SettingError, match="also an input"):
        onnxcompress.pack(copy, copy)
    onnxcompress.pack(copy, tmp_path / "d.onnxz")
    with pytest.raises(SettingError, match="also an input"):
        onnxcompress.unpack(tmp_path / "d.onnxz", tmp_path / "d.onnxz")
    with pytest.raises(ModelError, match="packed already"):
        onnxcompress.pack(tmp_path / "d.onnxz", tmp_path / "e.onnxz")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x89ONNXZ\r\n", os.urandom(3000)])
def test_what_is_no_packed_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnxz").write_bytes(content)
    for act in (
        onnxcompress.load_packed,
        onnxcompress.load,
        lambda path: onnxcompress.unpack(path, tmp_path / "m.onnx"),
    ):
        with pytest.raises(ModelError):
            act(tmp_path / "m.onnxz")
    with pytest.raises(ModelError, match="cannot be read"):
        onnxcompress.load_packed(tmp_path / "missing.onnxz")


def test_verbs_read_and_write_packed_files(tmp_path: Path) -> None:
    onnxcompress.pack(DIGITS, tmp_path / "d.onnxz")
    assert onnxcompress.load(tmp_path / "d.onnxz").fingerprint == onnxcompress.load(DIGITS).fingerprint
    assert onnxcompress.load((tmp_path / "d.onnxz").read_bytes()).fingerprint == onnxcompress.load(DIGITS).fingerprint
    assert onnxcompress.compare(DIGITS, tmp_path / "d.onnxz").same
    result = onnxcompress.sparsify(tmp_path / "d.onnxz", amount=0.8)
    result.save(tmp_path / "s.onnxz")
    result.save(tmp_path / "s.onnx")
    assert (tmp_path / "s.onnxz").stat().st_size < 0.4 * (tmp_path / "s.onnx").stat().st_size
    onnxcompress.unpack(tmp_path / "s.onnxz", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "s.onnx").read_bytes()
    with pytest.raises(SettingError, match="also an input"):
        result.save(tmp_path / "d.onnxz")


def test_the_report(tmp_path: Path) -> None:
    done = onnxcompress.pack(DIGITS, tmp_path / "d.onnxz", peers=True)
    value = json.loads(json.dumps(done.to_json()))
    assert value["headline"] == done.headline and sum(line["before"] for line in value["lines"]) == done.before
    assert sum(line["after"] for line in value["lines"]) == pytest.approx(done.after, rel=0.01)
    large = [line for line in done.lines if line.type]
    assert large and all(line.zstd and line.gzip and line.bits <= line.zstd for line in large)


def test_symbols_are_within_one_percent_of_their_entropy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    levels = rng.standard_normal(16).astype(np.float32)
    weight = levels[rng.choice(16, (512, 1024), p=np.r_[0.8, np.full(15, 0.2 / 15)])]
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph)
    done = onnxcompress.pack(model, tmp_path / "m.onnxz")
    assert done.entropy is not None and done.bits is not None
    assert 1.4 < done.entropy < 1.55 and done.bits < 1.01 * done.entropy
    with Container(tmp_path / "m.onnxz") as opened:
        assert opened.members[0].size == len(model.SerializeToString())
