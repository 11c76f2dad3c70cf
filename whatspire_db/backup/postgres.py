"""PostgreSQL: pg_dump with fingerprints of its own snapshot; a restore beside the database, and a swap by rename."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from ..dsn import PostgresTarget
from ..errors import (
    BackupFailed,
    BackupInvalid,
    NothingToBackUp,
    TargetRefused,
    VersionMismatch,
    WhatspireDBError,
)
from . import pg_tools
from .archive import Backup, Content, Progress, differences, silent
from .durable import new_file, undisturbed
from .pg_content import (
    ANY_LARGE_OBJECT,
    EXTENSIONS,
    content_of,
    details_of,
    has_rows,
    is_empty,
    sequences_of,
    sources_of,
)
from .pg_filling import fill
from .pg_server import (
    Session,
    alone,
    apply_properties,
    database_of,
    database_properties,
    drop,
    end_restoring,
    maintenance,
    may_act_for,
    old_name,
    quoted,
    rename,
    replaced,
    require_direct,
    scratch,
    session,
    swap,
)

logger = logging.getLogger("whatspire_db.backup")

SUFFIX = ".dump"
MAGIC = b"PGDMP"
LEVELS = {"none": "0", "gzip": "1", "zstd": "zstd:3"}


def source_of(target: PostgresTarget) -> str:
    """Return what tells a database from those of its name on other servers."""
    with session(target) as asked:
        system, name = asked.rows("SELECT system_identifier, current_database() FROM pg_catalog.pg_control_system()")[0]
    return f"postgres {system} {name}"


# Making


def dump(target: PostgresTarget, draft: Path, method: str, wait: float, progress: Progress) -> Content:
    """Write a dump in the custom format into a file that is there, while others write; return what it holds.

    The fingerprints are of the very snapshot that pg_dump reads
    (https://www.postgresql.org/docs/current/functions-admin.html, pg_export_snapshot).

    :param wait: seconds to wait for others' locks.
    """
    with session(target) as reading:
        target = reading.pinned(target)
        tool = pg_tools.find("pg_dump", reading.major, "the server")
        pg_tools.require_taken(tool, reading.major, pg_tools.how_to_get("pg_dump", reading.major))
        reading.rows("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        reading.rows(f"SET LOCAL lock_timeout = {int(wait * 1000)}")
        sources = sources_of(reading)
        if is_empty(reading):
            raise NothingToBackUp(
                f"database {database_of(target)} holds nothing to back up", "migrate it first, or check the DSN"
            )
        for other in replaced(reading, reading.value("SELECT current_database()")):
            logger.warning("database %s holds what a restore replaced: drop it when nothing of it is needed", other)
        in_recovery = reading.value("SELECT pg_is_in_recovery()")
        if sources and not in_recovery:
            names = ", ONLY ".join(source.name for source in sources)
            reading.rows(f"LOCK TABLE ONLY {names} IN ACCESS SHARE MODE")
        (size,) = reading.rows("SELECT pg_database_size(current_database())")[0]
        arguments = [
            "--format=custom",
            f"--compress={LEVELS[method]}",
            f"--snapshot={reading.value('SELECT pg_export_snapshot()')}",
            f"--lock-wait-timeout={int(wait * 1000)}",
            f"--file={draft}",
            _encoding(reading),
        ]
        if in_recovery:
            arguments.append("--no-unlogged-table-data")
        # No snapshot holds for sequences: the dump's must not be behind these.
        sequences = sequences_of(reading)
        known = {"dumped_by": tool.major, "sequences": sequences}
        with _beside(reading, lambda: content_of(reading, sources, known | details_of(reading))) as content:
            pg_tools.run(tool, arguments, target, lambda: progress("dumping", draft.stat().st_size, size))
            found = content()
        reading.rows("ROLLBACK")
    check(draft, tool.major, progress)
    return found


@contextmanager
def _beside(reading: Session, work: Callable[[], Content]) -> Iterator[Callable[[], Content]]:
    """Run what a session reads in a thread during the block; what is given returns its result, or raises its error.

    When the block fails, nobody waits for the rest; when it failed because the session did, that error is raised.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            yield future.result
        except BaseException as error:
            first = future.exception() if future.done() else None
            reading.cancel(future)
            if first is not None and isinstance(error, BackupFailed):
                raise first from None
            raise


def _quiet(asked: Session, target: PostgresTarget) -> PostgresTarget:
    """Return a target whose sessions fire no triggers by beginning, which may write; where this role may have it so."""
    if asked.major < 17 or not asked.is_superuser:
        return target
    options = f"{target.arguments.get('options', '')} -c event_triggers=off".strip()
    return PostgresTarget({**target.arguments, "options": options})


def _encoding(asked: Session) -> str:
    """Return pg_dump's option for the database's own encoding: its settings may name one that does not hold it all."""
    return f"--encoding={asked.value('SHOW server_encoding')}"


# Verifying


def check(file: Path, dumped_by: int, progress: Progress = silent) -> None:
    """Read a dump to its end.

    :param dumped_by: the major version of the program that made it.
    :raises BackupInvalid: when it is none, or damaged.
    """
    with file.open("rb") as raw:
        if raw.read(len(MAGIC)) != MAGIC:
            raise BackupInvalid(f"{file.name} is not a dump in PostgreSQL's custom format", "take another backup")
    progress("reading the dump", 0, 0)
    tool = pg_tools.find("pg_restore", dumped_by, "the dump")
    try:
        pg_tools.run(tool, ["--file=/dev/null", str(file)], None)
    except BackupFailed as error:
        raise BackupInvalid(f"{file.name} is damaged: {error.fact}", "take another backup") from None


def test_restore(target: PostgresTarget, file: Path, content: Content, work: Path, progress: Progress) -> list[str]:
    """Restore a dump into a scratch database of the server and return in what that differs."""
    with maintenance(target) as admin:
        require_direct(admin)
        target = admin.pinned(target)
        require_fitting(admin, content)
        with scratch(admin, content.details["database"], _template(admin, target, content)) as name:
            fill(target.to(name), file, content, work, progress)
            return compared(_quiet(admin, target.to(name)), content)


def _template(admin: Session, target: PostgresTarget, content: Content) -> str:
    """Return what a scratch database is copied from: where this role may not make extensions, what holds them."""
    if not content.extensions or admin.is_superuser:
        return "template0"
    with session(target.to("template1")) as template:
        there = {name for name, _, _ in template.rows(EXTENSIONS)}
        fits = there >= content.extensions.keys() and is_empty(template)
    return "template1" if fits else "template0"


def require_fitting(admin: Session, content: Content) -> None:
    """Refuse a backup of a later server than this one, or one that cannot be restored here.

    :raises VersionMismatch: when it is, or when it holds an extension that is not to be had here in its version.
    :raises TargetRefused: when a role is missing that it names otherwise than as an owner or grantee.
    """
    major = content.details["major"]
    if major > admin.major:
        raise VersionMismatch(
            f"the backup is of PostgreSQL {major}, and this server is of version {admin.major}",
            f"restore it on a server of version {major} or later",
        )
    available = dict(admin.rows("SELECT name, default_version FROM pg_catalog.pg_available_extensions"))
    for name, version in content.extensions.items():
        if name not in available:
            raise VersionMismatch(
                f"the backup holds the extension {name} {version}, which this server does not have",
                f"install it on the server: {name} {version} or later",
            )
        if _numbers(available[name]) < _numbers(version):
            raise VersionMismatch(
                f"the backup holds the extension {name} {version}, and this server has {available[name]}",
                f"install {name} {version} or later on the server",
            )

    _require_named_roles(admin, content.details["roles"])


def _require_named_roles(admin: Session, roles: Mapping[str, Sequence[str]]) -> None:
    named = roles.get("named", ())
    if missing := sorted(set(named) - may_act_for(admin, named).keys()):
        raise TargetRefused(
            f"policies or user mappings of the backup name roles that are not there: {', '.join(missing)}",
            "; ".join(f"CREATE ROLE {quoted(name)}" for name in missing)
            + "; or drop what names them, and make another backup",
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def compared(target: PostgresTarget, content: Content) -> list[str]:
    """Return in what a database differs from a backup's content."""
    with session(target) as reading:
        # A later version of an extension may have more of them.
        sources = [one for one in sources_of(reading) if not one.is_extensions or one.name in content.tables]
        found = content_of(reading, sources, {"sequences": sequences_of(reading)})
    return differences(replace(content, details={"sequences": content.details["sequences"]}), found)


# Restoring


@dataclass(frozen=True)
class Outcome:
    """What a restore did besides: the backup of what was there, and the database that still holds it."""

    safety: Backup | None = None
    kept_database: str | None = None


def restore(
    target: PostgresTarget,
    file: Path,
    content: Content,
    *,
    force: bool,
    keep: Callable[[], Backup] | None,
    work: Path,
    progress: Progress,
    wait: float = 0,
) -> Outcome:
    """Bring a database to what a dump holds: made beside it, compared, and swapped for it by rename.

    :param target: names the database; it is made where there is none.
    :param keep: makes a backup of what is about to be replaced; None where that was not wanted.
    :param wait: seconds to wait for others' locks; 0 for ever.
    :raises TargetRefused: when there is data without `force`, or others cannot be sent away.
    """
    done: list[Outcome] = []
    made: list[Backup] = []

    def kept(given: Callable[[], Backup]) -> Backup:
        made.append(given())
        return made[0]

    try:
        _restore(
            target,
            file,
            content,
            done,
            force=force,
            keep=partial(kept, keep) if keep else None,
            work=work,
            progress=progress,
            wait=wait,
        )
    except KeyboardInterrupt:
        if not done:
            raise
        logger.warning("the restore was done when the interrupt came: what it put aside, if anything, is kept")
    except WhatspireDBError as error:
        if made:
            error.hint += f"; what is there is in the backup {made[0].file}"
        raise
    return done[-1]


def _restore(
    target: PostgresTarget,
    file: Path,
    content: Content,
    done: list[Outcome],
    *,
    force: bool,
    keep: Callable[[], Backup] | None,
    work: Path,
    progress: Progress,
    wait: float,
) -> None:
    """Do the work of `restore`, and put into `done` what holds as soon as the database is the new one."""
    name = target.arguments["dbname"]
    with maintenance(target, name) as admin, alone(admin, name):
        target = admin.pinned(target)
        require_fitting(admin, content)
        quiet = _quiet(admin, target)
        properties = database_properties(admin, name)
        if properties is not None and _is_empty_at(quiet):
            with _told_if_filled(admin, quiet):
                fill(target, file, content, work, progress)
                _require_same(quiet, content, "drop the database and restore again")
                done.append(Outcome())
            return
        holds_rows = properties is not None and _holds_rows(quiet, wait)
        if holds_rows and not force:
            raise TargetRefused(f"database {name} holds data", "--force makes a backup of it, and replaces it")
        likeness = properties or content.details["database"]
        with scratch(admin, likeness, _template(admin, target, content)) as new:
            apply_properties(admin, new, likeness, on_trial=True)  # better refused now than when all is done
            fill(target.to(new), file, content, work, progress)
            _require_same(quiet.to(new), content, "nothing was changed")
            if properties is None:
                apply_properties(admin, new, likeness)
                with undisturbed():
                    rename(admin, new, name)
                    done.append(Outcome())
                return
            safety = keep() if keep else None
            properties = database_properties(admin, name) or properties  # others may have changed them meanwhile
            apply_properties(admin, new, properties)
            old = old_name(admin, name, datetime.now(timezone.utc))
            progress("swapping", 0, 0)
            with undisturbed():
                swap(admin, target, new, name, old, wait)
                done.append(Outcome(safety, old))
        with suppress(Exception):  # the restore is done: what cannot be looked at, or dropped, is kept and told
            same = database_properties(admin, old) == properties
            if safety is None or (same and _is_saved(quiet.to(old), safety, work)):
                with undisturbed():
                    drop(admin, old)
                    done.append(Outcome(safety))


@contextmanager
def _told_if_filled(admin: Session, target: PostgresTarget) -> Iterator[None]:
    """Have an interrupt of the block tell so, where a database that was empty before is filled by then."""
    try:
        yield
    except KeyboardInterrupt:
        name = target.arguments["dbname"]
        with undisturbed():
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
        encoding = _encoding(asked)
    now = new_file(work / "schema")
    pg_tools.run(tool, ["--format=custom", "--schema-only", f"--file={now}", encoding], old)
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
        asked.rows(f"SET lock_timeout = {int(wait * 1000)}")
        if asked.value(ANY_LARGE_OBJECT):
            return True
        sources = [one for one in sources_of(asked) if one.name.rpartition(".")[2] != "migration_versions"]
        return any(has_rows(asked, source) for source in sources)
