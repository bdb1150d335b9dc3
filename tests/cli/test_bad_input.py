"""Whatever a user gives that is wrong: one line on stderr, exit code 2, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxcompress.plan import Plan
from tests.cli.conftest import DATA, MODEL, Run

Arguments = Callable[[Path], list[str]]


def stored(folder: Path, **arrays: np.ndarray) -> str:
    """An .npz in the folder."""
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def file(folder: Path, data: bytes, name: str = "in.onnx") -> str:
    """A file in the folder."""
    path = folder / name
    path.write_bytes(data)
    return str(path)


def wrong_data(**arrays: np.ndarray) -> Arguments:
    """prune with this .npz."""
    return lambda folder: ["prune", MODEL, "-o", out(folder), "--data", stored(folder, **arrays)]


def option(*arguments: str) -> Arguments:
    """prune with these options beside the output."""
    return lambda folder: ["prune", MODEL, "-o", out(folder), *arguments]


def out(folder: Path) -> str:
    """Where the output would be."""
    return str(folder / "out.onnx")


def plan_of_another(folder: Path) -> list[str]:
    """apply with a plan whose fingerprint is another model's."""
    path = str(folder / "plan.json")
    Plan("prune", {}, "00").save(path)
    return ["apply", MODEL, path, "-o", out(folder)]


def damaged_plan(folder: Path) -> list[str]:
    """apply with something that is no plan."""
    return ["apply", MODEL, file(folder, b"{}", "plan.json"), "-o", out(folder)]


IMAGES = np.zeros((8, 1, 8, 8), np.float32)

BAD: dict[str, tuple[Arguments, str]] = {
    "missing": (lambda folder: ["prune", str(folder / "no.onnx"), "-o", out(folder)], "no such file"),
    "truncated": (
        lambda folder: ["prune", file(folder, Path(MODEL).read_bytes()[:5000]), "-o", out(folder)],
        "truncated",
    ),
    "not onnx": (lambda folder: ["inspect", file(folder, b"hello, this is text" * 99)], "ONNX"),
    "empty file": (lambda folder: ["inspect", file(folder, b"")], "ONNX"),
    "folder": (lambda folder: ["inspect", str(folder)], "is a folder"),
    "name in no scope": (
        lambda folder: [
            "inspect",
            file(folder, Path(MODEL).read_bytes().replace(b"stem_bn.scale", b"stem_bn.scalf", 1)),
        ],
        "stem_bn.scal",
    ),
    "second model missing": (lambda folder: ["compare", MODEL, str(folder / "no.onnx")], "no such file"),
    "benchmark missing": (lambda folder: ["benchmark", MODEL, str(folder / "no.onnx")], "no such file"),
    "wrong input name": (wrong_data(picture=IMAGES), "image"),
    "wrong shape": (wrong_data(image=np.zeros((8, 3, 8, 8), np.float32)), "image"),
    "wrong type": (wrong_data(image=np.array(["a"] * 8)), "image"),
    "NaN": (wrong_data(image=np.full_like(IMAGES, np.nan)), "NaN"),
    "empty dataset": (wrong_data(image=IMAGES[:0]), "it is empty"),
    "no data file": (option("--data", "nowhere.npz"), "no such file"),
    "no labels file": (option("--data", DATA, "--labels", "nowhere.npz"), "nowhere.npz"),
    "amount over": (option("--amount", "1.5"), "amount is 1.5; give a number that is at least 0 and less than 1"),
    "amount under": (option("--amount=-0.1"), "amount is -0.1"),
    "amount a word": (option("--amount", "half"), "--amount"),
    "target": (option("--target-macs", "2"), "target_macs is 2"),
    "ranking": (option("--ranking", "globl"), "give one of local, global"),
    "criterion": (option("--criterion", "taylr"), "'taylor'"),
    "keep": (option("--keep", "stem.weigt"), "stem.weight"),
    "unknown option": (option("--amont", "0.5"), "--amont"),
    "rounds": (option("--rounds", "0"), "rounds"),
    "refit alone": (option("--refit"), "data"),
    "budget": (option("--min-agreement", "3"), "min_agreement is 3"),
    "image size": (option("--image-size", "a,b"), "--image-size"),
    "no output": (lambda folder: ["prune", MODEL], "-o"),
    "output is input": (
        lambda folder: ["prune", copied := file(folder, Path(MODEL).read_bytes()), "-o", copied],
        "input",
    ),
    "output is a folder": (lambda folder: ["prune", MODEL, "-o", str(folder)], "folder"),
    "output in no folder": (lambda folder: ["prune", MODEL, "-o", str(folder / "no" / "out.onnx")], "does not exist"),
    "outputs equal": (lambda folder: ["prune", MODEL, "-o", out(folder), "--json", out(folder)], "two outputs"),
    "page is input": (
        lambda folder: ["inspect", copied := file(folder, Path(MODEL).read_bytes()), "--html", copied],
        "input",
    ),
    "two on standard output": (
        lambda folder: ["inspect", MODEL, "--json", "-", "--junit", "-"],
        "two outputs",
    ),
    "plan of another": (plan_of_another, "another model"),
    "plan damaged": (damaged_plan, "not a plan"),
    "no such verb": (lambda folder: ["prun", MODEL], "prun"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path, cli: Run) -> None:
    arguments, said = BAD[case]
    given = arguments(tmp_path)
    before = sorted(tmp_path.rglob("*")), Path(MODEL).read_bytes()
    done = cli(*given)
    assert done.code == 2, done.err
    lines = done.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.err
    assert said in lines[0]
    assert not done.out
    assert (sorted(tmp_path.rglob("*")), Path(MODEL).read_bytes()) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_output_not_writable(tmp_path: Path, cli: Run) -> None:
    tmp_path.chmod(0o500)
    try:
        done = cli("prune", MODEL, "-o", out(tmp_path))
    finally:
        tmp_path.chmod(0o700)
    assert done.code == 2 and "not writable" in done.err
