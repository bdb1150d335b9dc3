"""Methods that train, one a file, over the engine in training/."""

from __future__ import annotations
