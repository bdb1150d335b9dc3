"""How sure a difference of scores is, and how the page says it."""

from __future__ import annotations

import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quantize
from benchmarks.quantize import PARTS, Case, made, today, uncertain
from benchmarks.quantize_page import EARLIER, MODEL_HEADS, Row, models, scored, shown
from onnxcompress.data import open_data
from onnxcompress.runtime.session import open_session

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"


def share(outputs: dict[str, np.ndarray], truth: np.ndarray) -> float:
    (y,) = outputs.values()
    return float((y.reshape(len(truth), -1)[:, 0] == truth).mean())


@pytest.mark.parametrize("rows", [1, 3])
def test_of_a_mean_the_jackknife_gives_the_standard_error_of_the_change(rows: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, PARTS)
    one, two = (np.where(rng.random(PARTS) < right, truth, 9) for right in (0.9, 0.6))
    told = uncertain(share, [{"y": np.repeat(one, rows)}, {"y": np.repeat(two, rows)}], truth)
    change = (two == truth).astype(float) - (one == truth)
    assert told["items"] == PARTS
    assert told["change_error"] == pytest.approx(change.std(ddof=1) / np.sqrt(PARTS))


def test_the_same_answers_are_no_change_for_sure() -> None:
    y = {"y": np.arange(50)}
    assert uncertain(share, [y, y], np.arange(50))["change_error"] == 0


def test_a_row_says_where_its_answers_and_its_speed_are_of_two_runs() -> None:
    row = Row("m", "ours", runs=True, loads=True, sqnr_db=20.0, speed=2.0, judged_at="2026-11-29", note="a note")
    assert shown(row, False)[-1] == f"a note; answers of 2026-11-29, speed of {EARLIER}"
    assert shown(replace(row, timed_at="2026-11-29"), False)[-1] == "a note"


def test_a_part_leaves_what_the_other_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One tool's file made twice: judged first, timed then; each part keeps the figures of the other."""
    told = {"seconds": 1.0, "peak": 9, "base": 3, "note": "", "version": "1"}

    def process(case: object, tool: str, asked: object, out: Path) -> dict[str, object]:
        shutil.copy(DIGITS, out)
        return told

    monkeypatch.setattr(quantize, "_fresh_process", process)
    monkeypatch.setattr(quantize, "judged", lambda case, out: {"sqnr_db": 30.0})
    monkeypatch.setattr(quantize, "timed", lambda case, out, seconds: {"speed": 2.0})
    monkeypatch.setattr(quantize, "limits", lambda given, out, feed: {"macs": 7})
    data = open_data({"image": np.zeros((2, 1, 8, 8), np.float32)}, open_session(DIGITS).inputs)
    case = Case("digits", DIGITS, DIGITS, tmp_path / "feeds.npz", data, None, None, [])
    asked = Namespace(part="accuracy", emulate="", seconds=0.1)
    row = made(case, "ours", asked, tmp_path, Row("digits", "ours"))
    assert (row.sqnr_db, row.speed, row.seconds) == (30.0, None, None)
    monkeypatch.setattr(quantize, "judged", lambda case, out: {"sqnr_db": 0.0})
    row = made(case, "ours", Namespace(part="speed", emulate="", seconds=0.1), tmp_path, row)
    assert (row.sqnr_db, row.speed, row.seconds, row.macs) == (30.0, 2.0, 1.0, 7)
    assert row.judged_at == row.timed_at == today()


def test_files_of_one_run_are_timed_beside_the_same_fp32(tmp_path: Path) -> None:
    data = open_data({"image": np.zeros((2, 1, 8, 8), np.float32)}, open_session(DIGITS).inputs)
    case = Case("digits", DIGITS, DIGITS, tmp_path / "feeds.npz", data, None, None, [])
    files = [Path(shutil.copy(DIGITS, tmp_path / name)) for name in ("0.onnx", "1.onnx")]
    told = quantize.side_by_side(case, files, 0.05)
    one, other = (told[path] for path in files)
    assert one["fp32_ms"] == other["fp32_ms"] > 0 and one["timed"] > 1


def test_the_page_says_on_how_many_items_a_score_is() -> None:
    known = {"runs": True, "loads": True, "integer": 5, "before": 0.9}
    peer = Row("m", "NNCF, mixed", **known, after=0.88, items=100, change_error=0.02)
    own = Row("m", "ours", **known, after=0.89, items=400, change_error=0.01)
    assert scored(own) == "0.900 → 0.890 ± 0.010"
    assert scored(Row("m", "ours", **known, after=0.89)) == "0.900 → 0.890"
    assert scored(Row("m", "ours")) == "-"
    (line,) = models([peer, own])
    assert line[MODEL_HEADS.index("items")] == "100 and 400"
    assert line[-3:-1] == ["0.900 → 0.880 ± 0.020", "0.900 → 0.890 ± 0.010"]


def test_a_file_that_the_clock_left_in_float_is_our_answer() -> None:
    peer = Row("m", "NNCF, mixed", runs=True, loads=True, integer=0, logits_db=90.0)
    own = Row("m", "ours", runs=True, loads=True, integer=0, logits_db=51.93, speed=1.38)
    (line,) = models([peer, own])
    assert line[:4] == ["m", "-", "-", "51.9 (in float)"]
    assert line[6] == "1.38"
