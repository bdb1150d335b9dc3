"""How constant tensors are stored: symbols of codebooks (`coded`), the forms in which a file holds these (`forms`), and the packed file."""

from onnxcompress.weights.coded import CODED, Coded

__all__ = ["CODED", "Coded"]
