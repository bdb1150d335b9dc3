"""Symbols that an .onnx file holds as bytes of some form are packed as symbols, about as small from each form, and the bytes come back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.weights import codecs, levels, whole
from onnxcompress.weights.coded import Coded
from onnxcompress.weights.container import Container
from onnxcompress.weights.forms import FORMS
from onnxcompress.weights.handed import loadable
from onnxcompress.weights.packed import Packer
from onnxcompress.weights.packed import whole as files
from weights.drawn import coded_tensors
from weights.test_forms import MOST, written


def coded_rows(entries: int) -> Coded:
    """64 rows of 576, each more or less spread about its middle symbols, so that rows are of several kinds."""
    rng = np.random.default_rng(0)
    wide = np.geomspace(0.6, entries / 3, 64)[:, None]
    symbols = np.clip(np.rint(rng.standard_normal((64, 576)) * wide + entries / 2), 0, entries - 1)
    books = np.sort(rng.standard_normal(entries)).astype(np.float32)[None, :, None]
    return Coded((64, 64, 3, 3), symbols.astype(np.uint8).reshape(-1), books)


def packed(model: onnx.ModelProto) -> tuple[bytes, list[str]]:
    data, packer = model.SerializeToString(), Packer()
    made = b"".join(packer.pieces(data))
    with Container(made) as opened:
        assert bytes(files(opened)[""]) == data
    with Container(made) as opened:
        message, arrays = loadable(opened)
        assert len(message) + sum(array.nbytes for array in arrays.values()) >= len(data)
    return made, [line.form for line in packer.report]


FOUND = {
    "bytes": "",
    "packed": "digits of bytes",
    "uint4": "",
    "tunstall": "words of symbols",
    "huffman": "codes of symbols",
}


@pytest.mark.parametrize("form", FOUND)
def test_sixteen_symbols(form: str) -> None:
    best = len(packed(written(coded_rows(16), "bytes"))[0])
    made, forms = packed(written(coded_rows(16), form))
    assert len(made) < 1.05 * best + 1000  # words, tables and nodes
    assert any(each.startswith(FOUND[form]) and "kinds of slices" in each for each in forms)


@pytest.mark.parametrize("entries", [8, 32, 64, 128])
def test_planes(entries: int) -> None:
    coded = coded_rows(entries)
    best = len(packed(written(coded, "bytes"))[0])
    made, forms = packed(written(coded, "planes"))
    assert len(made) < 1.05 * best + 1000 and any(each.startswith("planes of symbols") for each in forms)


def test_planes_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "BLOCK", 5000)
    assert any(each.startswith("planes") for each in packed(written(coded_rows(64), "planes"))[1])


@pytest.mark.parametrize("form", [form for form in FORMS if form != "uint2"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_coded_tensor_comes_back(form: str, data: st.DataObject) -> None:
    coded = data.draw(coded_tensors(smallest=4, most_entries=MOST.get(form, 256)))
    many = replace(coded, shape=(8 * coded.shape[0], *coded.shape[1:]), symbols=np.tile(coded.symbols, 8), scales=None, groups=None,
                   books=coded.books[:1])  # fmt: skip
    if FORMS[form].size(many) is not None:
        packed(written(many, form))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 700), st.sampled_from([3, 5, 6, 7]), st.integers(0, 99))
def test_symbols_of_planes(count: int, bits: int, seed: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    values = whole.to_planes(symbols, bits)
    assert len(values) == whole.size_of_planes(count, bits)
    sizes = [-(-count * each // 8) for each in {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}[bits]]
    found = whole.of_planes(values, sizes, bits)
    assert found is not None and np.array_equal(found[:count], symbols) and not found[count:].any()
    more = np.append(values, np.uint8(0))
    assert whole.of_planes(more, [*sizes[:-1], sizes[-1] + 1], bits) is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=200), st.integers(0, 99))
def test_symbols_of_codes(counts: list[int], seed: int) -> None:
    wanted = np.zeros(256, np.int64)
    wanted[: len(counts)] = counts
    if np.count_nonzero(wanted) < 2:
        return
    symbols = np.random.default_rng(seed).permutation(np.repeat(np.arange(256), wanted)).astype(np.uint8)
    values = whole.to_levels(symbols, levels.lengths_for(wanted))
    found = whole.of_levels(values, wanted)
    assert found is not None and np.array_equal(found[0], symbols)
    assert whole.of_levels(values[:-1], wanted) is None


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 2], [1, 0, 1]])
def test_codes_that_are_none(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"no code|without a code"):
        whole.to_levels(np.array([0, 1], np.uint8), np.array(lengths, np.uint8))
