"""Random but valid models, and inputs for them."""

from __future__ import annotations

from .feeds import feeds

__all__ = ["feeds"]
