"""CI draws the same examples on every run, so that a red run can be repeated; elsewhere hypothesis goes on searching."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
