"""The command line: python -m whatspire_db.migrate [up|plan|verify|status|version|undo]."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from functools import partial
from types import SimpleNamespace

import peewee

from ..connection.connecting import connect
from ..connection.database import Pooling
from ..dsn.targets import SqliteTarget
from ..errors import ConfigError
from ..light_stdlib import TYPE_CHECKING, Any
from ..migrate.plan import Step
from ..migrate.progress import Progress, Watcher
from ..migrate.progress import logger as progress_logger
from ..migrate.reports import Report
from ..migrate.runner import MigrationRunner
from ..settings import Settings
from ..settings.durations import seconds_of
from .call import Answer, Call, configure_logging, progress_bar, run_command, say, symbol
from .loading import Model, settings_and_models

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from ..models.data_migrations import DataMigration

PROG = "python -m whatspire_db.migrate"
PENDING, REFUSED = 3, 4
VERBS = {
    "up": "apply what is pending in one transaction, verify and record it (default)",
    "plan": "show every step with its SQL, lock and cost; exit 3 when something is pending, 4 when refused",
    "verify": "compare the whole schema; exit 3 when something is missing, 4 when something drifted",
    "status": "list the recorded runs with what each added, what is pending, and what undo would do",
    "version": "print the recorded version, 0 before the first run",
    "undo": "drop what the last run added, where no row is lost; exit 4 when refused, with --plan 3 when it would drop",
}
MANY = ("each_schema", "each_file", "dsn_file")  # options that name many databases
# What the parser makes of no arguments.
NOTHING_TYPED: dict[str, Any] = {
    "verb": "up",
    **dict.fromkeys(("lock_timeout", "wait", "models", "driver", "dsn", "config", *MANY, "jobs", "to", "html")),
    **dict.fromkeys(("backup", "sql", "trust_source", "fail_fast", "only_models", "json", "quiet", "verbose"), False),
    **dict.fromkeys(("plan", "with_data"), False),
}
_LOOKS = ("up", "plan", "verify", "status")
# The verbs that use an option; all verbs use those that are not here.
USERS = {
    "backup": ("up",),
    "sql": ("plan", "verify", "undo"),
    "html": ("verify",),
    "trust_source": (*_LOOKS, "undo"),
    **dict.fromkeys(MANY, _LOOKS),
    **dict.fromkeys(("to", "plan", "with_data"), ("undo",)),
}


def parser_of(prog: str = PROG) -> ArgumentParser:
    """Return the parser of the command under the name that the user typed."""
    from .options import Parser, RawHelpFormatter, add_many_options, add_shared_options, add_trust_source, listed

    parser = Parser(
        prog=prog,
        formatter_class=RawHelpFormatter,
        description="Bring a database to the declared schema by adding what is missing. Only undo drops.",
        epilog=listed(VERBS),
    )
    parser.add_argument("verb", nargs="?", choices=list(VERBS), default="up", metavar="VERB", help="see below")
    parser.add_argument(
        "--lock-timeout", metavar="D", help="wait so long for another migration, like 90s or 5m (default: 60s)"
    )
    parser.add_argument(
        "--wait",
        metavar="D",
        help="wait so long for a server that does not answer yet, like 30s (default: fail at once)",
    )
    parser.add_argument("--backup", action="store_true", help="with up: make a backup before anything is changed")
    parser.add_argument(
        "--sql",
        action="store_true",
        help="print statements alone, for psql or sqlite3: with plan what is pending, with verify what mends drift, "
        "with undo what it would run",
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="with verify: write a picture of the schema, its differences and the SQL that fixes them to one file",
    )
    _add_undo_options(parser)
    add_trust_source(parser)
    add_many_options(parser)
    add_shared_options(parser)
    return parser


def _add_undo_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--to", metavar="VERSION", help="with undo: undo all runs that are newer than this version (default: the last)"
    )
    parser.add_argument("--plan", action="store_true", help="with undo: show what it would do, and touch nothing")
    parser.add_argument(
        "--with-data", action="store_true", help="with undo: make a backup, then drop what holds rows too"
    )


def _parse(prog: str, argv: list[str]) -> Any:
    if not argv:  # a worker's start, which loads no parser
        return SimpleNamespace(**NOTHING_TYPED)
    options = parser_of(prog).parse_args(argv)
    if options.models and len(options.models) > 1 and options.models[-1] in VERBS:
        options.verb = options.models.pop()  # a verb that was written behind the modules
    if options.each_file and len(options.each_file) > 1 and options.each_file[-1] in VERBS:
        options.verb = options.each_file.pop()
    if options.dsn in VERBS:  # `--dsn $UNSET up`
        hint = f"give --dsn a value; is a variable unset? A file of such a name is written ./{options.dsn}"
        raise ConfigError(f"--dsn is given the verb {options.dsn}", hint)
    for option, verbs in USERS.items():
        if getattr(options, option) and options.verb not in verbs:
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(f"{options.verb} takes no {flag}", f"it is for {', '.join(verbs)}")
    if options.html and is_many(options):
        raise ConfigError("--html is for one database", "give it without --each-schema, --each-file and --dsn-file")
    for flag in ("--jobs", "--fail-fast"):
        if getattr(options, flag[2:].replace("-", "_")) and not is_many(options):
            raise ConfigError(f"{flag} is for many databases", "give it with --each-schema, --each-file or --dsn-file")
    return options


def is_many(options: Any) -> bool:
    """Tell whether a run is about many databases."""
    return any(getattr(options, option) for option in MANY)


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Run one verb and return the exit code. Errors are two lines on stderr, a fact and a hint."""
    return run_command(Call(sys.argv[1:] if argv is None else argv), partial(_parse, prog), _run)


