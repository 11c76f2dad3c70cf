"""The command line: python -m whatspire_db.migrate [up|plan|verify|status|version]."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import peewee

from ..command_line import (
    OK,
    Parser,
    add_shared_options,
    configure_logging,
    guarded,
    load_models,
    print_json,
    progress_bar,
    read_settings,
    say,
)
from ..database import connect
from ..errors import MigrationRefused
from ..settings import read_duration
from .plan import Step
from .progress import Progress, Watcher
from .progress import logger as progress_logger
from .runner import MigrationRunner, Report, backup_before

if TYPE_CHECKING:
    from .diff import Changes

PENDING, REFUSED = 3, 4
VERBS = {
    "up": "apply what is pending in one transaction, verify and record it (default)",
    "plan": "show every step with its SQL, lock and cost; exit 3 when something is pending, 4 when refused",
    "verify": "compare the whole schema; exit 3 when something is missing, 4 when something drifted",
    "status": "list the recorded runs",
    "version": "print the recorded version, 0 before the first run",
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m whatspire_db.migrate",
        description="Bring a database to the declared schema by adding what is missing. Never drops.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="verbs:\n" + "\n".join(f"  {verb:<9}{text}" for verb, text in VERBS.items()),
    )
    parser.add_argument("verb", nargs="?", choices=list(VERBS), default="up", metavar="VERB", help="see below")
    parser.add_argument(
        "--lock-timeout", metavar="D", help="wait so long for another migration, like 90s or 5m (default: 60s)"
    )
    parser.add_argument("--backup", action="store_true", help="with up: make a backup before anything is changed")
    parser.add_argument("--sql", action="store_true", help="with plan: print the statements alone, for psql or sqlite3")
    add_shared_options(parser)
    return parser


def _parse(argv: list[str] | None) -> argparse.Namespace:
    options = _parser().parse_args(argv)
    if options.models and len(options.models) > 1 and options.models[-1] in VERBS:
        options.verb = options.models.pop()  # a verb that was written behind the modules
    return options


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit code. Errors are two lines on stderr, a fact and a hint."""
    return guarded(lambda: _run(_parse(argv)))


def _run(options: argparse.Namespace) -> int:
    configure_logging(options)
    progress_logger.setLevel(logging.ERROR if options.quiet else logging.INFO)
    settings = read_settings(options)
    models = load_models(options.models or settings.models, with_service=not options.only_models)
    db = connect(settings, read_only=options.verb != "up")
    wait = settings.migration_lock_timeout
    if options.lock_timeout is not None:
        wait = read_duration("--lock-timeout", options.lock_timeout)
    if isinstance(db, peewee.SqliteDatabase):
        db.timeout = wait.total_seconds()  # another process may hold the file from the first question on
    runner = MigrationRunner(
        db,
        models,
        record_all=settings.record_runs == "all",
        lock_timeout=wait.total_seconds(),
        online_rows=settings.migration_online_rows,
        before_changes=backup_before(settings) if options.backup else None,
        watcher=_CommandLineWatcher(options),
    )
    try:
        return _VERBS[options.verb](runner, options)
    except MigrationRefused as refused:
        if options.json:
            print_json(refused.plan.to_json())
        raise
    finally:
        if not db.is_closed():
            db.close()


class _CommandLineWatcher(Watcher):
    """Prints the version before the run, and shows long steps as a bar on a terminal, as log lines elsewhere."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.says = options.verb == "up" and not (options.quiet or options.json)
        self.draws = not options.quiet and sys.stderr.isatty()
        self.bar: Any = None

    def started(self, version: int) -> None:
        if self.says:
            say("📊", f"Current migration version: {version}")

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


def _up(runner: MigrationRunner, options: argparse.Namespace) -> int:
    if not (options.quiet or options.json):
        say("🔄", "Running database migrations...")
    report = runner.up()
    if options.json:
        print_json(report.to_json())
    elif not options.quiet:
        _report(report)
    return OK


def _report(report: Report) -> None:
    for step in report.applied:
        print(f"   {step.title}")
    if report.version != report.previous_version:
        say("✅", f"Migration recorded: version {report.version}")
    if not report.applied:
        say("✅", "Nothing to do")
    if report.drift:
        differences = "1 difference" if len(report.drift) == 1 else f"{len(report.drift)} differences"
        say("⚠️", f"{differences} that adding cannot mend: run verify to see what")
    say("✅", "Database migrations completed")


def _plan(runner: MigrationRunner, options: argparse.Namespace) -> int:
    plan = runner.plan()
    if options.json:
        print_json(plan.to_json())
    elif options.sql:
        print(plan.sql(), end="")
    elif not options.quiet:
        print(plan)
    if plan.refused:
        return REFUSED
    return PENDING if plan.pending else OK


def _verify(runner: MigrationRunner, options: argparse.Namespace) -> int:
    changes = runner.verify_schema()
    if options.json:
        document = {
            "driver": runner.engine.name,
            "version": runner.version(),
            "missing": [item.to_json() for item in changes.missing],
            "drift": [item.to_json() for item in changes.drift],
            "extra": [item.to_json() for item in changes.extra],
        }
        print_json(document)
    elif not options.quiet:
        print(_shown(changes))
    if changes.drift:
        return REFUSED
    return PENDING if changes.missing else OK


def _shown(changes: Changes) -> str:
    lines = [str(item) for group in (changes.missing, changes.drift, changes.extra) for item in group]
    if changes:
        return "\n".join(lines)
    return "\n".join(["in sync", *lines])


def _status(runner: MigrationRunner, options: argparse.Namespace) -> int:
    runs = runner.status()
    if options.json:
        print_json([run.to_json() for run in runs])
    elif not options.quiet:
        for run in runs:
            applied_at = f"{run.applied_at:%Y-%m-%d %H:%M:%S} UTC" if run.applied_at else "-"
            print(f"{run.version}  {applied_at}  {run.name}")
        if not runs:
            print("no run is recorded yet")
    return OK


def _version(runner: MigrationRunner, options: argparse.Namespace) -> int:
    version = runner.version()
    if options.json:
        print_json({"driver": runner.engine.name, "version": version})
    else:
        print(version)
    return OK


_VERBS: dict[str, Callable[[MigrationRunner, argparse.Namespace], int]] = {
    "up": _up,
    "plan": _plan,
    "verify": _verify,
    "status": _status,
    "version": _version,
}

if __name__ == "__main__":
    sys.exit(main())
