"""Natural photos out of packages: 20 with an ImageNet label (entry `photos`), some of scikit-image and scikit-learn.

Pictures are uint8 [height, width, 3] in RGB order.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from sample_models import extra
from sample_models.fetch import fetch

# Files that scikit-image's wheel holds (the others of its gallery would be downloaded).
SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg")
SKLEARN = ("china.jpg", "flower.jpg")
UNLABELLED = -1


def _opened(path: Path) -> Any:
    return extra("PIL.Image").open(path).convert("RGB")


@functools.cache
def labelled() -> tuple[tuple[Any, int], ...]:
    """(picture, index among ImageNet's 1,000 classes) of the 20 labelled photos, as Pillow images."""
    return tuple((_opened(path), int(path.stem.split("_")[-1])) for path in sorted(fetch("photos").iterdir()))


@functools.cache
def unlabelled() -> tuple[tuple[Any, int], ...]:
    """(picture, UNLABELLED) of the photos that scikit-image and scikit-learn ship."""
    gallery = Path(extra("skimage").__file__).parent / "data"
    examples = Path(extra("sklearn.datasets").__file__).parent / "images"
    paths = [gallery / name for name in SKIMAGE] + [examples / name for name in SKLEARN]
    return tuple((_opened(path), UNLABELLED) for path in paths if path.exists())


def _crop(rng: np.random.Generator, picture: Any, side: int, least: float) -> np.ndarray:
    """A random square of at least the share `least` of the shorter edge, perhaps mirrored, scaled to `side`."""
    width, height = picture.size
    edge = int(min(width, height) * rng.uniform(least, 1))
    left, top = int(rng.integers(0, width - edge + 1)), int(rng.integers(0, height - edge + 1))
    bicubic = extra("PIL.Image").Resampling.BICUBIC
    pixels = np.asarray(picture.resize((side, side), bicubic, box=(left, top, left + edge, top + edge)))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def photo(rng: np.random.Generator, side: int) -> np.ndarray:
    """A random square out of any photo, of at least a third of its shorter edge."""
    pool = labelled() + unlabelled()
    return _crop(rng, pool[rng.integers(len(pool))][0], side, 1 / 3)


def labelled_photo(rng: np.random.Generator, index: int, side: int) -> tuple[np.ndarray, int]:
    """Photo `index` and its label: first the labelled ones whole, then all photos in turn, cropped to 3/4 or more."""
    if index < len(labelled()):
        picture, label = labelled()[index]
        return np.asarray(picture.resize((side, side), extra("PIL.Image").Resampling.BICUBIC)), label
    pool = labelled() + unlabelled()
    picture, label = pool[index % len(pool)]
    return _crop(rng, picture, side, 3 / 4), label
