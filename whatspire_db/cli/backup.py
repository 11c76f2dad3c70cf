"""The command line: python -m whatspire_db.backup create|list|verify|restore|prune."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from .. import backup as backups
from ..backup.archive import Backup
from ..backup.durable import LOCK_SECONDS
from ..backup.manifest import Progress
from ..backup.retention import Policy
from ..connection.patience import patient
from ..dsn.redaction import looks_like_dsn, shown
from ..dsn.sqlite import parse_sqlite
from ..dsn.targets import PostgresTarget, SqliteTarget
from ..errors import ConfigError, WhatspireDBError
from ..settings import Settings
from ..settings.durations import seconds_of
from . import tables
from .call import Answer, Call, configure_logging, progress_bar, run_command, symbol
from .options import Parser, RawHelpFormatter, add_database_options

logger = logging.getLogger("whatspire_db.backup")
PROG = "python -m whatspire_db.backup"
LOG_SECONDS = 10.0
DRAW_SECONDS = 0.1
VERBS = {
    "create": "make a backup while others write; --test-restore proves that it restores",
    "list": "list the backups of the folder, the latest first",
    "verify": "read a backup to its end, and with --test-restore restore it into a scratch place and compare",
    "restore": "verify a backup, back up what is there, and replace it; old or new, never half",
    "prune": "delete the backups of this database that no --keep rule keeps",
}


_DIR = "(default: WHATSAPP_DATABASE_BACKUP_DIR, or backups)"
_PERIODS = {"daily": "days", "weekly": "weeks", "monthly": "months"}


def _flag(text: str) -> dict[str, Any]:
    return {"action": "store_true", "help": text}


def _value(metavar: str, text: str) -> dict[str, Any]:
    return {"metavar": metavar, "help": text}


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number, 0 or more")
    return int(text)


# The verbs that take an option, its flags, and what argparse is told of it.
OPTIONS: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("create", ("--to", "--dir"), {"dest": "dir", **_value("DIR", f"where to {_DIR}")}),
    ("create", ("--compress",), _value("M", "none, gzip or zstd (default: none; PostgreSQL: gzip)")),
    ("list verify restore prune", ("--dir",), _value("DIR", f"where the backups are {_DIR}")),
    (
        "create verify restore prune",
        ("--name",),
        _value("NAME", "how the backups' names begin (default: WHATSAPP_DATABASE_BACKUP_NAME, or the database's)"),
    ),
    ("create verify", ("--test-restore",), _flag("restore it into a scratch place, and compare every table")),
    (
        "create",
        ("--accept-torn",),
        _flag("back up a cluster's distributed tables too, of which no dump is of one moment"),
    ),
    ("create verify restore", ("--trust-source",), _flag("let a superuser's restore run the code of all its owners")),
    ("restore", ("--to",), _value("PLACE", "another file, or another database of the server")),
    ("restore", ("--force",), _flag("replace data, after a backup of it")),
    ("restore", ("--no-safety-backup",), _flag("replace it without a backup")),
    (
        "create verify restore prune",
        ("--lock-timeout",),
        _value("D", "wait so long for others' locks, and for a server that is full (default: 10s)"),
    ),
    *(
        ("create prune", (f"--keep-{rule}",), {"type": _number, "default": 0, **_value("N", f"keep {text}")})
        for rule, text in {
            "last": "the last N",
            **{rule: f"the latest of each of the last N {period}" for rule, period in _PERIODS.items()},
        }.items()
    ),
    ("prune", ("--dry-run",), _flag("delete nothing, tell what would be")),
]


def parser_of(prog: str = PROG) -> argparse.ArgumentParser:
    """Return the parser of the command under the name that the user typed."""
    parser = Parser(
        prog=prog,
        formatter_class=RawHelpFormatter,
        description="Make backups of a database, prove them, and bring them back.",
        epilog="exit: 0; 1 failed; 2 usage; 3 verification failed; 4 target not empty or busy, code of others that a "
        "superuser would run, or a cluster whose backup would be torn; 5 version mismatch",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)
    parsers = {verb: verbs.add_parser(verb, help=text, description=text) for verb, text in VERBS.items()}
    for taken_by, flags, how in OPTIONS:
        for verb in taken_by.split():
            parsers[verb].add_argument(*flags, **how)
    parsers["verify"].add_argument("file", nargs="?", default="latest", metavar="FILE|latest")
    parsers["restore"].add_argument("file", metavar="FILE|latest")
    for subparser in parsers.values():
        add_database_options(subparser)
    return parser


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Run one verb and return the exit code. Errors are two lines on stderr, a fact and a hint."""
    return run_command(Call(sys.argv[1:] if argv is None else argv), parser_of(prog).parse_args, _run)


