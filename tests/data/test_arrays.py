"""Array files of unknown origin: either the arrays, or one DataError line."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcompress.data import arrays
from onnxcompress.errors import DataError
from onnxcompress.runtime.session import Port


def npz(**held: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **held)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode("latin1")


GOOD = npz(x=np.arange(60, dtype=np.float32).reshape(20, 3), ids=np.arange(20))


def one_line(path: Path, message: str = ".") -> None:
    for read in (arrays.array_shapes, arrays.read_arrays):
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value) and len(str(caught.value)) < 500


def test_good_files(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(GOOD)
    assert arrays.array_shapes(tmp_path / "a.npz") == {"x": (20, 3), "ids": (20,)}
    held = arrays.read_arrays(tmp_path / "a.npz")
    assert held["x"].dtype == np.float32 and held["ids"].tolist() == list(range(20))
    (tmp_path / "a.npy").write_bytes(npy(np.asfortranarray(np.arange(6).reshape(2, 3))))
    assert arrays.array_shapes(tmp_path / "a.npy") == {"": (2, 3)}
    assert arrays.read_arrays(tmp_path / "a.npy")[""].tolist() == [[0, 1, 2], [3, 4, 5]]


BAD = {
    "empty.npz": b"",
    "text.npz": b"hello",
    "short.npz": GOOD[: len(GOOD) // 2],
    "empty.npy": b"",
    "short.npy": npy(np.zeros(1000))[:500],
    "objects.npy": npy(np.array([{}, []], object)),
    "objects.npz": npz(x=np.array([{}, []], object)),
    "huge.npy": header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 1000), }\n"),
    "negative.npy": header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -8), }\n") + b"x" * 64,
    "long.npy": header("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }" + " " * 60000 + "\n") + b"x" * 8,
    "code.npy": header("__import__('os').system('true')\n"),
    "deep.npy": header("(" * 9000 + ")" * 9000 + "\n"),
    "version.npy": b"\x93NUMPY\x09\x00" + b"x" * 100,
    "zip.npy": GOOD,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    one_line(tmp_path / name)


def test_messages(tmp_path: Path) -> None:
    for name, message in {
        "objects.npz": "array 'x' holds Python objects, which are not loaded",
        "huge.npy": r"cut short or damaged: its header promises \[1000000000000, 1000\] float64",
        "short.npz": r"not a readable .npz file \(File is not a zip file\)",
    }.items():
        (tmp_path / name).write_bytes(BAD[name])
        one_line(tmp_path / name, message)


def test_a_member_that_is_no_array_and_a_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    one_line(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(npz(x=np.zeros(1_000_000)))
    monkeypatch.setattr(arrays, "memory_of_machine", lambda: 1_000_000)
    one_line(tmp_path / "b.npz", "unpacks to 8000128 bytes, more than this machine's memory")


def test_missing_file(tmp_path: Path) -> None:
    one_line(tmp_path / "no.npz", "No such file")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_never_escape(tmp_path: Path, data: st.DataObject) -> None:
    """Cut, overwritten and repeated bytes: arrays or a DataError, nothing else."""
    suffix, content = data.draw(st.sampled_from([(".npz", GOOD), (".npy", npy(np.arange(50.0)))]))
    edited = bytearray(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    for _ in range(data.draw(st.integers(0, 8))):
        if edited:
            edited[data.draw(st.integers(0, len(edited) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(bytes(edited))
    try:
        held = arrays.read_arrays(path)
    except DataError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert all(array.nbytes <= 10_000 for array in held.values())


CASTS = [
    ([1.5], "float64", "float32", "input 'x' is given as float64 and fed as float32"),
    ([1.5], "float32", "float16", "given as float32"),
    ([1, 2], "int32", "int64", "given as int32"),
    ([1, 2], "int64", "int32", "given as int64"),
    ([0, 255], "uint8", "float32", "given as uint8"),
    ([1.0, 2.0], "float32", "int64", "given as float32"),
    ([0, 1], "int64", "bool", "given as int64"),
    ([1.5], ">f4", "float32", ""),
    ([1.5], "float32", "float32", ""),
]


@pytest.mark.parametrize(("values", "have", "want", "said"), CASTS)
def test_casts_that_change_nothing_are_made_and_said(values: list, have: str, want: str, said: str) -> None:
    cast, sentence = arrays.fitted(np.array(values, have), Port("x", np.dtype(want), ("N",)), "c.npz")
    assert cast.dtype == np.dtype(want) and cast.tolist() == values
    assert said in sentence and bool(said) == bool(sentence)


@pytest.mark.parametrize(
    ("values", "have", "want"),
    [
        ([1e300], "float64", "float32"),
        ([1e6], "float32", "float16"),
        ([2**31], "int64", "int32"),
        ([-1], "int8", "uint8"),
        ([-1], "int64", "uint64"),
        ([2**24 + 1], "int64", "float32"),
        ([1.5], "float32", "int64"),
        ([2], "int64", "bool"),
        ([1j], "complex64", "float32"),
        (["a"], "U1", "float32"),
        (["2026-01-01"], "datetime64[D]", "int64"),
        ([1.0], "float32", "O"),
    ],
)
def test_casts_that_lose_are_refused(values: list, have: str, want: str) -> None:
    with pytest.raises(DataError, match=r"^c.npz: input 'x' takes "):
        arrays.fitted(np.array(values, have), Port("x", np.dtype(want), ("N",)), "c.npz")


def test_the_sample_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = Port("x", np.dtype("float32"), ("N", 3))
    array = np.zeros((100, 1, 3), np.float32)
    arrays.check_finite(array, port, "c.npz")
    array[57, 0, 2] = -np.inf
    for block in (1, 7, 1 << 20):
        monkeypatch.setattr(arrays, "BLOCK", block)
        with pytest.raises(DataError, match=r"c.npz: input 'x', sample 57 holds -inf; remove that sample"):
            arrays.check_finite(array, port, "c.npz")
