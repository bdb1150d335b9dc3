"""What a pass wants to know, and what runs over data have shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Need:
    """One wish about one value of the graph.

    kind   key of KINDS or PROVIDERS
    value  name of the value that is observed (an input or any node's output in the main graph)
    axis   the channel axis of that value
    """

    kind: str
    value: str
    axis: int = 1


SHAPES = Need("shapes", "")
"""The shapes of all values in one run: multiply-adds are counted from them."""

SOURCES = Need("sources", "")
"""The sources themselves (`gather.Sources`), for a pass that trains."""

IF_ANY = "gradient if any"
"""Kind of a need for a gradient that is met as "gradient" where one can be had, and by NO_GRADIENT where not."""

NO_GRADIENT = Need("no gradient", "")
"""Why there is none: a sentence."""

Evidence = Mapping[Need, Any]
"""Need -> what its kind gives, e.g. Moments or a Gram matrix. A need about a value that no run reaches is missing."""
