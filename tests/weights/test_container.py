"""Packed files: the same bytes come back, and a damaged, truncated or hostile file is one line of ModelError."""

from __future__ import annotations

import random
import resource
import struct
import types
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated, shuffled
from onnx import helper, numpy_helper
from zoo import ZOO

from onnxcompress.errors import ModelError
from onnxcompress.weights import codecs, container, packed, plain, streams, tunstall, wire
from onnxcompress.weights.container import HEAD, TRAILER, Container
from onnxcompress.weights.handed import loadable
from onnxcompress.weights.packed import Packer, whole

DIGITS = (Path(__file__).parents[2] / "sample_models" / "digits.onnx").read_bytes()
MEMORY = 6 << 30
"""Bytes of address space: a file that claims exabytes must be refused, not believed."""


FOUND = tunstall.dictionary(np.array([0.8, 0.2]))
assert FOUND is not None
WORDS = FOUND


def pack(data: bytes, entropy: str = "ans") -> bytes:
    return b"".join(Packer(entropy).pieces(data))


def unpack(data: bytes) -> bytes:
    with Container(data) as opened:
        return bytes(whole(opened)[""])


def every_kind() -> bytes:
    """A model with each form of tensor, in initializers, attributes, bodies and typed fields."""
    rng = np.random.default_rng(0)
    levels = np.sort(rng.standard_normal(9)).astype(np.float32)
    symbols = rng.integers(0, 9, (24, 16, 3, 3))
    kinds = np.where(
        rng.random((40, 300)) < np.linspace(0, 1, 40)[:, None], np.float32(0), levels[rng.integers(0, 9, (40, 300))]
    )
    denser = np.repeat([0.02, 0.4, 0.02, 0.4, 0.02, 0.4], 20_480)  # kinds of slices, which numbers of words do not show
    words = tunstall.encode((rng.random(len(denser)) < denser).astype(np.uint8), WORDS)
    arrays = {
        "dense": rng.standard_normal((30, 40)).astype(np.float32),
        "book": levels[symbols],
        "scaled": levels[symbols] * (rng.random((24, 1, 1, 1)) + 0.1).astype(np.float32),
        "slices": np.take_along_axis(rng.standard_normal((24, 9)).astype(np.float32), symbols.reshape(24, -1), 1),
        "sparse": np.where(rng.random((60, 70)) < 0.9, 0, rng.standard_normal((60, 70))).astype(np.float16),
        "bytes": rng.integers(0, 9, 9000).astype(np.uint8),
        "numbers": np.arange(900, dtype=np.int64),
        "digits": plain.packed(rng.choice(15, 6001, p=np.r_[0.44, np.full(14, 0.04)]).astype(np.uint8), 15),
        "kinds": kinds,
        "words": words,
        "lengths": WORDS.lengths,
        "twin": levels[symbols],
        **{f"bias{n}": rng.standard_normal(50).astype(np.float32) for n in range(6)},
        "empty": np.zeros((0, 3), np.float32),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    typed = helper.make_tensor("typed", onnx.TensorProto.FLOAT, [600], rng.standard_normal(600).astype(np.float32))
    doubles = helper.make_tensor("doubles", onnx.TensorProto.DOUBLE, [600], rng.standard_normal(600))
    assert not typed.raw_data and not doubles.raw_data
    inner = helper.make_graph([], "body", [], [], [numpy_helper.from_array(arrays["book"] + 1, "inside")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(arrays["dense"] + 1)),
        helper.make_node("Cast", ["words"], ["w"], to=onnx.TensorProto.INT32),
        helper.make_node("Cast", ["lengths"], ["l"], to=onnx.TensorProto.INT32),
        helper.make_node("Gather", ["l", "w"], ["length"]),
        helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner),
    ]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], [*tensors, typed, doubles])).SerializeToString()


KINDS = every_kind()
PACKED = {entropy: pack(KINDS, entropy) for entropy in streams.ENTROPY}


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("entropy", streams.ENTROPY)
def test_the_same_bytes_come_back(entropy: str) -> None:
    assert unpack(PACKED[entropy]) == KINDS and len(PACKED[entropy]) < 0.7 * len(KINDS)
    assert unpack(pack(DIGITS, entropy)) == DIGITS


def test_packing_twice_makes_the_same_bytes() -> None:
    assert pack(KINDS) == PACKED["ans"]


