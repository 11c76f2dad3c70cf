"""The command line: whatspire-db data [run|status|retry|skip]."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from ..connection.connecting import connect
from ..data import DataMigrations, DataOutcome, DataState
from ..dsn.redaction import shown
from ..errors import ConfigError
from ..migrate.progress import logger as progress_logger
from ..models.base import data_migrations_of
from ..settings.durations import seconds_of
from .call import FAILED, OK, Answer, Call, configure_logging, run_command, symbol
from .loading import settings_and_models
from .options import Parser, RawHelpFormatter, add_shared_options, add_trust_source, listed

PROG = "whatspire-db data"
VERBS = {
    "run": "run what is left, in the order of declaration (default)",
    "status": "list all with their states; exit 1 when one failed",
    "retry": "run one that failed again, from where it stopped, and those after it",
    "skip": "leave one that failed as it is, so that those after it can run",
}
NAMED = ("retry", "skip")


def parser_of(prog: str = PROG) -> argparse.ArgumentParser:
    """Return the parser of the command under the name that the user typed."""
    parser = Parser(
        prog=prog,
        formatter_class=RawHelpFormatter,
        description="Run the data migrations that the models' modules declare, and see how they stand.",
        epilog=listed(VERBS),
    )
    parser.add_argument("verb", nargs="?", choices=list(VERBS), default="run", metavar="VERB", help="see below")
    parser.add_argument("name", nargs="?", metavar="NAME", help="with retry and skip: the data migration")
    parser.add_argument(
        "--lock-timeout", metavar="D", help="wait so long for another run, and for locked rows (default: 60s)"
    )
    add_trust_source(parser)
    add_shared_options(parser)
    return parser


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Run one verb and return the exit code."""

    def parse(arguments: Sequence[str]) -> Any:
        options = parser_of(prog).parse_args(arguments)
        if (options.verb in NAMED) != bool(options.name):
            needs = "needs the name of a data migration" if options.verb in NAMED else "takes no name"
            raise ConfigError(f"{options.verb} {needs}", f"see {PROG} status for the names")
        return options

    return run_command(Call(sys.argv[1:] if argv is None else argv), parse, _run)


def _run(call: Call) -> Answer:
    options = call.options
    configure_logging(options)
    progress_logger.setLevel(logging.ERROR if options.quiet else logging.INFO)
    settings, models = settings_and_models(call)
    wait = settings.migration_lock_timeout if options.lock_timeout is None else options.lock_timeout
    data = DataMigrations(
        connect(settings, read_only=True),  # which makes no file where there is none
        data_migrations_of(models),
        stall=settings.data_stall,
        lock_timeout=seconds_of("--lock-timeout", wait),
        trust_source=options.trust_source,
        before_changes=settings.before_migration() or (lambda: None),
        calling=lambda: redirect_stdout(sys.stderr),  # stdout is the command's own
        models=models,
    )
    if options.verb == "retry" and options.name not in {migration.name for migration in data.declared}:
        hint = "see whatspire-db data status for the names; --models names the modules that declare them"
        raise ConfigError(f"no data migration {shown(options.name)} is declared", hint)
    return ANSWERS[options.verb](data, call)


def _status(data: DataMigrations, call: Call) -> Answer:
    states = data.states()
    lines = [call.line, *map(str, states)] if states else [call.line, "no data migration is declared"]
    has_failed = any(state.state == "failed" for state in states)
    return Answer(_document(call, states), lines, FAILED if has_failed else OK)


def _outcome(outcome: DataOutcome, call: Call) -> Answer:
    lines = [symbol("✅", str(state)) for state in outcome.done] + [symbol("⏳", str(state)) for state in outcome.left]
    has_failed = any(state.state == "failed" for state in outcome.left)
    answer = [call.line, *(lines or [symbol("✅", "Nothing to do")])]
    return Answer(_document(call, [*outcome.done, *outcome.left]), answer, FAILED if has_failed else OK)


def _skip(data: DataMigrations, call: Call) -> Answer:
    data.skip(call.options.name)
    return _status(data, call)


def _document(call: Call, states: Sequence[DataState]) -> dict[str, Any]:
    return call.named({"data": [state.to_json() for state in states]})


ANSWERS: dict[str, Callable[[DataMigrations, Call], Answer]] = {
    "run": lambda data, call: _outcome(data.run(), call),
    "status": _status,
    "retry": lambda data, call: _outcome(data.retry(call.options.name), call),
    "skip": _skip,
}
