"""CIFAR-10 out of one .npz of JPEG files, as the networks of anchors_train.py read it.

The file holds, for part = train (50,000) and test (10,000): `<part>_jpeg` (uint8, all files end to end), `<part>_len`
(their lengths in bytes) and `<part>_labels` (0 ... 9). Krizhevsky, Learning Multiple Layers of Features from Tiny
Images, 2009.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32)
STD = np.array([0.2470, 0.2435, 0.2616], np.float32)


def pictures(path: Path, part: str, count: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures of a part (all, if None), uint8 [n, 3, 32, 32], and their labels, int64 [n]; in random order,
    since the file is sorted by label."""
    with np.load(path) as archive:
        joined, lengths, labels = (archive[f"{part}_{name}"] for name in ("jpeg", "len", "labels"))
    ends = np.cumsum(lengths.astype(np.int64))
    chosen = np.random.default_rng(seed).permutation(len(ends))[:count]
    content = joined.tobytes()
    decoded = [
        np.asarray(Image.open(io.BytesIO(content[ends[at] - lengths[at] : ends[at]])).convert("RGB")) for at in chosen
    ]
    return np.stack(decoded).transpose(0, 3, 1, 2).copy(), labels[chosen].astype(np.int64)


def scaled(images: np.ndarray) -> np.ndarray:
    """float32 [n, 3, h, w], each colour with the training set's mean 0 and deviation 1."""
    return (images.astype(np.float32) / 255 - MEAN[:, None, None]) / STD[:, None, None]
