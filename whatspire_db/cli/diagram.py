"""The command line: whatspire-db diagram."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peewee

from ..connection.connecting import connect
from ..diagram.building import chosen, keys_alone
from ..diagram.drawing import FORMATS, SUFFIXES, of_both, of_database, of_models
from ..diagram.values import Diagram
from ..diagram.writing import write_whole
from ..dsn.forms import SQLITE
from ..dsn.redaction import shown
from ..errors import ConfigError, ConnectionFailed
from ..migrate.runner import MigrationRunner
from ..settings import Settings
from ..settings.durations import seconds_of
from .call import Answer, Call, configure_logging, run_command
from .loading import settings_and_models
from .migrate import has_no_file
from .options import Parser, add_shared_options

PROG = "whatspire-db diagram"


def parser_of(prog: str = PROG) -> argparse.ArgumentParser:
    """Return the parser of the command under the name that the user typed."""
    parser = Parser(
        prog=prog,
        description="Draw the tables and their references: of the models, of the database, or both with what differs.",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="draw the database instead of the models; where --models or WHATSAPP_DATABASE_MODELS names some, as with "
        "--compare",
    )
    parser.add_argument(
        "--compare", action="store_true", help="draw the models and the database, and mark what differs between them"
    )
    parser.add_argument(
        "--tables", nargs="+", action="extend", metavar="PATTERN", help="draw only tables of such names, like 'order*'"
    )
    parser.add_argument(
        "--neighbours",
        type=_steps,
        default=0,
        metavar="N",
        help="with --tables: and the tables that are at most N references away (default: 0)",
    )
    parser.add_argument("--keys", action="store_true", help="draw only the columns of keys, and what differs")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), help="what to write (default: by the suffix of --output, else mermaid)"
    )
    parser.add_argument("--output", metavar="FILE", help="write to this file (default, and for -: stdout)")
    add_shared_options(parser)
    return parser


def _steps(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 4):
        raise ConfigError(f"--neighbours is {shown(text)}", "it takes a whole number from 0 to 999")
    return int(text)


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Draw what the options ask for, and return the exit code."""
    return run_command(Call(sys.argv[1:] if argv is None else argv), parser_of(prog).parse_args, _run)


def _run(call: Call) -> Answer:
    options = call.options
    configure_logging(options)
    options.output = None if options.output == "-" else options.output
    wanted = _format(options)
    if options.neighbours and not options.tables:
        raise ConfigError("--neighbours is given without --tables", "name the tables to begin with")
    diagram = chosen(_drawn(call), options.tables or (), options.neighbours)
    diagram = keys_alone(diagram) if options.keys else diagram
    text = FORMATS[wanted](diagram)
    document = {"format": wanted, "output": options.output, **diagram.to_json()}
    if options.output is None:
        _let_stdout_take_all_letters()
        return Answer(call.named(document | {"text": text}), text.removesuffix("\n").split("\n"), wanted=True)
    write_whole(options.output, text)
    notes = [f"note: {note}" for note in diagram.notes]
    lines = [call.line, *notes, f"drawn from: {diagram.sources}", *([diagram.verdict] if diagram.verdict else [])]
    return Answer(call.named(document), [*lines, f"written: {options.output} ({wanted}, {diagram.counts})"])


def _let_stdout_take_all_letters() -> None:
    """Write UTF-8 to a file or a pipe, as all formats are in it; a terminal gets its own encoding."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def _format(options: Any) -> str:
    """Return the format that the options ask for.

    :raises ConfigError: when the file does not end in the suffix of a format.
    """
    if options.format:
        return str(options.format)
    if options.output is None:
        return "mermaid"
    suffix = os.path.splitext(options.output)[1].lower()
    if suffix not in SUFFIXES:
        fact = f"--output: {options.output} does not end in the suffix of a format"
        raise ConfigError(fact, f"give --format, or end the name in {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def _drawn(call: Call) -> Diagram:
    """Draw the sources that were asked for; a database that cannot be reached is an error, and never left out."""
    options = call.options
    is_live = options.live or options.compare
    if not is_live:
        settings, models = settings_and_models(call)
        kind = peewee.SqliteDatabase if settings.driver == SQLITE else peewee.PostgresqlDatabase
        return of_models(models, kind(None), _named(call))
    if options.compare or options.models or call.settings().models:
        settings, models = settings_and_models(call)
        with _running(settings, models) as runner:
            return of_both(runner.comparison(), _named(call), runner.fence())
    if options.only_models:
        raise ConfigError("--only-models is given without models", "name their modules: --models")
    settings = call.settings()
    if has_no_file(settings):
        raise ConnectionFailed(f"{call.database} holds no database", "check the path; without --live, models are drawn")
    with _running(settings, []) as runner:
        return of_database(runner.live_schema(), _named(call), runner.fence())


def _named(call: Call) -> str:
    return f"{call.driver} {call.database}"


@contextmanager
def _running(settings: Settings, models: list[type[peewee.Model]]) -> Iterator[MigrationRunner]:
    """Look at a database for a block."""
    db = connect(settings, read_only=True)
    wait = seconds_of("lock_timeout", settings.migration_lock_timeout)
    if isinstance(db, peewee.SqliteDatabase):
        db.timeout = wait  # another process may hold the file from the first question on
    try:
        yield MigrationRunner(db, models, lock_timeout=wait, online_rows=settings.migration_online_rows)
    finally:
        if not db.is_closed():
            db.close()
