"""The command line in this process: arguments in, exit code and both streams out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxcompress.cli.app import main

FOLDER = Path(__file__).parents[2] / "sample_models"
MODEL, DATA, LABELS = (str(FOLDER / name) for name in ("digits.onnx", "digits.npz", "digits_labels.npz"))


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``onnxcompress`` with these arguments."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        said = capfd.readouterr()
        return Done(int(left.value.code or 0), said.out, said.err)

    return run
