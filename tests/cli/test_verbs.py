"""Every verb on the committed sample model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnxruntime
import pytest

import onnxcompress
from tests.cli.conftest import DATA, LABELS, MODEL, Run


def test_prune_repairs_and_reports(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small, report, plan = tmp_path / "small.onnx", tmp_path / "report.json", tmp_path / "plan.json"
    done = cli(
        "prune",
        MODEL,
        "-o",
        str(small),
        "--data",
        DATA,
        "--labels",
        LABELS,
        "--json",
        str(report),
        "--save-plan",
        str(plan),
    )
    assert done.code == 0, done.err
    first = done.out.splitlines()[0]
    assert "SQNR" in first and "accuracy" in first
    found = json.loads(report.read_text())
    assert found["costs"]["parameters"][1] < 0.4 * found["costs"]["parameters"][0]
    assert [each["method"] for each in found["plans"]] == ["prune", "refit"]
    assert found["comparison"]["score"]["result"] > 0.9
    onnxruntime.InferenceSession(small)

    again = tmp_path / "again.onnx"
    assert cli("apply", MODEL, str(plan), "-o", str(again), "--data", DATA).code == 0
    assert again.read_bytes() == small.read_bytes()


def test_dry_run_writes_only_the_plan(tmp_path: Path, cli: Run) -> None:
    plan = tmp_path / "plan.json"
    done = cli("prune", MODEL, "--dry-run", "--save-plan", str(plan))
    assert done.code == 0 and done.out.startswith("dry run")
    assert list(tmp_path.iterdir()) == [plan]
    out = tmp_path / "out.onnx"
    assert cli("apply", MODEL, str(plan), "-o", str(out)).code == 0
    assert out.exists()


def test_rounds_leave_what_one_cut_would(tmp_path: Path) -> None:
    one = onnxcompress.prune(MODEL, amount=0.5, refit=False, round_to=1)
    two = onnxcompress.prune(MODEL, amount=0.5, refit=False, round_to=1, rounds=2)
    assert two.after.parameters == pytest.approx(one.after.parameters, rel=0.2)
    assert len(two.plans) == 2


def test_missed_budget_still_writes(tmp_path: Path, cli: Run) -> None:
    out = tmp_path / "out.onnx"
    done = cli("prune", MODEL, "-o", str(out), "--min-sqnr", "90", "--max-size", "0.9", "-q")
    assert done.code == 1
    assert done.err.startswith("budget missed: min_sqnr") and len(done.err.splitlines()) == 1
    assert out.exists() and len(done.out.splitlines()) == 1


def test_compare_with_itself(cli: Run) -> None:
    done = cli("compare", MODEL, MODEL, "--data", DATA, "--min-sqnr", "90", "--max-latency", "5", "--json", "-")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["comparison"]["sqnr_db"] == "inf" and found["grade"] == 0
    assert all(verdict["met"] for verdict in found["verdicts"])


def test_inspect_names_who_froze(cli: Run) -> None:
    done = cli("inspect", MODEL, "--json", "-")
    found = json.loads(done.out)
    assert found["frozen"] == [
        {"name": "logits.weight", "channels": 10, "why": "it is an output of the model", "by": "logits"}
    ]
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    assert sum(group["units"] for group in found["groups"]) == 240
    shown = cli("inspect", MODEL)
    assert "it is an output of the model" in shown.out and "240 of 250 channels" in shown.out.splitlines()[0]


def test_inspect_of_what_cannot_run(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(MODEL)
    model.graph.node[0].domain = "nobody.knows"
    model.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    found = onnxcompress.inspect(model)
    assert found.macs is None
    assert any("multiply-adds are unknown" in note for note in found.notes)


def test_benchmark_of_two(cli: Run) -> None:
    done = cli("benchmark", MODEL, MODEL, "--seconds", "0.2", "--threads", "1", "--threads", "2", "--json", "-")
    assert done.code == 0, done.err
    timings = json.loads(done.out)["timings"]
    assert [(each["name"] == MODEL, each["threads"]) for each in timings] == [
        (True, 1),
        (False, 1),
        (True, 2),
        (False, 2),
    ]
    assert all(each["median_ms"] > 0 and each["file_bytes"] > 0 for each in timings)


def test_summary_of_a_ci_job(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert cli("compare", MODEL, MODEL).code == 0
    text = summary.read_text()
    assert text.startswith("before\n### ") and "| file size |" in text


@pytest.mark.parametrize(
    "verb",
    [
        ["prune", "--dry-run"],
        ["quantize", "--dry-run", "--no-measure", "--rounding", "nearest"],
        ["compare", MODEL],
        ["inspect"],
        ["check"],
        ["benchmark", "--seconds", "0.1"],
    ],
    ids=lambda words: words[0],
)
def test_every_verb_writes_a_page_and_test_cases(tmp_path: Path, cli: Run, verb: list[str]) -> None:
    page, cases = tmp_path / "page.html", tmp_path / "cases.xml"
    done = cli(verb[0], MODEL, *verb[1:], "--html", str(page), "--junit", str(cases))
    assert done.code == 0, done.err
    first = done.out.splitlines()[0].replace(MODEL, "")
    assert "<!doctype html>" in page.read_text() and "digits.onnx" in page.read_text()
    suite = ElementTree.parse(cases).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")
    assert first.strip() in (suite.findtext("testcase/system-out") or "").replace(MODEL, "")


def test_test_cases_of_budgets_on_standard_output(cli: Run) -> None:
    done = cli("compare", MODEL, MODEL, "--min-sqnr", "10", "--max-size", "0.5", "--junit", "-")
    assert done.code == 1
    failed = [case.get("name") for case in ElementTree.fromstring(done.out)[0] if case.find("failure") is not None]
    assert failed == ["max_size"]


@pytest.mark.parametrize("verb", [None, "prune", "apply", "compare", "inspect", "benchmark"])
def test_help(verb: str | None, cli: Run) -> None:
    done = cli(*([verb] if verb else []), "--help")
    assert done.code == 0 and "Usage" in done.out


def test_as_a_command() -> None:
    command = [sys.executable, "-m", "onnxcompress"]
    done = subprocess.run([*command, "inspect", "nowhere.onnx"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: nowhere.onnx")
    assert (
        subprocess.run([*command, "--version"], capture_output=True, text=True).stdout.strip()
        == onnxcompress.__version__
    )


def test_python_takes_bytes_and_arrays(tmp_path: Path) -> None:
    images = np.load(DATA)["image"][:40]
    result = onnxcompress.prune(
        Path(MODEL).read_bytes(), data={"image": images}, criterion="l2", amount=0.25, refit=False, min_sqnr=0.0
    )
    assert result.met and result.plan.method == "prune"
    comparison = onnxcompress.compare(MODEL, result.save(tmp_path / "o.onnx").model, data={"image": images})
    assert comparison.sqnr_db == result.comparison.sqnr_db


@pytest.mark.parametrize("entropy", ["ans", "huffman"])
def test_pack_and_unpack(tmp_path: Path, cli: Run, entropy: str) -> None:
    packed, back, report = tmp_path / "m.onnxz", tmp_path / "m.onnx", tmp_path / "report.json"
    done = cli("pack", MODEL, "-o", str(packed), "--entropy", entropy, "--json", str(report))
    assert done.code == 0 and "packed into" in done.out.splitlines()[0] and f"written to {packed}" in done.out
    found = json.loads(report.read_text())
    assert found["after"] == packed.stat().st_size and found["coder"] == entropy
    done = cli("unpack", str(packed), "-o", str(back))
    assert done.code == 0 and done.out == f"written to {back}\n"
    assert back.read_bytes() == Path(MODEL).read_bytes()
    assert cli("inspect", str(packed)).code == 0


def test_pack_says_what_is_wrong(tmp_path: Path, cli: Run) -> None:
    for arguments in (
        ("pack", MODEL), ("pack", MODEL, "-o", MODEL), ("pack", MODEL, "-o", str(tmp_path / "m.onnxz"), "--entropy", "hufman"),
        ("pack", "missing.onnx", "-o", str(tmp_path / "m.onnxz")), ("unpack", MODEL, "-o", str(tmp_path / "m.onnx")), ("unpack", MODEL),
    ):  # fmt: skip
        done = cli(*arguments)
        assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
