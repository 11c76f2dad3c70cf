"""PostgreSQL: pg_dump, with fingerprints of its own snapshot."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whatspire_db.backup.manifest import Content, Progress
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import (
    BackupFailed,
    NothingToBackUp,
)

from . import tools as pg_tools
from .citus import distributed_in, require_of_one_moment
from .content import Source, content_of, details_of, hashing_for, hidden_from, sequences_of, sources_of
from .emptiness import is_empty
from .server import Session, database_of, milliseconds, session
from .swapping import replaced
from .verifying import check
from .waiting import Guard, run

logger = logging.getLogger("whatspire_db.backup")

SUFFIX = ".dump"
GUARD_SECONDS = 2.0  # pg_dump's own limit, which names nobody, is for where its waits cannot be watched
FULL_BYTES = 1 << 20  # of a disk that has no more than this, a program that fails most likely wanted more
LEVELS = {"none": "0", "gzip": "1", "zstd": "zstd:3"}


def source_of(target: PostgresTarget) -> str:
    """Return what tells a database from those of its name on other servers."""
    with session(target) as asked:
        system, name = asked.rows("SELECT system_identifier, current_database() FROM pg_catalog.pg_control_system()")[0]
    return f"postgres {system} {name}"


def dump(
    target: PostgresTarget, draft: Path, method: str, wait: float, progress: Progress, *, accept_torn: bool = False
) -> Content:
    """Write a dump in the custom format into a file that is there, while others write; return what it holds.

    The fingerprints are of the very snapshot that pg_dump reads
    (https://www.postgresql.org/docs/current/functions-admin.html, pg_export_snapshot).

    :param wait: seconds to wait for others' locks.
    :param accept_torn: see `require_of_one_moment`.
    """
    with session(target) as reading:
        target = reading.pinned(target)
        tool = pg_tools.find("pg_dump", reading.major, "the server")
        pg_tools.require_taken(tool, reading.major, pg_tools.how_to_get("pg_dump", reading.major))
        reading.rows("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        reading.rows(f"SET LOCAL lock_timeout = {milliseconds(wait)}")
        sources = sources_of(reading)
        _require_something(reading, target)
        _tell_what_was_replaced(reading)
        _require_all_rows(reading)
        torn = _accepted(reading, accept_torn)
        if not (in_recovery := reading.value("SELECT pg_is_in_recovery()")):
            _hold(reading, sources)
        (size,) = reading.rows("SELECT pg_database_size(current_database())")[0]
        arguments = [*_arguments(reading, method, wait, in_recovery), f"--file={draft}"]
        # No snapshot holds for sequences: the dump's must not be behind these.
        sequences = sequences_of(reading)
        known = {"dumped_by": tool.major, "sequences": sequences, **torn}
        with (
            hashing_for(reading, sources) as hashing,
            _beside(reading, lambda: content_of(reading, hashing, sources, known | details_of(reading))) as content,
        ):
            with Guard(target, wait).watching() as watched:
                run_dump(tool, arguments, watched, draft, lambda: progress("dumping", draft.stat().st_size, size))
            found = content()
        reading.rows("ROLLBACK")
    check(draft, tool.major, progress)
    return found


def _hold(reading: Session, sources: Sequence[Source]) -> None:
    """Let nobody drop or rewrite a table until its rows are read."""
    if sources:
        names = ", ONLY ".join(source.name for source in sources)
        reading.rows(f"LOCK TABLE ONLY {names} IN ACCESS SHARE MODE")


def _arguments(reading: Session, method: str, wait: float, in_recovery: bool) -> list[str]:
    """Return pg_dump's arguments for a dump of the session's own snapshot."""
    return [
        "--format=custom",
        f"--compress={LEVELS[method]}",
        f"--snapshot={reading.value('SELECT pg_export_snapshot()')}",
        f"--lock-wait-timeout={int((wait + GUARD_SECONDS) * 1000)}",
        encoding_option(reading),
        *(["--no-unlogged-table-data"] if in_recovery else []),
    ]


def _require_something(reading: Session, target: PostgresTarget) -> None:
    if is_empty(reading):
        raise NothingToBackUp(
            f"database {database_of(target)} holds nothing to back up", "migrate it first, or check the DSN"
        )


def _tell_what_was_replaced(reading: Session) -> None:
    for other in replaced(reading, reading.value("SELECT current_database()")):
        logger.warning("database %s holds what a restore replaced: drop it when nothing of it is needed", other)


def _require_all_rows(reading: Session) -> None:
    """Refuse a backup of what this role sees a part of.

    :raises BackupFailed: when a policy hides rows from it.
    """
    if hidden := hidden_from(reading):
        raise BackupFailed(
            f"row-level security hides rows from this role in {', '.join(hidden)}",
            "use the owner of the tables (where security is not forced on it), or a role with BYPASSRLS",
        )


def _accepted(reading: Session, accept_torn: bool) -> dict[str, Any]:
    """Return what the manifest records about distributed tables, which no dump reads as of one moment.

    :raises BackupTorn: when there are some, unless `accept_torn`.
    """
    distributed = distributed_in(reading)
    require_of_one_moment(distributed, accept_torn)
    return {"distributed": distributed} if distributed else {}


def run_dump(
    tool: pg_tools.Tool, arguments: Sequence[str], target: PostgresTarget, draft: Path, tick: Callable[[], None]
) -> None:
    """Run pg_dump; when it fails for want of room for its file, the hint says so."""

    def is_at_the_start(failure: pg_tools.ToolFailed) -> bool:
        return failure.said.is_first and not draft.stat().st_size

    try:
        run(tool, [*arguments, "--verbose"], target, is_at_the_start, tick)
    except pg_tools.ToolFailed as error:
        if shutil.disk_usage(draft.parent).free < FULL_BYTES:
            error.hint = "make room where the backup is written; nothing was changed"
        elif not draft.stat().st_size and LEVELS["zstd"] in " ".join(arguments):
            error.hint = "use --compress gzip, if this pg_dump was built without zstd; nothing was changed"
        raise


@contextmanager
def _beside(reading: Session, work: Callable[[], Content]) -> Iterator[Callable[[], Content]]:
    """Run what a session reads in a thread during the block; what is given returns its result, or raises its error.

    When the block fails, nobody waits for the rest; when it failed because the session did, that error is raised.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(work)
        except RuntimeError:  # no thread can be started
            raise MemoryError from None
        try:
            yield future.result
        except BaseException as error:
            first = future.exception() if future.done() else None
            reading.cancel(future)
            if first is not None and isinstance(error, BackupFailed):
                raise first from None
            raise


def encoding_option(asked: Session) -> str:
    """Return pg_dump's option for the database's own encoding: its settings may name one that does not hold it all."""
    return f"--encoding={asked.value('SHOW server_encoding')}"
