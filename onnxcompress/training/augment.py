"""Inputs that a training sees changed, in a new way each time: named changes of images, a function of the user, and mixup.

What is drawn depends on the seed, the epoch and the sample that stands first, so that a run repeats and a resumed one goes on.
The teacher sees what the student sees: Beyer et al., CVPR 2022, arXiv:2106.05237.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.data import Data, named_function
from onnxcompress.data.functions import called, is_function_name
from onnxcompress.errors import DataError, SettingError, nearest

Feed = dict[str, np.ndarray]
Change = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
AUGMENT_STREAM = 5
COLOURS = (1, 3, 4)
"""Channels of an image: where only the last axis has so many, it is the channels'."""


@dataclass(frozen=True)
class Augmentation:
    """function: [n, c, h, w] float32, strength, random numbers -> the same shape; strength: where none is given; images: or any array."""

    function: Change
    strength: float
    images: bool


AUGMENTATIONS: dict[str, Augmentation] = {}


def augmentation(name: str, strength: float, *, images: bool = True) -> Callable[[Change], Change]:
    """Registers a change under its name on the command line."""

    def register(function: Change) -> Change:
        AUGMENTATIONS[name] = Augmentation(function, strength, images)
        return function

    return register


@augmentation("flip", 0.5)
def flip(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Left and right change places in this share of the images."""
    chosen = rng.random(len(x)) < share
    return np.where(chosen[:, None, None, None], x[..., ::-1], x)


@augmentation("shift", 0.125)
def shift(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Moved by up to this share of the sides; edges are repeated. As padding by 4 of 32 and cropping: He et al. 2016, arXiv:1512.03385."""
    far = [round(share * side) for side in x.shape[2:]]
    moves = [rng.integers(-most, most + 1, len(x)) for most in far]
    places = [
        np.clip(np.arange(side)[None] + move[:, None], 0, side - 1)
        for side, move in zip(x.shape[2:], moves, strict=True)
    ]
    return _picked(x, *places)


@augmentation("zoom", 0.2)
def zoom(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A part of at least 1 - share of each side, anywhere, drawn out to the whole, bilinear."""
    places = []
    for side in x.shape[2:]:
        part = 1 - share * rng.random(len(x))
        first = rng.random(len(x)) * (1 - part) * (side - 1)
        places.append(first[:, None] + part[:, None] * np.arange(side)[None])
    low = [np.floor(each).astype(int) for each in places]
    high = [np.minimum(each + 1, side - 1) for each, side in zip(low, x.shape[2:], strict=True)]
    down, right = ((each - lower).astype(np.float32)[:, None, :] for each, lower in zip(places, low, strict=True))
    above = _picked(x, low[0], low[1]) * (1 - right[:, :, None]) + _picked(x, low[0], high[1]) * right[:, :, None]
    below = _picked(x, high[0], low[1]) * (1 - right[:, :, None]) + _picked(x, high[0], high[1]) * right[:, :, None]
    return above * (1 - down[..., None]) + below * down[..., None]


def _picked(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[n, c, h, w] at rows [n, h] and columns [n, w] of each image."""
    each = np.arange(len(x))[:, None, None, None]
    channels = np.arange(x.shape[1])[None, :, None, None]
    return x[each, channels, rows[:, None, :, None], columns[:, None, None, :]]


@augmentation("brightness", 0.2, images=False)
def brightness(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Lighter or darker by up to this share of the array's standard deviation, each sample by its own."""
    return x + _each(x, rng.uniform(-share, share, len(x)) * x.std())


@augmentation("contrast", 0.2, images=False)
def contrast(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Differences from each sample's mean are 1 - share to 1 + share times as large."""
    centre = x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)
    return centre + (x - centre) * _each(x, 1 + rng.uniform(-share, share, len(x)))


@augmentation("noise", 0.1, images=False)
def noise(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Normal noise of this share of the array's standard deviation."""
    return x + rng.standard_normal(x.shape, np.float32) * np.float32(share * x.std())


@augmentation("erase", 0.3)
def erase(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A rectangle of up to this share of each side takes the image's mean. DeVries and Taylor 2017 (Cutout), arXiv:1708.04552."""
    hidden = np.ones((len(x), 1, *x.shape[2:]), bool)
    for axis, side in zip((2, 3), x.shape[2:], strict=True):
        size = (share * side * rng.random(len(x))).round()
        first = np.floor(rng.random(len(x)) * (side - size + 1))
        place = np.arange(side)[None]
        inside = (place >= first[:, None]) & (place < (first + size)[:, None])
        hidden &= inside.reshape(len(x), 1, *(side if a == axis else 1 for a in (2, 3)))
    return np.where(hidden, x.mean((2, 3), keepdims=True), x)


def _each(x: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """A number for each sample, as wide as x."""
    return numbers.astype(np.float32).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, eq=False)
class Changes:
    """What is done to each feed, in this order; then mixup.

    steps  (words, which inputs, function of array and random numbers -> array) or a user's function of the whole feed
    moving inputs that have rows of their own in each sample          mixup  parameter of the Beta distribution, 0: none
    """

    steps: tuple[Callable[[Feed, np.random.Generator], Feed], ...]
    moving: tuple[str, ...]
    mixup: float
    seed: int

    @classmethod
    def of(cls, wishes: Sequence[Any], mixup: float, data: Data) -> Changes | None:
        """NAME, NAME=STRENGTH, module:function or a function each; None where nothing is asked.

        SettingError for a name that is not known, or inputs that it cannot change.
        """
        if not wishes and not mixup:
            return None
        still = {name for layout in data.store.layouts for name, view in layout.views.items() if view.constant}
        moving = {port.name: port for port in data.store.ports if port.name not in still and port.rank}
        shapes = {name: data.store.layouts[0].views[name].shape[1:] for name in moving}
        kinds = {name: port.dtype for name, port in moving.items() if port.dtype is not None}
        steps = tuple(_step(wish, shapes, kinds) for wish in wishes)
        whole = [name for name in moving if name not in kinds or kinds[name].kind != "f"]
        if mixup and whole:
            raise SettingError(f"mixup takes inputs of floats only, {whole[0]!r} holds others; leave out --mixup")
        return cls(steps, tuple(moving), mixup, data.seed)

    def __call__(self, feed: Feed, indices: np.ndarray, epoch: int) -> tuple[Feed, Mix]:
        """The changed feed, and how its rows were mixed."""
        rng = np.random.default_rng([self.seed, AUGMENT_STREAM, epoch, int(indices[0])])
        for step in self.steps:
            feed = step(feed, rng)
        rows = len(feed[self.moving[0]]) if self.moving else 1
        if not self.mixup or rows < 2:
            return feed, Mix.none(rows)
        mix = Mix(float(rng.beta(self.mixup, self.mixup)), rng.permutation(rows))
        return {name: mix(x) if name in self.moving else x for name, x in feed.items()}, mix


@dataclass(frozen=True, eq=False)
class Mix:
    """share of each row, the rest is that of another one. Zhang et al., ICLR 2018 (mixup), arXiv:1710.09412."""

    share: float
    other: np.ndarray

    @classmethod
    def none(cls, rows: int) -> Mix:
        """Every row is itself."""
        return cls(1.0, np.arange(rows))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Rows of an array of floats, mixed."""
        if self.share == 1.0:
            return x
        return (x * self.share + x[self.other] * (1 - self.share)).astype(x.dtype)


def _step(wish: Any, shapes: Mapping[str, Sequence[int]], kinds: Mapping[str, np.dtype[Any]]) -> Any:
    """A function of a feed and random numbers."""
    if callable(wish) or is_function_name(wish):
        return _of_user(wish)
    name, _, given = str(wish).partition("=")
    if name not in AUGMENTATIONS:
        raise SettingError(
            f"no augmentation is called {name!r}; {nearest(name, AUGMENTATIONS)}, or give module:function"
        )
    each = AUGMENTATIONS[name]
    strength = _number(name, given) if given else each.strength
    fits = [
        n for n, kind in kinds.items() if (kind.kind == "f" or (each.images and kind == np.uint8))
        and (len(shapes[n]) == 4 or not each.images)
    ]  # fmt: skip
    if not fits:
        wanted = "images, [N, channels, height, width]" if each.images else "floats"
        raise SettingError(f"augmentation {name!r} changes {wanted}, and no input holds such; leave it out")

    def step(feed: Feed, rng: np.random.Generator) -> Feed:
        return {**feed, **{n: _in_order(each.function, feed[n], strength, rng) for n in fits}}

    return step


def _number(name: str, given: str) -> float:
    try:
        strength = float(given)
    except ValueError as error:
        raise SettingError(f"augmentation {name}={given}: give a number, such as {name}=0.1") from error
    if not (math.isfinite(strength) and strength >= 0):
        raise SettingError(f"augmentation {name}={given}: give a number of 0 or more")
    return strength


def _in_order(change: Change, x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The change with channels on axis 1, in the array's own type."""
    last = x.ndim == 4 and x.shape[-1] in COLOURS and x.shape[1] not in COLOURS
    made = change(np.moveaxis(x, -1, 1).astype(np.float32) if last else x.astype(np.float32), strength, rng)
    made = np.moveaxis(made, 1, -1) if last else made
    if x.dtype.kind in "iu":
        ends = np.iinfo(x.dtype)
        made = made.round().clip(ends.min, ends.max)
    return np.ascontiguousarray(made.astype(x.dtype))


def _of_user(wish: Any) -> Any:
    """A function (feed, random numbers) -> feed, checked: the same names, types and shapes."""
    function = named_function(wish) if isinstance(wish, str) else wish
    shown = wish if isinstance(wish, str) else getattr(wish, "__name__", "augmentation")

    def step(feed: Feed, rng: np.random.Generator) -> Feed:
        made = called(shown, function, {name: x.copy() for name, x in feed.items()}, rng)
        if not isinstance(made, Mapping) or made.keys() != feed.keys():
            raise DataError(f"{shown}: return a dict of arrays for the same inputs ({', '.join(feed)})")
        for name, x in feed.items():
            new = np.asarray(made[name])
            if new.shape != x.shape or new.dtype != x.dtype:
                raise DataError(
                    f"{shown}: {name!r} is {x.dtype} {list(x.shape)}, {new.dtype} {list(new.shape)} came back; keep both"
                )
        return {name: np.ascontiguousarray(made[name]) for name in feed}

    return step


def words(wish: Any) -> str:
    """A wish as the report and checkpoints name it."""
    return getattr(wish, "__name__", str(wish)) if callable(wish) else str(wish)


__all__ = ["AUGMENTATIONS", "Changes", "Mix", "augmentation", "words"]
