"""The command line: python -m whatspire_db.health."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import peewee

from ..connection.connecting import connect
from ..errors import WhatspireDBError
from ..health.check import check_health
from ..health.values import Health, aligned, rows
from ..settings.durations import seconds_of
from . import tables
from .call import FAILED, OK, Answer, Call, configure_logging, run_command
from .loading import settings_and_models
from .options import Parser, add_shared_options

PROG = "python -m whatspire_db.health"
# Lines of a check that are a sentence, and those that are a figure with more about it.
TOLD = ("", "note", "times", "data migration")
SPLIT = ("in sync", "pool", "pool waits", "connections", "file", "journal mode")


def parser_of(prog: str = PROG) -> argparse.ArgumentParser:
    """Return the parser of the command under the name that the user typed."""
    parser = Parser(
        prog=prog,
        description="Tell whether a database can be used, and how it stands. Exit 0 when healthy, else 1.",
    )
    parser.add_argument("--no-schema", action="store_true", help="do not compare the schema with the models")
    parser.add_argument(
        "--quick-check", action="store_true", help="SQLite: look for damage too, which reads the whole file"
    )
    add_shared_options(parser)
    return parser


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Check the health and return 0 when it is good, else 1 whatever went wrong, as a container's check wants it."""
    call = Call(sys.argv[1:] if argv is None else argv, lambda code: FAILED if code else OK, _failure_document)
    return run_command(call, parser_of(prog).parse_args, _run)


def _failure_document(error: WhatspireDBError, code: int) -> dict[str, Any]:
    return {"exit": code} | Health(None, error=error.fact, hint=error.hint).to_json()


def _run(call: Call) -> Answer:
    health = _check(call)
    document = {"exit": OK if health.healthy else FAILED} | call.read | health.to_json()
    found = [*rows(health), *([("settings from", call.config)] if call.config else [])]
    lines = _table(found) if tables.is_terminal() else [aligned(found)]
    if health.error is None:
        return Answer(document, lines)
    return Answer(document, lines, FAILED, WhatspireDBError(health.error, health.hint or ""))


def _table(found: Sequence[tuple[str, str]]) -> list[str]:
    """Return what a check found as a table: each figure, and what there is to say about it."""
    return tables.aligned(("check", "result", "detail"), [(name, *_result(name, text)) for name, text in found])


def _result(name: str, text: str) -> tuple[str, str]:
    """Split a text into its figure and the rest; what is only told about a database has no figure."""
    if name in TOLD:
        return "", text
    if name not in SPLIT:
        return text, ""
    result, _, detail = re.sub(r": |, | \(", "\0", text, count=1).partition("\0")
    return result, detail.removesuffix(")") if "(" not in detail else detail


def _check(call: Call) -> Health:
    options = call.options
    configure_logging(options)
    settings, models = settings_and_models(call)
    if options.verbose:
        settings = replace(settings, log_level="info")
    db = connect(settings, read_only=True)
    wait = seconds_of(settings.name_of("health_timeout"), settings.health_timeout)
    if isinstance(db, peewee.SqliteDatabase):
        db.timeout = wait  # another process may hold the file from the first question on
    return check_health(db, models, schema=not options.no_schema, quick_check=options.quick_check, timeout=wait)
