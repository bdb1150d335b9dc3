"""A training that is cut off: killed, or without room on the disk. The last whole epoch is there, and goes on to the same bits."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcompress
from onnxcompress.errors import SettingError
from onnxcompress.training import checkpoint, loop
from tests.cli.conftest import DATA, MODEL, Run, cli

__all__ = ["cli"]

EPOCHS = 12


def line(cut: Path, folder: Path, name: str) -> list[str]:
    out, kept = str(folder / f"{name}.onnx"), str(folder / f"{name}.npz")
    ways = ["--data", DATA, "--limit", "240", "--epochs", str(EPOCHS), "--minibatch", "16"]
    return ["distill", str(cut), "--teacher", MODEL, *ways, "--checkpoint", kept, "-o", out]


def epochs_in(path: Path) -> int:
    """How many a checkpoint has; 0 where there is none."""
    if not path.exists():
        return 0
    with np.load(path) as stored:
        return int(np.frombuffer(stored["facts"], np.uint8).tobytes().decode().split('"epoch": ')[1].split(",")[0])


def weights(path: Path) -> dict[str, bytes]:
    return {each.name: numpy_helper.to_array(each).tobytes() for each in onnx.load(path).graph.initializer}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on this system")
def test_a_killed_process_goes_on_to_the_same_bits(cut: Path, tmp_path: Path, cli: Run) -> None:
    """Killed in the middle of an epoch, without a word; the rate that trials found comes from the checkpoint too."""
    with subprocess.Popen(
        [sys.executable, "-m", "onnxcompress", *line(cut, tmp_path, "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while epochs_in(tmp_path / "killed.npz") < 2 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    done = epochs_in(tmp_path / "killed.npz")
    assert process.returncode == -signal.SIGKILL and 2 <= done < EPOCHS and not (tmp_path / "killed.onnx").exists()
    again = cli(*line(cut, tmp_path, "killed"))
    assert (
        again.code == 0 and f"epochs 1 to {done} come from the checkpoint" in again.out and "by trials of" in again.out
    )
    assert cli(*line(cut, tmp_path, "whole")).code == 0
    assert weights(tmp_path / "killed.onnx") == weights(tmp_path / "whole.onnx")


def test_a_full_disk_is_one_line_and_the_last_epoch_stays(
    cut: Path, tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the second checkpoint on: the first one is there whole, and nothing beside it."""
    written, saved = [], checkpoint.save_state

    def sync(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(*given: object) -> None:
        if written:
            monkeypatch.setattr(os, "fsync", sync)
        saved(*given)  # type: ignore[arg-type]
        written.append(given)

    monkeypatch.setattr(loop, "save_state", save)
    done = cli(*line(cut, tmp_path, "full"), "--rate", "1e-3")
    monkeypatch.undo()
    assert done.code == 2 and done.err.count("\n") == 1
    assert "full.npz: cannot be written (No space left on device); free some space" in done.err
    assert epochs_in(tmp_path / "full.npz") == 1 and [each.name for each in tmp_path.iterdir()] == ["full.npz"]
    again = cli(*line(cut, tmp_path, "full"), "--rate", "1e-3")
    assert again.code == 0 and "epochs 1 to 1 come from the checkpoint" in again.out


def test_a_checkpoint_where_none_can_be_is_said_before_any_work(cut: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="does not exist; make it first"):
        onnxcompress.distill(cut, teacher=MODEL, data=DATA, checkpoint=tmp_path / "none" / "run.npz")
