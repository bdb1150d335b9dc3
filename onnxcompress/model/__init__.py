"""The door: from a file or message to a normalised Model, and back to a file."""

from onnxcompress.model.load import Loadable, load
from onnxcompress.model.model import Model, Origin, Source
from onnxcompress.model.save import save

__all__ = ["Loadable", "Model", "Origin", "Source", "load", "save"]