def test_every_form_is_there() -> None:
    packer = Packer()
    list(packer.pieces(KINDS))
    forms = {line.name: line.form for line in packer.report}
    assert forms["dense"] == forms["typed"] == "plain" and forms["book"] == "book"
    assert forms["scaled"] == "book, scale a slice" and forms["slices"] == "book a slice"
    assert forms["sparse"].startswith("plain, gaps") and forms["digits"] == "digits of bytes"
    assert forms["words"].startswith("words of symbols") and "kinds of slices" in forms["kinds"]
    assert "twin" not in forms and packer.repeated >= 24 * 16 * 9 * 4
    assert sum(line.stored for line in packer.report) == pytest.approx(len(PACKED["ans"]), rel=0.01)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_model_of_the_zoo(name: str) -> None:
    data = ZOO[name]().SerializeToString()
    assert unpack(pack(data)) == data


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ZOO)), st.integers(0, 1 << 32))
def test_models_that_mean_nothing_come_back_too(name: str, seed: int) -> None:
    model = ZOO[name]()
    mutated(model, random.Random(seed), 2)
    data = model.SerializeToString()
    if any(tensor.external_data for tensor in model.graph.initializer):
        return
    assert unpack(pack(data)) == data


def test_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "BLOCK", 500)
    monkeypatch.setattr(packed, "SMALL", 600)
    data = pack(KINDS)
    assert len(data) > len(PACKED["ans"]) and unpack(data) == KINDS