def _run(call: Call) -> Answer:
    options = call.options
    configure_logging(options)
    progress_logger.setLevel(logging.ERROR if options.quiet else logging.INFO)
    if is_many(options):
        from .many import run_many  # not for one database

        return run_many(call)
    settings, models = settings_and_models(call)
    waits = waits_of(options, settings)  # a wrong one is refused before anything is made
    is_new = options.verb == "up" and has_no_file(settings)
    db = opened(settings, options, waits)
    watcher = _CommandLineWatcher(call, is_new)
    runner = runner_of(db, models, options, waits, watcher, _before_changes(options, settings))
    try:
        return answer(runner, call)
    finally:
        watcher.end_line()
        if not db.is_closed():
            db.close()


def opened(settings: Settings, options: Any, waits: tuple[float, float], bind: bool = True) -> Pooling:
    """Return the database of a run; see `connect`."""
    db = connect(settings, bind=bind, read_only=options.verb != "up")
    if isinstance(db, peewee.SqliteDatabase):
        db.timeout = waits[0]  # another process may hold the file from the first question on
    db.keeps_journal_mode = True  # a run that finds nothing to do changes nothing
    return db


def runner_of(
    db: Pooling,
    models: Sequence[Model],
    options: Any,
    waits: tuple[float, float],
    watcher: Watcher,
    before_changes: Callable[[], str | None] | None = None,
    data: Sequence[DataMigration] | None = None,
) -> MigrationRunner:
    """Return the runner that the options and the settings of its database ask for."""
    settings = db.settings or Settings()
    return MigrationRunner(
        db,
        models,
        record_all=settings.record_runs == "all",
        lock_timeout=waits[0],
        online_rows=settings.migration_online_rows,
        before_changes=before_changes,
        watcher=watcher,
        wait_for_server=waits[1],
        trust_source=options.trust_source,
        data=data,
    )


def _before_changes(options: Any, settings: Settings) -> Callable[[], str | None] | None:
    """Return what --backup or --with-data asks for; without them the settings decide."""
    if not (options.backup or options.with_data):
        return None
    from ..backup.before_migration import before_migration  # not for a run that makes none

    return before_migration(settings)


