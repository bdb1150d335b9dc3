"""The zoo: small hand-made models with the channel couplings that exporters emit, and what must be found in each.

`ZOO` runs in stock onnxruntime; `REPAIRABLE` does once the door has put it right; `NOT_RUNNABLE` never does, and is for
the door and for `inspect` only.
"""

from __future__ import annotations

from .attention import ATTENTION
from .channel import CHANNEL
from .convolution import CONVOLUTION
from .sample import Sample
from .sequence import SEQUENCE
from .whole_graph import NOT_RUNNABLE, REPAIRABLE, WHOLE_GRAPH

ZOO: dict[str, Sample] = {**CONVOLUTION, **CHANNEL, **SEQUENCE, **ATTENTION, **WHOLE_GRAPH}

__all__ = ["NOT_RUNNABLE", "REPAIRABLE", "ZOO", "Sample"]