def _run(call: Call) -> Answer:
    configure_logging(call.options)
    # What is lost, or left out, is said even to a quiet run: cron sends it on.
    logger.setLevel(logging.WARNING if call.options.quiet else logging.INFO)
    settings = call.settings()
    with patient(_wait(call.options)), _Shown(call.options) as progress:
        return _VERBS[call.options.verb](settings, call, progress)


def _done(text: str) -> str:
    return symbol("✅", text)


class _Shown:
    """Shows how far a run is: a bar on a terminal, elsewhere a line in the log now and then."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.draws = not options.quiet and sys.stderr.isatty()
        self.bar: Any = None
        self.what = ""
        self.logged = time.monotonic()
        self.drawn = 0.0

    def __enter__(self) -> Progress:
        return self.tell

    def __exit__(self, *error: object) -> None:
        self._end()

    def tell(self, what: str, done: int, total: int) -> None:
        share = done / total if total else 0.0
        if self.draws:
            if what != self.what:
                self._end()
                self.bar = progress_bar(what, leave=False)
            if time.monotonic() - self.drawn > DRAW_SECONDS:
                self.drawn = time.monotonic()
                self.bar.n = min(share, 1.0)
                self.bar.refresh()
        elif time.monotonic() - self.logged > LOG_SECONDS:
            self.logged = time.monotonic()
            logger.info("%s%s", what, f": {share:.0%}" if total else "")
        self.what = what

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _trusts(options: argparse.Namespace) -> bool:
    """Return whether a superuser may run the code in a backup.

    :raises ConfigError: when nothing of it would run.
    """
    if options.trust_source and not options.test_restore:
        raise ConfigError("--trust-source goes with --test-restore", f"{options.verb} alone runs no code of a backup")
    return bool(options.trust_source)


def _create(settings: Settings, call: Call, progress: Progress) -> Answer:
    options = call.options
    policy = _policy(options)
    backup = backups.create(
        settings,
        options.dir,
        name=options.name,
        compress=options.compress,
        test_restore=options.test_restore,
        trust_source=_trusts(options),
        accept_torn=options.accept_torn,
        lock_timeout=_wait(options),
        progress=progress,
    )
    document = call.named(backup.to_json())
    lines = [_done(f"Backup made: {_described(backup)}"), f"   {call.line}"]
    if not policy:
        return Answer(document, lines)
    try:
        pruned = backups.prune(
            settings,
            options.dir,
            policy,
            name=options.name,
            proved=backup,
            lock_timeout=_wait(options),
            progress=progress,
        )
    except WhatspireDBError as error:
        error.fact = f"the backup {backup.file} is made, but others were not pruned: {error.fact}"
        raise
    return Answer(document | {"pruned": [p.to_json() for p in pruned]}, lines + _fates(pruned))


def _list(settings: Settings, call: Call, progress: Progress) -> Answer:
    options = call.options
    found, others = backups.list_backups(options.dir, settings)
    document = {
        "backups": [{**b.to_json(), "problem": b.missing} for b in found],
        "others": [{"path": str(o.path), "reason": o.reason} for o in others],
    }
    if tables.is_terminal() and found:
        lines = [f"backups in {options.dir or settings.backup_dir}", *_table(found)]
    else:
        lines = [_described(b) + (f"; PROBLEM: {b.missing}" if b.missing else "") for b in found]
    lines += [f"not a backup: {other.reason}" for other in others]
    lines = lines or [f"no backups in {options.dir or settings.backup_dir}"]
    return Answer(call.named(document), [*lines, call.line])


def _table(found: Sequence[Backup]) -> list[str]:
    rows = [
        (
            backup.manifest.file,
            f"{backup.manifest.time:%Y-%m-%d %H:%M:%S} UTC",
            _size(backup.manifest.size),
            backup.manifest.content.engine,
            f"{backup.manifest.content.rows:,}",
            str(backup.manifest.content.schema_version),
            "yes" if backup.manifest.tested_at else "no",
            _remarks(backup),
        )
        for backup in found
    ]
    return tables.aligned(("name", "time", "size", "engine", "rows", "version", "proved", "remarks"), rows)


def _remarks(backup: Backup) -> str:
    problem = [f"PROBLEM: {backup.missing}"] if backup.missing else []
    return "; ".join([*problem, *_torn(backup), *([backup.manifest.purpose] if backup.manifest.purpose else [])])


def _verify(settings: Settings, call: Call, progress: Progress) -> Answer:
    options = call.options
    trusts = _trusts(options)
    backup = backups.find(options.file, options.dir, settings, name=options.name)
    backups.verify(
        backup,
        settings,
        test_restore=options.test_restore,
        trust_source=trusts,
        lock_timeout=_wait(options),
        progress=progress,
    )
    did = "verified, restored and compared" if options.test_restore else "verified"
    document = {**backup.to_json(), "verified": True, "test_restored": options.test_restore}
    return Answer(call.named(document), [_done(f"Backup {did}: {_described(backup)}"), f"   {call.line}"])


def _restore(settings: Settings, call: Call, progress: Progress) -> Answer:
    options = call.options
    backup = backups.find(options.file, options.dir, settings, name=options.name)
    if options.to:
        call.name(_other(settings, options.to))
    done = backups.restore(
        backup,
        settings,
        options.dir,
        to=options.to,
        name=options.name,
        force=options.force,
        safety_backup=not options.no_safety_backup,
        trust_source=options.trust_source,
        lock_timeout=_wait(options),
        progress=progress,
    )
    lines = [_done(f"Restored {done.target} from {done.backup.file}: {_holds(backup)}"), f"   {call.line}"]
    if done.safety:
        lines.append(f"   what was there before: {done.safety.file}")
    lines += [f"   put aside, yours to look at and to remove: {place}" for place in done.kept]
    return Answer(call.named(done.to_json()), lines)


def _other(settings: Settings, place: str) -> SqliteTarget | PostgresTarget:
    """Return the target of --to; the restore itself refuses a name that is neither a file nor a database."""
    target = settings.target
    if looks_like_dsn(place):
        return target
    return parse_sqlite(place) if isinstance(target, SqliteTarget) else target.to(place)


def _prune(settings: Settings, call: Call, progress: Progress) -> Answer:
    options = call.options
    pruned = backups.prune(
        settings,
        options.dir,
        _policy(options),
        name=options.name,
        dry_run=options.dry_run,
        lock_timeout=_wait(options),
        progress=progress,
    )
    document = {"dry_run": options.dry_run, "backups": [p.to_json() for p in pruned]}
    return Answer(call.named(document), [*_fates(pruned, options.dry_run), call.line])


def _fates(pruned: list[backups.Pruned], dry_run: bool = False) -> list[str]:
    fates = {"deleted": "would be deleted"} if dry_run else {}
    return [f"   {fates.get(p.fate, p.fate)}: {p.backup.file.name} ({'; '.join(p.reasons)})" for p in pruned]


def _policy(options: argparse.Namespace) -> Policy:
    return Policy(options.keep_last, options.keep_daily, options.keep_weekly, options.keep_monthly)


def _wait(options: argparse.Namespace) -> float:
    given = getattr(options, "lock_timeout", None)
    return LOCK_SECONDS if given is None else seconds_of("--lock-timeout", given)


def _described(backup: Backup) -> str:
    manifest = backup.manifest
    facts = [_size(manifest.size), _holds(backup)]
    if manifest.tested_at:
        facts.append("restored and compared")
    facts += _torn(backup)
    if manifest.purpose:
        facts.append(manifest.purpose)
    return f"{backup.file} ({', '.join(facts)})"


def _torn(backup: Backup) -> list[str]:
    torn = len(backup.manifest.content.distributed)
    return [f"torn: {torn} distributed {'table' if torn == 1 else 'tables'}, not of one moment"] if torn else []


def _holds(backup: Backup) -> str:
    content = backup.manifest.content
    return f"{content.rows} rows in {len(content.tables)} tables, version {content.schema_version}"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


_VERBS: dict[str, Callable[[Settings, Call, Progress], Answer]] = {
    "create": _create,
    "list": _list,
    "verify": _verify,
    "restore": _restore,
    "prune": _prune,
}
