"""Imports go down only: the list of floors stands in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FLOORS = re.search(r"```floors\n(.*?)```", PAGE, re.S)[1].split("\n")  # type: ignore[index]
FLOOR_OF = {room: number for number, line in enumerate(FLOORS) for room in line.split()}
FILES = [path for path in (ROOT / "onnxcompress").rglob("*.py") if path.read_text().strip()]


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "onnxcompress").with_suffix("").parts
    return parts[0]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxcompress"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {name.name for name in node.names}
    return found & FLOOR_OF.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in FLOOR_OF, f"{room} has no floor in docs/architecture.md"
    for other in imported(path) - {room}:
        assert FLOOR_OF[other] >= FLOOR_OF[room], f"{room} imports {other}, which is above it"
