"""Sources of all kinds end in the same samples; batches, the split, labels' rows."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.data import open_data
from onnxcompress.data.store import Data
from onnxcompress.errors import DataError, SettingError
from onnxcompress.runtime.session import Port
from onnxcompress.training.judge import how_many

X = [Port("x", np.dtype("float32"), ("N", 3))]
IDS = [Port("ids", np.dtype("int64"), ("N", "L")), Port("mask", np.dtype("int64"), ("N", "L"))]
SPEECH = [
    Port("input", np.dtype("float32"), ("N", "T")),
    Port("state", np.dtype("float32"), (2, "N", 4)),
    Port("sr", np.dtype("int64"), ()),
]
ROWS = np.arange(60, dtype=np.float32).reshape(20, 3)


def fed(data: Data, size: int = 1, name: str = "x") -> np.ndarray:
    return np.concatenate([feed[name] for feed in data.batches(size)])


def sources(folder: Path) -> dict[str, object]:
    """The same twenty rows from everywhere."""
    np.savez(folder / "a.npz", x=ROWS)
    np.savez(folder / "unnamed.npz", ROWS)
    np.save(folder / "a.npy", ROWS)
    for kind in ("batches", "single", "mixed"):
        (folder / kind).mkdir()
    for i in range(4):
        np.savez(folder / "batches" / f"{i}.npz", x=ROWS[5 * i : 5 * i + 5])
    for i in range(20):
        np.save(folder / "single" / f"{i:02}.npy", ROWS[i])
    np.save(folder / "mixed" / "0.npy", ROWS[:19])
    np.savez(folder / "mixed" / "1.npz", x=ROWS[19])
    (folder / "mixed" / ".hidden.npz").write_bytes(b"")
    (folder / "made.py").write_text(
        "import numpy as np\nROWS = np.arange(60, dtype=np.float32).reshape(20, 3)\n"
        "def rows(): return {'x': ROWS}\n"
        "def for_ports(ports): return {ports[0].name: ROWS}\n"
        "def optional(count=20): return ROWS[:count]\n"
        "def pieces():\n    for i in range(10): yield {'x': ROWS[2 * i: 2 * i + 2]}\n"
    )
    functions = {name: f"{folder}/made.py:{name}" for name in ("rows", "for_ports", "optional", "pieces")}
    paths = {name: folder / name for name in ("a.npz", "unnamed.npz", "batches", "single", "mixed")}
    return {
        **functions,
        **paths,
        "a.npy": str(folder / "a.npy"),
        "dict": {"x": ROWS},
        "list": {"x": ROWS.tolist()},
        "array": ROWS,
        "iterable": ({"x": row} for row in ROWS),
    }


def test_the_same_samples_from_everywhere(tmp_path: Path) -> None:
    for name, source in sources(tmp_path).items():
        data = open_data(source, X, seed=1)
        assert data.samples == 20 and not data.synthetic, name
        for size in (1, 3, 64):
            assert np.array_equal(fed(data, size), ROWS), name
        assert data.rows.tolist() == list(range(20))
        assert np.array_equal(fed(data.held_out), ROWS[data.held_out.rows]), name


def test_module_in_the_present_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rows.py").write_text("def rows(): return {'x': [[1, 2, 3]]}\n")
    monkeypatch.chdir(tmp_path)
    assert fed(open_data("my_rows:rows", X)).tolist() == [[1, 2, 3]]


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 5))
def test_the_split_is_a_partition(count: int, size: int, seed: int) -> None:
    rows = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    data = open_data({"x": rows}, X, seed=seed)
    one, two = data.calibration, data.held_out
    if count == 1:
        assert one.samples == two.samples == 1 and "the same one for calibration" in data.describe()
        return
    assert not set(one.indices) & set(two.indices) and one.samples + two.samples == count
    assert abs(one.samples - 0.75 * count) <= 1 and two.samples >= 1 and one.samples >= 1
    assert np.array_equal(one.indices, open_data({"x": rows}, X, seed=seed).calibration.indices)
    assert np.array_equal(fed(two, size), rows[two.rows])


def test_another_seed_is_another_split() -> None:
    splits = {tuple(open_data(ROWS, X, seed=seed).held_out.indices) for seed in range(5)}
    assert len(splits) == 5


def test_describe() -> None:
    data = open_data(ROWS, X)
    assert open_data(data, X) is data
    assert data.describe() == "20 samples of arrays (15 for calibration, 5 held out)"
    assert data.held_out.describe() == "5 held-out samples of arrays"
    with pytest.raises(DataError, match="already one half"):
        _ = data.held_out.calibration


def test_limit_is_chosen_by_the_seed() -> None:
    data = open_data(ROWS, X, limit=8, seed=3)
    assert data.samples == 8 and "8 of 20 samples are used" in data.notes and data.total_rows == 20
    assert np.array_equal(fed(data), ROWS[data.rows]) and data.rows.max() >= 8
    endless = ({"x": ROWS[:2]} for _ in itertools.count())
    assert open_data(endless, X, limit=5).samples == 5
    with pytest.raises(SettingError, match="limit is 0"):
        open_data(ROWS, X, limit=0)


def test_batches_join_only_what_fits() -> None:
    sizes = [(3, 5), (2, 5), (2, 7)]
    texts = [{"ids": np.ones(size, int), "mask": np.ones((1, size[1]), int)} for size in sizes]
    shapes = [feed["ids"].shape for feed in open_data(texts, IDS).batches(4)]
    assert shapes == [(4, 5), (1, 5), (2, 7)]
    assert [feed["mask"].shape for feed in open_data(texts, IDS).batches(4)] == shapes


def test_fixed_batches_and_their_rows() -> None:
    data = open_data(ROWS, [Port("x", np.dtype("float32"), (6, 3))])
    assert data.samples == 3 and [feed["x"].shape for feed in data.batches(8)] == [(6, 3)] * 3
    assert "2 rows at the end are not used: the model takes a fixed number at a time" in data.notes
    assert data.rows.tolist() == list(range(18)) and data.total_rows == 20
    assert np.array_equal(fed(data.held_out), ROWS[data.held_out.rows])


def test_rows_are_counted_over_pieces() -> None:
    data = open_data([{"x": ROWS[:7]}, {"x": ROWS[7:14]}], [Port("x", np.dtype("float32"), (3, 3))])
    assert data.rows.tolist() == [*range(6), *range(7, 13)] and data.total_rows == 14
    assert np.array_equal(fed(data), ROWS[data.rows])


def test_states_and_scalars() -> None:
    states = np.arange(5 * 2 * 4, dtype=np.float32).reshape(5, 2, 1, 4)
    data = open_data({"input": np.zeros((5, 7)), "state": states, "sr": 16000}, SPEECH)
    feeds = list(data.batches(3))
    assert [feed["input"].shape for feed in feeds] == [(1, 7)] * 5
    assert all(feed["sr"].shape == () and isinstance(feed["sr"], np.ndarray) for feed in feeds)
    assert np.array_equal(feeds[3]["state"], states[3])
    assert "input 'input' is given as float64 and fed as float32" in data.notes


def test_scalars_that_differ_between_files_are_not_mixed() -> None:
    ports = [SPEECH[0], SPEECH[2]]
    pieces = [{"input": np.zeros((2, 7)), "sr": rate} for rate in (8000, 8000, 16000)]
    feeds = [(len(feed["input"]), int(feed["sr"])) for feed in open_data(pieces, ports).batches(8)]
    assert feeds == [(4, 8000), (2, 16000)]


def test_strings() -> None:
    data = open_data({"t": ["a", "b", "c"]}, [Port("t", np.dtype(object), ("N",))])
    assert fed(data, 2, "t").tolist() == ["a", "b", "c"] and next(data.batches())["t"].dtype == object


def failing() -> Iterator[dict]:
    yield {"x": ROWS}
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"y": ROWS}, "'y' is not an input of the model; the nearest name|known are x"),
        ({"x": ROWS, "xx": ROWS}, "'xx' is not an input of the model; the nearest name is 'x'"),
        ({}, "nothing is given for the input 'x'"),
        ([], "holds no samples"),
        ({"x": np.full((2, 3), np.nan)}, "input 'x', sample 0 holds nan"),
        ({"x": [[1, 2], [3]]}, "is not an array"),
        ({"x": ROWS[:, :2]}, "does not fit"),
        (failing(), "raised KeyError: 'gone'"),
        (3, "data is a int; give a path"),
        ("no/such.npz", "no such file or folder"),
        (__file__, "not an .npz or .npy"),
        ("no_such_module:rows", "cannot be imported"),
        ("itertools:cont", "there is no 'cont'; the nearest name is 'count'"),
        ("math:pi", "is not a function"),
        ("os:getpid", "returned int; return a dict"),
    ],
)
def test_one_line_for_bad_sources(source: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_data(source, X)
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no data; put files of these kinds into it: .npz .npy"):
        open_data(tmp_path, X)
    np.save(tmp_path / "0.npy", ROWS)
    with pytest.raises(DataError, match="one array for 2 inputs"):
        open_data(tmp_path, IDS)
    np.savez(tmp_path / "1.npz", x=np.where(ROWS == 31, np.inf, ROWS))
    with pytest.raises(DataError, match=r"1.npz: input 'x', sample 10 holds inf"):
        open_data(tmp_path, X)
    with pytest.raises(DataError, match="the model has no inputs"):
        open_data(tmp_path, [])


def test_names_and_order_of_unnamed_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((4, 5), int), np.ones((4, 5), int))
    data = open_data(tmp_path / "a.npz", IDS)
    feed = next(data.batches(4))
    assert feed["ids"].max() == 0 and feed["mask"].min() == 1
    assert "arrays without names are taken in the order of the inputs" in data.notes


def test_a_folder_is_not_held_in_memory(tmp_path: Path) -> None:
    for i in range(8):
        np.savez(tmp_path / f"{i}.npz", x=np.zeros((500_000, 3), np.float32))  # 6 MB each
    tracemalloc.start()
    for _ in open_data(tmp_path, X, limit=16).batches(4):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6 + 8 * 4e6  # one or two pieces and the permutation, not 48 MB of rows beside them


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 40))
def test_samples_kept_back_do_not_train(samples: int) -> None:
    """Calibration samples fall into two parts, neither of them empty; a single one is both. The same parts each time."""
    whole = open_data(ROWS.repeat(2, axis=0)[:samples], X)
    count = how_many(whole.calibration.samples)
    training, kept = whole.calibration.kept_back(count)
    one, two = set(training.indices.tolist()), set(kept.indices.tolist())
    assert one | two == set(whole.calibration.indices.tolist()) and len(two) == count <= max(1, samples // 3)
    assert one and two and (whole.calibration.samples == 1 or not one & two)
    again = whole.calibration.kept_back(count)
    assert np.array_equal(again[1].indices, kept.indices) and "kept-back sample" in kept.describe()


@pytest.mark.parametrize("size", [2, 3, 64])
def test_samples_of_one_piece_are_joined_at_once_as_one_by_one(size: int) -> None:
    """In any order, with an input that is the same for all; pieces that are several are looked at one by one."""
    ports = [*X, Port("scale", np.dtype("float32"), (1,))]
    rng = np.random.default_rng(0)
    data = open_data({"x": rng.normal(size=(10, 3)).astype(np.float32), "scale": np.ones(1, np.float32)}, ports)
    shuffled = data.shuffled(3)
    assert data.store.together(shuffled.indices) == 0
    pairs = list(zip(shuffled.indexed(size), shuffled._one_by_one(size), strict=True))
    assert len(pairs) == -(-10 // size)
    for (some, feed), (others, other) in pairs:
        assert np.array_equal(some, others) and feed.keys() == other.keys()
        for name, values in feed.items():
            assert np.array_equal(values, other[name]) and values.flags.c_contiguous
