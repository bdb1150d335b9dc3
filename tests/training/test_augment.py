"""Augmentations: what each leaves alone, that they repeat by seed, and that wishes which cannot be are one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.data import Data, open_data
from onnxcompress.errors import DataError, SettingError
from onnxcompress.runtime.session import Port
from onnxcompress.training.augment import AUGMENTATIONS, Changes, Mix

X = np.random.default_rng(0).normal(size=(6, 3, 12, 16)).astype(np.float32)
FLOAT = np.dtype(np.float32)


def data(x: np.ndarray = X, dtype: Any = FLOAT) -> Data:
    return open_data({"x": x}, [Port("x", np.dtype(dtype), ("N", *x.shape[1:]))])


def changed(wishes: list[Any], x: np.ndarray = X, *, epoch: int = 0, mixup: float = 0.0) -> np.ndarray:
    changes = Changes.of(wishes, mixup, data(x, x.dtype))
    assert changes is not None
    return changes({"x": x}, np.arange(len(x)), epoch)[0]["x"]


SAME: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flip": lambda x: np.sort(x, -1),  # the pixels of a row
    "shift": lambda x: np.float32([np.isin(x, X).all()]),  # no new value
    "zoom": lambda x: np.float32([x.max() <= X.max(), x.min() >= X.min()]),
    "brightness": lambda x: x - x.mean((1, 2, 3), keepdims=True),
    "contrast": lambda x: (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True),
    "noise": lambda x: np.round((x - X).std((1, 2, 3)) / X.std() - 0.1, 1),  # of a tenth of the deviation, below
    "erase": lambda x: np.float32([(x == X).mean() > 0.9]),
}
"""What each leaves as it is."""


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_changes_something_and_leaves_something(name: str) -> None:
    new = changed([name])
    assert new.shape == X.shape and new.dtype == X.dtype and not np.array_equal(new, X)
    before = np.zeros(6) if name == "noise" else SAME[name](X)
    np.testing.assert_allclose(SAME[name](new), before, atol=1e-4)
    np.testing.assert_allclose(changed([f"{name}=0"]), X, atol=1e-5)  # no strength, no change
    np.testing.assert_array_equal(changed([name]), new)  # the same seed, epoch and sample
    assert not np.array_equal(changed([name], epoch=1), new)


def test_every_augmentation_is_tested_here() -> None:
    assert SAME.keys() == AUGMENTATIONS.keys()


@given(st.integers(4, 9), st.integers(4, 9), st.floats(0, 1), st.sampled_from(sorted(AUGMENTATIONS)))
@settings(max_examples=40, deadline=None)
def test_any_size_and_strength(height: int, width: int, strength: float, name: str) -> None:
    x = np.random.default_rng(height).normal(size=(3, 1, height, width)).astype(np.float32)
    new = changed([f"{name}={strength}"], x)
    assert new.shape == x.shape and np.isfinite(new).all()


def test_channels_last_and_bytes() -> None:
    """The same change as of channels first; bytes stay bytes."""
    pixels = np.random.default_rng(1).integers(0, 256, (4, 10, 11, 3)).astype(np.uint8)
    turned = pixels.transpose(0, 3, 1, 2)
    for name in ("flip", "shift", "erase"):
        new = changed([name], pixels)
        assert new.dtype == np.uint8
        np.testing.assert_array_equal(new.transpose(0, 3, 1, 2), changed([name], turned))


def test_a_function_of_the_user() -> None:
    def darker(feed: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"x": feed["x"] * np.float32(rng.uniform(0.5, 0.9))}

    new = changed([darker])
    ratio = new / X
    assert ratio.min() >= 0.5 and ratio.max() <= 0.9 and np.ptp(ratio) < 1e-5
    with pytest.raises(DataError, match=r"smaller: 'x' is float32 .* came back; keep both"):
        changed([smaller])
    with pytest.raises(DataError, match="broken: raised ZeroDivisionError"):
        changed([broken])


def smaller(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": feed["x"][:, :1]}


def broken(feed: dict[str, np.ndarray]) -> float:
    return 1 / 0


def test_mixup_mixes_labels_as_inputs() -> None:
    changes = Changes.of([], 1.0, data())
    assert changes is not None
    feed, mix = changes({"x": X}, np.arange(6), 0)
    labels = np.eye(6, dtype=np.float32)
    np.testing.assert_allclose(feed["x"], np.tensordot(mix(labels), X, 1), atol=1e-5)
    np.testing.assert_allclose(mix(labels).sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(Mix.none(6)(labels), labels)


@pytest.mark.parametrize(
    ("wish", "x", "said"),
    [
        ("flp", X, "no augmentation is called 'flp'; the nearest name is 'flip'"),
        ("flip=much", X, "give a number, such as flip=0.1"),
        ("flip=-1", X, "give a number of 0 or more"),
        ("flip", X[..., 0], "changes images, .* and no input holds such"),
        ("noise", X.astype(np.int64), "changes floats, and no input holds such"),
    ],
)
def test_a_wish_that_cannot_be(wish: str, x: np.ndarray, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        changed([wish], x)


def test_whole_numbers_are_not_mixed() -> None:
    with pytest.raises(SettingError, match="mixup takes inputs of floats only, 'x' holds others"):
        changed([], X.astype(np.int64), mixup=0.2)
