"""Pictures become the numbers that the settings say."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcompress.data import ImageSettings, open_data
from onnxcompress.errors import DataError, SettingError
from onnxcompress.runtime.session import Port

F = np.dtype("float32")


def save(path: Path, width: int, height: int, colour: tuple[int, int, int] = (255, 0, 51)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


def first(folder: Path, dims: tuple, **settings: object) -> np.ndarray:
    images = ImageSettings(**settings)
    return next(open_data(folder, [Port("x", F, dims)], images=images).batches())["x"]


def test_scale_mean_std_order_layout(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 10, 6)
    x = first(tmp_path, ("N", 3, 4, 8))
    assert x.shape == (1, 3, 4, 8) and x[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    x = first(tmp_path, ("N", 4, 8, 3), order="BGR", mean=(0.5,), std=(0.5, 0.25, 0.1))
    assert x.shape == (1, 4, 8, 3) and x[0, 0, 0].tolist() == pytest.approx([-0.6, -2, 5])
    x = first(tmp_path, ("N", 3, 4, 8), scale=1.0)
    assert x.max() == 255
    assert first(tmp_path, ("N", 1, 4, 8), scale=1.0)[0, 0, 0, 0] == 82  # luma of that red


def test_integer_inputs_get_pixels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 4, 4)
    data = open_data(tmp_path, [Port("x", np.dtype("uint8"), (1, 4, 4, 3))])
    assert next(data.batches())["x"][0, 0, 0].tolist() == [255, 0, 51]


@pytest.mark.parametrize(
    ("dims", "size", "shape"),
    [
        (("N", 3, 48, "W"), None, (1, 3, 48, 96)),  # keeps the aspect ratio of 200 x 100
        (("N", 3, "H", 50), None, (1, 3, 25, 50)),
        (("N", 3, None, None), None, (1, 3, 96, 192)),  # multiples of 32
        (("N", 3, None, None), (20, 30), (1, 3, 20, 30)),
        (("N", None, None, 3), (20, 30), (1, 20, 30, 3)),
    ],
)
def test_sizes(tmp_path: Path, dims: tuple, size: tuple[int, int] | None, shape: tuple) -> None:
    save(tmp_path / "a.png", 200, 100)
    assert first(tmp_path, dims, size=size).shape == shape


def test_folders_below_and_batches_by_size(tmp_path: Path) -> None:
    for i, width in enumerate((64, 64, 96)):
        save(tmp_path / f"class{i}" / "a.jpg", width, 64)
    (tmp_path / "notes.txt").write_text("not a picture")
    data = open_data(tmp_path, [Port("x", F, ("N", 3, "H", "W"))])
    assert data.samples == 3 and f"3 images in {tmp_path.name}" in data.describe()
    assert [feed["x"].shape for feed in data.batches(8)] == [(2, 3, 64, 64), (1, 3, 64, 96)]


def test_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = picture.getexif()
    exif[0x0112] = 3  # turned by 180 degrees
    picture.save(tmp_path / "a.png", exif=exif)
    x = first(tmp_path, (1, 3, 4, 8))
    assert x[0, 0, 3, 7] == 1 and x.sum() == 3


def test_bad_pictures_and_settings(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 64, 64)
    whole = (tmp_path / "a.png").read_bytes()
    with pytest.raises(SettingError, match="the model's input is x"):
        first(tmp_path, (1, 3, 8, 8), size=(9, 8))
    with pytest.raises(SettingError, match="mean: 2 values for 3 channels"):
        first(tmp_path, (1, 3, 8, 8), mean=(0.0, 1.0))
    with pytest.raises(DataError, match="feeds a model with one input of 4 axes"):
        first(tmp_path, (1, 3))
    with pytest.raises(DataError, match="has 7 channels"):
        first(tmp_path, (1, 7, 8, 8))
    for content in (b"", b"hello", whole[:20], whole[:-30]):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=r"a.png: not a readable picture") as caught:
            first(tmp_path, (1, 3, 8, 8))
        assert "\n" not in str(caught.value)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", 4, 4)
    real = builtins.__import__

    def none_of_it(name: str, *rest: object) -> object:
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", none_of_it)
    with pytest.raises(DataError, match=r"onnxcompress\[images\]"):
        first(tmp_path, (1, 3, 4, 4))
