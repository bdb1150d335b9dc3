"""Random but valid models, and inputs for them.

`models()` is a hypothesis strategy: graph.py holds the builder and the table BLOCKS that any_kind.py, image.py and
tokens.py fill; models.py strings blocks together. To add a block: one decorated function in the file of its kind.
"""

from __future__ import annotations

from .feeds import feeds
from .graph import BLOCKS, Graph
from .models import BRIDGES, models, start

__all__ = ["BLOCKS", "BRIDGES", "Graph", "feeds", "models", "start"]
