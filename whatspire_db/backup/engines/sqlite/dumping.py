"""SQLite: copying a file while others write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from peewee import sqlite3  # the library that Peewee uses: two in one process lose rows

from whatspire_db.backup import compression
from whatspire_db.backup.archive import digest
from whatspire_db.backup.durable import new_file
from whatspire_db.backup.manifest import Content, Progress
from whatspire_db.errors import BackupFailed, BackupInvalid, NothingToBackUp
from whatspire_db.files import SQLITE_HEADER

from .content import BUSY, LOCKED, copy_pages, examine, not_openable, opened, own, told, warn_of_fence

SUFFIX = ".sqlite3"
PAGES_A_STEP = 4096
MARK_OF_WAL = 18  # its place in the header: 1, or 2 with a WAL


def dump(source: Path, draft: Path, method: str, wait: float, progress: Progress) -> Content:
    """Write a backup of a database into a file that is there, while others write; return what it holds.

    :param wait: seconds to wait for others' locks.
    :raises BackupFailed: when the source is missing, has no tables, or is damaged.
    """
    if problem := not_openable(source):
        raise problem
    plain = draft if method == "none" else new_file(draft.with_name("plain"))
    with told(source):
        copy_of(source, plain, progress, wait)
    try:
        content = examine(plain, progress, source)
    except BackupInvalid as error:
        raise BackupFailed(error.fact, "restore a backup, or look at the disk") from None
    if not content.tables:
        raise NothingToBackUp(
            f"{source} has no tables: there is nothing to back up", "migrate it first, or check the DSN"
        )
    warn_of_fence(source, plain)
    if method != "none":
        compression.compress(plain, draft, method, progress)
        if compression.digest(draft, method, progress) != digest(plain, progress):
            raise BackupFailed("what was compressed is not what was copied", "look at memory and disk")
        plain.unlink()
    return content


def copy_of(source: Path, draft: Path, progress: Progress, wait: float = 5.0) -> None:
    """Copy a database, with what is still in its WAL, as of one moment.

    The snapshot is pinned by a read transaction: an unpinned copy begins again whenever somebody writes
    (https://www.sqlite.org/backup.html).
    """
    with opened(source, busy=wait) as live, own(draft) as target:
        live.execute("BEGIN")
        live.execute("SELECT count(*) FROM sqlite_master").fetchone()
        back_up(live, target, PAGES_A_STEP, lambda done, total: progress("copying", done, total))
        live.execute("ROLLBACK")
    _without_wal(draft)


def back_up(
    source: sqlite3.Connection, target: sqlite3.Connection, pages: int, tell: Callable[[int, int], None]
) -> None:
    """Copy all pages into a file of our own, which needs no journal: it is nothing until it is whole and synced."""
    target.execute("PRAGMA journal_mode = OFF")
    target.execute("PRAGMA synchronous = OFF")

    def stepped(status: int, remaining: int, total: int) -> None:
        if status in (BUSY, LOCKED):
            raise _Locked("database is locked")
        tell(total - remaining, total)

    copy_pages(source, target, pages, stepped)


class _Locked(sqlite3.OperationalError):
    sqlite_errorcode = BUSY


def _without_wal(path: Path) -> None:
    """Have a copy say of itself that it has no WAL (https://www.sqlite.org/fileformat2.html, 1.3.3)."""
    with path.open("r+b") as file:
        if file.read(len(SQLITE_HEADER)) == SQLITE_HEADER:
            file.seek(MARK_OF_WAL)
            file.write(b"\x01\x01")
