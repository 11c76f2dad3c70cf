"""The command line: python -m whatspire_db.health."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import peewee

from ..connection.connecting import connect
from ..errors import WhatspireDBError
from ..health.check import check_health
from ..health.values import Health, aligned, rows
from ..settings.durations import seconds_of
from .call import FAILED, OK, Answer, Call, configure_logging, run_command
from .loading import settings_and_models
from .options import Parser, add_shared_options

PROG = "python -m whatspire_db.health"


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
    lines = [aligned([*rows(health), *([("settings from", call.config)] if call.config else [])])]
    if health.error is None:
        return Answer(document, lines)
    return Answer(document, lines, FAILED, WhatspireDBError(health.error, health.hint or ""))


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
