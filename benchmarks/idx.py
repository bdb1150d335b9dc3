"""MNIST and sets of its form: a folder of four IDX files, `train-` and `t10k-`, `images-idx3-ubyte` and `labels-idx1-ubyte`.

LeCun, Cortes, Burges, The MNIST database of handwritten digits; Xiao, Rasul, Vollgraf 2017 (Fashion-MNIST), arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

PARTS = {"train": "train", "test": "t10k"}


def pictures(folder: Path, part: str, count: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures of a part (all, if None) in random order, float32 [n, 1, 28, 28] from 0 to 1, and their labels, int64 [n]."""
    images = _read(folder / f"{PARTS[part]}-images-idx3-ubyte")
    labels = _read(folder / f"{PARTS[part]}-labels-idx1-ubyte")
    chosen = np.random.default_rng(seed).permutation(len(labels))[:count]
    return images[chosen, None].astype(np.float32) / 255, labels[chosen].astype(np.int64)


def _read(path: Path) -> np.ndarray:
    """One file, or path.gz."""
    content = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
    rank = content[3]
    sizes = np.frombuffer(content, ">i4", rank, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)
