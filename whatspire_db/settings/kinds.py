"""What the settings take: texts, counts, durations, choices and modules, as text and as values in Python."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta

from ..dsn.forms import refuse_quotes
from ..errors import ConfigError
from ..light_stdlib import Any, dataclass, lazy_module

durations = lazy_module("whatspire_db.settings.durations")  # for what is given as text
redaction = lazy_module("whatspire_db.dsn.redaction")  # for messages

DIFFERENCE = ("kind", "table", "name", "declared", "live")
SERVICE = "WHATSAPP_"  # how all variables of the Go service begin
PREFIX, EVENTS = f"{SERVICE}DATABASE_", f"{SERVICE}EVENTS_"  # of the settings
CONFIG = f"{SERVICE}CONFIG"  # names a config file; empty, it has none read
LARGEST_COUNT = 999_999_999
A_DURATION = "a duration from 0 to 2562047h with its unit, like 300ms, 1.5h or 2h45m"  # the longest that Go has


@dataclass(frozen=True)
class Kind:
    """What a setting takes: in words, read from text (ValueError when it is none), and as a value in Python."""

    takes: str
    read: Callable[[str], Any]
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def choice(*choices: str, **others: str) -> Kind:
    """Return the kind of a setting with a few values, in letters of any case; others each mean one of them."""
    known = {choice: choice for choice in choices} | others

    def read(text: str) -> str:
        if text.lower() not in known:
            raise ValueError
        return known[text.lower()]

    return Kind(", ".join(known), read, lambda value: value in choices, tuple(known))


def _count(text: str) -> int:
    if not re.fullmatch(r"\+?[0-9]{1,9}", text):
        raise ValueError
    return int(text)


def _boolean(text: str) -> bool:
    # Go's strconv.ParseBool
    known = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
    if text.lower() not in known:
        raise ValueError
    return known[text.lower()]


def _modules(text: str) -> tuple[str, ...]:
    modules = tuple(part.strip() for part in text.split(",") if part.strip())
    if not modules or not all(map(is_module_name, modules)):
        raise ValueError
    return modules


def _are_modules(value: Any) -> bool:
    if not isinstance(value, tuple) or not value:
        return value == ()
    return all(isinstance(name, str) and is_module_name(name) for name in value)


def _differences(text: str) -> tuple[tuple[str | None, ...], ...]:
    from json import loads  # only where there are any

    try:
        entries = loads(text)
    except RecursionError:
        raise ValueError from None
    if not isinstance(entries, list):
        raise ValueError
    return tuple(map(difference_of, entries))


def _name(text: str) -> str:
    if redaction.looks_like_dsn(text):
        raise ValueError
    return text


def difference_of(entry: Any) -> tuple[str | None, ...]:
    """Return a difference as `verify --json` tells it, as its five values: kind, table, name, declared, live.

    :raises ValueError: when it is none.
    """
    if not isinstance(entry, Mapping) or not set(DIFFERENCE) <= entry.keys() <= {*DIFFERENCE, "accepted", "sql"}:
        raise ValueError
    values = tuple(entry[name] for name in DIFFERENCE)
    if not all(isinstance(value, str) for value in values[:3]) or not _are_texts(values[3:]):
        raise ValueError
    return values


def _are_texts(values: Iterable[Any]) -> bool:
    return all(value is None or isinstance(value, str) for value in values)


def _are_differences(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(entry, tuple) and len(entry) == len(DIFFERENCE) and _are_texts(entry) for entry in value
    )


def is_module_name(name: str) -> bool:
    """Return whether a text can be the dotted name of a module, rather than a file's name or something else."""
    return bool(re.fullmatch(r"[\w-]+(\.[\w-]+)*", name)) and not name.endswith(".py")


TEXT = Kind("a text", str, lambda value: isinstance(value, str))
NAME = Kind(
    "how the names of files begin", _name, lambda value: isinstance(value, str) and not redaction.looks_like_dsn(value)
)
COUNT = Kind(
    f"a whole number from 0 to {LARGEST_COUNT}",
    _count,
    lambda value: type(value) is int and 0 <= value <= LARGEST_COUNT,
)
BOOLEAN = Kind("true or false", _boolean, lambda value: isinstance(value, bool))
DURATION = Kind(
    A_DURATION,
    lambda text: durations.parse_duration(text),
    lambda value: isinstance(value, timedelta) and value >= timedelta(0),
)
TIME = Kind(
    "a duration above 0 with its unit, like 50ms or 1.5s",
    lambda text: durations.parse_duration(text),
    lambda value: isinstance(value, timedelta) and value > timedelta(0),
)
DIFFERENCES = Kind(
    f"a JSON list of differences as verify --json shows them under drift, each with {', '.join(DIFFERENCE)}",
    _differences,
    _are_differences,
)
MODULES = Kind("the dotted names of modules, like myapp.models, separated by commas", _modules, _are_modules)


def checked(name: str, value: Any, kind: Kind) -> Any:
    """Return a setting's value, read from text where it is one; None where nothing was given.

    :raises ConfigError: names the setting, what it got, unless that may be a secret, and what it takes.
    """
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(given, str):
        given = given.strip()
        refuse_quotes(name, given)
    if given is None or given == "":
        return None
    if isinstance(given, str):
        value = _read(name, given, kind)
    elif isinstance(given, list):
        value = tuple(given)
    if not kind.holds(value):
        raise _wrong(name, given, kind)
    return value


def _read(name: str, text: str, kind: Kind) -> Any:
    try:
        return kind.read(text)
    except ValueError:
        raise _wrong(name, text, kind) from None


def _wrong(name: str, value: Any, kind: Kind) -> ConfigError:
    hint = f"it takes {kind.takes}"
    if isinstance(value, str) and redaction.looks_like_dsn(value):
        hint += "; a DSN belongs in WHATSAPP_DATABASE_DSN"
    return ConfigError(f"{name} is {redaction.shown(value)}", hint + _guess(value, kind))


def _guess(value: Any, kind: Kind) -> str:
    from difflib import get_close_matches  # only for the message

    near = get_close_matches(str(value).lower(), kind.choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""
