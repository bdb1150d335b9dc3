"""Bytes of files that this machine has, as magika reads them, with the type that their name's ending tells.

The files are those of the Python installation, and of the system's folders where there are any: natural, but not the
same on every machine.
"""

from __future__ import annotations

import functools
import json
import os
import sysconfig
from pathlib import Path

import numpy as np

from onnxcompress.errors import DataError
from sample_models.fetch import fetch

HALF, BLOCK, PADDING = 1024, 4096, 256  # beg_size and end_size, block_size, padding_token of magika's configuration
LARGEST_WALK = 20_000  # files looked at in a folder, so that a large system does not take minutes
SYSTEM = ("/usr/share", "/etc", "/usr/lib")
# Ending -> magika's name of the type; endings that stand for several types are left out.
TYPES = {
    ".bat": "batch", ".bmp": "bmp", ".c": "c", ".cpp": "cpp", ".css": "css", ".csv": "csv", ".gif": "gif",
    ".gz": "gzip", ".html": "html", ".ico": "ico", ".ini": "ini", ".java": "java", ".jpg": "jpeg",
    ".js": "javascript", ".json": "json", ".md": "markdown", ".pdf": "pdf", ".pl": "perl", ".png": "png",
    ".py": "python", ".pyc": "pythonbytecode", ".rst": "rst", ".sh": "shell", ".so": "elf", ".sql": "sql",
    ".svg": "svg", ".tex": "latex", ".tif": "tiff", ".toml": "toml", ".ttf": "ttf", ".wav": "wav", ".whl": "zip",
    ".xml": "xml", ".xz": "xz", ".yaml": "yaml", ".yml": "yaml", ".zip": "zip",
}  # fmt: skip


def features(content: bytes) -> np.ndarray:
    """int32 [2048]: the first and the last 1,024 bytes of a file, without white space around, padded with 256."""
    first, last = content[:BLOCK].lstrip()[:HALF], content[-BLOCK:].rstrip()[-HALF:]
    row = np.full(2 * HALF, PADDING, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[2 * HALF - len(last) :] = np.frombuffer(last, np.uint8)
    return row


@functools.cache
def type_names() -> tuple[str, ...]:
    """The names of magika's outputs, in order."""
    return tuple(json.loads(fetch("magika-types").read_text(encoding="utf-8"))["target_labels_space"])


def _walk(folder: str) -> list[str]:
    """Paths below `folder` in order of their names, links left alone."""
    found: list[str] = []
    for root, folders, names in os.walk(folder):
        folders.sort()  # in place: os.walk goes on in this order
        found += [os.path.join(root, name) for name in sorted(names)]
        if len(found) > LARGEST_WALK:
            break
    return found


@functools.cache
def pool() -> dict[str, tuple[str, ...]]:
    """Paths by type, for those types that there are files of."""
    folders = dict.fromkeys([sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], *SYSTEM])
    found: dict[str, list[str]] = {}
    for path in (path for folder in folders for path in _walk(folder)):
        kind = TYPES.get(os.path.splitext(path)[1].lower())
        if kind in type_names() and os.path.isfile(path) and not os.path.islink(path):
            found.setdefault(str(kind), []).append(path)
    if not found:
        raise DataError("sample models: no file of a known type below the Python installation; give data of your own")
    return {kind: tuple(dict.fromkeys(found[kind])) for kind in sorted(found)}


def sample(rng: np.random.Generator, index: int) -> tuple[np.ndarray, int]:
    """A file's features and its type's index in type_names(); the types take turns."""
    kinds = list(pool())
    kind = kinds[index % len(kinds)]
    while True:
        path = Path(pool()[kind][rng.integers(len(pool()[kind]))])
        if os.access(path, os.R_OK) and path.stat().st_size >= 8:  # magika itself asks its model from 8 bytes on
            return features(path.read_bytes()), type_names().index(kind)
        kind = kinds[rng.integers(len(kinds))]
