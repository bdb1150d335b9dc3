"""Made-up inputs for a model that comes without data: they run, and say little about the user's own data.

Sizes of dynamic dimensions come from the role of a dimension, values from the name and type of an input; both are
tables. `probe` tries sizes on a session until the model runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from onnxcompress.data.images import image_layout
from onnxcompress.data.store import Feed, Piece
from onnxcompress.errors import DataError, ModelError
from onnxcompress.runtime.session import Port, Session

Shape = tuple[int, ...]
TOKENS = 100
LIMITS = (TOKENS, 8, 2, 1)
SAMPLE_RATE = 16000  # Hz; what speech models are exported for


@dataclass(frozen=True)
class Sizes:
    """What dynamic dimensions become, by role; in the order in which `probe` tries them.

    tokens  made-up integers stay below: every vocabulary has a hundred, but places in another input may be 0 only (LIMITS)
    """

    height: int = 224
    width: int = 224
    sequence: int = 16
    tokens: int = TOKENS


# Usual classifiers and short texts; text lines (48 and 32 high); small; detectors; chunks of speech; one step.
SIZES = (
    Sizes(),
    Sizes(48, 320, 512),
    Sizes(64, 64, 128),
    Sizes(32, 128, 256),
    Sizes(640, 640, 64),
    Sizes(320, 320, 1),
    Sizes(256, 256, 1024),
    Sizes(28, 28, 4),
    Sizes(299, 299, 4096),
    Sizes(512, 512, 16000),
)

STATE = re.compile(r"state|hidden|cell|past|cache|(^|[_.])(h|c|hx|cx|h_?0|c_?0)$", re.I)

# The role of a dynamic dimension by its symbol; what no row names has its role by its place (see _place).
ROLES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"batch|^(n|b|bs)$", re.I), "batch"),
    (re.compile(r"^past|past_.*len(gth)?$", re.I), "past"),
    (re.compile(r"height|^h$", re.I), "height"),
    (re.compile(r"width|^w$", re.I), "width"),
    (re.compile(r"seq|len|time|frames|tokens|^[tls]$", re.I), "sequence"),
)
FIXED = {"batch": 1, "past": 0, "channel": 3}

Maker = Callable[[np.random.Generator, Shape, Port], np.ndarray]


def ones(rng: np.random.Generator, shape: Shape, port: Port) -> np.ndarray:
    """Masks: everything counts."""
    return np.ones(shape)


def zeros(rng: np.random.Generator, shape: Shape, port: Port) -> np.ndarray:
    """Types of tokens: all of the first kind."""
    return np.zeros(shape)


def positions(rng: np.random.Generator, shape: Shape, port: Port) -> np.ndarray:
    """0, 1, 2, ... along the last axis."""
    return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape)


def rate(rng: np.random.Generator, shape: Shape, port: Port) -> np.ndarray:
    """Samples a second."""
    return np.full(shape, SAMPLE_RATE)


def tokens(rng: np.random.Generator, shape: Shape, port: Port) -> np.ndarray:
    """Integers in [0, 100)."""
    return rng.integers(0, TOKENS, shape)


def words(rng: np.random.Generator, shape: Shape, port: Port) -> np.ndarray:
    """Strings of one letter."""
    return np.array(list("abcdefghij"), object)[rng.integers(0, 10, shape)]


def normal(rng: np.random.Generator, shape: Shape, port: Port) -> np.ndarray:
    """Standard normal."""
    return rng.standard_normal(shape)


def picture(rng: np.random.Generator, shape: Shape, port: Port) -> np.ndarray:
    """Noise with the spectrum of natural images, amplitude 1/f (Field, JOSA A 4(12), 1987), mean 0, deviation 1.

    Channels share most of it, as those of photographs do. Integer inputs get 0 to 255 around 128.
    """
    channels_last = image_layout(port) == "NHWC"
    n, c, h, w = shape if not channels_last else (shape[0], shape[3], shape[1], shape[2])
    if not h or not w:
        return np.zeros(shape)
    noise = rng.standard_normal((n, c + 1, h, w))
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    frequency[0, 0] = np.inf  # no mean
    smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(h, w))
    smooth /= smooth.std(axis=(2, 3), keepdims=True) + 1e-12
    mixed = 0.95 * smooth[:, :1] + 0.3 * smooth[:, 1:]  # 0.95² + 0.3² ≈ 1: correlation of channels 0.9
    mixed = mixed.transpose(0, 2, 3, 1) if channels_last else mixed
    integer = port.dtype is not None and port.dtype.kind != "f"
    return np.clip(128 + 50 * mixed, 0, 255 if port.dtype != np.int8 else 127) if integer else mixed


# The first row whose types (numpy's kinds), name and test fit makes the values.
VALUES: tuple[tuple[str, str, Callable[[Port], bool], Maker], ...] = (
    ("b", "", lambda port: True, ones),
    ("O", "", lambda port: True, words),
    ("iuf", r"mask", lambda port: True, ones),
    ("iu", r"token_type|segment", lambda port: True, zeros),
    ("iu", r"position", lambda port: True, positions),
    ("iu", r"^sr$|sampl\w*_?rate", lambda port: True, rate),
    ("f", r"scale_factor", lambda port: True, ones),
    ("iuf", "", lambda port: image_layout(port) is not None and not STATE.search(port.name), picture),
    ("iu", "", lambda port: True, tokens),
    ("f", "", lambda port: True, normal),
)


def synthetic_feeds(ports: Sequence[Port], samples: int, seed: int, sizes: Sizes = SIZES[0]) -> list[Feed]:
    """Feeds for a model with these inputs, each with batch 1 (or the fixed first dimension); the same for a seed."""
    return [_feed(ports, index, seed, sizes) for index in range(samples)]


def synthetic_pieces(ports: Sequence[Port], samples: int, seed: int, sizes: Sizes) -> list[Piece]:
    """The same as pieces: made when they are asked for, so that they need no memory before."""
    shapes = feed_shapes(ports, sizes)
    for port in ports:
        if port.rank and not isinstance(port.shape[0], int) and shapes[port.name][0] != 1:
            shapes[port.name] = (1, *shapes[port.name])  # one sample, however many rows

    def load(index: int) -> Feed:
        feed = _feed(ports, index, seed, sizes)
        return {name: value.reshape(shapes[name]) for name, value in feed.items()}

    def piece(index: int) -> Piece:
        return Piece(f"synthetic sample {index}", shapes, lambda: load(index), trusted=True)

    return [piece(index) for index in range(samples)]


def probe(ports: Sequence[Port], session: Session, seed: int = 0) -> Sizes:
    """The first sizes of SIZES at which the model runs and answers something; DataError that asks for data if none.

    Where no answer holds a finite number (a row of -Inf was picked, say), smaller integers are tried before that is accepted.
    """
    last, tried, doubtful = "", set(), None
    limits = LIMITS if any(_maker(port) is tokens for port in ports) else LIMITS[:1]
    for sizes in (replace(each, tokens=limit) for each in SIZES for limit in limits):
        kind = (sizes.tokens, *feed_shapes(ports, sizes).values())
        if kind in tried:
            continue
        tried.add(kind)
        try:
            outputs = session.run(_feed(ports, 0, seed, sizes))
        except (DataError, ModelError) as error:
            last = last or str(error)
            continue
        if any(_says_something(value) for value in outputs.values()):
            return sizes
        if doubtful is None and any(np.size(value) for value in outputs.values()):
            doubtful = sizes
        last = last or f"{session.name}: its outputs are empty"
    if doubtful is not None:
        return doubtful
    raise DataError(f"no synthetic input runs, give real data with --data ({last})")


def _says_something(value: Any) -> bool:
    array = np.asarray(value)
    return array.size > 0 and (array.dtype.kind != "f" or bool(np.isfinite(array).any()))


def feed_shapes(ports: Sequence[Port], sizes: Sizes) -> dict[str, Shape]:
    """The shape of one feed, by input name; a symbol that several inputs share is the same number in all of them."""
    roles: dict[str, str] = {}
    shapes = {}
    for port in ports:
        dims = []
        for axis, dim in enumerate(port.shape):
            if isinstance(dim, int):
                dims.append(dim)
                continue
            role = roles.get(dim or "") or _role(port, axis)
            if dim:
                roles[dim] = role
            dims.append(FIXED[role] if role in FIXED else getattr(sizes, role))
        shapes[port.name] = tuple(dims)
    return shapes


def _role(port: Port, axis: int) -> str:
    symbol = port.shape[axis]
    for pattern, role in ROLES:
        if isinstance(symbol, str) and pattern.search(symbol):
            return role
    return _place(port, axis)


def _place(port: Port, axis: int) -> str:
    """The role of a dynamic dimension whose symbol tells nothing, by where it is."""
    if axis == 0 or STATE.search(port.name):
        return "batch"
    if port.rank == 4:
        layouts: Mapping[str | None, tuple[str, ...]] = {
            "NHWC": ("batch", "height", "width", "channel"),
            "NCHW": ("batch", "channel", "height", "width"),
        }
        return layouts[image_layout(port) or "NCHW"][axis]
    return "sequence"


MOST_NUMBERS = 1 << 30
"""In one input of one sample; a damaged file may declare any size."""


def _feed(ports: Sequence[Port], index: int, seed: int, sizes: Sizes) -> Feed:
    shapes, feed = feed_shapes(ports, sizes), {}
    for number, port in enumerate(ports):
        if port.dtype is None:
            raise DataError(f"input {port} cannot be made up; give real data with --data")
        if prod(shapes[port.name]) > MOST_NUMBERS:
            raise DataError(f"input {port} is too large to be made up; give real data with --data")
        maker, rng = _maker(port), np.random.default_rng([seed, index, number])
        values = np.asarray(maker(rng, shapes[port.name], port))
        feed[port.name] = (values % sizes.tokens if maker is tokens else values).astype(port.dtype)
    return feed


def _maker(port: Port) -> Maker:
    kind = port.dtype.kind if port.dtype is not None else ""
    return next(
        maker
        for kinds, name, fits, maker in VALUES
        if kind in kinds and re.search(name, port.name, re.I) and fits(port)
    )