def test_another_size_of_blocks_is_refused() -> None:
    """The size is the format's, not the file's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "BLOCK", 500)
        data = pack(KINDS)
    with pytest.raises(ModelError, match="damaged"):
        unpack(data)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(PACKED)), st.integers(0, 1 << 32), st.integers(1, 4))
def test_damaged_files(entropy: str, seed: int, times: int) -> None:
    data = shuffled(PACKED[entropy], random.Random(seed), times)
    if data == PACKED[entropy]:
        return
    with pytest.raises(ModelError) as caught:
        assert unpack(data) == KINDS  # what is damaged may be a byte that nobody reads
        raise ModelError("bytes: the same")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("bytes: ")


@pytest.mark.parametrize("length", [0, 1, 8, HEAD.size, HEAD.size + 1, 1000, -1, -TRAILER.size])
def test_truncated_files(length: int) -> None:
    with pytest.raises(ModelError, match=r"damaged or truncated|not a packed model"):
        unpack(PACKED["ans"][:length])


@contextmanager
def without_checksums() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (container, packed):
            patch.setattr(module, "zlib", types.SimpleNamespace(crc32=lambda *_: 0))
        yield


@cache
def unsummed(entropy: str) -> bytes:
    """A container whose checksums are all 0."""
    with without_checksums():
        return pack(KINDS, entropy)


def resealed(data: bytes, seed: int, times: int, where: str) -> bytes:
    """With other bytes in the table or in the blocks, and checksums that fit them: what a hostile writer makes."""
    _, size, raw, at, end = TRAILER.unpack(data[-TRAILER.size :])
    table, blocks, rng = streams.unzipped(data[at : at + size], raw), data[HEAD.size : at], random.Random(seed)
    if where == "table":
        table = shuffled(table, rng, times)
    else:
        blocks = shuffled(blocks, rng, times)[: len(blocks)].ljust(len(blocks), b"\0")
    again = streams.zipped(table)
    tail = TRAILER.pack(0, len(again), len(table), HEAD.size + len(blocks), end)
    return data[: HEAD.size] + blocks + again + tail


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(PACKED)), st.integers(0, 1 << 32), st.integers(1, 3), st.sampled_from(["table", "blocks"])
)
def test_hostile_files(entropy: str, seed: int, times: int, where: str) -> None:
    """All checksums fit: then anything may come out, but only bytes or one line."""
    with without_checksums():
        data = resealed(unsummed(entropy), seed, times, where)
        for read in (unpack, lambda given: loadable(Container(given))):
            try:
                read(data)
            except ModelError as error:
                assert "\n" not in str(error)


def claimed(**facts: int) -> bytes:
    """A container of a few bytes whose table claims these facts of its one segment, with checksums that fit."""
    told = dict.fromkeys(("form", "width", "rotate", "gaps", "kinds", "entries", "size", "common"), 0)
    told |= {"width": 1, "kinds": 1, "size": 1, "stride": 1, "count": 1, "run": 1, "runs": 1, "symbols": 0, "crc": 0}
    told |= facts
    size = told["size"]
    table = struct.pack("<II", 1, 1) + struct.pack("<HQI", 0, size, 1) + struct.pack("<IQ", 0, size)
    table += struct.pack("<BBBBBHQQQIQIQI", *told.values()) + b"\0" * 64
    again = streams.zipped(table)
    return (
        container.HEAD.pack(container.MAGIC, container.VERSION, 0, 0)
        + again
        + TRAILER.pack(zlib.crc32(again), len(again), len(table), HEAD.size, container.END)
    )


@pytest.mark.parametrize(
    "facts",
    [
        {"size": 1 << 62}, {"size": (1 << 64) - 1}, {"form": 1, "entries": 256, "width": 8, "size": 1 << 63},
        {"form": 2, "entries": 256, "count": (1 << 32) - 1, "width": 4, "size": 1 << 40}, {"stride": (1 << 64) - 1, "size": 1 << 50},
        {"gaps": 8, "size": 1 << 50}, {"form": 5, "width": 4, "entries": 1, "count": 1 << 22, "size": 4},
        {"kinds": 8, "runs": (1 << 32) - 1}, {"kinds": 2, "runs": 1 << 22, "run": (1 << 64) - 1}, {"kinds": 255, "size": 1 << 20},
        {"form": 3, "entries": 2, "size": 1 << 61}, {"form": 4, "entries": 2, "count": 256, "size": 1 << 50, "symbols": 1 << 57},
        {"form": 4, "entries": 2, "count": 256, "size": 8, "symbols": 1 << 40},
        {"form": 6, "entries": 3, "size": 3 << 50, "symbols": 1 << 53}, {"form": 7, "entries": 4, "size": 1 << 50, "symbols": 1 << 53},
    ],
)  # fmt: skip
def test_exabytes_are_not_believed(facts: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="damaged"):
        unpack(claimed(**facts))


def test_a_file_of_many_repetitions_is_not_held_in_memory() -> None:
    """Runs may repeat a segment, so that a few bytes can say gigabytes: counted before anything is made."""
    runs = 1 << 12
    zeros = codecs.Fitted(codecs.Spec(0, 1, 0, 1 << 20), np.zeros(1 << 20, np.uint8))
    writer = container.Writer()
    pieces = [writer.begin(), *writer.add(zeros, zlib.crc32(bytes(1 << 20)))]
    lengths = np.full(runs, 1 << 20, np.uint64)
    data = b"".join([*pieces, writer.end([container.Member("", runs << 20, np.zeros(runs, np.uint32), lengths)])])
    assert len(data) < 10_000
    with Container(data) as opened:
        with pytest.raises(ModelError, match="unpack it first"):
            whole(opened)
        with pytest.raises(ModelError, match="more than protobuf reads"):
            loadable(opened)


def test_another_version_is_said() -> None:
    data = bytearray(PACKED["ans"])
    data[8] = 9
    with pytest.raises(ModelError, match="packed in version 9"):
        unpack(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(ZOO)), st.integers(0, 1 << 32), st.integers(1, 4))
def test_what_is_no_model_is_not_packed(name: str, seed: int, times: int) -> None:
    """Bytes that protobuf could not read are refused, others come back as they are."""
    data = shuffled(ZOO[name]().SerializeToString(), random.Random(seed), times)
    try:
        assert unpack(pack(data)) == data
    except ModelError as error:
        assert "\n" not in str(error)


def test_messages_too_deep_are_refused() -> None:
    data = b""
    for _ in range(120):
        data = wire.message(1, wire.message(5, wire.message(6, data)))  # node, attribute, graph
    with pytest.raises(ModelError, match="not an ONNX model"):
        pack(wire.message(7, data))


def test_every_tensor_is_found() -> None:
    """What onnx sees, wherever it is."""
    found = wire.stored(KINDS, "m")
    model = onnx.load_from_string(KINDS)
    assert [one.name for one in found if one.depth == 2] == [tensor.name for tensor in model.graph.initializer]
    by_name = {tensor.name: tensor for tensor in model.graph.initializer}
    for one in found:
        if one.depth == 2 and by_name[one.name].raw_data:
            assert KINDS[one.start : one.start + one.size] == by_name[one.name].raw_data and one.dims == tuple(
                by_name[one.name].dims
            )
    assert sum(one.depth > 2 for one in found) == 3
