"""The command line: whatspire-db retain."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from ..connection.connecting import connect
from ..data.retention import Retained, retain
from ..data.retention import logger as progress_logger
from ..data.rules import rules_of, shown_age
from ..dsn.redaction import shown
from ..errors import ConfigError
from ..settings.durations import read_duration, seconds_of
from .call import Answer, Call, configure_logging, run_command, symbol
from .loading import settings_and_models
from .options import Parser, add_shared_options, add_trust_source

PROG = "whatspire-db retain"


def parser_of(prog: str = PROG) -> argparse.ArgumentParser:
    """Return the parser of the command under the name that the user typed."""
    parser = Parser(prog=prog, description="Delete rows that are older than a rule says, a few at a time.")
    parser.add_argument(
        "--rule",
        action="append",
        metavar="TABLE.COLUMN=AGE",
        help="delete the rows of a table whose time in a column is older, like events.timestamp=30d; only the rules "
        "that are given apply then (default: Meta.retention of the models, and WHATSAPP_EVENTS_RETENTION_DAYS)",
    )
    parser.add_argument("--dry-run", action="store_true", help="count the rows, and delete none")
    parser.add_argument("--limit", type=_rows, metavar="N", help="delete at most N rows in this run")
    parser.add_argument(
        "--stall",
        type=_stall,
        metavar="D",
        help="how long others may wait for a batch, like 50ms (default: WHATSAPP_DATABASE_DATA_STALL, else 50ms)",
    )
    parser.add_argument(
        "--lock-timeout",
        metavar="D",
        help="wait so long for another run, and for locked rows, like 90s or 5m (default: 60s)",
    )
    add_trust_source(parser, "triggers of other roles that are on the tables")
    add_shared_options(parser)
    return parser


def _rows(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text)):
        raise ConfigError(f"--limit is {shown(text)}", "it takes a whole number of rows, 1 or more")
    return int(text)


def _stall(text: str) -> timedelta:
    stall = read_duration("--stall", text)
    if not timedelta(milliseconds=1) <= stall <= timedelta(seconds=10):
        raise ConfigError(f"--stall is {shown(text)}", "it takes a duration from 1ms to 10s")
    return stall


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Delete what the rules say, and return the exit code."""
    return run_command(Call(sys.argv[1:] if argv is None else argv), parser_of(prog).parse_args, _run)


def _run(call: Call) -> Answer:
    options = call.options
    configure_logging(options)
    progress_logger.setLevel(logging.ERROR if options.quiet else logging.INFO)
    settings, models = settings_and_models(call)
    rules = rules_of(models, settings, options.rule or ())
    if not rules:
        raise ConfigError(
            "there is no rule, so nothing is deleted",
            "give --rule TABLE.COLUMN=AGE, retention in the Meta of a model, or WHATSAPP_EVENTS_ENABLED=true",
        )
    wait = settings.migration_lock_timeout if options.lock_timeout is None else options.lock_timeout
    started = time.monotonic()
    done = retain(
        connect(settings, read_only=True),  # which makes no file where there is none
        rules,
        dry_run=options.dry_run,
        limit=options.limit,
        stall=options.stall or settings.data_stall,
        lock_timeout=seconds_of("--lock-timeout", wait),
        trust_source=options.trust_source,
    )
    seconds = time.monotonic() - started
    document = {
        "dry_run": options.dry_run,
        "rules": [_document(each) for each in done],
        "duration_ms": round(seconds * 1000),
    }
    return Answer(call.named(document), [call.line, *_lines(done, options.dry_run), *_notes(done)])


def _document(done: Retained) -> dict[str, Any]:
    return {
        "table": done.rule.model._meta.table_name,
        "column": done.rule.field.column_name,
        "older_than": shown_age(done.rule.age),
        "before": done.before.isoformat(),
        "source": done.rule.source,
        "rows": done.rows,
        "done": done.is_done,
    }


def _lines(done: Sequence[Retained], dry_run: bool) -> Iterator[str]:
    for each in done:
        rows = "1 row" if each.rows == 1 else f"{each.rows:,} rows"
        did = "would be deleted" if dry_run else "deleted"
        more = "" if each.is_done else ", and more are left"
        yield symbol("✅" if each.is_done else "⏳", f"{each.rule} ({each.rule.source}): {rows} {did}{more}")


def _notes(done: Sequence[Retained]) -> Iterator[str]:
    for each in done:
        if not each.is_indexed:
            yield f"note: no index begins with {each.rule.name}: each batch reads the table from its start"
