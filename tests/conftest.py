"""What holds for every test: hypothesis never judges by the clock. CI draws the same examples on every run, so that a red
run can be repeated; elsewhere hypothesis goes on searching. A module's generator RNG starts anew for every test: which tests
ran before in the same worker changes nothing. Linear algebra has one thread: two workers with two threads each
on two cores wait for one another, and a fit takes twenty times as long. onnxsim is there before any process is forked that needs
it: each would import it anew."""

from __future__ import annotations

import copy
import os
from typing import Any

import onnxsim  # noqa: F401
import pytest
from hypothesis import settings

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

settings.register_profile("anywhere", deadline=None)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "anywhere")

STATES: dict[str, Any] = {}  # of a module's generator, as its import left it


def pytest_runtest_setup(item: pytest.Item) -> None:
    module = getattr(item, "module", None)
    if (rng := getattr(module, "RNG", None)) is not None:
        rng.bit_generator.state = copy.deepcopy(STATES.setdefault(module.__name__, rng.bit_generator.state))
