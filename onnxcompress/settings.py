"""Settings that a caller gave: checked against the pydantic dataclass that declares them, refused in one line."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from onnxcompress.errors import SettingError, nearest

T = TypeVar("T")

LIMITS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
"""What pydantic calls a limit -> the words for it."""


def made(settings: type[T], given: Mapping[str, Any]) -> T:
    """An instance of a pydantic dataclass; SettingError that names the option, what is allowed and what was given."""
    check_names(given, names_of(settings), "setting")
    try:
        return settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise SettingError(f"{name} is {_shown(given.get(name))}; {allowed(settings, name) or first['msg']}") from error


def names_of(settings: type) -> list[str]:
    """Names of the fields."""
    return [field.name for field in dataclasses.fields(settings)]


def check_names(given: Iterable[str], known: Iterable[str], kind: str) -> None:
    """SettingError for the first name that is not known."""
    names = list(known)
    for name in given:
        if name not in names:
            raise SettingError(f"no {kind} is called {name!r}; {nearest(name, names)}")


def allowed(settings: type, name: str) -> str:
    """What a field may be, in words: "give a number that is at least 0 and less than 1"; else empty."""
    field = _schema(settings)["properties"][name]
    field = next((option for option in field.get("anyOf", ()) if option.get("type") != "null"), field)
    if "enum" in field or "const" in field:
        return f"give one of {', '.join(map(str, field.get('enum', [field.get('const')])))}"
    limits = [
        LIMITS[short].format(f"{field[word]:g}")
        for short, word in (
            ("ge", "minimum"),
            ("gt", "exclusiveMinimum"),
            ("le", "maximum"),
            ("lt", "exclusiveMaximum"),
        )
        if word in field
    ]
    kind = {"number": "a number", "integer": "a whole number"}.get(field.get("type", ""), "")
    if not kind:
        return ""
    return f"give {kind} that is {' and '.join(limits)}" if limits else f"give {kind}"


@functools.cache
def _schema(settings: type) -> dict[str, Any]:
    return TypeAdapter(settings).json_schema()


def _shown(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
