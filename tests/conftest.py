"""What holds for every test: hypothesis never judges by the clock, and CI prints what to paste to see a failure again."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("anywhere", deadline=None)
settings.register_profile("ci", deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "anywhere")
