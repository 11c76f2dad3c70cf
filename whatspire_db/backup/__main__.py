"""The command line: python -m whatspire_db.backup create|list|verify|restore|prune."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from ..command_line import (
    OK,
    Parser,
    add_database_options,
    configure_logging,
    guarded,
    print_json,
    progress_bar,
    read_settings,
    say,
)
from ..errors import WhatspireDBError
from ..settings import Settings, read_duration
from . import making, proving, pruning, restoring
from .archive import Backup, Progress
from .durable import LOCK_SECONDS
from .retention import Policy

logger = logging.getLogger("whatspire_db.backup")
LOG_SECONDS = 10.0
LONGEST_SECONDS = 2_000_000.0
DRAW_SECONDS = 0.1
VERBS = {
    "create": "make a backup while others write; --test-restore proves that it restores",
    "list": "list the backups of the folder, the latest first",
    "verify": "read a backup to its end, and with --test-restore restore it into a scratch place and compare",
    "restore": "verify a backup, back up what is there, and replace it; old or new, never half",
    "prune": "delete the backups of this database that no --keep rule keeps",
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m whatspire_db.backup",
        description="Make backups of a database, prove them, and bring them back.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit: 0; 1 failed; 2 usage; 3 verification failed; 4 target not empty or busy; 5 version mismatch",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)
    parsers = {verb: verbs.add_parser(verb, help=text, description=text) for verb, text in VERBS.items()}
    parsers["create"].add_argument(
        "--to", "--dir", dest="dir", metavar="DIR", help="where to (default: WHATSAPP_DATABASE_BACKUP_DIR, or backups)"
    )
    parsers["create"].add_argument(
        "--compress", metavar="M", help="none, gzip or zstd (default: none; PostgreSQL: gzip)"
    )
    for verb in ("list", "verify", "restore", "prune"):
        parsers[verb].add_argument(
            "--dir", metavar="DIR", help="where the backups are (default: WHATSAPP_DATABASE_BACKUP_DIR, or backups)"
        )
    for verb in ("create", "verify", "restore", "prune"):
        parsers[verb].add_argument(
            "--name",
            metavar="NAME",
            help="how the backups' names begin (default: WHATSAPP_DATABASE_BACKUP_NAME, or the database's)",
        )
    for verb in ("create", "verify"):
        parsers[verb].add_argument(
            "--test-restore", action="store_true", help="restore it into a scratch place, and compare every table"
        )
    for verb in ("verify", "restore"):
        parsers[verb].add_argument(
            "file", nargs="?" if verb == "verify" else None, default="latest", metavar="FILE|latest"
        )
    parsers["restore"].add_argument("--to", metavar="PLACE", help="another file, or another database of the server")
    parsers["restore"].add_argument("--force", action="store_true", help="replace data, after a backup of it")
    parsers["restore"].add_argument("--no-safety-backup", action="store_true", help="replace it without a backup")
    for verb in ("create", "restore", "prune"):
        parsers[verb].add_argument("--lock-timeout", metavar="D", help="wait so long for others' locks (default: 10s)")
    for verb in ("create", "prune"):
        for rule in ("last", "daily", "weekly", "monthly"):
            text = "the last N" if rule == "last" else f"the latest of each of the last N {_PERIODS[rule]}"
            parsers[verb].add_argument(f"--keep-{rule}", type=int, default=0, metavar="N", help=f"keep {text}")
    parsers["prune"].add_argument("--dry-run", action="store_true", help="delete nothing, tell what would be")
    for subparser in parsers.values():
        add_database_options(subparser)
    return parser


_PERIODS = {"daily": "days", "weekly": "weeks", "monthly": "months"}


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit code. Errors are two lines on stderr, a fact and a hint."""
    signal.signal(signal.SIGTERM, _interrupted)
    return guarded(lambda: _run(_parser().parse_args(argv)))


