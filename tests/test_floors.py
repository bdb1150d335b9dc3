"""Imports go down only: the list of floors stands in docs/architecture.md. Imports inside functions count too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "onnxcompress"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FLOORS = re.search(r"```floors\n(.*?)```", PAGE, re.S)[1].split("\n")  # type: ignore[index]
FLOOR_OF = {room: number for number, line in enumerate(FLOORS) for room in line.split()}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.read_text().strip())
ROOMS = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
EMPTY = {"__pycache__"}
"""Folders without code: they need no floor."""


def room_of(path: Path) -> str:
    """The first folder or file below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def rooms_of(node: ast.AST, path: Path) -> list[str]:
    """The rooms that one statement imports from; names that the package itself hands out come from `__init__`."""
    if isinstance(node, ast.Import):
        modules = [alias.name.split(".") for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level:
        here = ("onnxcompress", *path.relative_to(PACKAGE).parts)[: -node.level]
        modules = [[*here, *filter(None, (node.module or alias.name).split("."))] for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        whole = (node.module or "").split(".")
        modules = [[*whole, alias.name] if whole == ["onnxcompress"] else whole for alias in node.names]
    else:
        return []
    below = [module[1] if len(module) > 1 else "__init__" for module in modules if module[0] == "onnxcompress"]
    return [room if room in ROOMS else "__init__" for room in below]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR_OF, f"{room} has no floor in docs/architecture.md"
    for node in ast.walk(ast.parse(path.read_text())):
        for other in set(rooms_of(node, path)) - {room}:
            place = f"{path.name}:{node.lineno}"  # type: ignore[attr-defined]
            assert FLOOR_OF.get(other, -1) > FLOOR_OF[room], f"{place}: {room} imports {other}, which is not below it"


def test_the_list_names_rooms_that_exist() -> None:
    assert FLOOR_OF.keys() == ROOMS - EMPTY


@pytest.mark.parametrize(
    ("statement", "rooms"),
    [
        ("import onnxcompress.run", ["run"]),
        ("import onnxcompress", ["__init__"]),
        ("from onnxcompress import prune, budgets", ["__init__", "budgets"]),
        ("from onnxcompress.model.load import load", ["model"]),
        ("from .load import load", ["model"]),
        ("from ..run import run", ["run"]),
        ("from .. import run", ["run"]),
        ("import onnx", []),
    ],
)
def test_every_form_of_import_is_seen(statement: str, rooms: list[str]) -> None:
    assert rooms_of(ast.parse(statement).body[0], PACKAGE / "model" / "save.py") == rooms
