"""Answers of a teacher in a file: the same numbers again, found only where all is the same, never half-written, never stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcompress.data import Data, open_data
from onnxcompress.errors import DataError, SettingError
from onnxcompress.runtime.session import Port
from onnxcompress.training.answers import SUFFIX, Filed, key_of, write
from onnxcompress.training.teacher import Teacher

X = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


def data(x: np.ndarray = X, **ways: Any) -> Data:
    return open_data({"x": x}, [Port("x", x.dtype, ("N", *x.shape[1:]))], **ways)


class Speaker:
    """Says y = w x, and counts how often."""

    def __init__(self, w: float) -> None:
        self.w, self.asked = np.float32(w), 0

    def run(self, feed: Any) -> dict[str, np.ndarray]:
        self.asked += len(feed["x"])
        return {"y": self.w * feed["x"]}


def remembered(
    folder: Path, samples: Data, batch: int = 4, identity: str = "a", w: float = 2.0, limit: int = 1 << 20
) -> Teacher:
    teacher = Teacher(Speaker(w), ["y"])
    assert teacher.remember(samples, batch, limit, folder=folder, identity=identity)
    return teacher


@given(
    st.lists(
        hnp.arrays(hnp.floating_dtypes(sizes=(32, 64), endianness="<"), hnp.array_shapes(max_dims=3)),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=25, deadline=None)
def test_any_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[np.ndarray]) -> None:
    path = tmp_path_factory.mktemp("answers") / f"a{SUFFIX}"
    write(path, "key", ({"y": each, "z": each[:1]} for each in rows))
    indices = np.arange(len(rows))[::-1] + 7
    found = Filed.found(path, "key", indices)
    assert found is not None and list(found) == indices.tolist()
    for index, each in zip(indices.tolist(), rows, strict=True):
        np.testing.assert_array_equal(found[index]["y"], each)
        assert found[index]["y"].dtype == each.dtype
        np.testing.assert_array_equal(found[index]["z"], each[:1])


@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_a_second_run_asks_nothing_but_the_shape(tmp_path: Path, limit: int) -> None:
    first = remembered(tmp_path, data(), limit=limit)
    second = remembered(tmp_path, data(), limit=limit)
    assert "kept for later runs" in first.told and "were computed before" in second.told
    assert first.session.asked >= 10 > second.session.asked  # type: ignore[attr-defined]
    assert len(list(tmp_path.iterdir())) == 1
    indices = np.array([3, 1])
    for each in (first, second):
        np.testing.assert_array_equal(each.values(indices, {"x": X[indices]})["y"], 2 * X[indices])
        np.testing.assert_array_equal(each.values(indices, {"x": -X[indices]}, fresh=True)["y"], -2 * X[indices])


def test_whatever_differs_is_another_file(tmp_path: Path) -> None:
    """Teacher, samples, their order, their batches: one bit of one sample is enough."""
    other = X.copy()
    other[7, 2] = np.nextafter(other[7, 2], np.float32(9))
    remembered(tmp_path, data())
    remembered(tmp_path, data(), identity="b")
    remembered(tmp_path, data(other))
    remembered(tmp_path, data(X[::-1]))
    remembered(tmp_path, data(X[:9]))
    remembered(tmp_path, data(), batch=5)
    assert len(list(tmp_path.iterdir())) == 6
    assert len({key_of("a", names, data(), 4) for names in (["y"], ["z"])}) == 2


def test_a_file_cut_short_is_computed_anew_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    remembered(tmp_path, data())
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for piece in (whole[:-30], whole[:5], b"", b"x" * 100, whole[10:]):
        path.write_bytes(piece)
        assert "kept for later runs" in remembered(tmp_path, data()).told
        assert path.read_bytes() == whole
    path.write_bytes(b"\0\1\2\3" + whole[4:])
    with pytest.raises(DataError, match="answers of a teacher are damaged; delete this file"):
        remembered(tmp_path, data())


def test_a_run_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def answers() -> Any:
        yield {"y": X}
        raise SettingError("stopped")

    with pytest.raises(SettingError):
        write(tmp_path / f"a{SUFFIX}", "key", answers())
    assert not list(tmp_path.iterdir())


def test_values_that_do_not_fall_apart_are_computed_each_time() -> None:
    class Mean(Speaker):
        def run(self, feed: Any) -> dict[str, np.ndarray]:
            return {"y": feed["x"].mean(0)}

    teacher = Teacher(Mean(1), ["y"])
    assert not teacher.remember(data(), 4, 1 << 20) and not teacher.kept and "in each epoch anew" in teacher.told