def _interrupted(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _run(options: argparse.Namespace) -> int:
    configure_logging(options)
    logger.setLevel(logging.ERROR if options.quiet else logging.INFO)
    settings = read_settings(options)
    with _Shown(options) as progress:
        answer = _VERBS[options.verb](settings, options, progress)
    if options.json:
        print_json(answer.document)
    elif not options.quiet:
        for line in answer.lines:
            say("✅", line.removeprefix(DONE)) if line.startswith(DONE) else print(line)
    return OK


DONE = "done: "


@dataclass(frozen=True)
class _Answer:
    """What a verb found or did: as a JSON document, and in lines."""

    document: Any
    lines: list[str]


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


def _create(settings: Settings, options: argparse.Namespace, progress: Progress) -> _Answer:
    policy = _policy(options)
    backup = making.create(
        settings,
        options.dir,
        name=options.name,
        compress=options.compress,
        test_restore=options.test_restore,
        lock_timeout=_wait(options),
        progress=progress,
    )
    made = _Answer(backup.to_json(), [f"{DONE}Backup made: {_described(backup)}"])
    if not policy:
        return made
    try:
        pruned = pruning.prune(
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
    return _Answer(made.document | {"pruned": [p.to_json() for p in pruned]}, made.lines + _fates(pruned))


def _list(settings: Settings, options: argparse.Namespace, progress: Progress) -> _Answer:
    backups, others = proving.list_backups(options.dir, settings)
    document = {
        "backups": [{**b.to_json(), "problem": b.missing} for b in backups],
        "others": [{"path": str(o.path), "reason": o.reason} for o in others],
    }
    lines = [_described(b) + (f"; PROBLEM: {b.missing}" if b.missing else "") for b in backups]
    lines += [f"not a backup: {other.reason}" for other in others]
    return _Answer(document, lines or [f"no backups in {options.dir or settings.backup_dir}"])


def _verify(settings: Settings, options: argparse.Namespace, progress: Progress) -> _Answer:
    backup = proving.find(options.file, options.dir, settings, name=options.name)
    proving.verify(backup, settings, test_restore=options.test_restore, progress=progress)
    did = "verified, restored and compared" if options.test_restore else "verified"
    document = {**backup.to_json(), "verified": True, "test_restored": options.test_restore}
    return _Answer(document, [f"{DONE}Backup {did}: {_described(backup)}"])


def _restore(settings: Settings, options: argparse.Namespace, progress: Progress) -> _Answer:
    backup = proving.find(options.file, options.dir, settings, name=options.name)
    done = restoring.restore(
        backup,
        settings,
        options.dir,
        to=options.to,
        name=options.name,
        force=options.force,
        safety_backup=not options.no_safety_backup,
        lock_timeout=_wait(options),
        progress=progress,
    )
    lines = [f"{DONE}Restored {done.target} from {done.backup.file}: {_holds(backup)}"]
    if done.safety:
        lines.append(f"   what was there before: {done.safety.file}")
    lines += [f"   put aside, yours to look at and to remove: {place}" for place in done.kept]
    return _Answer(done.to_json(), lines)


def _prune(settings: Settings, options: argparse.Namespace, progress: Progress) -> _Answer:
    pruned = pruning.prune(
        settings,
        options.dir,
        _policy(options),
        name=options.name,
        dry_run=options.dry_run,
        lock_timeout=_wait(options),
        progress=progress,
    )
    document = {"dry_run": options.dry_run, "backups": [p.to_json() for p in pruned]}
    return _Answer(document, _fates(pruned, options.dry_run))


def _fates(pruned: list[pruning.Pruned], dry_run: bool = False) -> list[str]:
    fates = {"deleted": "would be deleted"} if dry_run else {}
    return [f"   {fates.get(p.fate, p.fate)}: {p.backup.file.name} ({'; '.join(p.reasons)})" for p in pruned]


def _policy(options: argparse.Namespace) -> Policy:
    return Policy(options.keep_last, options.keep_daily, options.keep_weekly, options.keep_monthly)


def _wait(options: argparse.Namespace) -> float:
    if options.lock_timeout is None:
        return LOCK_SECONDS
    # The engines count milliseconds in 32 bits.
    return min(read_duration("--lock-timeout", options.lock_timeout).total_seconds(), LONGEST_SECONDS)


def _described(backup: Backup) -> str:
    manifest = backup.manifest
    facts = [_size(manifest.size), _holds(backup)]
    if manifest.tested_at:
        facts.append("restored and compared")
    if manifest.purpose:
        facts.append(manifest.purpose)
    return f"{backup.file} ({', '.join(facts)})"


def _holds(backup: Backup) -> str:
    content = backup.manifest.content
    return f"{content.rows} rows in {len(content.tables)} tables, version {content.schema_version}"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


_VERBS: dict[str, Callable[[Settings, argparse.Namespace, Progress], _Answer]] = {
    "create": _create,
    "list": _list,
    "verify": _verify,
    "restore": _restore,
    "prune": _prune,
}

if __name__ == "__main__":
    sys.exit(main())
