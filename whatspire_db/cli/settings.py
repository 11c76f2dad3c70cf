"""The command line: whatspire-db settings."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from ..dsn.naming import describe
from ..settings import KINDS, Settings, variable
from ..settings.durations import in_units
from .call import Answer, Call, configure_logging, given_settings, run_command
from .options import Parser, add_database_options

PROG = "whatspire-db settings"
DEFAULT = "default"


def parser_of(prog: str = PROG) -> argparse.ArgumentParser:
    """Return the parser of the command under the name that the user typed."""
    parser = Parser(
        prog=prog,
        description="Print every setting with its value and where that comes from. Secrets are left out.",
    )
    add_database_options(parser)
    return parser


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Print the settings; return 0, or 2 where one of them is wrong."""
    return run_command(Call(sys.argv[1:] if argv is None else argv), parser_of(prog).parse_args, _run)


def _run(call: Call) -> Answer:
    configure_logging(call.options)
    settings = given_settings(call.options)
    call.about(settings)
    found = [_described(settings, field) for field in KINDS]
    return Answer(call.named({"settings": found}), [call.line, *_lines(found)], wanted=True)


def _described(settings: Settings, field: str) -> dict[str, Any]:
    source = settings.sources.get(field, DEFAULT)
    if field == "driver" and source == DEFAULT and "dsn" in settings.sources:
        source = "the DSN"
    return {"name": field, "variable": variable(field), "value": _value(settings, field), "source": source}


def _value(settings: Settings, field: str) -> Any:
    """Return a setting's value as JSON can hold it; of a DSN only which database it names."""
    if field == "dsn":
        return describe(settings.target)
    if field == "replica_dsn":
        return describe(settings.replica_target) if settings.replica_target else None
    value = getattr(settings, field)
    return in_units(value) if isinstance(value, timedelta) else value


def _lines(found: list[dict[str, Any]]) -> Iterator[str]:
    texts = [(each["variable"], _text(each["value"]), each["source"]) for each in found]
    first, second = (max(len(row[column]) for row in texts) for column in (0, 1))
    for name, value, source in texts:
        yield f"{name:<{first}}  {value:<{min(second, 40)}}  {source}"


def _text(value: Any) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        plain = all(isinstance(each, str) for each in value)
        return ",".join(value) if plain else json.dumps(value, ensure_ascii=False)
    return str(value)
