"""The student of tests that train."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxcompress
from tests.cli.conftest import MODEL


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model with a fifth of its multiply-adds, not repaired: it guesses."""
    place = tmp_path_factory.mktemp("student") / "cut.onnx"
    onnxcompress.prune(MODEL, target_macs=0.2, refit=False).save(place)
    return place
