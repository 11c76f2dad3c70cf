"""PostgreSQL: a restore beside the database, compared with the backup, and a swap by rename."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from whatspire_db import messages
from whatspire_db.backup.archive import Backup
from whatspire_db.backup.durable import new_file, undisturbed
from whatspire_db.backup.manifest import Content
from whatspire_db.connection.patience import patient
from whatspire_db.dsn.redaction import redact
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import (
    BackupFailed,
    TargetRefused,
    WhatspireDBError,
)
from whatspire_db.migrate.schema import NOTES

from ..base import Restoration
from . import tools as pg_tools
from .afterwards import warn_of_subscriptions
from .citus import warn_of_lost_distribution
from .content import sources_of
from .dumping import encoding_option, logger, run_dump
from .emptiness import ANY_LARGE_OBJECT, has_rows, is_empty
from .filling import fill
from .properties import apply_properties, database_properties
from .scratch import drop, scratch
from .server import Session, maintenance, milliseconds, session
from .slots import require_no_slots, slots_of
from .swapping import alone, end_restoring, old_name, rename, swap
from .trust import require_trusted
from .verifying import compared, require_fitting, template_of, without_triggers


def restore(target: PostgresTarget, wanted: Restoration) -> None:
    """Bring a database to what a dump holds: made beside it, compared, and swapped for it by rename.

    :param target: names the database; it is made where there is none.
    :raises TargetRefused: when there is data without `force`, or others cannot be sent away.
    :raises SourceNotTrusted: when this role is a superuser and an owner in the dump is not, unless `trust_source`.
    """
    outcome = wanted.outcome
    try:
        _restore(target, wanted)
        warn_of_lost_distribution(wanted.content)
    except KeyboardInterrupt:
        if not outcome.is_done:
            raise
        logger.warning("the restore was done when the interrupt came: what it put aside, if anything, is kept")
    except WhatspireDBError as error:
        if outcome.safety:
            error.hint += f"; what is there is in the backup {outcome.safety.file}"
        raise


def _restore(target: PostgresTarget, wanted: Restoration) -> None:
    name = target.arguments["dbname"]
    with maintenance(target, name) as admin, alone(admin, name):
        target = admin.pinned(target)
        require_fitting(admin, wanted.content)
        require_trusted(admin, wanted.file, wanted.content.details["dumped_by"], wanted.trust_source)
        quiet = without_triggers(admin, target)
        properties = database_properties(admin, name)
        if properties is None:
            _make(admin, target, quiet, wanted)
        elif _is_empty_at(quiet):
            _fill_empty(admin, target, quiet, wanted)
        else:
            _replace(admin, target, quiet, wanted, properties)


def _fill_empty(admin: Session, target: PostgresTarget, quiet: PostgresTarget, wanted: Restoration) -> None:
    """Fill a database that is there and holds nothing.

    :param quiet: the target, whose sessions fire no triggers by beginning.
    """
    with _told_if_filled(admin, quiet):
        fill(target, wanted.file, wanted.content, wanted.work, wanted.progress)
        _require_same(quiet, wanted.content, "drop the database and restore again")
        warn_of_subscriptions(quiet)
        wanted.outcome.is_done = True


@contextmanager
def _filled(
    admin: Session, target: PostgresTarget, quiet: PostgresTarget, wanted: Restoration, properties: Mapping[str, Any]
) -> Iterator[str]:
    """Give the name of a new database that holds what the dump holds; it is dropped unless it gets another name."""
    with scratch(admin, properties, template_of(admin, target, wanted.content)) as new:
        apply_properties(admin, new, properties, on_trial=True)  # better refused now than when all is done
        fill(target.to(new), wanted.file, wanted.content, wanted.work, wanted.progress)
        _require_same(quiet.to(new), wanted.content, "nothing was changed")
        yield new


def _make(admin: Session, target: PostgresTarget, quiet: PostgresTarget, wanted: Restoration) -> None:
    """Make the database where there is none of its name."""
    properties = wanted.content.details["database"]
    with _filled(admin, target, quiet, wanted, properties) as new:
        apply_properties(admin, new, properties)
        with undisturbed():
            rename(admin, new, target.arguments["dbname"])
            wanted.outcome.is_done = True
        warn_of_subscriptions(quiet)


def _replace(
    admin: Session, target: PostgresTarget, quiet: PostgresTarget, wanted: Restoration, properties: Mapping[str, Any]
) -> None:
    """Make the database beside the one that is there, and swap the two."""
    name, outcome = target.arguments["dbname"], wanted.outcome
    if _holds_rows(quiet, wanted.wait) and not wanted.force:
        raise TargetRefused(f"database {name} holds data", "--force makes a backup of it, and replaces it")
    require_no_slots(admin, name)
    with _filled(admin, target, quiet, wanted, properties) as new:
        outcome.safety = wanted.safety.make()
        properties = database_properties(admin, name) or properties  # others may have changed them meanwhile
        apply_properties(admin, new, properties)
        require_no_slots(admin, name)  # one may have been made meanwhile
        old = old_name(admin, name, datetime.now(timezone.utc))
        wanted.progress("swapping", 0, 0)
        with maintenance(target, name) as ender, undisturbed():
            swap(admin, ender, target, new, name, old, wanted.wait)
            outcome.kept, outcome.is_done = (old,), True
    try:
        warn_of_subscriptions(quiet)
        _drop_if_saved(admin, quiet.to(old), properties, wanted)
    except Exception as error:  # the restore is done: what cannot be compared or dropped is kept, with a warning
        why = redact(messages.first_line(error), target.secrets)
        told = "database %s is kept, because it could not be compared or dropped (%s): drop it when you do not need it"
        logger.warning(told, old, why)


def _drop_if_saved(admin: Session, old: PostgresTarget, properties: Mapping[str, Any], wanted: Restoration) -> None:
    """Drop the database that was replaced, unless it holds something that its backup does not."""
    name, safety = old.arguments["dbname"], wanted.outcome.safety
    same = database_properties(admin, name) == properties
    if slots := slots_of(admin, name):
        logger.warning("database %s is kept: replication slots were made in it meanwhile: %s", name, slots)
    elif safety is None or (same and _is_saved(old, safety, wanted.work)):
        with undisturbed():
            drop(admin, name)
            wanted.outcome.kept = ()


@contextmanager
def _told_if_filled(admin: Session, target: PostgresTarget) -> Iterator[None]:
    """Say so when an interrupt leaves a database filled that was empty before."""
    try:
        yield
    except KeyboardInterrupt:
        name = target.arguments["dbname"]
        with undisturbed(), patient(0):
            end_restoring(admin, name)  # else it could commit after the look at what it did
            if _is_empty_at(target):
                raise
        raise KeyboardInterrupt(
            f"interrupted when database {name}, which was empty, had been filled from the backup",
            "that was neither compared nor analyzed: drop the database and restore again",
        ) from None


def _require_same(target: PostgresTarget, content: Content, hint: str) -> None:
    if lines := compared(target, content):
        raise BackupFailed(f"what was restored differs: {lines[0]}", hint)


def _is_saved(old: PostgresTarget, safety: Backup, work: Path) -> bool:
    """Tell whether a database that was replaced holds nothing that was written, or made, after its backup."""
    if compared(old, safety.manifest.content):
        return False
    with session(old) as asked:
        tool = pg_tools.find("pg_dump", asked.major, "the server")
        encoding = encoding_option(asked)
    now = new_file(work / "schema")
    run_dump(tool, ["--format=custom", "--schema-only", f"--file={now}", encoding], old, now, lambda: None)
    return _schema(now, tool.major) == _schema(safety.file, tool.major)


def _schema(file: Path, dumped_by: int) -> list[str]:
    """Return the statements of a dump that make what holds no data, in an order of their own."""
    tool = pg_tools.find("pg_restore", dumped_by, "the dump")
    text = pg_tools.run(tool, ["--schema-only", "--file=-", str(file)], None)
    # The key of these lines is another one in each run.
    parts = re.split(r"\n--\n(?=-- (?:Name: |PostgreSQL ))", re.sub(r"(?m)^\\(un)?restrict .*$", "", text))
    return sorted(part for part in parts if "; Type: MATERIALIZED VIEW DATA; " not in part.partition("\n")[0])


def _is_empty_at(target: PostgresTarget) -> bool:
    with session(target) as asked:
        return is_empty(asked)


def _holds_rows(target: PostgresTarget, wait: float) -> bool:
    """Tell whether any table has a row, but for the migrator's own, or there is a large object."""
    with session(target) as asked:
        asked.rows(f"SET lock_timeout = {milliseconds(wait)}")
        if asked.value(ANY_LARGE_OBJECT):
            return True
        sources = [one for one in sources_of(asked) if one.name.rpartition(".")[2] not in NOTES]
        return any(has_rows(asked, source) for source in sources)
