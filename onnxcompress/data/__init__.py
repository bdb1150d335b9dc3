"""Data: what is fed to a model, from where, and which rows are for calibration and which are held out.

source ──sources.py──▶ pieces ──arrange.py──▶ samples, each one feed ──store.py──▶ Data (views, batches, the split)
(arrays.py, images.py, functions.py, synthetic.py read or make the pieces)
"""

from __future__ import annotations

from onnxcompress.data.functions import named_function
from onnxcompress.data.images import ImageSettings
from onnxcompress.data.sources import open_data
from onnxcompress.data.store import Data
from onnxcompress.data.synthetic import probe, synthetic_feeds

__all__ = ["Data", "ImageSettings", "named_function", "open_data", "probe", "synthetic_feeds"]