def waits_of(options: Any, settings: Settings) -> tuple[float, float]:
    """Return how many seconds to wait for locks, and for a server that does not answer yet.

    :raises ConfigError: when an option is no duration.
    """
    given = options.lock_timeout
    locks = seconds_of("--lock-timeout", settings.migration_lock_timeout if given is None else given)
    return locks, seconds_of("--wait", 0 if options.wait is None else options.wait)


def has_no_file(settings: Settings) -> bool:
    """Tell whether a SQLite database is about to be created."""
    path = settings.target.path if isinstance(settings.target, SqliteTarget) else None
    try:
        return path is not None and os.stat(path).st_size == 0
    except FileNotFoundError:
        return True
    except OSError:
        return False


class _CommandLineWatcher(Watcher):
    """Prints the version before the run, and shows long steps as a bar on a terminal, as log lines elsewhere."""

    def __init__(self, call: Call, is_new: bool) -> None:
        super().__init__()
        options = call.options
        changes = options.verb == "up" or (options.verb == "undo" and not (options.plan or options.sql))
        self.says = changes and not (options.quiet or options.json)
        self.draws = not options.quiet and sys.stderr.isatty()
        self.is_new = is_new
        self.line = f"   {call.line}{', created by this run' if is_new else ''}"
        self.bar: Any = None
        self.has_drawn = False

    def started(self, version: int) -> None:
        if self.says:
            say("📊", f"Current migration version: {version}")
            print(self.line, flush=True)

    def backed_up(self, file: str) -> None:
        if self.says:
            say("💾", f"Backup made: {file}")

    def step_progress(self, step: Step, progress: Progress) -> None:
        if not self.draws:
            super().step_progress(step, progress)
            return
        if self.bar is None:
            self.bar = progress_bar(step.title)
        waiting = f", waiting for {progress.waiting_for}" if progress.waiting_for else ""
        self.bar.set_postfix_str(f"{progress.phase}{waiting}", refresh=False)
        self.bar.n = progress.done / progress.total if progress.total else 0
        self.bar.refresh()

    def step_done(self, step: Step) -> None:
        if self.bar is not None:
            self.bar.n = 1
            self.bar.set_postfix_str("", refresh=False)
            self.bar.refresh()
            self.bar.close()
            self.bar = None

    def data_progress(self, migration: DataMigration, rows: int) -> None:
        if self.draws:
            print(f"\r{migration.name}: {rows:,} rows", end="", file=sys.stderr, flush=True)
            self.has_drawn = True
        else:
            super().data_progress(migration, rows)

    def calling(self) -> AbstractContextManager[Any]:
        return redirect_stdout(sys.stderr)  # stdout is the command's own

    def end_line(self) -> None:
        """End the line of a data migration's progress."""
        if self.has_drawn:
            print(file=sys.stderr)


def _up(runner: MigrationRunner, call: Call) -> Answer:
    if not (call.options.quiet or call.options.json):
        say("🔄", "Running database migrations...")
    report = runner.up()
    if report.applied and isinstance(runner.db, Pooling):
        runner.db.settle_journal_mode()
    created = {"created": True} if getattr(runner.watcher, "is_new", False) else {}
    return Answer(call.named(report.to_json() | created), list(_report(report)))


def _report(report: Report) -> Iterator[str]:
    for step in report.applied:
        yield f"   {step.title}"
    if report.version != report.previous_version:
        yield symbol("✅", f"Migration recorded: version {report.version}")
    if not (report.applied or report.data):
        yield symbol("✅", "Nothing to do")
    if report.drift:
        differences = "1 difference" if len(report.drift) == 1 else f"{len(report.drift)} differences"
        yield symbol("⚠️", f"{differences} that adding cannot mend: run verify to see what")
    for state in report.data.done if report.data else ():
        yield symbol("✅", f"data migration {state}")
    for state in report.data.left if report.data else ():
        yield symbol("⏳", f"data migration {state}")
    yield symbol("✅", "Database migrations completed")


def answer(runner: MigrationRunner, call: Call) -> Answer:
    """Do what the verb of a call says."""
    if call.options.verb == "up":
        return _up(runner, call)
    from .looks import ANSWERS  # not for a start

    return ANSWERS[call.options.verb](runner, call)
