"""A folder of images as samples. Pillow is imported when the first image is read, not before."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.data.arrays import DAMAGE
from onnxcompress.data.store import Piece
from onnxcompress.errors import DataError, SettingError
from onnxcompress.runtime.session import Port

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MODES = {3: "RGB", 1: "L", 4: "RGBA"}  # by number of channels, the likeliest first
MULTIPLE = 32  # what detectors with five halvings need where neither the model nor the user fixes the size
Layout = Literal["NCHW", "NHWC"]
AXES: dict[Layout, tuple[int, int, int]] = {"NCHW": (1, 2, 3), "NHWC": (3, 1, 2)}  # channel, height, width

Size = Annotated[int, Field(ge=1, le=16384)]


@dataclass(frozen=True)
class ImageSettings:
    """How a picture becomes numbers: value = (pixel * scale - mean) / std, pixel 0 to 255."""

    size: Annotated[
        tuple[Size, Size] | None,
        Field(description="height and width; default what the model fixes, else the picture's own"),
    ] = None
    mean: Annotated[tuple[float, ...], Field(description="a channel, after scale; one value for all")] = (0.0,)
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(description="a channel, after scale")] = (1.0,)
    scale: Annotated[float, Field(gt=0, description="what a pixel is multiplied by")] = 1 / 255
    layout: Annotated[Layout | None, Field(description="order of axes; default by where the model has 1, 3 or 4")] = (
        None
    )
    order: Annotated[Literal["RGB", "BGR"], Field(description="order of the colour channels")] = "RGB"


def image_files(folder: Path) -> list[Path]:
    """Pictures in the folder and below it, sorted by path."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def image_pieces(files: Sequence[Path], ports: Sequence[Port], settings: ImageSettings) -> list[Piece]:
    """One piece for each picture. DataError where the model does not take one image, or a file is not a picture."""
    pillow = _pillow()
    if len(ports) != 1 or ports[0].rank != 4:
        raise DataError(
            f"{files[0].parent}: a folder of images feeds a model with one input of 4 axes, this one takes "
            f"{', '.join(map(str, ports))}; give an .npz or module:function"
        )
    port = ports[0]
    layout = settings.layout or image_layout(port) or "NCHW"
    channels = _channels(port, layout, settings)
    return [_piece(pillow, path, port, settings, layout, channels) for path in files]


def image_layout(port: Port) -> Layout | None:
    """Where the channels of an image-like input are: the axis that has 3, 1 or 4; None where no axis has."""
    for channels in MODES:
        for layout, (axis, _, _) in AXES.items():
            if port.rank == 4 and port.shape[axis] == channels:
                return layout
    return None


def _piece(pillow: ModuleType, path: Path, port: Port, settings: ImageSettings, layout: Layout, channels: int) -> Piece:
    size = _size(_opened(pillow, path, None, channels).size, port, settings, layout)
    shape = {"NCHW": (1, channels, *size), "NHWC": (1, *size, channels)}[layout]

    def load() -> dict[str, np.ndarray]:
        picture = _opened(pillow, path, size, channels)
        pixels = np.asarray(picture, np.uint8).reshape(*size, channels)
        if settings.order == "BGR" and channels >= 3:
            pixels = pixels[..., [2, 1, 0, *range(3, channels)]]
        values = _values(pixels, port, settings)
        return {port.name: (values.transpose(2, 0, 1) if layout == "NCHW" else values)[None]}

    return Piece(str(path), {port.name: shape}, load, trusted=True)


def _values(pixels: np.ndarray, port: Port, settings: ImageSettings) -> np.ndarray:
    """[h, w, c] of the port's type; an integer input takes the pixels as they are."""
    if port.dtype is None or port.dtype.kind != "f":
        return pixels
    scaled = pixels.astype(np.float32) * np.float32(settings.scale)
    return np.asarray((scaled - np.array(settings.mean, np.float32)) / np.array(settings.std, np.float32))


def _channels(port: Port, layout: Layout, settings: ImageSettings) -> int:
    fixed = port.shape[AXES[layout][0]]
    channels = fixed if isinstance(fixed, int) else 3
    if channels not in MODES:
        raise DataError(f"input {port} in layout {layout} has {channels} channels; images have 1, 3 or 4")
    for name in ("mean", "std"):
        count = len(getattr(settings, name))
        if count not in (1, channels):
            raise SettingError(f"{name}: {count} values for {channels} channels; give one for each, or one for all")
    return channels


def _size(own: tuple[int, int], port: Port, settings: ImageSettings, layout: Layout) -> tuple[int, int]:
    """Height and width: the user's, else the model's; a free width follows the picture's aspect ratio."""
    _, y, x = AXES[layout]
    height, width = (dim if isinstance(dim, int) else None for dim in (port.shape[y], port.shape[x]))
    if settings.size is not None:
        if (height or settings.size[0], width or settings.size[1]) != settings.size:
            raise SettingError(f"size {settings.size}: the model's input is {port}; give the size that it takes")
        return settings.size
    if height is None and width is None:
        return _rounded(own[1]), _rounded(own[0])
    if height is None or width is None:
        ratio = own[1] / own[0]
        return height or max(1, round(ratio * (width or 1))), width or max(1, round((height or 1) / ratio))
    return height, width


def _rounded(pixels: int) -> int:
    return max(MULTIPLE, round(pixels / MULTIPLE) * MULTIPLE)


def _opened(pillow: ModuleType, path: Path, size: tuple[int, int] | None, channels: int) -> Any:
    """The picture: its header alone where no size is given, else upright, converted and resized (bilinear)."""
    damage = (*DAMAGE, pillow.Image.DecompressionBombError, pillow.Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.Image.DecompressionBombWarning)
            picture = pillow.Image.open(path)
            if size is None:
                with picture:
                    return picture
            with picture:
                upright = pillow.ImageOps.exif_transpose(picture).convert(MODES[channels])
                return upright.resize((size[1], size[0]), pillow.Image.Resampling.BILINEAR)
    except damage as error:
        reason = " ".join(str(error).split()).replace(str(path), "it")[:200]
        raise DataError(f"{path}: not a readable picture ({reason}); remove it or save it again") from error


def _pillow() -> ModuleType:
    try:
        import PIL
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise DataError("reading images needs Pillow; install it with: pip install 'onnxcompress[images]'") from error
    return PIL
