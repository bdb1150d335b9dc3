"""How sure a difference of scores is, and how the page says it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quantize import PARTS, uncertain
from benchmarks.quantize_page import MODEL_HEADS, Row, models, scored


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
