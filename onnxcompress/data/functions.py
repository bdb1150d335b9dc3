"""``module:function`` as users write it for data and metrics."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxcompress.errors import DataError, OnnxCompressError, nearest

SPELLING = re.compile(r"(?P<module>[^:]+):(?P<function>[A-Za-z_][\w.]*)")


def is_function_name(source: object) -> bool:
    """Whether `source` is spelled ``module:function`` (or ``file.py:function``) and is not the name of a file."""
    return isinstance(source, str) and SPELLING.fullmatch(source) is not None and not Path(source).exists()


def named_function(spelled: str) -> Callable[..., Any]:
    """The function behind ``module:function`` or ``file.py:function``; the present folder is searched first.

    DataError where the module cannot be imported or has no such function.
    """
    match = SPELLING.fullmatch(spelled)
    if match is None:
        raise DataError(f"{spelled!r} is not of the form module:function")
    found: Any = _module(match["module"], spelled)
    for part in match["function"].split("."):
        if not hasattr(found, part):
            raise DataError(f"{spelled}: there is no {part!r}; {nearest(part, [n for n in dir(found) if n[0] != '_'])}")
        found = getattr(found, part)
    if not callable(found):
        raise DataError(f"{spelled}: is not a function")
    return found  # type: ignore[no-any-return]


def called(spelled: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a user's function with as many of the `arguments` as it must have; what it raises becomes a DataError."""
    try:
        return function(*arguments[: _required(function)])
    except OnnxCompressError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise DataError(f"{spelled}: raised {type(error).__name__}: {' '.join(str(error).split())}") from error


def _required(function: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return 0
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.default is each.empty and each.kind in positional for each in parameters)


def _module(name: str, spelled: str) -> ModuleType:
    try:
        if not name.endswith(".py"):
            here = str(Path.cwd())
            sys.path.insert(0, here)
            try:
                return importlib.import_module(name)
            finally:
                sys.path.remove(here)
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise DataError(
            f"{spelled}: {name!r} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
