"""Command-line options made from what declares the settings: fields of pydantic dataclasses, rows of BUDGETS."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import typer

from onnxcompress.budgets import BUDGETS
from onnxcompress.errors import SettingError
from onnxcompress.settings import allowed, made

METAVARS = {list[str]: "PATTERN", list[int]: "N"}
"""What stands for the value of an option in the help, where typer's own word is not for people."""


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    name    of the Python parameter        kind      what typer parses
    field   of the settings class          comma     a text "1,2,3" stands for a tuple; `length`: if it is fixed
    """

    name: str
    field: str
    kind: Any
    default: Any
    help: str
    panel: str
    flags: tuple[str, ...] = ()
    comma: bool = False
    length: int | None = None

    def parameter(self) -> inspect.Parameter:
        """For the signature that typer reads."""
        flags = self.flags or (_flag(self.name, self.kind),)
        info = typer.Option(
            *flags,
            metavar="N,N" if self.comma else METAVARS.get(self.kind),
            help=self.help,
            rich_help_panel=self.panel,
            show_default=self.default not in (None, (), []),
        )
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=Annotated[self.kind, info]
        )


def _flag(name: str, kind: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    return f"{flag}/--no-{flag[2:]}" if kind in (bool, bool | None) else flag


def options_of(
    settings: type, *, prefix: str = "", panel: str = "", only: Iterable[str] = (), without: Iterable[str] = ()
) -> list[Option]:
    """An option for each field, or for `only` these: its description, limits and default are the field's own."""
    hints = typing.get_type_hints(settings, include_extras=True)
    wanted = set(only or hints) - set(without)
    return [
        _option(settings, field.name, hints[field.name], prefix, panel)
        for field in dataclasses.fields(settings)
        if field.name in wanted
    ]


class Panel:
    """`options_of` a class that is imported when they are first asked for: a verb waits for its own settings alone."""

    def __init__(
        self, settings: Callable[[], type], panel: str, *, only: Iterable[str] = (), without: Iterable[str] = ()
    ) -> None:
        self._settings, self._panel, self._only, self._without = settings, panel, only, without

    @property
    def settings(self) -> type:
        """The class."""
        return self._settings()

    @cached_property
    def _options(self) -> list[Option]:
        return options_of(self.settings, panel=self._panel, only=self._only, without=self._without)

    def __iter__(self) -> Iterator[Option]:
        return iter(self._options)


def _option(settings: type, name: str, hint: Any, prefix: str, panel: str) -> Option:
    described = next(
        (extra.description for extra in getattr(hint, "__metadata__", ()) if getattr(extra, "description", None)), ""
    )
    default = getattr(settings(), name)
    kind, comma, length = _kind(hint)
    limits = (
        allowed(settings, name)
        .removeprefix("give ")
        .removeprefix("a number that is ")
        .removeprefix("a whole number that is ")
    )
    limits = "" if limits in ("a number", "a whole number", "") else f" ({limits})"
    flag = _flag(prefix + name, kind)
    if comma and default is not None:
        default = ",".join(f"{value:g}" for value in default)
    elif isinstance(default, tuple):
        default = list(default)
    return Option(prefix + name, name, kind, default, f"{described}{limits}", panel, (flag,), comma, length)


def _kind(hint: Any) -> tuple[Any, bool, int | None]:
    """What typer parses for a field's type; whether it is a text of numbers with commas, and of how many."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin in (types.UnionType, typing.Union):
        kind, comma, length = _kind(next(each for each in arguments if each is not type(None)))
        return kind | None, comma, length
    if origin is typing.Literal:
        return type(arguments[0]), False, None
    if origin is tuple and arguments[0] in (str, Any):
        return list[str], False, None
    if origin is tuple:
        return str, True, None if arguments[-1] is ... else len(arguments)
    return hint, False, None


def budget_options() -> list[Option]:
    """An option for each row of BUDGETS."""
    return [
        Option(
            name,
            name,
            float | None,
            None,
            f"{budget.description}: {budget.sense} this{_unit(budget.unit)}, else exit code 1",
            "Budgets",
        )
        for name, budget in BUDGETS.items()
    ]


def _unit(unit: str) -> str:
    return f" ({unit})" if unit else ""


def taken(options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of these options by field."""
    return {option.field: _value(option, given[option.name]) for option in options}


def _value(option: Option, value: Any) -> Any:
    if not option.comma or value is None:
        return tuple(value) if isinstance(value, list) else value
    parts = value.replace("x", ",").split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError as error:
        raise SettingError(
            f"--{option.name.replace('_', '-')} is {value!r}; give numbers with commas between"
        ) from error
    if option.length and len(numbers) == 1:
        numbers *= option.length
    return tuple(int(each) if each.is_integer() else each for each in numbers)


def instance(settings: type, options: Iterable[Option], given: Mapping[str, Any]) -> Any:
    """The settings that were given, checked."""
    return made(settings, taken(options, given))


Model = Annotated[str, typer.Argument(help="an .onnx file", show_default=False)]


Command = Callable[..., None]


def verb(*options: Option | Iterable[Option]) -> Callable[[Command], Callable[[], Command]]:
    """Turns a function (arguments, **given) into one that makes its command, which has these options for what is given."""

    def making(function: Command) -> Callable[[], Command]:
        def made_command() -> Command:
            flat = [each for part in options for each in ([part] if isinstance(part, Option) else part)]
            own = inspect.signature(function, eval_str=True).parameters.values()
            parameters = [*(p for p in own if p.kind is not p.VAR_KEYWORD), *(each.parameter() for each in flat)]

            def command(**given: Any) -> None:
                function(**given)

            command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
            command.__annotations__ = {p.name: p.annotation for p in parameters}
            return command

        return made_command

    return making
